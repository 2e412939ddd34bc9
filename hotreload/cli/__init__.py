# SPDX-License-Identifier: MIT
"""The command line: verbs become a Config and one call each; there is no logic here. Begin with main.py."""
