# SPDX-License-Identifier: MIT
"""Compile the changed units from the current sources, for comparison with their base objects.

If lines have moved in a unit's files, the unit is compiled with the base's line numbers for the unchanged
lines (``lines``), in a view of the file system that contains such texts (``overlay``). If that fails, the
unit is compiled from the files as they are. The compiler's messages always come from a compile of the files
as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import os
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotreload.build.base import AnyBase, Base, base_object
from hotreload.build.built import is_stamp, is_users
from hotreload.build.cmd_files import (
    TranslationUnit,
    dependency_file,
    parse_dependency_file,
    split_command,
)
from hotreload.build.gcc import compile_object
from hotreload.build.kernel_tree import KernelTree
from hotreload.build.line_names import names_of_lines
from hotreload.build.lines import stabilised_bytes
from hotreload.build.overlay import Overlay, make_overlay, make_partial_overlay
from hotreload.build.replay import PartialShadow, Shadow, include_folders
from hotreload.errors import CompileError
from hotreload.paths import writing_to

Progress = Callable[[int], None]

SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@dataclass(frozen=True, slots=True)
class ObjectPair:
    """A unit's base object and patched object; ``warnings`` are the compiler's."""

    unit: TranslationUnit
    original: Path
    patched: Path
    warnings: str = ""


class SomeFailedError(CompileError):
    """Some of several units did not compile: ``failed``. ``pairs`` has the pairs of the other units."""

    def __init__(self, errors: Mapping[TranslationUnit, CompileError], pairs: tuple[ObjectPair, ...]) -> None:
        first = next(iter(errors.values()))
        super().__init__(first.message, "".join(error.diagnostics for error in errors.values()))
        self.failed = tuple(errors)
        self.pairs = pairs


def patched_object(unit: TranslationUnit, into: Path) -> Path:
    """Return where ``into`` keeps the unit's object; its dependencies are next to it, with suffix ``.d``."""
    # Two folders of a module may have sources of the same name.
    return into / f"{unit.object.stem}-{hashlib.sha256(bytes(unit.object)).hexdigest()[:8]}.o"


async def compile_patched(unit: TranslationUnit, into: Path) -> Path:
    """Replay the unit's recorded command on its current source; every line has its own number.

    Raises CompileError with gcc's unmodified output, EnvironmentFault when a program or disk space is
    missing.
    """
    target = patched_object(unit, into)
    await compile_object(unit, target)
    return target


async def rebuild(
    base: AnyBase,
    units: Iterable[TranslationUnit],
    into: Path,
    progress: Progress = lambda _done: None,
    keeping: Collection[Path] = (),
) -> tuple[ObjectPair, ...]:
    """Return both objects of each unit, in the order of ``units``.

    As many compiles run at a time as there are processors.

    ``progress`` is called with the number of units done. ``keeping``: the objects of units whose variables
    must get storage even if gcc would optimize them away.

    Raises one SomeFailedError with what the compiler said about all units that failed. If the caller is
    cancelled, the compilers are killed.
    """
    slots = asyncio.Semaphore(os.cpu_count() or 1)
    done = itertools.count(1)
    chosen = tuple(dict.fromkeys(units))
    # An object may be linked into two modules. It is compiled once.
    jobs = {unit.object: unit for unit in chosen}
    try:
        async with asyncio.TaskGroup() as group:
            originals, now = {}, {}
            # Start both compiles of a unit together; else progress would only begin when all base objects are
            # compiled.
            for key, unit in jobs.items():
                originals[key] = group.create_task(_original(base.of(unit), unit, slots))
                now[key] = group.create_task(
                    _patched(base.of(unit), unit, into, slots, keep_variables=key in keeping)
                )
                now[key].add_done_callback(lambda _task: progress(next(done)))
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    said = {key: task.result() for key, task in now.items()}
    failed = {jobs[key]: result for key, result in said.items() if isinstance(result, CompileError)}
    broken = {unit.object for unit in failed}
    pairs = tuple(
        ObjectPair(unit, originals[unit.object].result(), patched_object(unit, into), str(said[unit.object]))
        for unit in chosen
        if unit.object not in broken
    )
    if failed:
        raise SomeFailedError(failed, pairs)
    return pairs


async def prepare(base: AnyBase, edited: Iterable[Path] = ()) -> None:
    """Compile the base objects that are not in the cache yet, one at a time, so that edits need not wait.

    Run this when idle; a first edit then only waits for its own compile. In a kernel tree, only the units in
    the same folders as the ``edited`` objects are compiled, because the next edits are likely to be there.
    Raises what base_object raises.
    """
    folders = {target.parent for target in edited}
    for unit in base.units:
        if not base.is_kernel or unit.object.parent in folders:
            await base_object(base.of(unit), unit)


async def _original(base: Base, unit: TranslationUnit, slots: asyncio.Semaphore) -> Path:
    async with slots:
        return await base_object(base, unit)


async def _patched(
    base: Base, unit: TranslationUnit, into: Path, slots: asyncio.Semaphore, *, keep_variables: bool
) -> str | CompileError:
    """Return the warnings.

    A CompileError is returned, not raised, so that the other units are compiled, too.
    """
    async with slots:
        try:
            return await compile_stabilised(base, unit, into, keep_variables=keep_variables)
        except CompileError as error:
            return error


# --- unchanged lines keep their numbers ---


async def compile_stabilised(
    base: Base, unit: TranslationUnit, into: Path, *, keep_variables: bool = False
) -> str:
    """Compile the current source, with the base's numbers for unchanged lines. Return the warnings.

    Raises what compile_patched raises; the messages are about the user's files, with their actual line
    numbers.
    """
    target = patched_object(unit, into)
    inputs = _inputs(base, unit, target)
    _require_files(inputs)
    texts = stabilised_texts(base, inputs) if unit.source.suffix == ".c" else {}
    if not texts:
        return await compile_object(unit, target, keep_variables=keep_variables)
    with writing_to(into):
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.stem}-", dir=into, ignore_cleanup_errors=True
        ) as folder:
            said = await _compile_overlaid(
                base, unit, inputs, texts, Path(folder), target, keep_variables=keep_variables
            )
            if said is None:
                return await compile_object(unit, target, keep_variables=keep_variables)
            # The messages must have the line numbers that the user sees.
            return await compile_object(unit, Path(folder, "told.o")) if said else ""


def _require_files(inputs: Iterable[Path]) -> None:
    """Raise CompileError if a file is, say, a pipe, because the compiler would wait for a writer."""
    others = []
    for file in inputs:
        with contextlib.suppress(OSError):  # the compiler reports missing files
            if kind := SPECIAL.get(stat.S_IFMT(file.stat().st_mode)):
                others.append(f"{file}: error: {kind} instead of a source file\n")
    if others:
        raise CompileError(others[0].strip(), "".join(others))


def stabilised_texts(base: Base, inputs: Iterable[Path]) -> dict[str, bytes]:
    """Return the texts to compile instead of the real files, by real path.

    These are the files in which lines have moved since the base, with the base's line numbers; and the files
    in which kbuild writes the name of the build (is_stamp), with their text in the base, if that has changed.
    """
    both = dict(_both_texts(base, inputs))
    moved = {file: texts for file, texts in both.items() if texts[0] not in (None, texts[1])}
    names = author_names(base, both) if moved else frozenset()
    texts = {}
    for file, (was, now) in moved.items():
        assert was is not None
        if text := was if is_stamp(file) else stabilised_bytes(was, now, names):
            texts[os.path.realpath(file)] = text
    return texts


def author_names(base: Base, texts: Mapping[Path, tuple[bytes | None, bytes]]) -> frozenset[str]:
    """Return the names that the author derives from line numbers, in the current versions of these texts."""
    own = (now for file, (_, now) in texts.items() if _is_authors(file, base))
    return names_of_lines(text.decode(errors="replace") for text in own)


def _both_texts(base: Base, inputs: Iterable[Path]) -> Iterator[tuple[Path, tuple[bytes | None, bytes]]]:
    """Yield each file with its text in the base (None if it did not exist then) and its current text."""
    for file in inputs:
        recorded = base.source(file)
        with contextlib.suppress(OSError):
            yield file, (recorded.read_bytes() if recorded else None, file.read_bytes())


def _is_authors(file: Path, base: Base) -> bool:
    """Return whether the file belongs to one driver, and is not a shared kernel header.

    What a shared header makes of a line number (in WARN(), for example) is only shown to people.
    """
    return not (base.is_kernel and "include" in file.parts)


async def _compile_overlaid(
    base: Base,
    unit: TranslationUnit,
    inputs: frozenset[Path],
    texts: Mapping[str, bytes],
    folder: Path,
    target: Path,
    *,
    keep_variables: bool,
) -> str | None:
    """Compile with the replaced ``texts``. Return None if that failed, or did not use all of them."""
    root, scratch = folder / "root", folder / target.name
    try:
        root.mkdir()
        overlay = _overlay(base, unit, inputs, texts, root)
        if overlay is None:
            return None
        kind = PartialShadow if base.is_kernel else Shadow
        shadow = kind(root, base.shadow.is_users, base.users_folder)
        said = await compile_object(unit, scratch, shadow, keep_variables=keep_variables)
    except (CompileError, FileNotFoundError, NotADirectoryError):
        # The plain compile reports a file that was removed in the meantime.
        return None
    notes = scratch.with_suffix(".d")
    known = {_normal(str(file)) for file in inputs}
    files = [os.path.join(unit.cwd, name) for name in parse_dependency_file(_read(notes))]
    if not overlay.is_faithful(files):
        return None
    if base.is_kernel and not known.issuperset(_normal(overlay.real(file)) for file in files):
        return None  # the code has a new include, whose meaning depends on the real files
    notes.write_text(
        dependency_file(target.name, map(overlay.real, files)), encoding="utf-8", errors="surrogateescape"
    )
    notes.replace(target.with_suffix(".d"))
    scratch.replace(target)
    return said


def _overlay(
    base: Base, unit: TranslationUnit, inputs: frozenset[Path], texts: Mapping[str, bytes], root: Path
) -> Overlay | None:
    if base.is_kernel:
        return make_partial_overlay(root, unit.source, inputs, texts)
    spelled = include_folders(split_command(unit.command).compile)
    folders = [os.path.join(unit.cwd, each) for each in spelled]
    users = [each for each in folders if base.shadow.is_users(Path(os.path.normpath(each)))]
    return make_overlay(root, inputs, users, texts)


def _normal(file: str) -> str:
    return os.path.normpath(file)


def _inputs(base: Base, unit: TranslationUnit, target: Path) -> frozenset[Path]:
    """Return the user's files that a unit was made from when the guest booted, and in its last compile."""
    files = frozenset(base.inputs[unit.object])
    notes = target.with_suffix(".d")
    return files | compiled_from(notes, unit.cwd, base.users_folder, base.tree) if notes.is_file() else files


def compiled_from(notes: Path, cwd: Path, folder: Path, tree: KernelTree) -> frozenset[Path]:
    """Return the user's files that a ``.d`` file names, absolute, as gcc spelled them."""
    return _compiled_from(notes, notes.stat().st_mtime_ns, cwd, folder, tree)


# A unit includes some 600 kernel headers, so only read the list again after another compile.
@functools.lru_cache(maxsize=1024)
def _compiled_from(notes: Path, _mtime_ns: int, cwd: Path, folder: Path, tree: KernelTree) -> frozenset[Path]:
    files = (os.path.join(cwd, name) for name in parse_dependency_file(_read(notes)))
    return frozenset(Path(file) for file in files if is_users(Path(os.path.normpath(file)), folder, tree))


def _read(file: Path) -> str:
    return file.read_text(errors="surrogateescape")
