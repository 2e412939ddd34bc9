# SPDX-License-Identifier: MIT
"""Find out whose definition of a weak symbol the linker took. Pure.

A linker keeps the sections of an object whole. If the symbol is this object's, its neighbours in the object
are at the same distance in the module or in vmlinux. Another object's definition lies elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from hotreload.elf.constants import STB_WEAK
from hotreload.elf.model import Symbol
from hotreload.patch.model import UnitDiff
from hotreload.patch.symbols import ObjectSymbols


def is_linked_from(unit: UnitDiff, original: Symbol, module: ObjectSymbols) -> bool:
    """Return whether the symbol in ``module`` is that of ``unit``. False if it has no known neighbour."""
    symbol = unit.running.symbol_of.get(original)
    here = module.place(symbol.name, None) if symbol is not None else None
    if symbol is None or here is None:
        return False
    for neighbour in _neighbours(unit, symbol):
        there = module.place(neighbour.name, unit.block if neighbour.is_local else None)
        if there is not None:
            return (here[0], here[1] - there[1]) == (there[0], symbol.value - neighbour.value)
    return False


def _neighbours(unit: UnitDiff, symbol: Symbol) -> Iterator[Symbol]:
    for other in unit.running.symbol_of.values():
        is_known = (
            not other.anonymous
            and other.binding != STB_WEAK
            and (not other.is_local or unit.block is not None)
        )
        if is_known and other.section is symbol.section and other is not symbol:
            yield other
