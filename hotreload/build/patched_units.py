# SPDX-License-Identifier: MIT
"""Compile units as patched sources would have them, from a second mirror of the user's files.

The mirror (replay.py) has the files that the base recorded, with the patched texts in their places, and links
to everything else in these folders, because a patch may include a header that no unit included before. As
with edits (compile.py), unchanged lines keep their numbers in the objects that are compared, and the
compiler's messages refer to the actual lines.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotreload.build.base import AnyBase, Base, base_object
from hotreload.build.built import is_users
from hotreload.build.cmd_files import TranslationUnit, parse_dependency_file, split_command
from hotreload.build.compile import ObjectPair, author_names, patched_object
from hotreload.build.gcc import compile_object
from hotreload.build.lines import stabilised_bytes
from hotreload.build.replay import PartialShadow, Shadow, include_folders
from hotreload.errors import CompileError, InputError

Texts = Mapping[Path, bytes | None]
# What kbuild makes. Leaving it out keeps the mirror small.
MADE = (".o", ".ko", ".cmd", ".mod", ".d", ".a")


@dataclass(frozen=True, slots=True)
class CompiledUnits:
    """The objects of each unit, and all of the user's files that the patched objects were made from."""

    pairs: tuple[ObjectPair, ...]
    used: frozenset[Path]


async def compile_units(
    base: AnyBase, units: Iterable[TranslationUnit], texts: Texts, work: Path, *, keep: bool = False
) -> CompiledUnits:
    """Return both objects of each unit. The patched one is made with ``texts`` (by real path, None: deleted).

    ``work``: an empty folder. ``keep``: every variable has storage, even if gcc would optimize it away.
    Raises one CompileError about all units that failed, with the names of the user's files; InputError
    (HR1006) when a patched file is reached by a path that leads out of the mirror.
    """
    jobs = {unit.object: unit for unit in units}
    compilers: dict[int, _Compiler] = {}
    for part in map(base.of, jobs.values()):
        if id(part) not in compilers:
            compilers[id(part)] = _Compiler(part, texts, work / str(len(compilers)), keep=keep)
    slots = asyncio.Semaphore(os.cpu_count() or 1)

    async def pair(unit: TranslationUnit) -> ObjectPair | CompileError:
        async with slots:
            part = base.of(unit)
            original = await base_object(part, unit)
            try:
                return ObjectPair(unit, original, *await compilers[id(part)].compile(unit))
            except CompileError as error:
                return error

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(pair(unit)) for unit in jobs.values()]
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    results = [task.result() for task in tasks]
    failed = [result for result in results if isinstance(result, CompileError)]
    if failed:
        raise CompileError(failed[0].message, "".join(error.diagnostics for error in failed))
    pairs = tuple(result for result in results if isinstance(result, ObjectPair))
    return CompiledUnits(pairs, frozenset().union(*(each.used for each in compilers.values())))


class _Compiler:
    """The mirrors, and the files that were read from them.

    ``stable`` has the base's numbers for unchanged lines.
    """

    def __init__(self, base: Base, texts: Texts, work: Path, *, keep: bool) -> None:
        self.texts = texts
        self._keep = keep
        self.used: set[Path] = set()
        self._objects = work / "objects"
        self._plain = make_mirror(work / "plain", base, texts)
        numbered = _with_base_numbers(base, texts)
        self._stable = make_mirror(work / "stable", base, {**texts, **numbered}) if numbered else None

    async def compile(self, unit: TranslationUnit) -> tuple[Path, str]:
        """Return the patched object, and the compiler's warnings."""
        target = patched_object(unit, self._objects)
        if self._stable is not None and unit.source.suffix == ".c":
            try:
                said = await compile_object(unit, target, self._stable, keep_variables=self._keep)
            except CompileError:
                pass  # reported below, if the patch itself causes it
            else:
                self._note_used(unit, target, self._stable.root)
                return target, await self._told(unit, target.with_suffix(".told.o")) if said else ""
        said = await self._told(unit, target)
        self._note_used(unit, target, self._plain.root)
        return target, said

    async def _told(self, unit: TranslationUnit, target: Path) -> str:
        """Compile with the actual line numbers, and return messages with the names of the user's files."""
        try:
            said = await compile_object(unit, target, self._plain, keep_variables=self._keep)
            return self._named(said)
        except CompileError as error:
            raise CompileError(self._named(error.message), self._named(error.diagnostics)) from None

    def _named(self, said: str) -> str:
        root = str(self._plain.root)
        return said.replace(f"{root}/.", "").replace(root, "")

    def _note_used(self, unit: TranslationUnit, target: Path, root: Path) -> None:
        """Note the files that were used. Raise InputError if a patched file was not read from the mirror."""
        notes = target.with_suffix(".d").read_text(errors="surrogateescape")
        for spelled in parse_dependency_file(notes):
            file = os.path.join(unit.cwd, spelled)
            if Path(os.path.realpath(file)) in self.texts:
                raise InputError(
                    f"{unit.source.name} reaches {file} through a symlink that bypasses the patch",
                    code="HR1006",
                    hint="apply the patch, and use hotreload watch",
                )
            if file.startswith(f"{root}/"):
                own = file.removeprefix(str(root)).removeprefix("/.")
                self.used |= {Path(os.path.normpath(own)), Path(os.path.realpath(own))}


def _with_base_numbers(base: Base, texts: Texts) -> dict[Path, bytes]:
    """Return the texts in which lines have moved, with the base's numbers for the unchanged lines."""
    both = {}
    for file in base.digests:
        real = Path(os.path.realpath(file))
        was, now = base.source(file), texts.get(real)
        if was is not None and now is not None:
            both[real] = was.read_bytes(), now
    names = author_names(base, both)
    stable = {real: stabilised_bytes(was, now, names) for real, (was, now) in both.items()}
    return {real: text for real, text in stable.items() if text is not None}


# --- the mirror ---


def make_mirror(root: Path, base: Base, texts: Texts) -> Shadow:
    """Create a mirror below ``root``: the base's sources, ``texts`` in their places, links for the rest."""
    if base.is_kernel:
        return _make_kernel_mirror(root, base, texts)
    shutil.copytree(base.shadow.root, root)
    _mirror_folder(root, base.users_folder)
    # The base knows a file by the name that the compiler used, a patch knows it by its real path.
    names = {(Path(file), Path(os.path.realpath(file))) for file in base.digests}
    names |= {(real, real) for real in texts}
    for folder in _folders_elsewhere(base):
        names |= {(Path(folder, real.name), real) for real in texts if _is_same(folder, real.parent)}
        for entry in _entries(folder):
            _link(root, entry)
    for name, real in names:
        if real in texts:
            _put(root, name, texts[real])
    return Shadow(root, base.shadow.is_users, base.users_folder)


def _make_kernel_mirror(root: Path, base: Base, texts: Texts) -> Shadow:
    """Like make_mirror, for a kernel: what is not in the mirror is searched in the tree, which is not walked.

    Only the files next to a patched file are always in the mirror, because it may include them by name.
    """
    shutil.copytree(base.shadow.root, root, copy_function=_linked)
    for real, text in texts.items():
        _put(root, real, text)
    for folder in {real.parent for real in texts}:
        for entry in _entries(str(folder)):
            if not entry.endswith(MADE) and Path(entry) not in texts:
                _link(root, entry)
    return PartialShadow(root, base.shadow.is_users, base.users_folder)


def _linked(source: str, place: str) -> None:
    try:
        os.link(source, place)
    except OSError:  # no hard links on this file system
        shutil.copyfile(source, place)


def _mirror_folder(root: Path, folder: Path) -> None:
    """Mirror the whole module's folder, because a patch may add files anywhere in it."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(os.path.join(place, name)):
                _link(root, os.path.join(place, name), folder)
            else:
                os.makedirs(f"{root}{place}/{name}", exist_ok=True)
        for name in files:
            if not name.startswith(".") and not name.endswith(MADE):
                _link(root, os.path.join(place, name), folder)


def _folders_elsewhere(base: Base) -> set[str]:
    """Return the user's folders outside of the module's that had headers, or are searched for them."""
    folders = {os.path.dirname(os.path.normpath(file)) for file in base.digests}
    for unit in base.units:
        named = include_folders(split_command(unit.command).compile)
        folders |= {os.path.normpath(os.path.join(unit.cwd, each)) for each in named}
    inside = str(base.users_folder)
    return {
        folder
        for folder in folders
        if is_users(Path(folder), base.users_folder, base.tree)
        and folder != inside
        and not folder.startswith(f"{inside}/")
    }


def _is_same(folder: str, real: Path) -> bool:
    return os.path.realpath(folder) == str(real)


def _entries(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder)]
    except OSError:
        return []


def _link(root: Path, path: str, folder: Path | None = None) -> None:
    """Link to a path, unless the mirror has it. A link within ``folder`` becomes a link within the mirror."""
    mirrored = f"{root}{path}"
    if os.path.lexists(mirrored):
        return
    real = os.path.realpath(path)
    inside = folder is not None and os.path.islink(path) and real.startswith(f"{folder}/")
    os.makedirs(os.path.dirname(mirrored), exist_ok=True)
    os.symlink(f"{root}{real}" if inside else path, mirrored)


def _put(root: Path, file: Path, text: bytes | None) -> None:
    place = Path(f"{root}{file}")
    place.parent.mkdir(parents=True, exist_ok=True)
    if not Path(os.path.realpath(place.parent)).is_relative_to(os.path.realpath(root)):
        return  # a link leads out of the mirror; _note_used detects compiles through it
    place.unlink(missing_ok=True)
    if text is not None:
        place.write_bytes(text)
