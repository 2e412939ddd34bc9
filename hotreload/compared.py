# SPDX-License-Identifier: MIT
"""A unit as the guest booted it, and as its sources make it now, side by side."""

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
    """The prototypes of a unit's global functions, as layouts.py has them."""
    known = unit.layouts.functions if unit.layouts is not None else {}
    return {name: known[name] for name in global_functions(unit.object) if name in known}


@dataclass(frozen=True, slots=True)
class Original:
    """A unit's base object, and what of it the guest runs: read once in the guest's life."""

    base: UnitObject
    running: RunningCode


def read_original(base: Path, plain: Path) -> Original:
    """Read a unit's base object and the one kbuild made. Raises InputError (HR1009)."""
    original = read_object(base)
    return Original(unit_object_of(original), match_running(read_object(plain), original))


@dataclass(frozen=True, slots=True)
class Compared:
    """A unit's two objects, and what they differ in.

    ``types``: of the patched one, if it has any that the base has not; ``digest``: of its file; ``edited``:
    the digests of those files that it was made of and that were not as in the base. ``renames``: as diff_unit
    took them. ``linkage``, ``prototypes``: of the patched one, these of its global functions.
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
        """Those of the base."""
        return prototypes_of(self.original.base)


async def proved(base: Base, one: Compared) -> Compared:
    """The same; where our flags change the code of a changed function, kbuild's show that the base is right.

    Without a red zone behind each variable, KASAN looks at no access of another file's variables. So the base
    source is compiled once more, with the flags of kbuild alone: the functions that this makes as the guest
    has them are proved. Raises InputError, CompilerDiedError.
    """
    running, unit = one.original.running, one.pair.unit
    if not any(twins.original in running.different for twins in one.diff.changed):
        return one
    again = read_object(await object_as_kbuild(base, unit))
    names = made_alike(read_object(base.plain_object(unit)), again)
    shown = [ours for ours in running.different if running.symbol_of[ours].name in names]
    return replace(one, original=replace(one.original, running=running.without(shown)))
