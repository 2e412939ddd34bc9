# SPDX-License-Identifier: MIT
"""What ^C, SIGTERM and a lost terminal do: end us, through every ``with`` that holds something.

An exception may come out of any line of Python. In the middle of an import it is at times swallowed, for
callbacks run there whose errors are only printed, and extensions have left the interpreter believing that it
died of it. So while nothing is held yet, the process just leaves; from ``raise_interrupts`` on an interrupt
is a KeyboardInterrupt, or, where an event loop runs, cancels what runs in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leave_at_once() -> None:
    """From now on each of SIGNALS that is not ignored (as nohup has SIGHUP) ends the process."""

    def leave(_number: int, _frame: object) -> None:
        os._exit(INTERRUPTED)

    _answer(leave)


def raise_interrupts() -> None:
    """From now on they are a KeyboardInterrupt: to be called before the first thing that needs an end."""
    _answer(signal.default_int_handler)


def _answer(handler: Callable[[int, FrameType | None], object]) -> None:
    for number in SIGNALS:
        # Scripts start what they leave behind with SIGINT ignored, nohup with SIGHUP.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def run(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, for the process's main work: an interrupt cancels it, and is raised when it has ended.

    A second one does not wait for that end. asyncio's own handler would do this for SIGINT, and only where
    that is not ignored.
    """
    import asyncio

    interrupted = False

    async def interruptible() -> T:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def cancel(_number: int, _frame: object) -> None:
            nonlocal interrupted
            if interrupted:
                raise KeyboardInterrupt
            interrupted = True
            task.cancel()
            loop.call_soon_threadsafe(lambda: None)  # it may be asleep

        _answer(cancel)
        try:
            return await main
        finally:
            raise_interrupts()

    def tell(loop: asyncio.AbstractEventLoop, about: dict[str, Any]) -> None:
        if not isinstance(about.get("exception"), KeyboardInterrupt):
            loop.default_exception_handler(about)

    raise_interrupts()
    with contextlib.closing(main), asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(tell)
        try:
            return runner.run(interruptible())
        except asyncio.CancelledError:
            if interrupted:
                raise KeyboardInterrupt from None
            raise
