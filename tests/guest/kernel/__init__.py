# SPDX-License-Identifier: MIT
"""Edits of a kernel's own tree. A package, so that its guests end with its last test."""
