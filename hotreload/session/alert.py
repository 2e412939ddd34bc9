# SPDX-License-Identifier: MIT
"""Notice trouble in a running guest: its kernel complains, or it stops answering."""

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

# Seconds between two reads of the console log.
INTERVAL = 0.1
# Seconds without output after which a complaint that has no end marker counts as complete.
UNFINISHED = 1.0
# Bytes of console that are read again each time. If the guest prints more, it is read in pieces.
WINDOW = 256 * 1024
OVERLAP = 64 * 1024  # longer than a complaint
# Total seconds of trying to log in to a guest that prints nothing. A kernel may legitimately go without
# scheduling for 20 s (the soft lockup detector's threshold), so this is longer.
PATIENCE = 25.0
# The same for a guest that keeps printing.
LONGEST = 120.0
RETRY = 0.5
REPLACED = (
    "{} was replaced by another file, and is read from its beginning; if QEMU still writes to the old file,"
    " messages are missed: copy and truncate the log instead"
)


class ConsoleReader:
    """Finds a kernel's complaints in its console log.

    If somebody else started the guest, its log may be truncated or replaced by another file. ``say`` is
    called with a message when it was replaced.
    """

    def __init__(self, log: Path, say: Callable[[str], None] = lambda _text: None) -> None:
        self.begin = 0  # offset in the log from which its content counts
        self._log = log
        self._say = say
        self._file = _identity(log)
        self._read = 0  # offset of the piece that is searched
        self._told = 0  # how many complaints of this piece were yielded
        self._is_read = False  # the log was read to its end after the console had been quiet

    def skip(self) -> None:
        """Ignore everything that is in the log so far."""
        self.begin = size_of(self._log)
        self._move_to(self.begin)

    async def complaints(self) -> AsyncIterator[CrashReport]:
        """Yield each complaint as soon as its end was printed."""
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
            # If the piece is full, the complaints that begin before its last lines are complete.
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
                # A complaint that begins at the end of this piece continues in the next one.
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
        if size < self._read:  # it was truncated or replaced
            self.begin = 0
            self._move_to(0)

    def _move_to(self, place: int) -> None:
        self._read, self._told, self._is_read = place, 0, False


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of a log, and the offsets of its beginning and end."""

    data: bytes
    begin: int
    end: int

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


def _complaints(said: Said) -> tuple[Sequence[CrashReport], int, int]:
    """Return the complaints in a piece, how many begin before its last lines, and how many bytes these have.

    Both numbers are 0 for a piece of at most WINDOW bytes.
    """
    found = find_complaints(said.text)
    if said.end - said.begin <= WINDOW:
        return found, 0, 0
    rest = said.data[-OVERLAP:].partition(b"\n")[2]
    return found, len(found) - len(find_complaints(rest.decode(errors="replace"))), len(rest)


def read_log(log: Path, start: int, limit: int = -1) -> Said:
    """Read a log from an offset on, at most ``limit`` bytes; -1: to its end.

    A log that is shorter than the offset was truncated or replaced, and is read from its beginning. If the
    writer did not open a truncated log for appending, it goes on at its old offset. The hole before that
    offset is skipped.
    """
    try:
        stream = log.open("rb", buffering=0)
    except FileNotFoundError:
        return Said(b"", 0, 0)
    with stream:
        size = stream.seek(0, os.SEEK_END)
        try:
            place = stream.seek(start if start <= size else 0, os.SEEK_DATA)
        except OSError:  # no data from here on
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
    """Return the size of a log in bytes, or 0 if it is missing: somebody else's may vanish for a moment."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


@dataclass(frozen=True, slots=True)
class Silence:
    """The state of a guest that runs but does not answer.

    ``stuck``: a processor that does not leave the kernel.
    """

    stuck: InKernel | None

    @property
    def is_deaf(self) -> bool:
        """Return whether the stuck processor does not even handle timer interrupts."""
        return self.stuck is not None and self.stuck.closed


async def until_it_runs(machine: AnyMachine) -> bool:
    """Wait while the guest sleeps or is paused. Return whether it did.

    Also returns when the machine is in trouble. Raises GuestUnreachableError when QEMU is gone.
    """
    stood = False
    while machine.trouble is None and await machine.standstill():
        stood = True
        await asyncio.sleep(INTERVAL)
    return stood


async def why_silent(machine: AnyMachine, guest: ShellGuest, console_log: Path) -> Silence | None:
    """Give a guest that failed to answer more time. Return None if it answers then, or has ended.

    Wait while it sleeps or is paused, and while its console keeps printing. Do not wait for a guest that does
    not even handle timer interrupts.
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
            # A kernel that prints has its interrupts off most of the time, but is not stuck.
            if first.is_deaf and size_of(console_log) == said:
                return first
            await asyncio.wait({asking, dying}, return_when=asyncio.FIRST_COMPLETED)
        if dying.done() or asking.result():
            return None
        # The first look may be outdated by now.
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
            # An occasional message of a watchdog is no sign of progress.
            if size_of(console_log) == said:
                quiet += clock() - since
            if quiet > PATIENCE or clock() > end:
                return False
        else:
            return True
