# SPDX-License-Identifier: MIT
"""What goes wrong with a guest that runs: its kernel complains, or it answers no more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotreload.deploy.guest import ShellGuest
from hotreload.errors import GuestUnreachableError
from hotreload.report.crash import CrashReport, find_complaints
from hotreload.vm.any_machine import AnyMachine
from hotreload.vm.processors import InKernel

# Seconds between looks at the console's log; and after which a complaint without an end has no more to come.
INTERVAL = 0.1
UNFINISHED = 1.0
# Bytes of console that are read again with each look; a guest that says more is looked at in pieces.
WINDOW = 256 * 1024
OVERLAP = 64 * 1024  # longer than a complaint
# For how long in all a guest that says nothing is asked to let us in: longer than a kernel may go without
# scheduling (the soft lockup detector's 20 s). And one that talks on and on.
PATIENCE = 25.0
LONGEST = 120.0
RETRY = 0.5
REPLACED = (
    "{} is another file now, and read from its beginning; if QEMU writes on to the one of before,"
    " nothing more is heard: copy and truncate it instead"
)


class ConsoleReader:
    """Finds what a kernel complains about, as its console tells it.

    The log of somebody else's console may be truncated, or replaced by another file; ``say`` is told of that.
    """

    def __init__(self, log: Path, say: Callable[[str], None] = lambda _text: None) -> None:
        self.begin = 0  # where that begins in the log which counts
        self._log = log
        self._say = say
        self._file = _identity(log)
        self._read = 0  # where the text begins that is looked at
        self._told = 0  # how many complaints in it were told
        self._is_read = False  # all of it, and after it had been quiet

    def skip(self) -> None:
        """From here on only what is said from now on counts."""
        self.begin = size_of(self._log)
        self._move_to(self.begin)

    async def complaints(self) -> AsyncIterator[CrashReport]:
        """Each as soon as its end was there."""
        seen, since = -1, asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(INTERVAL)
            now, size = asyncio.get_running_loop().time(), size_of(self._log)
            self._follow(size)
            if size != seen:
                seen, since, self._is_read = size, now, False
            elif self._is_read:
                continue
            start, is_quiet = self._read, now - since > UNFINISHED
            said = await asyncio.to_thread(read_log, self._log, start, 2 * WINDOW)
            is_full = said.end - said.begin == 2 * WINDOW
            # Of those that begin before the end of a piece which is full there is no more to come.
            found, ended, rest = await asyncio.to_thread(_complaints, said)
            for number, crash in enumerate(found[self._told :], self._told):
                is_whole = crash.complete or is_quiet or (is_full and number < ended)
                if start != self._read or not is_whole:
                    break
                self._told += 1
                yield crash
            if start != self._read:
                continue
            if is_full or (len(found) == self._told and said.end - said.begin > WINDOW):
                # What has begun at the end of the piece goes on in the next one.
                self._told = max(0, self._told - ended)
                self._read = said.end - rest
            else:
                self._read = max(start, said.begin)
                self._is_read = is_quiet and said.end >= size

    def _follow(self, size: int) -> None:
        file = _identity(self._log)
        if file is not None and file != self._file:
            self._say(REPLACED.format(os.path.realpath(self._log)))
            self._file, size = file, -1
        if size < self._read:  # it was begun anew
            self.begin = 0
            self._move_to(0)

    def _move_to(self, place: int) -> None:
        self._read, self._told, self._is_read = place, 0, False


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of a log, and the offsets where it begins and ends."""

    data: bytes
    begin: int
    end: int

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


def _complaints(said: Said) -> tuple[Sequence[CrashReport], int, int]:
    """Those in a piece; how many of them begin before the last lines of it, and the bytes of those lines."""
    found = find_complaints(said.text)
    if said.end - said.begin <= WINDOW:
        return found, 0, 0
    rest = said.data[-OVERLAP:].partition(b"\n")[2]
    return found, len(found) - len(find_complaints(rest.decode(errors="replace"))), len(rest)


def read_log(log: Path, start: int, limit: int = -1) -> Said:
    """What a log says from an offset on, at most so many bytes of it.

    One that is shorter was begun anew, and is read from its beginning. Who writes to one that was truncated
    goes on where he was, if he did not open it to append: before that is a hole.
    """
    try:
        stream = log.open("rb", buffering=0)
    except FileNotFoundError:
        return Said(b"", 0, 0)
    with stream:
        size = stream.seek(0, os.SEEK_END)
        try:
            place = stream.seek(start if start <= size else 0, os.SEEK_DATA)
        except OSError:  # there is no more
            return Said(b"", size, size)
        data = stream.read(limit) or b""
    return Said(data.replace(b"\0", b""), place, place + len(data))


def _identity(log: Path) -> tuple[int, int] | None:
    try:
        found = log.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def size_of(log: Path) -> int:
    """Bytes of a log; somebody else's may be gone for a moment."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


@dataclass(frozen=True, slots=True)
class Silence:
    """A guest that runs and does not answer. ``stuck``: a processor that does not leave the kernel."""

    stuck: InKernel | None

    @property
    def is_deaf(self) -> bool:
        """Does it not even hear a timer?"""
        return self.stuck is not None and self.stuck.closed


async def until_it_runs(machine: AnyMachine) -> bool:
    """Wait while the guest sleeps, or somebody has paused it: did it? Returns also when it is in trouble.

    Raises GuestUnreachableError when QEMU is gone.
    """
    stood = False
    while machine.trouble is None and await machine.standstill():
        stood = True
        await asyncio.sleep(INTERVAL)
    return stood


async def why_silent(machine: AnyMachine, guest: ShellGuest, console_log: Path) -> Silence | None:
    """Give a guest that failed to answer the time to; None: it does, or has ended.

    Wait while it sleeps, or somebody has paused it, and while its console goes on telling. Who is deaf is not
    waited for.
    """
    try:
        await until_it_runs(machine)
        return await _silence(machine, guest, console_log)
    except GuestUnreachableError:  # QEMU is gone
        await machine.wait_for_trouble()
        return None


async def _silence(machine: AnyMachine, guest: ShellGuest, console_log: Path) -> Silence | None:
    asking = asyncio.create_task(_answers(guest, console_log))
    looking = asyncio.create_task(machine.stuck_processor())
    dying = asyncio.create_task(machine.wait_for_trouble())
    said = size_of(console_log)
    try:
        await asyncio.wait({asking, looking, dying}, return_when=asyncio.FIRST_COMPLETED)
        if looking.done() and not dying.done() and not asking.done():
            first = Silence(looking.result())
            # Who prints has the interrupts off most of the time, and is not stuck.
            if first.is_deaf and size_of(console_log) == said:
                return first
            await asyncio.wait({asking, dying}, return_when=asyncio.FIRST_COMPLETED)
        if dying.done() or asking.result():
            return None
        # What was so in the beginning may be over.
        return Silence(await machine.stuck_processor())
    finally:
        for task in (asking, looking, dying):
            task.cancel()
        await asyncio.gather(asking, looking, dying, return_exceptions=True)


async def _answers(guest: ShellGuest, console_log: Path) -> bool:
    clock = asyncio.get_running_loop().time
    quiet, end = 0.0, clock() + LONGEST
    while True:
        said, since = size_of(console_log), clock()
        try:
            await guest.knock()
        except GuestUnreachableError:
            await asyncio.sleep(RETRY)
            # A watchdog's word now and then is no sign of work.
            if size_of(console_log) == said:
                quiet += clock() - since
            if quiet > PATIENCE or clock() > end:
                return False
        else:
            return True
