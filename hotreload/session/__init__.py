# SPDX-License-Identifier: MIT
"""A guest with the user's modules, from its boot to its end, and whoever talks to it. Begin with session.py."""
