# SPDX-License-Identifier: MIT
"""Stage ``deploy``: talk to the guest, and bring patches into it."""
