# SPDX-License-Identifier: MIT
"""What ^C, SIGTERM and a lost terminal do: end us, and leave every ``with`` block that holds something.

A signal handler may raise an exception at any line of Python. In the middle of an import, such an exception
is sometimes lost: callbacks run there whose errors are only printed, and extension modules have made the
interpreter believe that it ended with an unhandled one. So as long as nothing is held, the process just
exits. After ``raise_interrupts``, an interrupt raises KeyboardInterrupt or, in an event loop, cancels what
runs in it.
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
    """From now on, each of SIGNALS ends the process at once, unless it is ignored (as nohup does SIGHUP)."""

    def leave(_number: int, _frame: object) -> None:
        os._exit(INTERRUPTED)

    _answer(leave)


def raise_interrupts() -> None:
    """From now on, SIGNALS raise KeyboardInterrupt.

    Call this before acquiring the first thing that needs to be cleaned up.
    """
    _answer(signal.default_int_handler)


def _answer(handler: Callable[[int, FrameType | None], object]) -> None:
    for number in SIGNALS:
        # Scripts start background programs with SIGINT ignored, and nohup ignores SIGHUP.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, for the main work of the process, but handle all of SIGNALS.

    An interrupt cancels the work, and is raised as KeyboardInterrupt when the work has ended. A second
    interrupt does not wait for that end. asyncio's own handler does this only for SIGINT, and only if that is
    not ignored.
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
            loop.call_soon_threadsafe(lambda: None)  # wake the loop, which may be waiting

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
