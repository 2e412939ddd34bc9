# SPDX-License-Identifier: MIT
"""Which addresses of a patch may be kept by the kernel when the code that made them has returned.

A replaced patch module can be removed only if nothing points into it. Of functions and variables that can be
told (plan.py); a string or a constant is harmless where its address only feeds loads, or is passed to who
reads it and forgets it (elf/address_flow.py). Whatever else happens to it keeps the module loaded.
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
    """What gets away of what one unit brings. ``is_own``: whether its module defines a function so named."""

    symbols: Iterable[Symbol]
    flow: AddressFlow
    _known: dict[tuple[Symbol, object], bool] = field(default_factory=dict)

    def escapes(self, holder: Symbol, relocation: Relocation) -> bool:
        """Whether the address that a relocation makes may be kept by somebody."""
        section = holder.section
        if section is not None and section.name == TRACE_FORMATS:
            return False  # the kernel reads its copy
        if section is None or not section.is_code:
            return not is_constant(holder) or self.is_shown(holder)
        key = holder, relocation.offset
        if key not in self._known:
            sought = Sought(relocation.target, at=frozenset((relocation.offset,)))
            self._known[key] = self.flow.gets_away(sought, [holder]) is not None
        return self._known[key]

    def is_shown(self, table: Symbol) -> bool:
        """Whether somebody may have an object's address, or a pointer that was loaded from it."""
        key = table, "content"
        if key not in self._known:
            users = [s for s in self.symbols if any(r.target == SymbolRef(table) for r in s.relocations)]
            functions = [user for user in users if user.is_function]
            sought = Sought(SymbolRef(table), depth=1)
            self._known[key] = True  # a table that holds itself
            self._known[key] = len(functions) < len(users) or bool(self.flow.gets_away(sought, functions))
        return self._known[key]


def escapes_of(diff: ObjectDiff, is_own: Callable[[str], bool]) -> Escapes:
    """Of what a diff carries: who else calls what of it is not among that."""
    flow = address_flow(diff.carried, diff.entries, is_own, is_whole=False)
    return Escapes(diff.carried, flow)
