# SPDX-License-Identifier: MIT
"""Stage 6: what came of an edit, told to people (console, table) and to programs (ndjson)."""
