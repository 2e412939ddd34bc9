# SPDX-License-Identifier: MIT
"""Make a livepatch module from the differences of units."""
