# SPDX-License-Identifier: MIT
"""Pure functions: what changed between two objects of one unit, and whether a live patch can carry it."""
