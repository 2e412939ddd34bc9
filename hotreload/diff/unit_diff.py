# SPDX-License-Identifier: MIT
"""Compare the code, data and types of a unit together. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hotreload.diff.allocations import message_of, refuse_other_frees, users_of_other_sizes
from hotreload.diff.correlate import base_name, parent_name
from hotreload.diff.definitions import is_gone, located
from hotreload.diff.holders import IsOwn, nothing_own
from hotreload.diff.layouts import Layouts, parse
from hotreload.diff.object_diff import Declared, ObjectDiff, Twins, diff_objects
from hotreload.diff.obstacles import Note, Obstacle
from hotreload.diff.other_members import refuse_other_links, refuse_other_members
from hotreload.diff.pair_variables import EarlierNames
from hotreload.diff.registered import decided_once, with_looked_up
from hotreload.diff.renamed_since import renamed_variables
from hotreload.diff.rewrites import Rewrite, name_of_place
from hotreload.diff.spelling import spelled
from hotreload.diff.type_pair import LayoutDiff
from hotreload.diff.types import compare_layouts, global_functions
from hotreload.diff.unset_members import members_of, refuse_unset_members
from hotreload.diff.variables import with_storage, without_storage
from hotreload.elf.dwarf import DwarfError
from hotreload.elf.garbage import uncollected
from hotreload.elf.model import ObjectFile, Symbol

# What EXPORT_SYMBOL creates beside a function: up to v6.4, and since.
EXPORT_MARKS = ("__ksymtab_", "__export_symbol_")
NO_TYPES = "the compiler must write debugging information (-g): see hotreload doctor"


@dataclass(frozen=True, slots=True)
class UnitObject:
    """An object of a unit, with its types parsed. ``layouts`` is None if it does not tell them."""

    object: ObjectFile
    layouts: Layouts | None


@dataclass(frozen=True, slots=True)
class UnitContext:
    """What else is known of a unit.

    ``live_types``  the types that it had in each reload of the guest, if they were not the original's
    ``added``       (function, name) of the variables that reloads have added to it
    ``is_own``      whether another file of its module defines a function of that name
    ``renames``     renamed global functions of its module: old name -> new name
    ``handed``      see diff_objects
    ``live``        what the guest runs of it, if that is not the original
    ``judge_init``  see diff_objects
    """

    live_types: Sequence[Layouts] = ()
    added: Collection[tuple[str, str]] = ()
    is_own: IsOwn = nothing_own
    renames: Mapping[str, str] = field(default_factory=dict)
    handed: Collection[str] = ()
    live: ObjectDiff | None = None
    judge_init: bool = True


NOTHING_ELSE = UnitContext()


@uncollected()
def unit_object_of(obj: ObjectFile) -> UnitObject:
    """Parse the types of an object. The base object is parsed once, for all later edits."""
    return UnitObject(obj, layouts_of(obj))


def layouts_of(obj: ObjectFile) -> Layouts | None:
    """Return the types of an object, or None if it does not tell them in a form that is understood."""
    try:
        return parse(obj)
    except DwarfError:
        return None


@uncollected()
def diff_unit(
    original: UnitObject,
    patched: UnitObject,
    sources: Mapping[str, str],
    *,
    types_known: bool = False,
    context: UnitContext = NOTHING_ELSE,
) -> ObjectDiff:
    """Compare a unit's objects and, if its code changed, the types that live data may have.

    ``sources``: texts by path, nearest first, in which to find the line of a definition. ``types_known``:
    refuse (HR2101) if types cannot be compared, instead of adding a note.
    """
    before, after = original.layouts, patched.layouts
    renamed = renamed_variables(context.live, patched.object) if context.live is not None else {}
    diff = diff_objects(
        original.object,
        patched.object,
        before,
        after,
        context.is_own,
        context.renames,
        handed=context.handed,
        judge_init=context.judge_init,
        earlier=EarlierNames(renamed, context.added, lambda name: is_gone(name, sources)),
    )
    if context.live is not None:
        diff = replace(diff, obstacles=(*diff.obstacles, *_sizes_since(context.live, diff)))
    diff = _with_declarations(diff, before, after, context.added)
    if diff.verdict == "unchanged":
        # No code of this unit uses the new layouts. If code of another unit does, its comparison reports it.
        # New symbols of this unit travel all the same.
        return diff
    types = compare_layouts(before, after, exported_functions(original.object), sources)
    if types_known and not types.compared:
        refusals = tuple(Obstacle(note.code, note.symbol, note.message, NO_TYPES) for note in types.notes)
        types = replace(types, obstacles=refusals, notes=())
    for live in context.live_types if types.compared else ():
        types = replace(types, obstacles=types.obstacles + _changed_since(live, patched.layouts, types))
    if before is not None and diff.rewrites:
        diff = replace(diff, rewrites=tuple(with_looked_up(each, before) for each in diff.rewrites))
        decided = tuple(decided_once(original.object, before, diff.rewrites, sources, context.is_own))
        # These obstacles name the member of the variable, so prefer them.
        told = {(obstacle.code, obstacle.symbol) for obstacle in decided}
        others = [o for o in diff.obstacles if (o.code, o.symbol) not in told]
        diff = replace(diff, obstacles=(*others, *decided))
    if not types.obstacles:  # otherwise the members may have moved because of another layout
        members = refuse_other_members(original.object.symbols, patched.object.symbols, diff.changed)
        found = [*members, *(refuse_other_links(before, diff.changed) if before is not None else ())]
        if before is not None and after is not None:
            set_up, relied_on = members_of(diff, after, sources)
            diff = replace(diff, set_up=set_up, relied_on=relied_on)
            found += refuse_unset_members(original.object, before, patched.object, diff)
        if context.live is not None:
            found += _members_since(context.live, diff, original.object, patched)
        diff = replace(diff, obstacles=(*diff.obstacles, *dict.fromkeys(found)))
    # A variable that grew with its type is already reported by its type.
    grown = {obstacle.code for obstacle in types.obstacles}
    kept = tuple(o for o in diff.obstacles if o.code != "HR2101" or "HR2101" not in grown)
    types = located(replace(types, obstacles=kept + types.obstacles), sources)
    return replace(
        diff,
        recast=types.recast,
        obstacles=types.obstacles,
        notes=diff.notes + types.notes + tuple(_rewritten(diff.rewrites, original.layouts)),
    )


def _sizes_since(live: ObjectDiff, diff: ObjectDiff) -> Iterator[Obstacle]:
    """Yield obstacles for code that expects another size of memory that an earlier edit allocated."""
    told = {obstacle.symbol for obstacle in diff.obstacles}
    base = {twins.patched.name: twins.original for twins in (*live.changed, *diff.changed)}
    before, after = _code_of(live), _code_of(diff)
    names = dict.fromkeys((*before, *after))
    twins = [(before.get(name, base.get(name)), after.get(name, base.get(name))) for name in names]
    pairs = [(one, other) for one, other in twins if one is not None and other is not None]
    allocating = [(one, other) for one, other in pairs if one.name in before]
    for resized, user in users_of_other_sizes(allocating, pairs):
        name = parent_name(resized.function.name)
        if name not in told:
            yield Obstacle("HR2101", name, message_of(resized, user))
    new = [after[name] for name in after.keys() - before.keys() - base.keys()]
    yield from (each for each in refuse_other_frees(pairs, new) if each.symbol not in told)


def _members_since(
    live: ObjectDiff, diff: ObjectDiff, original: ObjectFile, patched: UnitObject
) -> Iterator[Obstacle]:
    """Yield obstacles for objects that an earlier edit registered or linked by another member."""
    before, after = _code_of(live), _code_of(diff)
    twins = [Twins(one, after[name]) for name, one in before.items() if name in after]
    still = {symbol.name: symbol for symbol in (*original.symbols, *live.carried)}
    told = {obstacle.symbol for obstacle in diff.obstacles}
    found = [*refuse_other_members(list(still.values()), patched.object.symbols, twins)]
    if patched.layouts is not None:
        found += refuse_other_links(patched.layouts, twins)
    return (obstacle for obstacle in found if obstacle.symbol not in told)


def _code_of(diff: ObjectDiff) -> dict[str, Symbol]:
    symbols = (*(twins.patched for twins in diff.changed), *diff.new_functions)
    return {symbol.name: symbol for symbol in symbols}


def _with_declarations(
    diff: ObjectDiff, before: Layouts | None, after: Layouts | None, added: Collection[tuple[str, str]]
) -> ObjectDiff:
    """Return the diff with what the patched object declares."""
    if after is None:
        return diff
    unstored = without_storage(after.declared)
    stored = with_storage(before.declared) if before is not None else frozenset()
    return replace(
        diff,
        types=_types_of((*diff.new_data, *diff.new_functions), after),
        declared_in={v.symbol.name: v.function for v in after.declared if v.symbol and v.function},
        without_storage=unstored,
        folded=unstored & (stored | frozenset(added)) | _without_initial_value(diff, after),
        lost=_lost(diff, before, after) if before is not None else {},
        come=_by_declaration(after, diff.new_data),
    )


def _lost(diff: ObjectDiff, before: Layouts, after: Layouts) -> dict[Declared, Symbol]:
    """Return the variables that the source no longer declares."""
    there = {(one.function, one.name) for one in after.declared}
    kept = frozenset(diff.original_of.values())
    symbols = [one.symbol for one in before.declared if one.symbol is not None and one.symbol not in kept]
    found = _by_declaration(before, symbols)
    return {declared: symbol for declared, symbol in found.items() if declared[:2] not in there}


def _by_declaration(layouts: Layouts, symbols: Iterable[Symbol]) -> dict[Declared, Symbol]:
    """Return those of the symbols that are writable and share their declaration with no other variable."""
    among = {symbol for symbol in symbols if symbol.section is not None and symbol.section.is_writable}
    count = Counter((one.function, one.name) for one in layouts.declared)
    return {
        (one.function, one.name, one.shape): one.symbol
        for one in layouts.declared
        if one.symbol in among and count[one.function, one.name] == 1
    }


def _without_initial_value(diff: ObjectDiff, after: Layouts) -> frozenset[tuple[str, str]]:
    """Return the variables that nothing reads: gcc gives them no initial value, whatever the source says."""
    emptied = {
        patched
        for patched, original in diff.original_of.items()
        if patched.is_object and patched.section and patched.section.is_zero
        if original.section and not original.section.is_zero
    }
    return frozenset((v.function, v.name) for v in after.declared if v.symbol in emptied)


def _changed_since(live: Layouts, patched: Layouts | None, found: LayoutDiff) -> tuple[Obstacle, ...]:
    """Return obstacles for types that an earlier reload added and this edit changes.

    What is already reported against the base is left out.
    """
    if live is patched:
        return ()
    told = {obstacle.symbol for obstacle in found.obstacles}
    # A variable with another type is another variable (homes.py), and no other unit calls what a patch added.
    return tuple(
        obstacle
        for obstacle in compare_layouts(live, patched).obstacles
        if obstacle.symbol not in told | live.variables.keys() and obstacle.code != "HR2205"
    )


def _rewritten(rewrites: Sequence[Rewrite], layouts: Layouts | None) -> Iterator[Note]:
    """Note which values are written in place, by their names in C."""
    for rewrite in rewrites:
        name = base_name(rewrite.original.name)
        places = [name_of_place(layouts, rewrite.original, name, value.start) for value in rewrite.values]
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        told = f"new initial value written in place: {', '.join(places[:3])}{more}"
        if rewrite.is_parameter:
            told += ", unless the parameter was set to another value"
        yield Note("HR2103", name, f"{told}; what was made from the old one stays")


def _types_of(symbols: Sequence[Symbol], layouts: Layouts) -> dict[str, str]:
    """Return the types of variables and functions as C spells them, by name."""
    found = {}
    for symbol in symbols:
        if shape := layouts.shapes.get(symbol.name):
            found[symbol.name] = spelled(shape)
        elif prototypes := layouts.functions.get(symbol.name):
            found[symbol.name] = ", ".join(map(spelled, prototypes))
    return found


def exported_functions(obj: ObjectFile) -> frozenset[str]:
    """Return the functions that other modules may call.

    If their prototype changed, those modules would pass the old arguments. Callers in the same module are
    compiled with their header, and travel in the same patch.
    """
    marks = {symbol.name for symbol in obj.symbols if symbol.name.startswith(EXPORT_MARKS)}
    return frozenset(
        name for name in global_functions(obj) if any(mark + name in marks for mark in EXPORT_MARKS)
    )
