# SPDX-License-Identifier: MIT
"""Hot reload for the Linux kernel: save a source file, and the running guest executes it."""

__version__ = "0.1.0"
