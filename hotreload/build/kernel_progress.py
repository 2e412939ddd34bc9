# SPDX-License-Identifier: MIT
"""Report how far the build of a kernel is, from a count of its units and from kbuild's output."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hotreload import process

LISTER = Path(__file__).with_name("units.mk")
# A line of kbuild's output: the tool, [M] for a module, and the target.
MADE = re.compile(r"  ([A-Z]+)(?: \[M\])? +(\S+)")
SURE_AFTER = 20  # units; fewer do not allow an estimate of the rest


@dataclass(frozen=True, slots=True)
class Step:
    """How far the build is. ``done`` and ``total`` are in units; ``total`` is 0 if it is not known."""

    text: str
    done: int = 0
    total: int = 0


Tell = Callable[[Step], None]


async def list_units(source: Path, output: Path, jobs: int) -> frozenset[str]:
    """Return the objects that a configured kernel compiles from C sources (units.mk); empty if make fails."""
    words = [f"config={output / '.config'}", f"srctree={source}", f"lister={LISTER}", "list-units"]
    done = await process.run(
        ["make", "-s", f"-j{jobs}", "--no-print-directory", "-f", LISTER, *words],
        env={"MAKEFLAGS": ""},
        cwd=output,
    )
    return frozenset(line.lstrip("/") for line in done.text.splitlines() if line) if done.ok else frozenset()


class Meter:
    """Reads kbuild's output and reports how far the build is.

    ``expected``: the units of the kernel. Units whose object exists are expected not to be compiled. If one
    is compiled anyway, it counts as well.
    """

    def __init__(self, expected: Collection[str], output: Path) -> None:
        self._expected = expected
        self._missing = {name for name in expected if not (output / name).is_file()}
        self._started: float | None = None
        self.done: set[str] = set()

    @property
    def total(self) -> int:
        """All that is or will be compiled; 0 if all objects existed before, so that only make knows."""
        return len(self._missing | self.done) if self._missing else 0

    def read(self, line: str, now: float) -> Step | None:
        """Return what a line of kbuild's output means, or None if it means nothing here.

        ``now`` in seconds.
        """
        found = MADE.fullmatch(line.rstrip())
        if found is None:
            return None
        tool, name = found.groups()
        if tool == "CC" and name.endswith(".o"):
            return self._compiled(name, now)
        if len(self.done) == self.total and tool in ("LD", "MODPOST"):
            return Step(f"linking {name}", self.total, self.total)
        return None

    def _compiled(self, name: str, now: float) -> Step | None:
        # These are compiled as well, but are not counted: the vdso, the boot code, one small file per module.
        if self._expected and name not in self._expected:
            return None
        self._started = now if self._started is None else self._started
        self.done.add(name)
        done, total = len(self.done), self.total
        if not total:
            return Step(f"{done} unit{'s' * (done != 1)} compiled")
        left = (total - done) * (now - self._started) / done
        told = f", {_duration(left)} left" if done >= SURE_AFTER else ""
        return Step(f"{done} of {total} units{told}", done, total)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class Bar(Protocol):
    """A progress display; hotreload.report.console has one."""

    def update(self, text: str) -> None: ...
    def advance(self, done: int, total: int) -> None: ...


def on_bar(bar: Bar) -> Tell:
    """Show each step on a bar, which moves once the number of units is known."""

    def tell(step: Step) -> None:
        bar.update(step.text)
        if step.total:
            bar.advance(step.done, step.total)

    return tell


def now_and_then(say: Callable[[str], None], seconds: float) -> Tell:
    """Without a bar: report a line at most every so many seconds."""
    last = time.monotonic()

    def tell(step: Step) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            say(step.text)

    return tell
