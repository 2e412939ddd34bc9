# SPDX-License-Identifier: MIT
"""Stage 6: report the outcome of an edit, to people (console, table) and to programs (ndjson)."""
