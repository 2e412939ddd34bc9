# SPDX-License-Identifier: MIT
"""Global functions and variables whose definition moved to another file of the module. Pure.

Units that did not change go on to use the definition that the guest booted with. This is right as long as the
definition is the same at its new place. If it is not, no unit sees a difference of its own: one unit lost a
definition that nothing in it uses, and another unit gained one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotreload.build.base import AnyBase
from hotreload.compared import Compared
from hotreload.diff.obstacles import RELOAD_MODULE, Obstacle
from hotreload.elf.linkage import linkage_of
from hotreload.elf.model import Relocation, Symbol, SymbolRef


@dataclass(frozen=True, slots=True)
class Move:
    """A definition that moved. ``came``: its symbol in the unit ``there``, None if that is unknown."""

    module: str
    name: str
    was: Symbol
    came: Symbol | None
    here: Compared
    there: Compared

    @property
    def is_same(self) -> bool:
        """Return whether the definition says the same at its new place."""
        if self.came is None or self.was in self.here.diff.original_of.values():
            return False
        return self._are_alike(self.was, self.came) and not self._has_own_entries(self.came)

    def _are_alike(self, was: Symbol, came: Symbol) -> bool:
        if was.kind != came.kind or was.content != came.content:
            return False
        if was.is_object and not self._have_same_memory(was, came):
            return False
        return len(was.relocations) == len(came.relocations) and all(
            (one.offset, one.type, one.addend) == (other.offset, other.type, other.addend)
            and self._mean_the_same(one, other)
            for one, other in zip(was.relocations, came.relocations, strict=True)
        )

    def _have_same_memory(self, was: Symbol, came: Symbol) -> bool:
        """Return whether a variable is of the same kind and type. The bytes of a constant are all it is."""
        if was.section is None or came.section is None or was.section.is_writable != came.section.is_writable:
            return False
        return not was.section.is_writable or self._are_one_variable(was, came)

    def _mean_the_same(self, one: Relocation, other: Relocation) -> bool:
        if not isinstance(one.target, SymbolRef) or not isinstance(other.target, SymbolRef):
            return one.target == other.target
        was, came = one.target.symbol, other.target.symbol
        if (was, came) == (self.was, self.came):
            return True
        if any(each.is_defined and each.is_local for each in (was, came)):
            return self._are_one_variable(was, came) and was.content == came.content and not was.relocations
        return was.name == came.name

    def _are_one_variable(self, was: Symbol, came: Symbol) -> bool:
        """Return whether a variable has the same function, name and type in both units."""
        lost, come = self.here.diff.lost, self.there.diff.come
        return any(symbol is was and come.get(declared) is came for declared, symbol in lost.items())

    def _has_own_entries(self, function: Symbol) -> bool:
        """Return whether special sections say something about the code that the code alone does not."""
        entries = self.there.diff.entries.get(function, ())
        return any(entry.row.carried and entry.row.per_entry != (1,) for entry in entries)

    def obstacle(self) -> Obstacle:
        was, now = self.here.pair.unit.source, self.there.pair.unit.source
        message = f"{self.name} moved from {was.name} to {now.name}, and cannot be proved to be the same"
        code = "HR2207" if self.was.is_function else "HR2104"
        return Obstacle(code, self.name, message, RELOAD_MODULE, str(now))


def moves(base: AnyBase, compared: Mapping[Path, Compared]) -> Iterator[Move]:
    """Yield each global name that one edited unit of a module no longer defines, and another one now does."""
    for module in base.modules:
        edited = [compared[unit.object] for unit in module.units if unit.object in compared]
        before = [linkage_of(one.original.base.object).defines for one in edited]
        both = list(zip(edited, before, strict=True))
        lost = {name: one for one, then in both for name in then - one.linkage.defines}
        come = {name: one for one, then in both for name in one.linkage.defines - then}
        for name in sorted(lost.keys() & come.keys()):
            here, there = lost[name], come[name]
            was = here.original.base.object.symbol(name)
            assert was is not None
            symbols = [each for each in there.diff.carried if name in (each.name, *each.aliases)]
            yield Move(module.name, name, was, symbols[0] if symbols else None, here, there)
