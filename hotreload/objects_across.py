# SPDX-License-Identifier: MIT
"""Objects that one unit makes and another one handles: their sizes, who frees them, what is undone. Pure.

The passes of diff/ see one unit. This module asks the same questions about the edited units of a module
together, and about functions of unedited units that pass a size or a pointer on to the kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hotreload.build.base import AnyBase
from hotreload.build.cmd_files import TranslationUnit
from hotreload.compared import Compared
from hotreload.diff.allocations import message_of, refuse_other_frees, users_of_other_sizes
from hotreload.diff.correlate import parent_name
from hotreload.diff.layouts import Member
from hotreload.diff.member_paths import MemberPaths
from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.obstacles import Obstacle
from hotreload.diff.paired_calls import refuse_new_pairs
from hotreload.diff.types import recast_obstacle
from hotreload.diff.unset_members import entered, is_unused, relies_on, unset_member
from hotreload.elf.allocators import NO_WRAPPERS, Wrappers, allocator_behind
from hotreload.elf.frees import free_behind
from hotreload.elf.model import ObjectFile, Symbol
from hotreload.elf.references import names_elsewhere

Joined = Mapping[str, frozenset[str]]
HasGlobal = Callable[[str, str], bool]
ReadPlain = Callable[[TranslationUnit], ObjectFile]


def wrappers_of(
    base: AnyBase, compared: Mapping[Path, Compared], joined: Joined, has_global: HasGlobal, plain: ReadPlain
) -> dict[str, str]:
    """Return the functions that changed code calls, and that only pass on what they are passed.

    They are in other units of the same module, or of one that is ``joined`` to it: name -> the allocator, or
    the function that frees, behind it.
    """
    edited = [one for one in compared.values() if one.pair.unit.module in joined]
    groups = {joined[one.pair.unit.module] for one in edited}
    changed = [function for one in edited for twins in _twins(one.diff) for function in twins]
    names = {name for function in changed for name in names_elsewhere(function)}
    found: dict[str, str] = {}
    for module in base.modules:
        if not any(module.name in group for group in groups):
            continue
        own = {name for name in names if has_global(module.name, name)}
        for unit in module.units if own else ():
            one = compared.get(unit.object)
            obj = one.original.base.object if one is not None else plain(unit)
            for function in obj.functions:
                behind = allocator_behind(function) or free_behind(function) if function.name in own else None
                if behind is not None:
                    found[function.name] = behind
    return found


def _twins(diff: ObjectDiff) -> list[tuple[Symbol, Symbol]]:
    return [(twins.original, twins.patched) for twins in (*diff.changed, *diff.only_for_exit)]


def allocations_across_units(
    compared: Mapping[Path, Compared], joined: Joined, through: Wrappers = NO_WRAPPERS
) -> Iterator[Obstacle]:
    """Yield obstacles for code that relies on another size or allocator of what another unit has allocated.

    The other unit belongs to the same module or to one that is joined to it. ``through``: from wrappers_of().
    With these, the unit itself is looked at once more.
    """
    for key, one in compared.items():
        module, where = one.pair.unit.module, str(one.pair.unit.source)
        group = joined.get(module, frozenset())  # empty for vmlinux
        others = [o.diff for k, o in compared.items() if k != key and o.pair.unit.module in group]
        own = _twins(one.diff)
        beside = [twins for other in others for twins in _twins(other)]
        using = [*beside, *own] if through else beside
        new = _new([*others, one.diff] if through else others)
        for resized, user in users_of_other_sizes(own, using, through) if using else ():
            yield Obstacle("HR2101", resized.function.name, message_of(resized, user), where=where)
        told = {obstacle.symbol for obstacle in one.diff.obstacles}
        for obstacle in refuse_other_frees(own, new, beside, through) if using or new else ():
            if obstacle.symbol not in told:
                yield replace(obstacle, where=where)


def _new(diffs: Iterable[ObjectDiff]) -> list[Symbol]:
    return [function for diff in diffs for function in diff.new_functions]


def pairs_across_units(compared: Mapping[Path, Compared], joined: Joined) -> Iterator[Obstacle]:
    """Yield obstacles for functions that newly undo what a function of another unit newly does."""
    for group in set(joined.values()):
        diffs = [one.diff for one in compared.values() if one.pair.unit.module in group]
        if len(diffs) < 2:
            continue
        told: Collection[str] = {obstacle.symbol for diff in diffs for obstacle in diff.obstacles}
        changed = [twins for diff in diffs for twins in _twins(diff)]
        removed = [function for diff in diffs for function in diff.removed_functions]
        for obstacle in refuse_new_pairs(changed, _new(diffs), removed):
            if obstacle.symbol not in told:
                yield obstacle


def unset_members_across_units(compared: Mapping[Path, Compared], joined: Joined) -> Iterator[Obstacle]:
    """Yield obstacles for functions that rely on a member of an object which another unit now sets up.

    Static variables of two units are two variables, whatever their names.
    """
    for user, maker in itertools.permutations(compared.values(), 2):
        group = joined.get(user.pair.unit.module, ())
        if maker.pair.unit.module not in group:
            continue
        units = [one for one in compared.values() if one.pair.unit.module in group]
        told = {obstacle.symbol for obstacle in user.diff.obstacles}
        for member in user.diff.relied_on.keys() & maker.diff.set_up.keys():
            makers = {one.name for one in maker.diff.set_up[member]}
            for function in entered(user.diff) if _is_one_struct(member, user, maker) else ():
                name = parent_name(function.name)
                if name in told or not relies_on(function, member, user.diff):
                    continue
                if makers.isdisjoint(names_elsewhere(function)) and all(_is_unused(member, u) for u in units):
                    told.add(name)
                    one = next(iter(maker.diff.set_up[member]))
                    where = str(user.pair.unit.source)
                    yield replace(unset_member(member, one, function), where=where)


def _is_one_struct(member: Member, one: Compared, other: Compared) -> bool:
    """Return whether two units mean the same struct by a name."""
    if isinstance(member.holder, str):
        return False
    ours, theirs = one.original.base.layouts, other.original.base.layouts
    found = [side.aggregates.get(member.holder) for side in (ours, theirs) if side is not None]
    return len(found) == 2 and found[0] == found[1] is not None


def recast_across_units(compared: Mapping[Path, Compared], joined: Joined) -> Iterator[Obstacle]:
    """Yield obstacles for functions of several units that now take their objects for another struct."""
    for group in set(joined.values()):
        units = [one for one in compared.values() if one.pair.unit.module in group]
        for was, now in dict.fromkeys(key for one in units for key in one.diff.recast):
            by_unit = [one.diff.recast.get((was, now), frozenset()) for one in units]
            functions = frozenset[str]().union(*by_unit)
            if len(functions) > 1 and not any(len(names) > 1 for names in by_unit):  # else its unit told it
                yield recast_obstacle(was, now, functions)


def _is_unused(member: Member, one: Compared) -> bool:
    original = one.original.base
    return original.layouts is not None and is_unused(member, original.object, MemberPaths(original.layouts))
