# SPDX-License-Identifier: MIT
"""Find the translation units that a set of changed files affects."""

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
    """The units to compile, in build order, and the changes that no compile can bring.

    ``files``: the changed files that the kbuild run knows, as gcc spelled them. ``makefiles_changed``:
    HR1004. ``not_part_of_build``: HR1002, files that no unit includes or is compiled from.
    """

    units: tuple[TranslationUnit, ...]
    files: tuple[Path, ...]
    makefiles_changed: tuple[Path, ...]
    not_part_of_build: tuple[Path, ...]


def units_for(changed: Iterable[Path], build: Build, compiled: Path | None = None) -> UnitSelection:
    """Sort changed files by what they mean for the build.

    ``compiled`` is the folder of our own compiles (``into`` of rebuild). Their ``.d`` files have the includes
    that an edit has added since kbuild ran.
    """
    paths = tuple(dict.fromkeys(changed))
    names = {path: set(names_of(path)) for path in paths}
    every_name = set().union(*names.values())
    makefiles = tuple(path for path in paths if _is_makefile(path, build))
    spelled = build.inputs.named(every_name)
    touched, known = set(build.inputs.users(spelled)), set().union(*spelled.values())
    for unit, files in _compiled_here(build, compiled):
        # Only resolve links for files that the kbuild run did not know.
        found = set().union(*(spelled[file] for file in spelled.keys() & files))
        new = (file for file in files if not build.inputs.has(file))
        found |= every_name.intersection(name for file in new for name in names_of(file))
        if found:
            touched.add(unit.object)
            known |= found
    return UnitSelection(
        tuple(unit for unit in build.units if unit.object in touched),
        tuple(spelled),
        makefiles,
        tuple(path for path in paths if path not in makefiles and not names[path] & known),
    )


def new_inputs(build: Build, compiled: Path) -> frozenset[Path]:
    """Return the user's files that edits have included since kbuild ran."""
    every: set[Path] = set().union(*(files for _unit, files in _compiled_here(build, compiled)))
    return frozenset(name for file in every if not build.inputs.has(file) for name in names_of(file))


def _is_makefile(path: Path, build: Build) -> bool:
    if path in build.makefiles:
        return True
    # In a kernel, only the Makefiles that take part in its build count.
    inside = path.is_relative_to(build.folder) and not build.is_kernel
    return inside and MAKEFILE_NAME.fullmatch(path.name) is not None


def _compiled_here(build: Build, compiled: Path | None) -> Iterator[tuple[TranslationUnit, frozenset[Path]]]:
    """Yield the units that we have compiled, with the files they were compiled from."""
    if compiled is None:
        return
    made = {entry.name for entry in compiled.glob("*.d")}
    for unit in build.units if made else ():
        notes = patched_object(unit, compiled).with_suffix(".d")
        if notes.name in made:
            yield unit, compiled_from(notes, unit.cwd, build.folder, build.tree)
