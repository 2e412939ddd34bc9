# SPDX-License-Identifier: MIT
"""Refuse functions that use a member which only other new code sets up. Pure.

``probe`` now calls ``init_waitqueue_head(&dev->wait)``, or stores a new workqueue in ``dev->queue``, and
``write`` now calls ``wake_up(&dev->wait)`` or ``queue_work(dev->queue, ..)``. Both members existed, but
nobody used them, so no type changed. A device that was probed before has zeros there, and ``write`` would
follow a NULL pointer. The same holds for a variable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from hotreload.diff.correlate import parent_name
from hotreload.diff.definitions import authors_files, find_definition
from hotreload.diff.layouts import VOID, Layouts, Member, Shape
from hotreload.diff.member_paths import MemberPaths
from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.obstacles import RELOAD_MODULE, Obstacle
from hotreload.diff.pair import reached_from, referrers_of, takes_address_of
from hotreload.diff.spelling import spelled
from hotreload.elf.member_uses import How, MemberUse, member_uses
from hotreload.elf.model import ObjectFile, Symbol, SymbolRef

# Members of these types hold a single number.
_NUMBERS: Final = ("int", "float", "enum")

Users = dict[Member, dict[Symbol, None]]


def members_of(diff: ObjectDiff, layouts: Layouts, sources: Mapping[str, str]) -> tuple[Users, Users]:
    """Return the members that changed and new functions set up, and those that they rely on.

    A function may do both, with two objects.
    """
    set_up: Users = defaultdict(dict)
    relied_on: Users = defaultdict(dict)
    known: dict[Shape, bool] = {}
    paths = MemberPaths(layouts)
    for function in (*(twins.patched for twins in diff.changed), *diff.new_functions):
        made: dict[Member, list[MemberUse]] = defaultdict(list)
        uses = [
            (use, member)
            for part in _parts(function, diff)
            for use in dict.fromkeys(member_uses(part))
            for member in paths.members_at(part, use)
            if member.shape[0] not in _NUMBERS
        ]
        for use, member in uses:
            is_made = use.how in ((How.POINTS,) if member.is_pointer else (How.SETS_UP, How.EMPTIES))
            if is_made and not _has_initial_value(use) and _is_set_by_drivers(member, sources, known):
                made[member].append(use)
                set_up[member][function] = None
        for use, member in uses:
            relies = use.how is How.FOLLOWS or (use.how is How.TOUCHES and not member.is_pointer)
            if relies and not any(_may_be_same(use, maker) for maker in made.get(member, ())):
                relied_on[member][function] = None
    return set_up, relied_on


def _parts(function: Symbol, diff: ObjectDiff) -> Iterator[Symbol]:
    """Yield a function, and the part that gcc split off it."""
    yield function
    yield from (each for each in diff.carried if each.name == f"{function.name}.cold" and each.is_defined)


def _may_be_same(use: MemberUse, maker: MemberUse) -> bool:
    """Return whether a function uses the object that it has set up: it did not find it somewhere else."""
    return use.came == maker.came or use.is_spilled or maker.is_spilled or maker.is_unknown


def _has_initial_value(use: MemberUse) -> bool:
    """Return whether the compiler has set up the variable that is used."""
    variable = use.root if isinstance(use.root, Symbol) and len(use.path) == 1 else None
    return (
        variable is not None and variable.is_defined and bool(any(variable.content) or variable.relocations)
    )


def _is_set_by_drivers(member: Member, sources: Mapping[str, str], known: dict[Shape, bool]) -> bool:
    """Return whether only the author's code sets a member: that of a struct of the author's, or a cookie.

    The kernel sets the members of its own structs.
    """
    holder = member.holder
    if isinstance(holder, str) or member.shape == ("*", VOID):
        return True
    if holder not in known:
        known[holder] = not sources or find_definition(spelled(holder), authors_files(sources)) is not None
    return known[holder]


def refuse_unset_members(
    original: ObjectFile, layouts: Layouts, patched: ObjectFile, diff: ObjectDiff
) -> Iterator[Obstacle]:
    """Yield an obstacle (HR2211) for each function that uses a member which it does not set up.

    That is, if another changed or new function sets it up, and no code of the original uses it. ``layouts``
    are the types of the original.
    """
    told = {obstacle.symbol for obstacle in diff.obstacles if obstacle.code == "HR2211"}
    members = diff.set_up.keys() & diff.relied_on.keys()
    # Most members were used by the functions that changed.
    paths = MemberPaths(layouts)
    members -= _used_in((twins.original for twins in diff.changed) if members else (), paths)
    for member in members:
        makers = diff.set_up[member]
        for function in entered(diff):
            if parent_name(function.name) in told or not relies_on(function, member, diff):
                continue
            is_set = any(_runs_with(function, one, patched) for one in makers)
            if not is_set and is_unused(member, original, paths):
                told.add(parent_name(function.name))
                yield unset_member(member, next(iter(makers)), function)


def entered(diff: ObjectDiff) -> Iterator[Symbol]:
    """Yield the functions of a patch that the running code enters.

    They are the changed ones, and new ones whose address is written into a table that exists.
    """
    yield from (twins.patched for twins in diff.changed)
    new = frozenset(diff.new_functions)
    for rewrite in diff.rewrites:
        for relocation in rewrite.patched.relocations:
            if isinstance(relocation.target, SymbolRef) and relocation.target.symbol in new:
                yield relocation.target.symbol


def relies_on(function: Symbol, member: Member, diff: ObjectDiff) -> bool:
    """Return whether a function, with the new ones that it calls, relies on what others set up."""
    helpers = reached_from([function], diff.new_functions)
    users = diff.relied_on[member]
    return (function in users or not helpers.isdisjoint(users)) and helpers.isdisjoint(
        diff.set_up.get(member, ())
    )


def is_unused(member: Member, original: ObjectFile, paths: MemberPaths) -> bool:
    """Return whether objects from before the edit may have a member, and no code of a unit uses it."""
    if isinstance(member.holder, tuple) and member.holder not in paths.layouts.aggregates:
        return False
    return not any(member in _used_in([function], paths) for function in original.functions)


def _used_in(functions: Iterable[Symbol], paths: MemberPaths) -> set[Member]:
    return {
        member
        for function in functions
        for use in {use[:3]: use for use in member_uses(function)}.values()  # wherever its pointer came from
        for member in paths.members_at(function, use)
    }


def unset_member(member: Member, maker: Symbol, user: Symbol) -> Obstacle:
    """Return why the edit is refused."""
    name, other = parent_name(user.name), parent_name(maker.name)
    holder = member.holder
    what = f"'{holder}'" if isinstance(holder, str) else f"'{member.name}' of {spelled(holder)}"
    message = f"{name} now uses {what}, which {other} sets up only since this edit: "
    message += "nothing is there yet" if isinstance(holder, str) else "objects that exist have nothing there"
    return Obstacle("HR2211", name, message, RELOAD_MODULE)


def _runs_with(user: Symbol, maker: Symbol, obj: ObjectFile) -> bool:
    """Return whether a function calls the one that sets a member up, or runs only when that one calls it."""
    if user is maker:
        return False
    return maker in reached_from([user]) or _runs_only_in(user, maker, referrers_of(obj), set())


def _runs_only_in(
    function: Symbol, root: Symbol, referrers: Mapping[Symbol, set[Symbol]], seen: set[Symbol]
) -> bool:
    """Return whether a function is static, and reached only by calls from ``root``."""
    if function is root or function in seen:
        return True
    seen.add(function)
    callers = referrers[function]
    return (
        function.is_local
        and bool(callers)
        and not any(takes_address_of(caller, function) for caller in callers)
        and all(_runs_only_in(caller, root, referrers, seen) for caller in callers)
    )
