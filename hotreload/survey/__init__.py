# SPDX-License-Identifier: MIT
"""Measure hotreload with random edits, replayed histories, real fixes, and self-comparisons of kernels."""
