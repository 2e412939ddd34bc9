# SPDX-License-Identifier: MIT
"""Stage 1: files are saved, batches of changes come out."""
