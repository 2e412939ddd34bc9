# SPDX-License-Identifier: MIT
"""Measure what a process costs while it waits: processor time and memory, from /proc."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Idle:
    """Per cent of one core over ``seconds``, and resident kilobytes, of a process and of its children."""

    seconds: float
    cpu_percent: float
    rss_kb: int
    children_cpu_percent: float
    children_rss_kb: int

    @property
    def text(self) -> str:
        own = f"{self.cpu_percent:.2f} % of a core and {self.rss_kb / 1024:.0f} MB, over {self.seconds:.0f} s"
        guest = f"{self.children_cpu_percent:.1f} %, {self.children_rss_kb / 1024:.0f} MB"
        return f"idle: {own} (its guest: {guest})"


async def measure_idle(pid: int, seconds: float) -> Idle:
    """Measure a process and its children over ``seconds``."""
    children = descendants(pid, parents())
    started = time.monotonic()
    before, before_children = cpu_seconds(pid), sum(map(cpu_seconds, children))
    await asyncio.sleep(seconds)
    spent = time.monotonic() - started
    return Idle(
        seconds=round(spent, 1),
        cpu_percent=round((cpu_seconds(pid) - before) / spent * 100, 2),
        rss_kb=rss_kb(pid),
        children_cpu_percent=round((sum(map(cpu_seconds, children)) - before_children) / spent * 100, 2),
        children_rss_kb=sum(map(rss_kb, children)),
    )


def stat_fields(text: str) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: state, ppid, and so on.

    The name may contain blanks and brackets.
    """
    return text.rpartition(")")[2].split()


def cpu_seconds(pid: int, proc: Path = PROC) -> float:
    """Return the user and system time that a process has used, or 0 if it has ended."""
    try:
        fields = stat_fields((proc / str(pid) / "stat").read_text())
    except OSError:
        return 0.0
    # utime and stime are fields 14 and 15 in proc(5), where the state is field 3.
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_kb(pid: int, proc: Path = PROC) -> int:
    """Return the resident kilobytes of a process, or 0 if it has ended."""
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB$", (proc / str(pid) / "status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def parents(proc: Path = PROC) -> Mapping[int, int]:
    """Return the parent of each process, by process id."""
    found = {}
    for folder in proc.iterdir():
        if folder.name.isdecimal():
            try:
                found[int(folder.name)] = int(stat_fields((folder / "stat").read_text())[1])
            except OSError:
                continue  # it has just ended
    return found


def descendants(pid: int, parent_of: Mapping[int, int]) -> frozenset[int]:
    """Return the children of a process, their children, and so on."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        parent = todo.pop()
        children = {child for child, its in parent_of.items() if its == parent} - found
        found |= children
        todo += children
    return frozenset(found)
