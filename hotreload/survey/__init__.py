# SPDX-License-Identifier: MIT
"""The differ measured on a whole kernel: every unit with itself, and every fix between two releases."""
