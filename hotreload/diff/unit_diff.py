# SPDX-License-Identifier: MIT
"""Code, data and types together: the whole answer about one unit. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hotreload.diff.correlate import base_name
from hotreload.diff.definitions import located
from hotreload.diff.holders import IsOwn, nothing_own
from hotreload.diff.layouts import Layouts, parse, section_of
from hotreload.diff.object_diff import ObjectDiff, diff_objects
from hotreload.diff.obstacles import Note, Obstacle
from hotreload.diff.rewrites import Rewrite, name_of_place
from hotreload.diff.spelling import spelled
from hotreload.diff.type_pair import LayoutDiff
from hotreload.diff.types import compare_layouts, global_functions
from hotreload.elf.btf import BtfError, says_the_same
from hotreload.elf.garbage import uncollected
from hotreload.elf.model import ObjectFile, Symbol

# What EXPORT_SYMBOL makes beside a function: up to v6.4, and since.
EXPORT_MARKS = ("__ksymtab_", "__export_symbol_")
UNDO_FIRST = (
    "objects of that type may be in use: take the reload back that added it (hotreload undo), then save"
)
NO_TYPES = "compile with gcc 12 or later, which writes the types: hotreload doctor"


@dataclass(frozen=True, slots=True)
class BaseObject:
    """The object of a unit that the guest booted, with its types parsed; ``layouts`` None: it has none."""

    object: ObjectFile
    layouts: Layouts | None


@uncollected()
def base_object_of(obj: ObjectFile) -> BaseObject:
    """Parse the types of a base object once, for all the edits to come."""
    section = section_of(obj)
    try:
        return BaseObject(obj, parse(section) if section is not None else None)
    except BtfError:
        return BaseObject(obj, None)


@uncollected()
def diff_unit(
    original: BaseObject,
    patched: ObjectFile,
    sources: Mapping[str, str],
    *,
    types_known: bool = False,
    live_types: Sequence[bytes] = (),
    is_own: IsOwn = nothing_own,
) -> ObjectDiff:
    """Compare a unit's objects and, where its code changed, the types that live data may have.

    ``sources``: texts by path, nearest first, to find the line of a definition in. ``types_known``: refuse
    (HR2101) where types cannot be compared, instead of telling so. ``live_types``: each ``.BTF`` of the unit
    that the guest has run, whose code may have made objects of types that the original has not. ``is_own``:
    whether its module defines a function of that name.
    """
    diff = diff_objects(original.object, patched, original.layouts, is_own)
    if diff.verdict == "unchanged":
        # No code of this unit knows of the new layouts; another unit whose code does is told there. What is
        # new in this one travels all the same.
        return replace(diff, types=_types_of((*diff.new_data, *diff.new_functions), patched))
    types = compare_layouts(original.layouts, section_of(patched), exported_functions(original.object))
    if types_known and not types.compared:
        refusals = tuple(Obstacle(note.code, note.symbol, note.message, NO_TYPES) for note in types.notes)
        types = replace(types, obstacles=refusals, notes=())
    for live in live_types if types.compared else ():
        added = _changed_since(live, original.layouts, section_of(patched), types)
        types = replace(types, obstacles=types.obstacles + added)
    # A variable that grew with its type has been told of by its type.
    grown = {obstacle.code for obstacle in types.obstacles}
    kept = tuple(o for o in diff.obstacles if o.code != "HR2101" or "HR2101" not in grown)
    types = located(replace(types, obstacles=kept + types.obstacles), sources)
    return replace(
        diff,
        obstacles=types.obstacles,
        notes=diff.notes + types.notes + tuple(_rewritten(diff.rewrites, original.layouts)),
        types=_types_of((*diff.new_data, *diff.new_functions), patched),
    )


def _changed_since(
    live: bytes, base: Layouts | None, patched: bytes | None, found: LayoutDiff
) -> tuple[Obstacle, ...]:
    """Types that an earlier reload added and this one changes: what is told of the base's is left out."""
    if live == patched or base is None or says_the_same(base.settled, live):
        return ()
    told = {obstacle.symbol for obstacle in found.obstacles}
    try:
        before = parse(live)
    except BtfError:
        return ()
    since = compare_layouts(before, patched)
    # A variable of another type is another one (homes.py), and no one calls what a patch added.
    return tuple(
        replace(obstacle, hint=UNDO_FIRST)
        for obstacle in since.obstacles
        if obstacle.symbol not in told | before.variables.keys() and obstacle.code != "HR2205"
    )


def without_same(sections: Sequence[bytes], other: bytes) -> tuple[bytes, ...]:
    """Those of several raw ``.BTF`` whose types are not all in ``other`` as well."""
    if not sections:
        return ()
    try:
        settled = parse(other).settled
        return tuple(section for section in sections if not says_the_same(settled, section))
    except BtfError:
        return tuple(sections)


def _rewritten(rewrites: Sequence[Rewrite], layouts: Layouts | None) -> Iterator[Note]:
    """Tell which values are written in place, by their names in C."""
    for rewrite in rewrites:
        name = base_name(rewrite.original.name)
        places = [name_of_place(layouts, rewrite.original, name, offset) for offset, _ in rewrite.places]
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        told = f"new initial value written in place: {', '.join(places[:3])}{more}"
        yield Note("HR2103", name, f"{told}; what was made from the old one stays")


def _types_of(symbols: Sequence[Symbol], patched: ObjectFile) -> dict[str, str]:
    """The types of variables and functions as C spells them; gcc 12 tells none of a static local."""
    section = section_of(patched)
    if not symbols or section is None:
        return {}
    try:
        layouts = parse(section)
    except BtfError:
        return {}
    shapes = {**layouts.functions, **layouts.variables}
    names = {symbol.name for symbol in symbols}
    return {name: ", ".join(map(spelled, shapes[name])) for name in names & shapes.keys()}


def exported_functions(obj: ObjectFile) -> frozenset[str]:
    """The functions that other modules may call: with a new prototype these would pass the old arguments.

    Callers in the same module are compiled with their header, and travel in the same patch.
    """
    marks = {symbol.name for symbol in obj.symbols if symbol.name.startswith(EXPORT_MARKS)}
    return frozenset(
        name for name in global_functions(obj) if any(mark + name in marks for mark in EXPORT_MARKS)
    )
