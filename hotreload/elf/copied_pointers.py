# SPDX-License-Identifier: MIT
"""Find out who stores a copy of a pointer that it has found in a table by way of another pointer.

``mode->rates`` of ``static const struct mode slow = { rates, 4 }`` is reached through anything that points at
``slow``: a variable, another table or a live object. Code that only walks along it forgets it.
``dev->rates = dev->mode->rates`` is a copy, which keeps pointing at the same table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from hotreload.elf.decoded import RSP, Body, Memory, Register, body_of
from hotreload.elf.model import Symbol, SymbolRef
from hotreload.elf.object_pointers import Pointer, State, states_of, stored_at, stored_by


@dataclass(frozen=True, slots=True)
class Kept:
    """Where the address of a table is kept.

    ``variables`` hold it, and objects that are found at run time hold it at ``offsets``.
    """

    variables: frozenset[Symbol]
    offsets: frozenset[int]


def who_copies_through(
    symbols: Collection[Symbol], holder: Symbol, places: Collection[int], element: int = 0
) -> str | None:
    """Return which function stores a pointer that ``holder`` has at ``places``, as text; None if none does.

    ``element``: the size of one element in bytes, if ``holder`` is a table of several.
    """
    inside = {place % element for place in places} if element else set(places)
    defined = [symbol for symbol in symbols if symbol.is_defined]
    kept = _kept(defined, holder)
    for function in defined:
        if function.is_function and _stores_copy(function, kept, inside | set(places)):
            return f"{function.name} stores a pointer that it read from {holder.name}"
    return None


def _kept(symbols: Iterable[Symbol], holder: Symbol) -> Kept:
    variables: set[Symbol] = set()
    offsets: set[int] = set()
    for symbol in symbols:
        pointing = [r.offset for r in symbol.relocations if r.target == SymbolRef(holder)]
        if symbol.is_object and pointing:
            variables.add(symbol)
            offsets.update(pointing)
        elif symbol.is_function and pointing:
            body = body_of(symbol)
            for place, known in states_of(body).items():
                at = body.instructions[place]
                into = at.operands[0] if at.mnemonic == "mov" else None
                if not isinstance(into, Memory) or into.base == RSP:
                    continue
                what, where = stored_by(at, known), stored_at(at, known)
                if what is None or what.came != holder:
                    continue
                if where is not None and isinstance(where.came, Symbol):
                    variables.add(where.came)
                elif at.displacement is None:
                    offsets.add(into.displacement)
    return Kept(frozenset(variables), frozenset(offsets))


def _stores_copy(function: Symbol, kept: Kept, places: Collection[int]) -> bool:
    body = body_of(function)
    states: dict[int, State] | None = None
    for at in body.instructions.values():
        into = at.operands[0] if at.mnemonic == "mov" else None
        if not isinstance(into, Memory) or into.base == RSP or not isinstance(at.operands[1], Register):
            continue
        states = states_of(body) if states is None else states
        copy = stored_by(at, states.get(at.start, {}))
        if copy is not None and _is_found(body, states, copy, kept, places):
            return True
    return False


def _is_found(
    body: Body, states: dict[int, State], copy: Pointer, kept: Kept, places: Collection[int]
) -> bool:
    """Return whether a pointer was loaded from one of these places, through a kept pointer to the table."""
    load = _load(body, copy)
    if load is None or load[1].displacement not in places or load[1].base is None:
        return False
    table = states.get(load[0], {}).get(load[1].base)
    found = _load(body, table) if table is not None else None
    if found is None:
        return False
    at = body.instructions[found[0]]
    if at.displacement is not None:
        target = at.displacement.target
        return isinstance(target, SymbolRef) and target.symbol in kept.variables
    return found[1].displacement in kept.offsets


def _load(body: Body, pointer: Pointer) -> tuple[int, Memory] | None:
    """Return the place of the instruction that loaded a pointer, and the memory it was loaded from."""
    if isinstance(pointer.came, Symbol):
        return None
    at = body.instructions.get(pointer.came)
    source = at.operands[1] if at is not None and len(at.operands) == 2 else None
    return (pointer.came, source) if at is not None and isinstance(source, Memory) else None
