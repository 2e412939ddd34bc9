# SPDX-License-Identifier: MIT
"""A guest with the user's modules, from its boot to its end, and who talks to it. See session.py."""
