# SPDX-License-Identifier: MIT
"""Refuse functions that use a member which only other new code sets up. Pure.

``probe`` now calls ``init_waitqueue_head(&dev->wait)``, or stores a new workqueue in ``dev->queue``, and
``write`` now calls ``wake_up(&dev->wait)`` or ``queue_work(dev->queue, ..)``. Both members existed, but
nobody used them, so no type changed. A device that was probed before has zeros there, and ``write`` would
follow a NULL pointer.

An instruction shows an offset only. Which member that is follows from the structs that the function handles.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from hotreload.diff.correlate import parent_name, source_name
from hotreload.diff.layouts import Layouts, Member, Shape
from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.obstacles import RELOAD_MODULE, Obstacle
from hotreload.diff.pair import referrers_of, takes_address_of
from hotreload.elf.member_uses import How, MemberUse, member_uses
from hotreload.elf.model import ObjectFile, Symbol, SymbolRef
from hotreload.elf.references import takes_address

_AGGREGATES: Final = frozenset(("struct", "union", "typedef", "[]"))
_OF_POINTERS: Final = (How.EMPTIES, How.POINTS, How.FOLLOWS)

Users = dict[Member, dict[Symbol, None]]


def members_of(diff: ObjectDiff, layouts: Layouts) -> tuple[Users, Users]:
    """Return the members that changed and new functions set up, and those that they rely on.

    A function may do both, with two objects.
    """
    set_up: Users = defaultdict(dict)
    relied_on: Users = defaultdict(dict)
    for function in (*(twins.patched for twins in diff.changed), *diff.new_functions):
        made: dict[Member, list[MemberUse]] = defaultdict(list)
        uses = [(use, member) for use in _distinct(function) for member in _members(function, use, layouts)]
        for use, member in uses:
            if use.how in ((How.POINTS,) if member.is_pointer else (How.SETS_UP, How.EMPTIES)):
                made[member].append(use)
                set_up[member][function] = None
        for use, member in uses:
            relies = use.how is How.FOLLOWS or (use.how is How.TOUCHES and not member.is_pointer)
            if relies and not any(_may_be_same(use, maker) for maker in made[member]):
                relied_on[member][function] = None
    return set_up, relied_on


def _may_be_same(use: MemberUse, maker: MemberUse) -> bool:
    """Return whether a function uses the object that it has set up: it did not find it somewhere else."""
    return use.at.came == maker.at.came or use.is_spilled or maker.is_spilled or maker.is_unknown


def refuse_unset_members(
    original: ObjectFile, layouts: Layouts, patched: ObjectFile, diff: ObjectDiff
) -> Iterator[Obstacle]:
    """Yield an obstacle (HR2211) for each changed function that uses a member which it does not set up.

    That is, if another changed or new function sets it up, and no code of the original uses it. ``layouts``
    are the types of the original.
    """
    told = {obstacle.symbol for obstacle in diff.obstacles if obstacle.code == "HR2211"}
    # Most members were used by the functions that changed.
    members = diff.set_up.keys() & diff.relied_on.keys()
    used = {
        member
        for twins in (diff.changed if members else ())
        for use in _distinct(twins.original)
        for member in _members(twins.original, use, layouts)
    }
    for member, twins in itertools.product(members - used, diff.changed):
        function, makers = twins.patched, diff.set_up[member]
        if parent_name(function.name) in told or not relies_on(function, member, diff):
            continue
        maker = next((one for one in makers if not _runs_with(function, one, patched)), None)
        if maker is not None and is_unused(member, original, layouts):
            told.add(parent_name(function.name))
            yield unset_member(member, maker, function)


def relies_on(function: Symbol, member: Member, diff: ObjectDiff) -> bool:
    """Return whether a changed function, with the new ones that it calls, relies on what others set up."""
    helpers = _reached(function, frozenset(diff.new_functions))
    users = diff.relied_on[member]
    return (function in users or not helpers.isdisjoint(users)) and helpers.isdisjoint(
        diff.set_up.get(member, ())
    )


def is_unused(member: Member, original: ObjectFile, layouts: Layouts) -> bool:
    """Return whether objects from before the edit may have a member, and no code of a unit uses it."""
    if isinstance(member.holder, tuple) and member.holder not in layouts.aggregates:
        return False
    for function in original.functions:
        may_use = isinstance(member.holder, str) or member.holder in _handled(function, layouts)
        if may_use and any(member in _members(function, use, layouts) for use in _distinct(function)):
            return False
    return True


def unset_member(member: Member, maker: Symbol, user: Symbol) -> Obstacle:
    """Return why the edit is refused."""
    name, other = parent_name(user.name), parent_name(maker.name)
    holder = member.holder
    what = f"'{holder}'" if isinstance(holder, str) else f"'{member.name}' of {' '.join(holder)}"
    message = f"{name} now uses {what}, which {other} sets up only since this edit"
    message += (
        ": nothing is there yet" if isinstance(holder, str) else ": objects that exist have nothing there"
    )
    return Obstacle("HR2211", name, message, RELOAD_MODULE)


def _distinct(function: Symbol) -> Iterable[MemberUse]:
    return dict.fromkeys(member_uses(function))


def _members(function: Symbol, use: MemberUse, layouts: Layouts) -> Iterator[Member]:
    """Yield the members that may be at an address, as far as the types tell."""
    variable = use.at.came if isinstance(use.at.came, Symbol) else None
    place = use.at.offset * 8
    if variable is None:
        holders = _handled(function, layouts)
    else:
        shape = layouts.shapes.get(variable.name)
        holders = [shape] if shape is not None else []
        if place == 0:
            yield Member(variable.name, "", False)
    for holder in holders:
        for layout in layouts.aggregates.get(holder, ()):
            for field in layout.fields:
                if not field.offset <= place < field.offset + layouts.width(field):
                    continue
                is_pointer = field.shape[0] == "*"
                if use.how in _OF_POINTERS and not _is_pointer(field.shape, place - field.offset, layouts):
                    continue
                if is_pointer or field.shape[0] in _AGGREGATES:
                    yield Member(variable.name if variable else holder, field.name, is_pointer)


def _is_pointer(shape: Shape, place: int, layouts: Layouts) -> bool:
    """Return whether there is a pointer at a place, in bits, of a value."""
    if shape[0] == "[]" and (size := layouts.size(shape[2]) * 8):
        return _is_pointer(shape[2], place % size, layouts)
    if shape[0] not in _AGGREGATES:
        return bool(shape[0] == "*")
    return any(
        field.offset <= place < field.offset + layouts.width(field)
        and _is_pointer(field.shape, place - field.offset, layouts)
        for layout in layouts.aggregates.get(shape, ())
        for field in layout.fields
    )


def _handled(function: Symbol, layouts: Layouts) -> Collection[Shape]:
    return layouts.handled.get(source_name(function.name), ())


def _runs_with(user: Symbol, maker: Symbol, obj: ObjectFile) -> bool:
    """Return whether a function calls the one that sets a member up, or runs only when that one calls it."""
    if user is maker:
        return False
    return maker in _reached(user) or _runs_only_in(user, maker, referrers_of(obj), set())


def _reached(function: Symbol, within: frozenset[Symbol] | None = None) -> set[Symbol]:
    """Return the functions that a function calls, directly or through others of those ``within``."""
    found: set[Symbol] = set()
    todo = [function]
    while todo:
        caller = todo.pop()
        for relocation in caller.relocations:
            target = relocation.target.symbol if isinstance(relocation.target, SymbolRef) else None
            if target is None or not target.is_function or not target.is_defined or target in found:
                continue
            if (within is None or target in within) and not takes_address(caller, relocation):
                found.add(target)
                todo.append(target)
    return found


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
