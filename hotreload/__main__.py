# SPDX-License-Identifier: MIT
"""``python -m hotreload``, and the command ``hotreload``."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line and return its exit status."""
    # ^C may come while the command line itself is still being imported.
    try:
        _end_like_an_interrupt()
        from hotreload.cli.main import main as command_line

        return command_line()
    except KeyboardInterrupt:
        return 130


def _end_like_an_interrupt() -> None:
    """SIGTERM and a lost terminal end us as ^C does, through every ``with`` that holds something."""

    def interrupt(_number: int, _frame: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as scripts start what they leave behind
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored: so be it
            signal.signal(number, interrupt)


if __name__ == "__main__":
    sys.exit(main())
