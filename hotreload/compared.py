# SPDX-License-Identifier: MIT
"""A unit as the guest booted it and as its sources make it now, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hotreload.build.base import Base, object_as_kbuild
from hotreload.build.compile import ObjectPair
from hotreload.diff.layouts import Layouts
from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.running_code import RunningCode, made_alike, match_running
from hotreload.diff.types import global_functions
from hotreload.diff.unit_diff import UnitObject, unit_object_of
from hotreload.elf.linkage import Linkage
from hotreload.elf.reader import read_object

Prototypes = Mapping[str, tuple[Any, ...]]


def prototypes_of(unit: UnitObject) -> Prototypes:
    """Return the prototypes of a unit's global functions, in the form of layouts.py."""
    known = unit.layouts.functions if unit.layouts is not None else {}
    return {name: known[name] for name in global_functions(unit.object) if name in known}


@dataclass(frozen=True, slots=True)
class Original:
    """A unit's base object, and how it relates to what the guest runs. Read once in the life of a guest."""

    base: UnitObject
    running: RunningCode


def read_original(base: Path, plain: Path) -> Original:
    """Read a unit's base object and the object that kbuild made. Raises InputError (HR1009)."""
    original = read_object(base)
    return Original(unit_object_of(original), match_running(read_object(plain), original))


@dataclass(frozen=True, slots=True)
class Compared:
    """A unit's two objects and the difference between them.

    ``types``       the types of the patched object, if it has any that the base lacks
    ``digest``      of the patched object
    ``edited``      digests of the input files that differ from the base
    ``renames``     as passed to diff_unit
    ``linkage``     of the patched object
    ``prototypes``  of the global functions of the patched object
    """

    pair: ObjectPair
    original: Original
    diff: ObjectDiff
    types: Layouts | None = None
    digest: bytes = b""
    edited: Mapping[Path, str] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    linkage: Linkage = field(default_factory=Linkage)
    prototypes: Prototypes = field(default_factory=dict)

    @property
    def original_prototypes(self) -> Prototypes:
        """The prototypes of the global functions of the base object."""
        return prototypes_of(self.original.base)


async def proved(base: Base, one: Compared) -> Compared:
    """Return the same, after proving the changed functions whose code our compiler flags alter.

    Our flags omit KASAN's red zones behind variables, and without them gcc does not check accesses to
    variables of other files. So the base source is compiled once more with kbuild's own flags. Functions that
    come out as the guest has them count as proved. Raises InputError, CompilerDiedError.
    """
    running, unit = one.original.running, one.pair.unit
    if not any(twins.original in running.different for twins in one.diff.changed):
        return one
    again = read_object(await object_as_kbuild(base, unit))
    names = made_alike(read_object(base.plain_object(unit)), again)
    shown = [ours for ours in running.different if running.symbol_of[ours].name in names]
    return replace(one, original=replace(one.original, running=running.without(shown)))
