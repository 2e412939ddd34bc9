# SPDX-License-Identifier: MIT
"""The variables of one object that keep their values, as the source declares them.

A symbol's name does not identify a variable, because gcc numbers the static locals of a unit anew with each
compile (``count.3``). The debugging information does, by the function that declares the variable, which is
not always the one whose code uses it, and by name, type and line. It also lists the variables that gcc has
optimized away because nothing reads or nothing writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hotreload.elf import dwarf
from hotreload.elf.dwarf import DebugInfo, Entry
from hotreload.elf.model import Symbol


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the file, or a static one of a function.

    ``function``  the function that declares it; empty for a variable of the file
    ``shape``     its type, see layouts.py
    ``place``     line and column of the declaration
    ``symbol``    None if gcc has given it no storage
    """

    function: str
    name: str
    shape: tuple[Any, ...]
    place: tuple[int, int]
    symbol: Symbol | None


def variables_of(info: DebugInfo, shape: Callable[[Entry | None], tuple[Any, ...]]) -> Iterator[Variable]:
    """Yield all variables of the file and all static ones of functions. ``shape`` returns a type's shape."""
    for unit in info.units:
        yield from _below(info, shape, unit, "")


def _below(
    info: DebugInfo, shape: Callable[[Entry | None], tuple[Any, ...]], of: Entry, function: str
) -> Iterator[Variable]:
    for entry in of.children:
        if entry.tag == dwarf.SUBPROGRAM:
            yield from _below(info, shape, entry, info.name(entry))
        elif entry.tag == dwarf.LEXICAL_BLOCK:
            yield from _below(info, shape, entry, function)
        elif entry.tag == dwarf.VARIABLE and not entry.get(dwarf.AT_DECLARATION):
            found = info.address(entry)
            # An automatic variable has no address that the linker knows; an inlined copy is no declaration.
            if found is None and (function and not _may_be_folded(entry)):
                continue
            symbol = found[0] if found is not None and found[1] == 0 else None
            yield Variable(
                function, info.name(entry), shape(info.type_of(entry)), _place(info, entry), symbol
            )


def _may_be_folded(entry: Entry) -> bool:
    """Return whether a variable of a function may be a static one without storage."""
    return entry.get(dwarf.AT_ABSTRACT_ORIGIN) is None and entry.get(dwarf.AT_LOCATION) is None


def _place(info: DebugInfo, entry: Entry) -> tuple[int, int]:
    for one in info.origins(entry):
        if line := one.number(dwarf.AT_DECL_LINE):
            return line, one.number(dwarf.AT_DECL_COLUMN)
    return 0, 0


def without_storage(declared: Sequence[Variable]) -> frozenset[tuple[str, str]]:
    """Return (function, name) of each variable that gcc has optimized away, as nothing writes or reads it."""
    there = {(one.function, one.name) for one in declared if one.symbol is not None}
    return frozenset((one.function, one.name) for one in declared if one.symbol is None) - there


def with_storage(declared: Sequence[Variable]) -> frozenset[tuple[str, str]]:
    """Return (function, name) of each variable that is writable and has storage."""
    return frozenset(
        (one.function, one.name)
        for one in declared
        if one.symbol is not None and one.symbol.section is not None and one.symbol.section.is_writable
    )
