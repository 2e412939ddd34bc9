# SPDX-License-Identifier: MIT
"""From what differs to a livepatch module."""
