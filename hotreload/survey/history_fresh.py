# SPDX-License-Identifier: MIT
"""Run each commit of a history in a guest that has run no other commit, as the reference for reloads.

A guest boots, the driver is unloaded, and a checkpoint is saved. The guest is restored to it before each
commit is loaded. If the modules of a commit cannot be loaded that way, a guest is booted with that commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from hotreload.errors import HotReloadError
from hotreload.survey.command import say
from hotreload.survey.history_code import Reading
from hotreload.survey.history_guest import HistoryGuest, kind_of
from hotreload.survey.history_rows import line_differences
from hotreload.survey.history_source import History, Made, Workload

CLEAN = "without-the-driver"
TRIES = 3  # a guest that has just died may still be recovering
PAUSE = 5.0


@dataclass(frozen=True, slots=True)
class Fresh:
    """The results of a commit in a fresh guest.

    ``printed``: the output of each part of the workload, or None for a part that kills the guest. ``splats``:
    the kinds of the kernel's complaints, which are the driver's own fault.
    """

    made: Made
    printed: tuple[str | None, ...]
    readings: dict[str, Reading]
    splats: frozenset[str] = frozenset()


class FreshGuests:
    """Provides fresh guests: ``async with FreshGuests(..) as guests``.

    ``new_guest`` returns a guest that is not started.
    """

    def __init__(self, history: History, workload: Workload, new_guest: Callable[[], HistoryGuest]) -> None:
        self._history = history
        self._workload = workload
        self._new_guest = new_guest
        self._guest: HistoryGuest | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> FreshGuests:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def found(self, made: Made) -> Fresh:
        """Run the workload of a commit in a fresh guest, and read its modules.

        If a part kills the guest, the guest is restored, and the other parts are run all the same.
        """
        readings: dict[str, Reading] | None = None
        printed: list[str | None] = []
        complaints: list[str] = []
        while readings is None or len(printed) < len(self._workload.parts):
            guest = await self._at(made)
            readings = readings or await guest.read(made.names)
            try:
                await put_files(guest, made)
                while len(printed) < len(self._workload.parts):
                    text = await run_part(guest, self._workload.parts[len(printed)])
                    complaints += await guest.splats()
                    printed.append(text)
            except HotReloadError as error:
                printed.append(None)
                complaints.append(error.message)
        kinds = frozenset(map(kind_of, complaints))
        told = f"{sum(text is not None for text in printed)} of {len(printed)} parts; {'; '.join(kinds)}"
        say(f"{made.commit.name} freshly booted: {told}"[:300])
        return Fresh(made, tuple(printed), readings, kinds)

    async def are_harmful(self, chain: Sequence[Fresh]) -> bool:
        """Return whether commits damage a guest when they are loaded one after the other without any patch.

        A damaged guest dies, complains, cannot unload a module, or prints something else than a fresh one.
        """
        guest = await self._at(chain[0].made)
        try:
            for place, fresh in enumerate(chain):
                if place:
                    await self._unload(guest, chain[place - 1].made)
                    await self._load(guest, fresh.made)
                printed = await all_printed(guest, fresh, self._workload.parts)
                if await guest.splats() or any(map(line_differences, fresh.printed, printed)):
                    return True
        except HotReloadError:
            return True
        return False

    async def _at(self, made: Made) -> HistoryGuest:
        """Return a guest that has loaded the modules of one commit, and no others before."""
        if self._guest is not None:
            for _try in range(TRIES):
                try:
                    await self._guest.back_to(CLEAN)
                    await self._load(self._guest, made)
                    return self._guest
                except HotReloadError:
                    await asyncio.sleep(PAUSE)
        await self._stack.aclose()
        self._guest = None
        await self._history.check_out(made.commit)
        guest = await self._stack.enter_async_context(self._new_guest())
        await self._unload(guest, made)
        await guest.save(CLEAN)
        await self._load(guest, made)
        self._guest = guest
        return guest

    async def _unload(self, guest: HistoryGuest, made: Made) -> None:
        """Unload the modules of a commit. Raises HotReloadError."""
        said = await guest.run(f"rmmod {' '.join(reversed(made.names))} && dmesg -c >/dev/null; echo $?")
        if said.split()[-1:] != ["0"]:
            raise HotReloadError(f"the driver cannot be unloaded: {said[-300:]}")

    async def _load(self, guest: HistoryGuest, made: Made) -> None:
        """Load the modules of a commit. Raises HotReloadError."""
        given = {load.partition(" ")[0]: load.partition(" ")[2] for load in self._workload.load}
        for name, content in made.modules:
            command = f"cat >/tmp/{name}.ko && insmod /tmp/{name}.ko {given.get(name, '')}; echo $?"
            said = await guest.run(command, content)
            if said.split()[-1:] != ["0"]:
                raise HotReloadError(f"{name} cannot be loaded: {said[-300:]}")


async def put_files(guest: HistoryGuest, made: Made) -> None:
    """Copy the files that the host made for the workload into the guest."""
    await guest.run("rm -rf /tmp/workload; mkdir /tmp/workload; tar -C /tmp/workload -xf -", made.files)


async def run_part(guest: HistoryGuest, part: str) -> str:
    """Run a part of the workload, and return its output."""
    return await guest.run("cd /tmp/workload && sh -s 2>&1", part.encode())


async def all_printed(guest: HistoryGuest, fresh: Fresh, parts: Sequence[str]) -> list[str | None]:
    """Run all parts with a known result, and return their output. It is None for the others."""
    await put_files(guest, fresh.made)
    pairs = zip(parts, fresh.printed, strict=True)
    return [None if wanted is None else await run_part(guest, part) for part, wanted in pairs]
