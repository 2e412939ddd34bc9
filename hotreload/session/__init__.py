# SPDX-License-Identifier: MIT
"""A guest with the user's modules from boot to shutdown, and the commands that talk to it. See session.py."""
