# SPDX-License-Identifier: MIT
"""Relocatable x86-64 objects: reading them into names, and writing them. Imports no stage."""
