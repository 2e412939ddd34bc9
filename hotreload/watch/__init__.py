# SPDX-License-Identifier: MIT
"""Stage ``watch``: turn saves of files into batches of changes."""
