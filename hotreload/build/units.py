# SPDX-License-Identifier: MIT
"""Which translation units a set of changed files touches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hotreload.build.built import MAKEFILE_NAME, Build, names_of
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import compiled_from, patched_object

__all__ = ["TranslationUnit", "UnitSelection", "units_for"]


@dataclass(frozen=True, slots=True)
class UnitSelection:
    """What to compile, in build order; and the changes no compile can follow.

    ``files``: what kbuild's run knew of the changed files, as gcc spelled them. ``makefiles_changed``:
    HR1004. ``not_part_of_build``: HR1002, no unit includes or is these files.
    """

    units: tuple[TranslationUnit, ...]
    files: tuple[Path, ...]
    makefiles_changed: tuple[Path, ...]
    not_part_of_build: tuple[Path, ...]


def units_for(changed: Iterable[Path], build: Build, compiled: Path | None = None) -> UnitSelection:
    """Sort changed files by what they mean for the build.

    ``compiled`` is the folder of our own compiles (``into`` of rebuild): their ``.d`` files know the includes
    that an edit has added since kbuild ran.
    """
    paths = tuple(dict.fromkeys(changed))
    names = {path: set(names_of(path)) for path in paths}
    every_name = set().union(*names.values())
    makefiles = tuple(path for path in paths if _is_makefile(path, build))
    spelled = {
        file: found for file in build.inputs.files if (found := every_name.intersection(names_of(file)))
    }
    touched, known = set(build.inputs.users(spelled)), set().union(*spelled.values())
    for unit, files in _compiled_here(build, compiled):
        if found := every_name.intersection(name for file in files for name in names_of(file)):
            touched.add(unit.object)
            known |= found
    return UnitSelection(
        tuple(unit for unit in build.units if unit.object in touched),
        tuple(spelled),
        makefiles,
        tuple(path for path in paths if path not in makefiles and not names[path] & known),
    )


def inputs_now(build: Build, compiled: Path) -> frozenset[Path]:
    """Every file of the user's that a unit is made of, as of its last compile: an edit may add an include."""
    now = set(build.inputs.files).union(*(files for _unit, files in _compiled_here(build, compiled)))
    return frozenset(name for file in now for name in names_of(file))


def _spelled(names: set[Path], files: Iterable[Path]) -> Iterator[tuple[Path, set[Path]]]:
    """Those of the files that have one of the names, each with the names that it has."""
    last = {name.name for name in names}
    for file in files:
        # A kernel has 4,000 files: their real paths are asked for only where they may matter.
        if (file.name in last or file.is_symlink()) and (found := names.intersection(names_of(file))):
            yield file, found


def _is_makefile(path: Path, build: Build) -> bool:
    inside = path.is_relative_to(build.folder)
    return path in build.makefiles or (inside and bool(MAKEFILE_NAME.fullmatch(path.name)))


def _compiled_here(build: Build, compiled: Path | None) -> Iterator[tuple[TranslationUnit, frozenset[Path]]]:
    """The units that we have compiled, and what from."""
    if compiled is None:
        return
    made = {entry.name for entry in compiled.glob("*.d")}
    for unit in build.units if made else ():
        notes = patched_object(unit, compiled).with_suffix(".d")
        if notes.name in made:
            yield unit, compiled_from(notes, unit.cwd, build.folder, build.tree)
