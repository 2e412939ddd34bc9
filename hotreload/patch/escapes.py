# SPDX-License-Identifier: MIT
"""Find the addresses of a patch that the kernel may keep after the code that made them has returned.

A replaced patch module can be removed only if nothing points into it. plan.py decides about functions and
variables. A string or a constant is harmless if its address only feeds loads, or is passed to code that reads
it and forgets it (elf/address_flow.py). Any other use keeps the module loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hotreload.diff.correlate import is_constant
from hotreload.diff.holders import address_flow
from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.special_sections import TRACE_FORMATS
from hotreload.elf.address_flow import AddressFlow, Sought
from hotreload.elf.model import Relocation, Symbol, SymbolRef


@dataclass(slots=True)
class Escapes:
    """What escapes from the symbols that one unit brings to a patch."""

    symbols: Iterable[Symbol]
    flow: AddressFlow
    _known: dict[tuple[Symbol, object], bool] = field(default_factory=dict)

    def escapes(self, holder: Symbol, relocation: Relocation) -> bool:
        """Return whether somebody may keep the address that a relocation makes."""
        section = holder.section
        if section is not None and section.name == TRACE_FORMATS:
            return False  # the kernel reads its own copy
        if section is None or not section.is_code:
            return not is_constant(holder) or self.is_shown(holder)
        key = holder, relocation.offset
        if key not in self._known:
            sought = Sought(relocation.target, at=frozenset((relocation.offset,)))
            self._known[key] = self.flow.gets_away(sought, [holder]) is not None
        return self._known[key]

    def is_shown(self, table: Symbol) -> bool:
        """Return whether somebody may have a table's address, or a pointer that was loaded from it."""
        key = table, "content"
        if key not in self._known:
            users = [s for s in self.symbols if any(r.target == SymbolRef(table) for r in s.relocations)]
            functions = [user for user in users if user.is_function]
            sought = Sought(SymbolRef(table), depth=1)
            self._known[key] = True  # for a table that refers to itself
            self._known[key] = len(functions) < len(users) or bool(self.flow.gets_away(sought, functions))
        return self._known[key]


def escapes_of(diff: ObjectDiff, is_own: Callable[[str], bool]) -> Escapes:
    """Return the escapes from what a diff carries. Code that it does not carry may call its functions, too.

    ``is_own``: whether the unit's module defines a function of that name.
    """
    flow = address_flow(diff.carried, diff.entries, is_own, is_whole=False)
    return Escapes(diff.carried, flow)
