# SPDX-License-Identifier: MIT
"""Bringing a patch into the guest, and talking to the guest at all."""
