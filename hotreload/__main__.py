# SPDX-License-Identifier: MIT
"""``python -m hotreload``, and the command ``hotreload``."""

from __future__ import annotations

import sys

from hotreload import interrupts


def main() -> int:
    """Run the command line and return its exit status."""
    # ^C may come while the command line itself is still being imported.
    interrupts.leave_at_once()
    from hotreload.cli.main import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
