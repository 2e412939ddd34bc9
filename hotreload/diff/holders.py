# SPDX-License-Identifier: MIT
"""Find who may hold an address that the running kernel has, by following the flow of addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from hotreload.diff.correlate import is_constant, source_name
from hotreload.diff.layouts import VOID, Layouts, Shape
from hotreload.diff.special_sections import Entry, is_explained_elsewhere
from hotreload.elf.address_flow import NEVER, TWO, AddressFlow, Detours, Sought
from hotreload.elf.model import Relocation, StringRef, Symbol, SymbolRef
from hotreload.elf.readers import forgets
from hotreload.elf.references import is_direct_branch, points_at_start, takes_address

# Entries that tell where control may go in addition to what the code says: { code, target, .. }.
_DETOURS = frozenset(("__jump_table", "__ex_table"))

_REGISTER = 8  # bytes

IsOwn = Callable[[str], bool]


def nothing_own(_name: str) -> bool:
    """Default for ``is_own``: no function of the module has the name of a kernel function."""
    return False


def address_flow(
    symbols: Iterable[Symbol],
    entries: Mapping[Symbol, Sequence[Entry]],
    is_own: IsOwn = nothing_own,
    layouts: Layouts | None = None,
    *,
    is_whole: bool = True,
) -> AddressFlow:
    """Return the flow of addresses through these symbols.

    ``is_own``    whether the module defines a function of that name
    ``layouts``   the types of the object
    ``is_whole``  whether all symbols that refer to one another are included
    """
    seen = [s for s in symbols if s.section is not None and not is_explained_elsewhere(s.section)]

    def keeps_nothing(name: str) -> bool:
        return forgets(name) and not is_own(name)

    def registers(function: Symbol) -> int:
        # A clone (f.isra.0) returns what its function returns, or nothing.
        shapes = layouts.functions.get(source_name(function.name), ()) if layouts else ()
        return max((_registers(layouts, shape[1]) for shape in shapes), default=TWO) if layouts else TWO

    return AddressFlow(seen, keeps_nothing, _detours(entries), is_whole, registers)


def _registers(layouts: Layouts, result: Shape) -> int:
    """Return how many registers a result of this type takes (System V psABI, 3.2.3)."""
    if result == VOID:
        return 0
    return 1 if 0 < layouts.size(result) <= _REGISTER else TWO


def _detours(entries: Mapping[Symbol, Sequence[Entry]]) -> Detours:
    found: dict[Symbol, dict[int, list[tuple[Symbol, int]]]] = {}
    for function, of in entries.items():
        for entry in of:
            to = entry.relocations[1] if entry.row.name in _DETOURS else None
            if to is not None and isinstance(to.target, SymbolRef):
                ways = found.setdefault(function, {}).setdefault(entry.code.addend, [])
                ways.append((to.target.symbol, to.addend))
    return found


def who_holds(flow: AddressFlow, constant: Symbol, users: Iterable[Symbol]) -> str | None:
    """Return who may have the address of a constant that only functions refer to, and how, or None."""
    return flow.gets_away(Sought(SymbolRef(constant)), _makers(constant, users))


def who_tells_strings(flow: AddressFlow, table: Symbol, users: Iterable[Symbol]) -> str | None:
    """Return who compares a pointer in a table with something unnamed, such as a string.

    In a copy of the table the pointer would be a different one.
    """
    places = frozenset(
        r.offset
        for r in table.relocations
        if not isinstance(r.target, SymbolRef) or r.target.symbol.anonymous
    )
    if not places:
        return None
    sought = Sought(SymbolRef(table), depth=1, least=NEVER, least_compared=1, places=places)
    return flow.gets_away(sought, users)


def who_compares_string(flow: AddressFlow, text: StringRef, user: Symbol) -> str | None:
    """Return who gets the address of a string from ``user`` and compares it with one from elsewhere."""
    return flow.gets_away(Sought(text, least=NEVER, least_compared=0), [user])


def who_copies(flow: AddressFlow, holder: Symbol, constant: Symbol, users: Iterable[Symbol]) -> str | None:
    """Return who may have copied a pointer to a constant out of ``holder``, a variable or table."""
    places = frozenset(r.offset for r in holder.relocations if r.target == SymbolRef(constant))
    sought = Sought(SymbolRef(holder), depth=1, least=1, places=places)
    return flow.gets_away(sought, (user for user in users if user.is_function))


def who_holds_label(flow: AddressFlow, function: Symbol, users: Mapping[Symbol, set[Symbol]]) -> str | None:
    """Return who may have stored the address of a place inside of a function, to jump there later."""
    if any(_is_label(function, r, function) for r in function.relocations):
        sought = Sought(SymbolRef(function), is_label=True)
        if how := flow.gets_away(sought, [function]):
            return how
    for table in _tables_of_labels(function):
        sought = Sought(SymbolRef(table), depth=1, is_label=True)
        if how := flow.gets_away(sought, (user for user in users[table] if user.is_function)):
            return how
    return None


def _makers(target: Symbol, users: Iterable[Symbol]) -> Iterator[Symbol]:
    """Yield the functions that take the address of a symbol. The others only access it in place."""
    for user in users:
        if any(r.target == SymbolRef(target) and takes_address(user, r) for r in user.relocations):
            yield user


def has_labels(function: Symbol) -> bool:
    """Return whether a function takes addresses of places in itself, or has tables of them."""
    own = any(_is_label(function, r, function) for r in function.relocations)
    return own or any(True for _ in _tables_of_labels(function))


def _is_label(holder: Symbol, relocation: Relocation, function: Symbol) -> bool:
    if relocation.target != SymbolRef(function) or points_at_start(holder, relocation):
        return False
    section = holder.section
    is_code = section is not None and section.is_code
    return not (is_code and is_direct_branch(holder.content, relocation.offset))


def _tables_of_labels(function: Symbol) -> Iterator[Symbol]:
    """Yield the named tables of labels that a function uses. Those of switch statements have no names."""
    for relocation in function.relocations:
        target = relocation.target
        if not isinstance(target, SymbolRef) or not is_constant(target.symbol):
            continue
        if any(_is_label(target.symbol, r, function) for r in target.symbol.relocations):
            yield target.symbol
