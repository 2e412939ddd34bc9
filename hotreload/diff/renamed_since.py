# SPDX-License-Identifier: MIT
"""Find static variables whose function was renamed since the last reload. Pure.

Compared with the base, a function that was edited and then renamed has another name and other code, and its
static variables would start again. Compared with what the guest runs, only the name differs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator

from hotreload.diff.correlate import base_name, source_name
from hotreload.diff.object_diff import ObjectDiff
from hotreload.elf.model import ObjectFile, Symbol, SymbolRef

# The function and the name of a static variable.
Declared = tuple[str, str]


def renamed_variables(live: ObjectDiff, patched: ObjectFile) -> dict[Declared, Declared]:
    """Return the variables that have another name now than in the original: now -> in the original.

    They are those that the guest has under another name, and those of functions renamed since then.
    """
    functions = [s for s in (*live.original_of, *live.new_functions) if s.is_function and s.is_defined]
    then, now = ({source_name(f.name) for f in side} for side in (functions, patched.functions))
    gone = _by_code(f for f in functions if source_name(f.name) not in now)
    come = _by_code(f for f in patched.functions if source_name(f.name) not in then) if gone else {}
    known = live.renamed_variables
    found = dict(known)
    for code in gone.keys() & come.keys():
        if len(gone[code]) == len(come[code]) == 1:
            (one,), (other,) = gone[code], come[code]
            for variable in _statics(one, live):
                was = (source_name(one.name), variable)
                found[source_name(other.name), variable] = known.get(was, was)
    return found


def _by_code(functions: Iterable[Symbol]) -> dict[Hashable, list[Symbol]]:
    found: dict[Hashable, list[Symbol]] = defaultdict(list)
    for function in functions:
        found[_code(function)].append(function)
    return found


def _statics(function: Symbol, live: ObjectDiff) -> Iterable[str]:
    """Return the names of the static variables that a function declares."""
    name = source_name(function.name)
    return {base_name(symbol) for symbol, declarer in live.declared_in.items() if declarer == name}


def _code(function: Symbol) -> Hashable:
    """Return what two functions have in common that differ in nothing but their names."""
    return function.content, tuple(_references(function))


def _references(function: Symbol) -> Iterator[Hashable]:
    for relocation in function.relocations:
        target: Hashable = relocation.target
        if isinstance(relocation.target, SymbolRef):
            symbol = relocation.target.symbol
            is_constant = symbol.section is not None and not symbol.section.is_writable and symbol.is_object
            target = symbol.content if is_constant else base_name(symbol.name)
            target = "itself" if symbol is function else target
        yield relocation.offset, relocation.type, relocation.addend, target
