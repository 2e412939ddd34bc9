# SPDX-License-Identifier: MIT
"""Clean up in a guest before a session leaves it."""

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
    """Run the user's teardown command if the guest still runs. ``say`` gets a message if it fails."""
    if booted.machine.trouble is not None:
        return
    try:
        done = await booted.guest.run(command, timeout=TEARDOWN_LIMIT)
    except (HotReloadError, TimeoutError) as error:
        say(f"the teardown command failed: {str(error) or f'it did not finish within {TEARDOWN_LIMIT:g} s'}")
        return
    if not done.ok:
        say(f"the teardown command ended with status {done.status}: {done.complaint}")


async def take_back(booted: Booted, reloader: Reloader, busy: asyncio.Lock, console: Console) -> None:
    """Remove our patches from somebody else's guest, and report the result to ``console``.

    ``busy`` is the lock that is held while the guest is changed.
    """
    try:
        async with asyncio.timeout(TAKE_BACK_LIMIT), busy:
            report = await reloader.undo(everything=True, leaving=True)
            await reloader.settle()
            # Also a patch whose loading was interrupted.
            await take_off_live(booted.guest)
    except (HotReloadError, TimeoutError) as error:
        console.say(f"the patches stay in the guest: {str(error) or 'it took too long'}")
        return
    if report.outcome is not Outcome.NO_CHANGE:
        console.report(report)
    for name, reasons in reloader.kept_loaded.items():
        console.say(f"{name} stays loaded because of {', '.join(reasons)}")
