# SPDX-License-Identifier: MIT
"""Identify an added function or variable in the patches to come, by the names that its source gives it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hotreload.diff.correlate import (
    base_name,
    is_child,
    is_flag_of_place,
    is_place_static,
    is_static_local,
    parent_name,
)
from hotreload.elf.model import Symbol, SymbolRef
from hotreload.patch.model import Identity, UnitDiff


def identities(units: Sequence[UnitDiff]) -> dict[Symbol, Identity]:
    """Return the identity of everything that is new and has a name."""
    found: dict[Symbol, Identity] = {}
    for unit in units:
        users = _users(unit.diff.carried)
        flags: defaultdict[Identity, list[Symbol]] = defaultdict(list)
        for symbol in unit.diff.carried:
            is_flag = is_flag_of_place(symbol)
            if symbol in unit.diff.original_of or not (is_flag or can_be_told(symbol)):
                continue
            function = unit.diff.declared_in.get(symbol.name)
            owners = () if not is_static_local(symbol) else _names(users[symbol])
            owners = (function,) if function else owners
            identity = Identity(unit.module, unit.source, owners, base_name(symbol.name))
            if is_flag:
                flags[identity].append(symbol)
            else:
                found[symbol] = identity
        found |= _places(flags)
    count = Counter(found.values())
    return {s: replace(i, shared=True) if count[i] > 1 else i for s, i in found.items()}


def _places(flags: Mapping[Identity, list[Symbol]]) -> dict[Symbol, Identity]:
    """Return the identities of several flags of one function, ranked by their numbers.

    gcc numbers them in the order of the source.
    """
    return {
        symbol: replace(identity, place=(rank, len(symbols)))
        for identity, symbols in flags.items()
        for rank, symbol in enumerate(sorted(symbols, key=_number))
    }


def _number(symbol: Symbol) -> int:
    number = symbol.name.rpartition(".")[2]
    return int(number) if number.isdigit() else 0


def dormant(units: Sequence[UnitDiff]) -> frozenset[Identity]:
    """Return the variables that the sources declare but no code uses."""
    return frozenset(
        Identity(unit.module, unit.source, (function,) if function else (), name)
        for unit in units
        for function, name in unit.diff.without_storage
    )


def can_be_told(symbol: Symbol) -> bool:
    """Return whether the source gives a symbol its name. Other names are made up by gcc and macros."""
    return not symbol.anonymous and not is_child(symbol) and not is_place_static(symbol)


def _users(carried: Sequence[Symbol]) -> defaultdict[Symbol, set[Symbol]]:
    """Return the carried symbols that refer to each symbol."""
    found: defaultdict[Symbol, set[Symbol]] = defaultdict(set)
    for symbol in carried:
        for relocation in symbol.relocations:
            if isinstance(relocation.target, SymbolRef):
                found[relocation.target.symbol].add(symbol)
    return found


def _names(symbols: Iterable[Symbol]) -> tuple[str, ...]:
    """Return the source names of the functions among these symbols, sorted."""
    return tuple(sorted({base_name(parent_name(s.name)) for s in symbols if s.is_function}))
