# SPDX-License-Identifier: MIT
"""Which translation units a set of changed files touches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import compiled_from, patched_object
from hotreload.build.external_module import MAKEFILE_NAME, ExternalModule, names_of

__all__ = ["TranslationUnit", "UnitSelection", "units_for"]


@dataclass(frozen=True, slots=True)
class UnitSelection:
    """What to compile, in build order; and the changes no compile can follow.

    ``makefiles_changed``: HR1004. ``not_part_of_build``: HR1002, no unit includes or is these files.
    """

    units: tuple[TranslationUnit, ...]
    makefiles_changed: tuple[Path, ...]
    not_part_of_build: tuple[Path, ...]


def units_for(changed: Iterable[Path], module: ExternalModule, compiled: Path | None = None) -> UnitSelection:
    """Sort changed files by what they mean for the build.

    ``compiled`` is the folder of our own compiles (``into`` of rebuild): their ``.d`` files know the includes
    that an edit has added since kbuild ran.
    """
    paths = tuple(dict.fromkeys(changed))
    users = {unit: _files(unit, module, compiled) for unit in module.units}
    names = {path: set(names_of(path)) for path in paths}
    every_name = set().union(*names.values())
    makefiles = tuple(path for path in paths if _is_makefile(path, module))
    known = set().union(*users.values())
    return UnitSelection(
        tuple(unit for unit, files in users.items() if files & every_name),
        makefiles,
        tuple(path for path in paths if path not in makefiles and not names[path] & known),
    )


def inputs_now(module: ExternalModule, compiled: Path) -> frozenset[Path]:
    """Every file of the user's that a unit is made of, as of its last compile: an edit may add an include."""
    return frozenset().union(*(_files(unit, module, compiled) for unit in module.units))


def _is_makefile(path: Path, module: ExternalModule) -> bool:
    inside = path.is_relative_to(module.folder)
    return path in module.makefiles or (inside and bool(MAKEFILE_NAME.fullmatch(path.name)))


def _files(unit: TranslationUnit, module: ExternalModule, compiled: Path | None) -> frozenset[Path]:
    files = set(module.inputs[unit.object])
    notes = patched_object(unit, compiled).with_suffix(".d") if compiled else None
    if notes and notes.is_file():
        files |= compiled_from(notes, unit.cwd, module.folder, module.tree)
    return frozenset(name for file in files for name in names_of(file))
