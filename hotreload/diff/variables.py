# SPDX-License-Identifier: MIT
"""The variables of one object that keep their values, as the source declares them.

A symbol's name does not tell which variable it is: gcc numbers the static locals of a unit anew with each
compile (``count.3``). The debugging information does: the function that a variable is declared in, which is
not always the one whose code uses it, its name, type and line. It also has the variables that gcc
has folded away, because nothing reads or nothing writes them.
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
    """``function``: the one that declares it, empty for a variable of the file; ``shape``: see layouts.py.

    ``place``: line and column of the declaration; ``symbol``: None where gcc has given it no storage.
    """

    function: str
    name: str
    shape: tuple[Any, ...]
    place: tuple[int, int]
    symbol: Symbol | None


def variables_of(info: DebugInfo, shape: Callable[[Entry | None], tuple[Any, ...]]) -> Iterator[Variable]:
    """All variables of the file and all static ones of functions; ``shape`` gives a type its shape."""
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
            # An automatic variable has no address that the linker knows, and a copy of one is no declaration.
            if found is None and (function and not _may_be_folded(entry)):
                continue
            symbol = found[0] if found is not None and found[1] == 0 else None
            yield Variable(
                function, info.name(entry), shape(info.type_of(entry)), _place(info, entry), symbol
            )


def _may_be_folded(entry: Entry) -> bool:
    """Whether a variable of a function may be a static one without a place."""
    return entry.get(dwarf.AT_ABSTRACT_ORIGIN) is None and entry.get(dwarf.AT_LOCATION) is None


def _place(info: DebugInfo, entry: Entry) -> tuple[int, int]:
    for one in info.origins(entry):
        if line := one.number(dwarf.AT_DECL_LINE):
            return line, one.number(dwarf.AT_DECL_COLUMN)
    return 0, 0


def without_storage(declared: Sequence[Variable]) -> frozenset[tuple[str, str]]:
    """The function and name of each variable that gcc has folded away, for nothing writes or reads it."""
    there = {(one.function, one.name) for one in declared if one.symbol is not None}
    return frozenset((one.function, one.name) for one in declared if one.symbol is None) - there


def with_storage(declared: Sequence[Variable]) -> frozenset[tuple[str, str]]:
    """The function and name of each variable that can be written and has storage."""
    return frozenset(
        (one.function, one.name)
        for one in declared
        if one.symbol is not None and one.symbol.section is not None and one.symbol.section.is_writable
    )
