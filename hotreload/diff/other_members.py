# SPDX-License-Identifier: MIT
"""Changed callbacks that are registered with another member of their objects. Pure.

``tick`` finds its object by ``from_timer(dev, t, a)``, and the edit makes that ``b``, here and where the
timer is set up. A timer that was set up before is still ``a``: the new ``tick`` would take what lies beside
it for the object.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from hotreload.diff.object_diff import Twins
from hotreload.diff.obstacles import RELOAD_MODULE, Obstacle
from hotreload.elf.model import ObjectFile, Symbol, SymbolRef
from hotreload.elf.references import takes_address
from hotreload.elf.registrations import registrations_of

Members = dict[tuple[str, str], set[int]]


def refuse_other_members(
    original: ObjectFile, patched: ObjectFile, changed: Iterable[Twins]
) -> Iterator[Obstacle]:
    """Obstacles (HR2207), one for each such callback."""
    twins = list(changed)
    before = _holders(original, {each.original for each in twins})
    after = _holders(patched, {each.patched for each in twins})
    for each in twins:
        ours = _members(before[each.original], each.original)
        theirs = _members(after[each.patched], each.patched)
        for key in ours.keys() & theirs.keys():
            if ours[key] - theirs[key] and theirs[key] - ours[key]:
                name = each.original.name
                message = f"{name} changed, and is registered with another member of its object"
                message += ": what was registered before would run it with the old one"
                yield Obstacle("HR2207", name, message, RELOAD_MODULE)
                break


def _holders(obj: ObjectFile, functions: set[Symbol]) -> dict[Symbol, list[Symbol]]:
    """The functions that take the address of each of these."""
    found: dict[Symbol, list[Symbol]] = defaultdict(list)
    for holder in obj.functions:
        for relocation in holder.relocations:
            target = relocation.target
            if not isinstance(target, SymbolRef) or target.symbol not in functions:
                continue
            if takes_address(holder, relocation) and holder not in found[target.symbol]:
                found[target.symbol].append(holder)
    return found


def _members(holders: Iterable[Symbol], function: Symbol) -> Members:
    """The offsets at which it is registered, by who registers it and of which object."""
    found: Members = defaultdict(set)
    for holder in holders:
        for each in registrations_of(holder, function):
            found[each.by, each.object].add(each.offset)
    return found
