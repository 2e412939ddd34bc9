# SPDX-License-Identifier: MIT
"""Refuse code that registers objects, or links them into a list, by another member than before. Pure.

``tick`` finds its object by ``from_timer(dev, t, a)``, and the edit makes that ``b``, here and where the
timer is set up. A timer that was set up before is still ``a``, so the new ``tick`` would take memory beside
the object for the object. The same holds for a list: an object linked by ``item->by_name`` is not found by
``by_age``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from hotreload.diff.correlate import base_name
from hotreload.diff.layouts import Layouts, Shape
from hotreload.diff.object_diff import Twins
from hotreload.diff.obstacles import RELOAD_MODULE, Obstacle
from hotreload.elf.links import Head, links_of, reads_pointer_at
from hotreload.elf.model import Symbol, SymbolRef
from hotreload.elf.references import takes_address
from hotreload.elf.registrations import registrations_of

Members = dict[tuple[str, int, str], set[int]]

# Heads that objects are linked into by one of their members (include/linux/types.h and others).
_HEADS: Final = frozenset(
    "list_head hlist_head hlist_bl_head hlist_nulls_head llist_head klist rb_root rb_root_cached".split()
)


def refuse_other_members(
    original: Collection[Symbol], patched: Collection[Symbol], changed: Iterable[Twins]
) -> Iterator[Obstacle]:
    """Yield an obstacle (HR2207) for each such callback. ``original``, ``patched``: all code and tables."""
    twins = list(changed)
    before = _holders(original, {each.original for each in twins})
    after = _holders(patched, {each.patched for each in twins})
    for each in twins:
        ours, theirs = _members(*before[each.original]), _members(*after[each.patched])
        for key in ours.keys() & theirs.keys():
            if ours[key] - theirs[key] and theirs[key] - ours[key]:
                name = each.original.name
                message = f"{name} changed, and is now registered with a different member of its object"
                message += ": earlier registrations would call it with the old one"
                yield Obstacle("HR2207", name, message, RELOAD_MODULE)
                break


def _holders(
    symbols: Collection[Symbol], functions: set[Symbol]
) -> dict[Symbol, tuple[set[Symbol], list[Symbol]]]:
    """Return where each function's address is, and who gives it away.

    That is, for each function: the function and the tables that contain its address; and the code that takes
    the address of one of these.
    """
    found: dict[Symbol, tuple[set[Symbol], list[Symbol]]] = {each: ({each}, []) for each in functions}
    for table in symbols if functions else ():
        for target in _targets(table) & functions if table.is_object else ():
            found[target][0].add(table)
    of: dict[Symbol, set[Symbol]] = defaultdict(set)
    for function, (sought, _) in found.items():
        for each in sought:
            of[each].add(function)
    for holder in symbols if functions else ():
        for relocation in holder.relocations if holder.is_function else ():
            taken = relocation.target
            if not isinstance(taken, SymbolRef) or taken.symbol not in of:
                continue
            for function in of[taken.symbol]:
                if takes_address(holder, relocation) and holder not in found[function][1]:
                    found[function][1].append(holder)
    return found


def _targets(symbol: Symbol) -> set[Symbol]:
    return {r.target.symbol for r in symbol.relocations if isinstance(r.target, SymbolRef)}


def _members(sought: set[Symbol], holders: Iterable[Symbol]) -> Members:
    """Return the offsets of the registered members, by registering function, argument and object."""
    found: Members = defaultdict(set)
    for holder in holders:
        for each in registrations_of(holder, frozenset(sought)):
            found[each.by, each.argument, each.object].add(each.offset)
    return found


def refuse_other_links(layouts: Layouts, changed: Iterable[Twins]) -> Iterator[Obstacle]:
    """Yield an obstacle (HR2101) for each function that links objects by another member than before.

    ``layouts`` tell which variables are lists.
    """
    heads = frozenset(name for name, shape in layouts.shapes.items() if _is_head(layouts, shape))
    both = list(changed)
    before = _links((each.original for each in both), heads)
    after = _links((each.patched for each in both), heads)
    told: dict[Symbol, str] = {}
    for key in before.keys() & after.keys():
        if before[key].keys() - after[key].keys() and after[key].keys() - before[key].keys():
            head, function = key[0], next(iter(before[key].values()))
            if head.is_variable:
                told[function] = f"links objects into '{base_name(head.came)}' by a different member"
            elif head.is_list:
                told.setdefault(function, "links objects into a list by a different member")
            elif any(reads_pointer_at(each.patched, head.offset) for each in both):
                told.setdefault(function, "stores the address of a different member")
    for function, what in told.items():
        message = (
            f"{function.name} {what} than before: what was stored before would be taken for a"
            " different object"
        )
        yield Obstacle("HR2101", function.name, message, RELOAD_MODULE)


def _is_head(layouts: Layouts, shape: Shape | None) -> bool:
    """Return whether a variable is such a head, contains one as a member, or is a table of them."""
    if shape is None:
        return False
    if shape[0] == "[]":
        return _is_head(layouts, shape[2])
    if shape[0] == "struct" and shape[1] in _HEADS:
        return True
    fields = shape[2] if shape[0] == "{}" else next((x.fields for x in layouts.aggregates.get(shape, ())), ())
    return any(field.shape[0] == "struct" and field.shape[1] in _HEADS for field in fields)


def _links(functions: Iterable[Symbol], heads: frozenset[str]) -> dict[tuple[Head, str], dict[int, Symbol]]:
    """Return the offsets of the members by which objects are linked, with the functions that link them.

    The keys are what the objects are linked into, and where the objects come from.
    """
    found: dict[tuple[Head, str], dict[int, Symbol]] = defaultdict(dict)
    for function in functions:
        for link in links_of(function, heads):
            found[link.head, link.came].setdefault(link.offset, function)
    return found
