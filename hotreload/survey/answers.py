# SPDX-License-Identifier: MIT
"""Compile pairs of translation units in parallel, and compare each pair with the differ.

Compilers run as programs and the differ in worker processes, at most ``jobs`` of both at a time. Objects stay
in the work folder, and a later run reuses those that are newer than their inputs.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from hotreload.build.cmd_files import TranslationUnit, split_command
from hotreload.build.gcc import compile_object
from hotreload.build.lines import stabilised
from hotreload.diff.unit_diff import diff_unit, unit_object_of
from hotreload.elf.reader import read_object
from hotreload.errors import CompileError, HotReloadError
from hotreload.paths import writing_to
from hotreload.survey.kernel_build import BuiltKernel

# Returns the edited source of a unit.
Edit = Callable[[TranslationUnit], str]


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one pair.

    ``verdict``    unchanged, patchable, refused, failed (it does not compile) or broken (the differ failed)
    ``obstacles``  (code, symbol, message) of each; ``notes`` likewise
    ``seconds``    processor time for reading the patched object and comparing it, without reading the
                   original, which a session has already read
    ``size``       numbers of symbols and relocations of the original object
    """

    unit: str
    verdict: str
    changed: tuple[str, ...] = ()
    promoted: tuple[str, ...] = ()
    obstacles: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[tuple[str, str, str], ...] = ()
    seconds: float = 0.0
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Survey:
    """Where compiled pairs are kept, and the workers that compile and compare them."""

    kernel: BuiltKernel
    work: Path
    slots: asyncio.Semaphore
    differs: Executor

    async def ask(self, unit: TranslationUnit, label: str, edit: Edit | None) -> Answer:
        """Compile a unit as it was built and after ``edit``, and compare both.

        If ``edit`` is None, compare the unit with itself. ``label`` names the folder of the edited object.
        """
        name = self.kernel.name_of(unit)
        async with self.slots:
            try:
                original = await self._original(unit, name)
                patched = original if edit is None else await self._patched(unit, name, label, edit(unit))
            except CompileError as error:
                return Answer(name, "failed", obstacles=((error.code, "", error.message),))
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.differs, compare, name, original, patched)

    async def _original(self, unit: TranslationUnit, name: str) -> Path:
        target = self.work / "objects" / name.replace(".c", ".o")
        if not _is_newer(target, unit.source, unit.object):
            await compile_object(unit, target)
        return target

    async def _patched(self, unit: TranslationUnit, name: str, label: str, text: str) -> Path:
        source = self.work / label / name
        target = source.with_suffix(".o")
        # As in a reload, unchanged lines keep their numbers, and __FILE__ is the name of the original.
        text = stabilised(unit.source.read_text(errors="surrogateescape"), text) or text
        text = f'#line 1 "{_spelled(unit)}"\n{text}'
        if not (source.is_file() and source.read_text(errors="surrogateescape") == text):
            with writing_to(source.parent):
                source.parent.mkdir(parents=True, exist_ok=True)
                source.write_text(text, errors="surrogateescape")
        if not _is_newer(target, source, unit.object):
            await compile_object(with_source(unit, source), target)
        return target


def _is_newer(target: Path, *inputs: Path) -> bool:
    return target.is_file() and all(target.stat().st_mtime_ns > path.stat().st_mtime_ns for path in inputs)


def with_source(unit: TranslationUnit, source: Path) -> TranslationUnit:
    """Return the unit as compiled from another file that finds the same headers."""
    recorded = split_command(unit.command)
    spelled = _spelled(unit)
    words = [str(source) if word == spelled else word for word in recorded.compile]
    words[1:1] = ["-iquote", str(unit.source.parent)]
    command = " ; ".join(shlex.join(step) for step in (words, *recorded.after))
    return replace(unit, source=source, command=command)


def _spelled(unit: TranslationUnit) -> str:
    """Return the source as its command spells it, which is __FILE__. In virt/kvm it contains ``..``."""
    words = split_command(unit.command).compile
    return next(word for word in words if os.path.normpath(unit.cwd / word) == str(unit.source))


def compare(name: str, original: Path, patched: Path) -> Answer:
    """Compare two object files, and return the differ's answer."""
    try:
        base = unit_object_of(read_object(original))
        started = time.process_time()
        diff = diff_unit(base, unit_object_of(read_object(patched)), {})
        seconds = time.process_time() - started
    except HotReloadError as error:
        return Answer(name, "broken", obstacles=((error.code, "", error.message),))
    except Exception as error:  # a survey also looks for bugs in the differ
        return Answer(name, "broken", obstacles=(("HR0000", "", repr(error)),))
    return Answer(
        name,
        diff.verdict,
        diff.changed_functions,
        tuple(diff.callers_promoted),
        tuple((o.code, o.symbol, o.message) for o in diff.obstacles),
        tuple((n.code, n.symbol, n.message) for n in diff.notes),
        seconds,
        (len(base.object.symbols), sum(len(section.relocations) for section in base.object.sections)),
    )


async def ask_all(
    survey: Survey, units: Iterable[TranslationUnit], label: str, edit: Edit | None
) -> AsyncIterator[Answer]:
    """Yield the answers for many units in the order in which they become ready."""
    tasks = [asyncio.create_task(survey.ask(unit, label, edit)) for unit in units]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
