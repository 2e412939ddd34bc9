# SPDX-License-Identifier: MIT
"""What is done in a guest before a session leaves it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from hotreload.errors import HotReloadError
from hotreload.report.console import Console
from hotreload.report.outcome import Outcome
from hotreload.session.boot import Booted
from hotreload.session.found import take_off_live

if TYPE_CHECKING:
    from hotreload.reload import Reloader

# Seconds.
TEARDOWN_LIMIT = 30.0
TAKE_BACK_LIMIT = 40.0


async def tear_down(booted: Booted, command: str, say: Callable[[str], None]) -> None:
    """Run the user's ``command`` in a guest that still runs; ``say`` is told how it failed."""
    if booted.machine.trouble is not None:
        return
    try:
        done = await booted.guest.run(command, timeout=TEARDOWN_LIMIT)
    except (HotReloadError, TimeoutError) as error:
        say(f"the teardown command failed: {str(error) or f'no end in {TEARDOWN_LIMIT:g} s'}")
        return
    if not done.ok:
        say(f"the teardown command ended with status {done.status}: {done.complaint}")


async def take_back(booted: Booted, reloader: Reloader, busy: asyncio.Lock, console: Console) -> None:
    """Leave somebody else's guest without our patches; ``console`` is told what came of it.

    ``busy`` is held by whoever changes the guest.
    """
    try:
        async with asyncio.timeout(TAKE_BACK_LIMIT), busy:
            report = await reloader.undo(everything=True, leaving=True)
            await reloader.settle()
            # Also one whose way into the guest was broken off.
            await take_off_live(booted.guest)
    except (HotReloadError, TimeoutError) as error:
        console.say(f"the guest keeps its patches: {str(error) or 'it took too long'}")
        return
    if report.outcome is not Outcome.NO_CHANGE:
        console.report(report)
    for name, reasons in reloader.kept_loaded.items():
        console.say(f"{name} stays loaded, for {', '.join(reasons)}")
