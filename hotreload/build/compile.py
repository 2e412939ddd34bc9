# SPDX-License-Identifier: MIT
"""Compile the changed units as they are now, beside the objects the guest booted."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hotreload.build.base import Base, base_object
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.gcc import compile_object
from hotreload.errors import CompileError


@dataclass(frozen=True, slots=True)
class ObjectPair:
    """A unit's object as the guest booted it and as its source is now; ``warnings`` are the compiler's."""

    unit: TranslationUnit
    original: Path
    patched: Path
    warnings: str = ""


def patched_object(unit: TranslationUnit, into: Path) -> Path:
    """Where ``into`` keeps the unit's object; its dependencies are beside it with ``.d``."""
    # Two folders of a module may have a source of the same name.
    return into / f"{unit.object.stem}-{hashlib.sha256(bytes(unit.object)).hexdigest()[:8]}.o"


async def compile_patched(unit: TranslationUnit, into: Path) -> Path:
    """Replay the unit's recorded command on its source as it is now.

    Raises CompileError with gcc's output as it is, EnvironmentFault when a program or space is missing.
    """
    target = patched_object(unit, into)
    await compile_object(unit, target)
    return target


async def rebuild(base: Base, units: Iterable[TranslationUnit], into: Path) -> tuple[ObjectPair, ...]:
    """Both objects of each unit, as many at a time as there are processors; in the order of ``units``.

    Raises one CompileError with what the compiler said about all units that failed. When the caller is
    cancelled the compilers are killed.
    """
    slots = asyncio.Semaphore(os.cpu_count() or 1)
    chosen = tuple(dict.fromkeys(units))
    # An object may be linked into two modules; it is compiled once.
    jobs = {unit.object: unit for unit in chosen}
    try:
        async with asyncio.TaskGroup() as group:
            originals = {key: group.create_task(_original(base, unit, slots)) for key, unit in jobs.items()}
            now = {key: group.create_task(_patched(unit, into, slots)) for key, unit in jobs.items()}
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    said = {key: task.result() for key, task in now.items()}
    failed = [result for result in said.values() if isinstance(result, CompileError)]
    if failed:
        raise CompileError(failed[0].message, "".join(error.diagnostics for error in failed))
    return tuple(
        ObjectPair(unit, originals[unit.object].result(), patched_object(unit, into), str(said[unit.object]))
        for unit in chosen
    )


async def prepare(base: Base) -> None:
    """Compile the base objects that are not in the cache yet, one at a time: the next edit goes first.

    To be run while nothing else is to be done; a first edit then waits for its own compile only. Raises what
    base_object raises.
    """
    for unit in base.units:
        await base_object(base, unit)


async def _original(base: Base, unit: TranslationUnit, slots: asyncio.Semaphore) -> Path:
    async with slots:
        return await base_object(base, unit)


async def _patched(unit: TranslationUnit, into: Path, slots: asyncio.Semaphore) -> str | CompileError:
    """The warnings; a CompileError is a result here, so that one bad unit does not silence the others."""
    async with slots:
        try:
            return await compile_object(unit, patched_object(unit, into))
        except CompileError as error:
            return error
