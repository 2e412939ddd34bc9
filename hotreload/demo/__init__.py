# SPDX-License-Identifier: MIT
"""The demo and the bench: both drive the real ``hotreload watch`` on the example driver."""
