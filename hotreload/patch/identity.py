# SPDX-License-Identifier: MIT
"""What tells an added function or variable in the patches to come: the names that its source gives it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hotreload.diff.correlate import base_name, is_child, is_place_static, is_static_local, parent_name
from hotreload.elf.model import Symbol, SymbolRef
from hotreload.patch.model import Identity, UnitDiff


def identities(units: Sequence[UnitDiff]) -> dict[Symbol, Identity]:
    """The identity of all that is new and has a name."""
    found: dict[Symbol, Identity] = {}
    for unit in units:
        new = [s for s in unit.diff.carried if s not in unit.diff.original_of and can_be_told(s)]
        owners = _owners(unit.diff.carried)
        for symbol in new:
            of = owners[symbol] if is_static_local(symbol) else set()
            found[symbol] = Identity(unit.module, unit.source, tuple(sorted(of)), base_name(symbol.name))
    count = Counter(found.values())
    return {s: replace(i, shared=True) if count[i] > 1 else i for s, i in found.items()}


def can_be_told(symbol: Symbol) -> bool:
    return not symbol.anonymous and not is_child(symbol) and not is_place_static(symbol)


def _owners(carried: Sequence[Symbol]) -> Mapping[Symbol, set[str]]:
    """The functions of the source that lead to each symbol, themselves or by what they call.

    With those in between, a static local keeps one of them when its function is inlined, or is no more.
    """
    users: dict[Symbol, set[Symbol]] = defaultdict(set)
    for symbol in carried:
        for relocation in symbol.relocations:
            if isinstance(relocation.target, SymbolRef):
                users[relocation.target.symbol].add(symbol)
    found = {}
    for symbol in carried:
        reached = {symbol}
        todo = [symbol]
        while todo:
            more = users.get(todo.pop(), set()) - reached
            reached |= more
            todo += more
        found[symbol] = {base_name(parent_name(s.name)) for s in reached if s.is_function}
    return found
