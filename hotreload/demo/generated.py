# SPDX-License-Identifier: MIT
"""Generated units of a known size, to measure how fast objects are compared.

A unit of a kernel has functions that call others, print, count in static variables and are listed in tables.
The generated units do the same, as often as needed for an object of the requested size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hotreload import process
from hotreload.build.replay import SECTION_FLAGS
from hotreload.errors import HotReloadError

# The flags of a 6.1 kernel for x86-64, as far as they shape an object.
_FLAGS: Final = """-std=gnu11 -O2 -mcmodel=kernel -fno-PIE -fno-strict-aliasing -fno-common -mno-red-zone
    -mno-sse -fno-asynchronous-unwind-tables -fcf-protection=none -pg -mrecord-mcount -mfentry
    -fno-stack-protector -gdwarf-4 -w""".split()
_RUNS: Final = 7
_HEAD: Final = """
int printk(const char *, ...);
struct item { struct item *next; unsigned long value; int kind, users; };
struct operations { const char *name; int (*run)(struct item *, int); };
"""
# One function of many. The warning makes an entry in __bug_table. The string and the variable are its own.
_FUNCTION: Final = """
static unsigned long count_NUMBER;
static __attribute__((noinline)) int step_NUMBER(struct item *item, int depth)
{
    static int seen;
    if (!item)
        asm volatile("1: .byte 0x0f, 0x0b\\n.pushsection __bug_table, \\"aw\\"\\n2: .long 1b - ., %c0 - .\\n"
            ".word NUMBER, 1\\n.popsection" :: "i"("unit.c"));
    if (depth > item->kind)
        printk("step NUMBER: %d of %lu\\n", depth, count_NUMBER++);
    item->users += seen++;
    CALLS
    return depth + VALUE;
}
static const struct operations operations_NUMBER = { "step NUMBER", step_NUMBER };
const struct operations *get_NUMBER(void) { return &operations_NUMBER; }
"""


@dataclass(frozen=True, slots=True)
class Size:
    """A unit to generate.

    It has a name for people, the number of functions, the number of calls in each, and the goal in
    milliseconds.
    """

    name: str
    functions: int
    calls: int
    goal_ms: float


# A median unit of a kernel has 600 symbols. kvm/x86.o, one of the largest, has 10 000 relocations.
SIZES: Final = (Size("a median unit", 120, 1, 60.0), Size("a large unit", 530, 4, 600.0))


@dataclass(frozen=True, slots=True)
class DiffTimes:
    """How long it takes to read and compare both objects of a unit.

    Each sample reads them again. The first run is dropped.
    """

    name: str
    symbols: int
    relocations: int
    goal_ms: float
    samples_ms: Sequence[float] = field(default_factory=tuple)

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)


def source_of(size: Size, edited: bool = False) -> str:
    """Return C code with that many functions. The edit changes one of them, in the middle."""
    return _HEAD + "".join(_function(number, size, edited) for number in range(size.functions))


def _function(number: int, size: Size, edited: bool) -> str:
    # Only call functions above, so that no declarations are needed.
    called = [(number * 7 + nth * 13) % number for nth in range(size.calls)] if number else []
    calls = "".join(f"depth ^= step_{other}(item->next, depth - {nth});" for nth, other in enumerate(called))
    value = "4711" if edited and number == size.functions // 2 else str(number)
    return _FUNCTION.replace("CALLS", calls).replace("VALUE", value).replace("NUMBER", str(number))


async def measure_diffs(compiler: str, folder: Path, runs: int = _RUNS) -> tuple[DiffTimes, ...]:
    """Generate, compile and compare a unit of each size. Raises HotReloadError if one does not compile."""
    found = []
    for size in SIZES:
        objects = [await _compiled(compiler, size, folder, edited) for edited in (False, True)]
        found.append(_timed(size, objects[0], objects[1], runs))
    return tuple(found)


async def _compiled(compiler: str, size: Size, folder: Path, edited: bool) -> Path:
    place = folder / f"{size.functions}-{'edited' if edited else 'base'}"
    place.mkdir(parents=True)
    (place / "unit.c").write_text(source_of(size, edited))
    argv = (compiler, *_FLAGS, *SECTION_FLAGS, "-c", "unit.c", "-o", "unit.o")
    completed = await process.run(argv, cwd=place)
    if not completed.ok:
        raise HotReloadError(
            f"{compiler} failed on a generated unit: {completed.complaint.splitlines()[-1:]}"
        )
    return place / "unit.o"


def _timed(size: Size, original: Path, patched: Path, runs: int) -> DiffTimes:
    from hotreload.diff.unit_diff import diff_unit, unit_object_of
    from hotreload.elf.reader import read_object

    samples = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        objects = read_object(original), read_object(patched)
        diff = diff_unit(unit_object_of(objects[0]), unit_object_of(objects[1]), {})
        samples.append((time.perf_counter() - started) * 1000)
        if len(diff.changed) != 1 or diff.obstacles:
            raise HotReloadError(f"the edit of a generated unit is {diff.verdict}, not patchable")
    relocations = sum(len(section.relocations) for section in objects[1].sections if section.is_allocated)
    return DiffTimes(size.name, len(objects[1].symbols), relocations, size.goal_ms, tuple(samples[1:]))
