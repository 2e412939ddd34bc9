# SPDX-License-Identifier: MIT
"""Each construct of C and of the kernel. A package, so that its guests end with its last test."""
