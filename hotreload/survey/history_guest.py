# SPDX-License-Identifier: MIT
"""The guest in which a history is replayed. It is controlled with hotreload's own commands.

Its memory is read through the second QMP socket, which is for users, so that neither the guest nor the
session takes part.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.errors import EnvironmentFault, GuestUnreachableError, HotReloadError
from hotreload.report.console import Console
from hotreload.session.client import cycle
from hotreload.session.control import answer
from hotreload.session.guests import find_session, place_of
from hotreload.survey.history_code import (
    OURS,
    PAGE,
    Names,
    Picture,
    Reader,
    Reading,
    Section,
    Symbol,
    read_replaced,
    read_sections,
    read_symbols,
)
from hotreload.vm.memory import read_memory
from hotreload.vm.monitor import Monitor

# Seconds.
START, PUSH, COMMAND, STOP = 600.0, 300.0, 300.0, 90.0

# Separates the outputs of the commands in OF_MODULES.
CUT = "#cut#\n"
OF_MODULES = (
    "grep -F '[' /proc/kallsyms; echo '#cut#';"
    " for f in /sys/module/*/sections/.*; do [ -f $f ] && echo $f $(cat $f); done; echo '#cut#';"
    " ls -d /sys/kernel/livepatch/*/*/* 2>/dev/null"
)
SPLAT = re.compile(
    r"BUG: |Oops|general protection|KASAN: |UBSAN: |WARNING: |ODEBUG: |_add corruption|_del corruption"
    r"|double fault|possible (?:recursive locking|circular locking)|inconsistent lock state"
    r"|unreferenced object|blocked for more than"
)
# Complaints of a guest whose host is overloaded.
BUSY = re.compile(r"soft lockup|rcu.*stall|workqueue lockup|blocked for more than")

OUTCOME = re.compile(
    r"^\d\d:\d\d:\d\d (live|reloaded|restored|rebooted|no change|undone|redone|refused|rejected|stalled"
    r"|crashed|error|failed)\b",
    re.MULTILINE,
)
CODE = re.compile(r"\bHR\d{4}\b")


@dataclass(frozen=True, slots=True)
class Pushed:
    """The output of `hotreload push`: its last outcome, all codes, and the whole text."""

    outcome: str
    codes: tuple[str, ...]
    text: str


def pushed(status: int, text: str) -> Pushed:
    """Parse the output of a push."""
    words = OUTCOME.findall(text)
    last = words[-1] if words else f"status {status}"
    outcome = "crashed" if "crashed" in words else last
    codes = tuple(dict.fromkeys(CODE.findall(text)))
    return Pushed(outcome, codes, text.strip())


def splats(log: str) -> list[str]:
    """Return the complaints in a kernel's log, without those that an overloaded host causes."""
    return [line for line in log.splitlines() if SPLAT.search(line) and not BUSY.search(line)]


def kind_of(splat: str) -> str:
    """Return a complaint without its time, processor, process and addresses."""
    return re.sub(r"^\[[ \d.]+\] |\b(?:CPU|PID): ?\d+ ?|\b(?:0x)?[0-9a-f]{8,}\b|\d+$", "", splat).strip()


class HistoryGuest:
    """A guest with the modules of a folder. It runs inside ``async with HistoryGuest(..) as guest``."""

    def __init__(self, folder: Path, name: str, kernel: str, load: Sequence[str], scratch: Path) -> None:
        self._folder = folder
        self._name = name
        self._words = ("--kernel", kernel, *(word for each in load for word in ("--load", each)))
        self._scratch = scratch
        self.names: Names | None = None

    async def __aenter__(self) -> HistoryGuest:
        """Raises HotReloadError when the guest does not start."""
        done = await self._command("guest", "start", *self._words, limit=START)
        if not done.ok:
            await self._stop()
            raise HotReloadError(f"the guest does not start: {done.complaint[-2000:]}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _stop(self) -> None:
        with contextlib.suppress(TimeoutError):
            await self._command("guest", "stop", limit=STOP)

    async def _command(self, *words: str, limit: float) -> process.Completed:
        argv = (sys.executable, "-m", "hotreload", "--color", "never", "--guest", self._name, *words)
        return await process.run(argv, cwd=self._folder, timeout=limit)

    async def save(self, checkpoint: str) -> None:
        """Save a checkpoint. Raises HotReloadError."""
        await self._required("guest", "save", checkpoint)

    async def back_to(self, checkpoint: str) -> None:
        """Restore the guest to a checkpoint, even if it has died. Raises HotReloadError."""
        await self._required("guest", "load", checkpoint)

    async def _required(self, *words: str) -> None:
        try:
            done = await self._command(*words, limit=COMMAND)
        except TimeoutError as late:
            raise GuestUnreachableError(f"{' '.join(words)}: no answer in {COMMAND:.0f} s") from late
        if not done.ok:
            raise HotReloadError(f"{' '.join(words)}: {done.complaint[-500:]}")

    async def push(self) -> Pushed:
        """Bring the guest to the current sources."""
        return await self._cycle("push")

    async def undo(self) -> Pushed:
        """Undo the last reload."""
        return await self._cycle("undo")

    async def _cycle(self, verb: str) -> Pushed:
        """Do what the command of that name does, but without starting a process."""
        said = io.StringIO()
        try:
            async with asyncio.timeout(PUSH):
                about = find_session(self._name, self._folder)
                status = await cycle(about, verb, {}, Console(said, color="never"), as_json=False)
        except TimeoutError:
            return Pushed("silence", (), f"no answer within {PUSH:.0f} s")
        except HotReloadError as error:
            return pushed(error.exit_status, f"{said.getvalue()}error[{error.code}]: {error.message}")
        return pushed(status, said.getvalue())

    async def run(self, command: str, stdin: bytes = b"") -> str:
        """Run a shell command in the guest. Return its standard output and error. Raises HotReloadError."""
        import base64

        data = base64.b64encode(stdin).decode()
        try:
            async with asyncio.timeout(COMMAND):
                done = await answer(place_of(self._name), "exec", command=command, stdin=data)
        except TimeoutError as late:
            raise GuestUnreachableError(f"no answer in {COMMAND:.0f} s to: {command[:60]}") from late
        said = (base64.b64decode(done[stream]).decode(errors="replace") for stream in ("stdout", "stderr"))
        return "".join(said)

    async def splats(self) -> list[str]:
        """Return the complaints of its kernel since the last call."""
        return splats(await self.run("dmesg -c"))

    async def leaks(self) -> list[str]:
        """Return what kmemleak finds, if the kernel has it. Scan twice: the first scan may be too early."""
        look = "cd /sys/kernel/debug 2>/dev/null && [ -f kmemleak ] || exit 0;"
        scan = "echo scan >kmemleak; sleep 6; echo scan >kmemleak; cat kmemleak; echo clear >kmemleak"
        said = await self.run(f"mount -t debugfs none /sys/kernel/debug 2>/dev/null; {look} {scan}")
        return [f"kmemleak: {said[:600]}"] if "unreferenced" in said else []

    async def read(self, modules: Sequence[str]) -> dict[str, Reading]:
        """Read each of the modules from the guest's memory. Raises HotReloadError."""
        if self.names is None:
            self.names = Names(read_symbols(await self.run("grep -vF '[' /proc/kallsyms")))
        symbols, sections, replaced = (await self.run(OF_MODULES)).split(CUT)
        every = read_symbols(symbols)
        found = [
            each for each in read_sections(sections) if each.owner in modules or each.owner.startswith(OURS)
        ]
        # Do not read the memory of other modules. Only their names are needed, like the kernel's own.
        owners = {each.owner for each in found}
        pages = await self._pages(found, [each for each in every if each.owner in owners])
        readings = {}
        for module in modules:
            picture = Picture(every, tuple(found), read_replaced(replaced, module), pages)
            readings[module] = await asyncio.to_thread(Reader(picture, self.names).read, module)
        return readings

    async def _pages(self, sections: Sequence[Section], symbols: Sequence[Symbol]) -> dict[int, bytes]:
        places = {each.address & -PAGE for each in sections}
        places |= {each.address & -PAGE for each in symbols}
        # Read some pages more, because a section may go on behind its last symbol.
        wanted = sorted({place + after * PAGE for place in places for after in range(4)})
        shown = await answer(place_of(self._name), "show")
        monitor = Monitor(Path(str(shown["qmp"])))
        await monitor.connect()
        pages: dict[int, bytes] = {}
        try:
            for start, count in runs(wanted):
                pages |= await self._run_of_pages(monitor, start, count)
        finally:
            await monitor.close()
        return pages

    async def _run_of_pages(self, monitor: Monitor, start: int, count: int) -> dict[int, bytes]:
        file = self._scratch / "memory"
        try:
            content = await read_memory(monitor, file, start, count * PAGE)
        except EnvironmentFault:
            if count == 1:
                return {}  # nothing is mapped there
            half = count // 2
            first = await self._run_of_pages(monitor, start, half)
            return first | await self._run_of_pages(monitor, start + half * PAGE, count - half)
        return {start + place: content[place : place + PAGE] for place in range(0, len(content), PAGE)}


def runs(pages: Sequence[int]) -> list[tuple[int, int]]:
    """Group sorted page addresses into contiguous runs: the first address, and the number of pages."""
    found: list[tuple[int, int]] = []
    for page in pages:
        if found and found[-1][0] + found[-1][1] * PAGE == page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page, 1))
    return found
