# SPDX-License-Identifier: MIT
"""Find variables that moved from one unit of a module to another with the code that uses them. Pure.

A function that is moved to another file takes along its static locals, and file-scope variables that it uses.
They are the same variables: the guest has their values, at the old place. This is certain if one unit has
lost a variable and another unit has a new one of the same name, type, initial value and function. If no
function declares it, a function must also have moved with it, or the first unit must still use it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hotreload.diff.object_diff import ObjectDiff
from hotreload.elf.model import Relocation, Symbol, SymbolRef
from hotreload.patch.model import UnitDiff


def moved_variables(units: Sequence[UnitDiff]) -> dict[Symbol, tuple[UnitDiff, Symbol]]:
    """Return each new variable that another unit had before, with that unit and its symbol there."""
    lost, come = defaultdict(list), defaultdict(list)
    for unit in units:
        for declared, symbol in unit.diff.lost.items():
            lost[unit.module, declared].append((unit, symbol))
        for declared, symbol in unit.diff.come.items():
            come[unit.module, declared].append((unit, symbol))
    found = {}
    for key in lost.keys() & come.keys():
        if len(lost[key]) == len(come[key]) == 1:
            (here, original), (there, patched) = lost[key][0], come[key][0]
            (function, *_) = key[1]
            is_known = function or _came_along(here.diff, there.diff, patched)
            if here is not there and is_known and _begin_alike(original, patched):
                found[patched] = here, original
    return found


def _begin_alike(one: Symbol, other: Symbol) -> bool:
    return one.content == other.content and _own_places(one) == _own_places(other) is not None


def _own_places(symbol: Symbol) -> list[tuple[int, int, int]] | None:
    """Return where a variable points at itself, as an empty list does; None if it also points elsewhere."""

    def is_own(relocation: Relocation) -> bool:
        return relocation.target == SymbolRef(symbol)

    places = [(r.offset, r.type, r.addend) for r in symbol.relocations]
    return places if all(map(is_own, symbol.relocations)) else None


def _came_along(here: ObjectDiff, there: ObjectDiff, variable: Symbol) -> bool:
    gone = {function.name for function in here.removed_functions}
    if any(function.name in gone for function in there.new_functions):
        return True
    return not variable.is_local and any(
        relocation.target.symbol.name == variable.name
        for twins in here.changed
        for relocation in twins.patched.relocations
        if isinstance(relocation.target, SymbolRef) and not relocation.target.symbol.is_defined
    )
