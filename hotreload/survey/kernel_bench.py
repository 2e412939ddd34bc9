# SPDX-License-Identifier: MIT
"""`scripts/bench-kernel`: time edits of a kernel's own tree, compared with the bare compile and with make.

Machines differ and are noisy, so two relative values are measured. One is the time from saving a built-in
unit until it is live, minus that of its recorded compile command run alone in the same round. The other is
the time for an edit of a header that about twenty units include, relative to `make` of the same objects in a
copy of the folder that the kernel was built in.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.build.built import Build
from hotreload.build.cmd_files import TranslationUnit, split_command
from hotreload.build.kernel_record import kernel_base
from hotreload.build.kernel_tree import KernelTree, find_kernel
from hotreload.build.units import units_for
from hotreload.demo.driven import Driven, guest_name
from hotreload.demo.idle import rss_kb
from hotreload.errors import CompileError, HotReloadError
from hotreload.report.outcome import Outcome
from hotreload.survey.command import say
from hotreload.survey.running_kernel import run


@dataclass(frozen=True, slots=True)
class KernelEdit:
    """An edit that replaces ``old`` with ``new`` in a file, with the number of the round for ``%d``."""

    file: str
    old: str
    new: str


UNITS = (
    KernelEdit("fs/proc/version.c", "seq_printf(m, linux", 'seq_puts(m, "%d ");\n\tseq_printf(m, linux'),
    KernelEdit(
        "kernel/sys.c",
        "return task_tgid_vnr(current);",
        "return current->pid == -%d ? 0 : task_tgid_vnr(current);",
    ),
)
HEADER = KernelEdit(
    "fs/proc/internal.h",
    "return pde->flags & PROC_ENTRY_PERMANENT;",
    "return pde->flags & (PROC_ENTRY_PERMANENT | (%d << 16));",
)


class _Bench:
    """The measurements with a running watch of the kernel's tree."""

    def __init__(self, tree: KernelTree, build: Build, watch: Driven, scratch: Path) -> None:
        self.tree = tree
        self.build = build
        self.watch = watch
        self.scratch = scratch
        self.texts = {edit.file: (tree.source / edit.file).read_text() for edit in (*UNITS, HEADER)}
        self.times = {name: (tree.source / name).stat().st_mtime_ns for name in self.texts}

    async def save(self, edit: KernelEdit, number: int) -> float:
        """Save an edit. Return the seconds until it is live."""
        text = self.texts[edit.file]
        if edit.old not in text:
            raise HotReloadError(
                f"{edit.file} of this kernel does not contain {edit.old!r}", hint="use 6.1 or 6.12"
            )
        (self.tree.source / edit.file).write_text(text.replace(edit.old, edit.new % number))
        report = (await self.watch.next_cycle()).report
        if report.outcome is not Outcome.LIVE or report.saved_to_live_ms is None:
            raise HotReloadError(f"an edit of {edit.file} did not go live: {report.outcome.value}")
        return report.saved_to_live_ms / 1000

    def restore(self) -> None:
        """Restore the edited files and their times, so that make has nothing to rebuild."""
        for name, text in self.texts.items():
            (self.tree.source / name).write_text(text)
            os.utime(self.tree.source / name, ns=(self.times[name], self.times[name]))

    def units_of(self, edit: KernelEdit) -> tuple[TranslationUnit, ...]:
        return units_for([self.tree.source / edit.file], self.build).units

    async def units(self, rounds: int) -> tuple[list[float], list[float]]:
        """Return the seconds of each bare compile of a built-in unit, and how many more each save took."""
        alone, above = [], []
        for number in range(2, rounds + 2):
            for edit in UNITS:
                live = await self.save(edit, number)
                (unit,) = self.units_of(edit)
                alone.append(await bare_compile(unit, self.scratch))
                above.append(live - alone[-1])
        return alone, above

    async def header(self, rounds: int) -> tuple[list[float], list[float]]:
        """Return the seconds of each edit of the header, and of each make of the same objects."""
        targets = [str(unit.object.relative_to(self.tree.output)) for unit in self.units_of(HEADER)]
        copy = self.scratch / "built"
        say("copying the build folder of the kernel, for make")
        await asyncio.to_thread(shutil.copytree, self.tree.output, copy, symlinks=True)
        await make(self.tree, copy, targets)
        headers, made = [], []
        for number in range(2, rounds + 2):
            headers.append(await self.save(HEADER, number))
            made.append(await make(self.tree, copy, targets))
            say(f"{len(targets)} units: {headers[-1]:.1f} s, make {made[-1]:.1f} s")
        return headers, made


async def measure(tree: KernelTree, rounds: int) -> int:
    """Measure and print. The sources are restored afterwards."""
    base = await kernel_base(tree, say)
    options = ("--kernel", str(tree.output), "--max-rung", "patch")
    with tempfile.TemporaryDirectory(prefix="hotreload-bench-") as scratch:
        started = time.monotonic()
        async with Driven(tree.source, guest_name("bench"), say, options) as watch:
            ready = time.monotonic() - started
            bench = _Bench(tree, base.build, watch, Path(scratch))
            try:
                say("first edits: these also compile the base objects")
                first = [await bench.save(edit, 1) for edit in (*UNITS, HEADER)]
                alone, above = await bench.units(rounds)
                headers, made = await bench.header(max(2, rounds // 3))
            finally:
                bench.restore()
            memory = rss_kb(watch.pid) / 1024
    _print("a built-in unit, compiled bare", alone)
    _print("saved to live, above the bare compile", above)
    _print(f"a header of {len(bench.units_of(HEADER))} units, saved to live", headers)
    _print(f"make -j{os.cpu_count()} of the same objects", made)
    print(
        f"{'the header edit, relative to make':44}"
        f" {statistics.median(headers) / statistics.median(made):.2f} times"
    )
    print(f"{'the first edit of the header':44} {first[-1]:.2f} s")
    print(f"{'from the command to ready, with the boot':44} {ready:.2f} s")
    print(f"{'memory':44} {memory:.0f} MB")
    return 0


def _print(what: str, samples: Sequence[float]) -> None:
    median, low, high = statistics.median(samples), min(samples), max(samples)
    print(f"{what:44} {median:.2f} s ({low:.2f} to {high:.2f}, {len(samples)} times)")


async def bare_compile(unit: TranslationUnit, scratch: Path) -> float:
    """Return the seconds of the recorded command when only its output file is changed."""
    output = scratch / "bare.o"
    started = time.monotonic()
    recorded = split_command(unit.command)
    for step in (recorded.compile, *recorded.after):
        program = os.path.join(unit.cwd, step[0]) if "/" in step[0] else step[0]
        done = await process.run([program, *_redirected(step[1:], unit, output)], cwd=unit.cwd)
        if not done.ok:
            raise CompileError(f"{step[0]} failed on {unit.source}", done.complaint)
    return time.monotonic() - started


def _redirected(step: Sequence[str], unit: TranslationUnit, output: Path) -> Iterator[str]:
    for word in step:
        if word.startswith("-Wp,-MMD,"):
            yield f"-Wp,-MMD,{output}.d"
        else:
            yield str(output) if os.path.join(unit.cwd, word) == str(unit.object) else word


async def make(tree: KernelTree, output: Path, targets: Sequence[str]) -> float:
    """Return the seconds that make takes for some objects, with one job per processor."""
    started = time.monotonic()
    words = ["make", "-s", "-C", str(tree.source), f"O={output}", f"-j{os.cpu_count() or 1}", *targets]
    done = await process.run(words)
    if not done.ok:
        raise CompileError(f"make failed in {output}", done.complaint)
    return time.monotonic() - started


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit status."""
    parser = argparse.ArgumentParser(description="Time edits in a kernel tree.")
    parser.add_argument("kernel", metavar="DIR", help="the build folder of the kernel")
    parser.add_argument(
        "--rounds", type=int, default=10, metavar="N", help="how many times each edit is saved"
    )
    given = parser.parse_args(argv)
    return run(lambda: measure(find_kernel(given.kernel), given.rounds))


if __name__ == "__main__":
    sys.exit(main())
