# SPDX-License-Identifier: MIT
"""What ^C, SIGTERM and a lost terminal do: end us, through every ``with`` that holds something.

An exception may come out of any line of Python. In the middle of an import it is at times swallowed, for
callbacks run there whose errors are only printed, and extensions have left the interpreter believing that it
died of it. So while nothing is held yet, the process just leaves; from ``raise_interrupts`` on an interrupt
is a KeyboardInterrupt, or, where an event loop runs, cancels what runs in it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leave_at_once() -> None:
    """From now on each of SIGNALS that is not ignored (as nohup has SIGHUP) ends the process."""

    def leave(_number: int, _frame: object) -> None:
        os._exit(INTERRUPTED)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)


def raise_interrupts() -> None:
    """From now on they are a KeyboardInterrupt: to be called before the first thing that needs an end."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: object) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as scripts start what they leave behind
        raise KeyboardInterrupt
    # The event loop has a handler of its own for this one.
    signal.raise_signal(signal.SIGINT)


def run(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, for the process's main work: an interrupt cancels it, and is raised when it has ended.

    A second one does not wait for that end.
    """
    import asyncio

    def tell(loop: asyncio.AbstractEventLoop, about: dict[str, Any]) -> None:
        if not isinstance(about.get("exception"), KeyboardInterrupt):
            loop.default_exception_handler(about)

    raise_interrupts()
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(tell)
        return runner.run(main)
