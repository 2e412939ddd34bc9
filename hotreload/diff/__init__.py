# SPDX-License-Identifier: MIT
"""What changed between two objects of one unit, and whether a live patch can bring it: pure functions."""
