# SPDX-License-Identifier: MIT
"""The actions and observations of the soak: save files as editors do, run commands, read guest and /proc."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.demo.driven import Driven
from hotreload.demo.idle import PROC, descendants, parents, rss_kb
from hotreload.errors import HotReloadError
from hotreload.report.crash import find_crash
from hotreload.report.outcome import ReloadReport
from hotreload.survey.guest_trial import unusual

# Seconds: between the two halves of a file that is saved slowly; how long to wait for a cycle that must not
# come; limits for a read of the guest, and for a command.
SLOWLY = 0.1
SILENCE = 0.5
READING = 30.0
COMMAND = 120.0

OBSERVE = (
    "cat /proc/soak/*; echo '#'; dmesg -c; echo '#'; wc -c </tmp/rounds;"
    " ls /sys/module | grep -c ^hotreload_; sed -n 's/^MemAvailable: *\\([0-9]*\\).*/\\1/p' /proc/meminfo"
)
# The kernel's message when a patch must not overwrite a value that the guest has changed.
VALUE_REFUSED = re.compile(
    r"livepatch: (?:pre-patch callback failed for object|failed to enable patch) '\w+'"
)
TOLD = re.compile(r"^(\S+) (\d+)$")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the guest shows.

    ``lines``       the line of each unit
    ``kept``        the counters
    ``complaints``  of its kernel since the last read
    ``rounds``      of the work that goes on in it
    ``modules``     how many patch modules are loaded
    ``memory_kb``   available memory
    """

    lines: Mapping[str, str]
    kept: Mapping[str, int]
    complaints: tuple[str, ...]
    rounds: int
    modules: int
    memory_kb: int


def seen_in(text: str) -> Seen:
    """Parse the output of OBSERVE. Raises HotReloadError if it is malformed."""
    parts = text.split("#\n")
    numbers = parts[-1].split()
    if len(parts) < 3 or len(numbers) != 3:
        raise HotReloadError(f"the guest answers: {text[-300:]!r}")
    lines: dict[str, str] = {}
    kept: dict[str, int] = {}
    for line in parts[0].splitlines():
        if line.startswith("= "):
            lines[line.split()[1]] = line.removeprefix("= ")
        elif found := TOLD.match(line):
            kept[found[1]] = max(int(found[2]), kept.get(found[1], 0))
    log = "#\n".join(parts[1:-1])
    crash = find_crash(log)
    complaints = [crash.excerpt] if crash else unusual(log)
    return Seen(lines, kept, tuple(complaints), *map(int, numbers))


@dataclass(frozen=True, slots=True)
class Sample:
    """The resources of hotreload and its guest after ``edits`` edits. ``others``: child processes."""

    edits: int
    rss_kb: int
    files: int
    threads: int
    others: int
    modules: int
    memory_kb: int


class SoakSession:
    """A `hotreload watch` of a folder, and the files in that folder."""

    def __init__(self, watch: Driven, folder: Path, seed: int) -> None:
        self.watch = watch
        self._folder = folder
        self._random = random.Random(seed)

    # --- actions ---

    async def save(self, files: Mapping[str, str]) -> None:
        """Save files. Each is written as some editor does it, and several in one go, as tools do."""
        ways = [self._random.choice(("over", "aside", "in place")) for _ in files]
        if len(files) == 1 and self._random.random() < 0.2:
            ways = ["slowly"]
        new = {name: self._folder / f".{name}.new" for name in files}
        for name, text in files.items():
            new[name].write_text(text)
        for (name, text), way in zip(files.items(), ways, strict=True):
            file = self._folder / name
            if way == "over":
                new[name].rename(file)
            elif way == "aside":
                file.rename(file.with_name(f"{name}~"))
                file.write_text(text)
            elif way == "in place":
                file.write_text(text)
            else:
                await self._save_slowly(file, text)
        for name in files:
            new[name].unlink(missing_ok=True)
            (self._folder / f"{name}~").unlink(missing_ok=True)

    @staticmethod
    async def _save_slowly(file: Path, text: str) -> None:
        with file.open("w") as stream:
            stream.write(text[: len(text) // 2])
            stream.flush()
            await asyncio.sleep(SLOWLY)
            stream.write(text[len(text) // 2 :])

    async def pause(self) -> None:
        """Wait for a moment that may be shorter or longer than a cycle."""
        await asyncio.sleep(self._random.choice((0.0, 0.1, 0.3, 0.8)))

    async def command(self, *words: str) -> process.Completed:
        """Run a command of hotreload for this guest."""
        guest = str(self.watch.facts["guest"])
        argv = (sys.executable, "-m", "hotreload", "--guest", guest, *words)
        return await process.run(argv, cwd=self._folder, timeout=COMMAND)

    async def panic(self) -> None:
        """Make the guest's kernel crash."""
        with contextlib.suppress(HotReloadError, TimeoutError):
            async with asyncio.timeout(SILENCE):
                await self.watch.run("echo c >/proc/sysrq-trigger")

    # --- observations ---

    async def report(self) -> ReloadReport:
        """Return the report of the next cycle."""
        return (await self.watch.next_cycle()).report

    async def report_within(self, seconds: float) -> ReloadReport | None:
        """Return the next report, or None if none comes within that time."""
        try:
            async with asyncio.timeout(seconds):
                return await self.report()
        except TimeoutError:
            return None

    async def look(self) -> Seen:
        """Read what the guest shows. Raises HotReloadError and TimeoutError."""
        async with asyncio.timeout(READING):
            return seen_in((await self.watch.run(OBSERVE)).text)

    def sources(self, names: Mapping[str, str]) -> dict[str, str]:
        """Return the contents of the files of these names."""
        return {name: (self._folder / name).read_text() for name in names}

    async def sample(self, edits: int, seen: Seen) -> Sample:
        """Measure hotreload a few times, and take the minima, because it may be compiling ahead."""
        looks = []
        for _ in range(5):
            looks.append(self._look_at_process())
            await asyncio.sleep(0.1)
        rss, files, threads, others = map(min, zip(*looks, strict=True))
        return Sample(edits, rss, files, threads, others, seen.modules, seen.memory_kb)

    def _look_at_process(self) -> tuple[int, int, int, int]:
        place = PROC / str(self.watch.pid)
        others = descendants(self.watch.pid, parents())
        return (
            rss_kb(self.watch.pid),
            len(os.listdir(place / "fd")),
            len(os.listdir(place / "task")),
            len(others),
        )
