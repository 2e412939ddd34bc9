# SPDX-License-Identifier: MIT
"""Find which values of variables were used by code that runs at load. Pure.

Init allocates a buffer of some size, and exit frees as much as init made. If a new initial value is written
where the size is, the buffer stays as it is. So this collects the values that init, exit and the functions
they call have loaded, and what they passed to others, which may have read all of it: an attribute's mode, a
driver's name. Values found through a pointer in a variable count as well, such as the size in a table that a
``static const struct variant *variant`` points at. A function in a table that the kernel was given is called
later, so it may still be replaced. A value that is only printed has no consequences.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

from hotreload.diff.correlate import base_name
from hotreload.diff.holders import IsOwn
from hotreload.diff.load_time import EXIT_NAME, INIT_NAME, written_name
from hotreload.diff.pair import Pair, is_exit_code, is_for_init
from hotreload.diff.rewrites import Rewrite
from hotreload.elf.constants import R_X86_64_64
from hotreload.elf.decoded import RAX, RCX, RDI, RDX, RSI, RSP, Decoded, Memory, Number, Register, body_of
from hotreload.elf.model import ConstRef, ObjectFile, Relocation, Symbol, SymbolRef
from hotreload.elf.readers import AT_ONCE, PRINTERS, PURE, TEXT_MAKERS, forgets
from hotreload.elf.references import takes_address
from hotreload.elf.value_uses import access_of, called_with, is_only_printed, stores_address

K = TypeVar("K")

LOAD_NAMES: Final = frozenset((INIT_NAME, EXIT_NAME))
ONE_MODULE: Final[Mapping[Any, str]] = MappingProxyType({})
# How many levels of callees are followed by is_value().
_DEPTH: Final = 4
# Prefixes of functions that call through a pointer: retpolines, and a static call that may have been updated.
_THUNK: Final = ("__x86_indirect_", "__SCT__")
_ARGUMENTS: Final = frozenset((RDI, RSI, RDX, RCX, 8, 9))
_LEAVE_NOTHING: Final = frozenset(
    """__fentry__ __x86_return_thunk mutex_lock mutex_unlock _raw_spin_lock _raw_spin_unlock
    _raw_spin_lock_irqsave _raw_spin_unlock_irqrestore _raw_spin_lock_irq _raw_spin_unlock_irq
    _raw_spin_lock_bh _raw_spin_unlock_bh _raw_read_lock _raw_read_unlock down_read up_read
    __rcu_read_lock __rcu_read_unlock""".split()
)


@dataclass(frozen=True, slots=True)
class Use:
    """A use of ``variable[start:end]`` by ``function``.

    ``handed_on``  the function passed its address to somebody
    ``is_stored``  the function stored its address in an object, where others may find it
    """

    function: str
    start: int
    end: int
    handed_on: bool = False
    is_stored: bool = False


Uses = Mapping[tuple[K, str], list[Use]]


def refuse_what_init_read(
    pair: Pair,
    called_back: Callable[[], Collection[Symbol]],
    with_looked_up: Callable[[Rewrite], Rewrite],
) -> None:
    """Refuse a new initial value, or a function's new result, if code that runs at load has used the old one.

    ``called_back``     returns the functions that the kernel calls while that code runs
    ``with_looked_up``  adds the slots that the kernel looks at each time to a rewrite (registered.py)
    """
    changed = pair.changed.items()
    values = [original for patched, original in changed if gives_another_value(original, patched)]
    if not values and not pair.rewrites:
        return
    also = [(0, function) for function in called_back()]
    uses: Uses[int] = uses_of_init({0: pair.original}, also=also) if pair.rewrites else {}
    for rewrite in pair.rewrites:
        if use := tied_by(with_looked_up(rewrite), uses.get((0, rewrite.original.name), [])):
            pair.refuse("HR2103", rewrite.original.name, tied_message(rewrite, use))
    called = called_at_load({0: pair.original}, also=also) if values else set()
    for function in values:
        if (0, function) in called:
            pair.refuse("HR2201", function.name, value_message(function))


def gives_another_value(original: Symbol, patched: Symbol) -> bool:
    """Return whether a changed function only computes a value, and may compute another one than before."""
    says = _says(original) or _says(patched)
    return is_value(original) and not (says and _steps_of(original) == _steps_of(patched))


def _says(function: Symbol) -> bool:
    names = (r.target.symbol.name for r in function.relocations if isinstance(r.target, SymbolRef))
    return not PRINTERS.isdisjoint(names)


def may_leave_something(function: Symbol) -> bool:
    """Return whether a function calls a kernel function with lasting effects.

    That is one that may keep something, such as a registration or a start, or one that makes a text, which
    may be a name.
    """
    names = {
        r.target.symbol.name
        for r in function.relocations
        if isinstance(r.target, SymbolRef) and not r.target.symbol.is_defined and r.target.symbol.name
    }
    return not TEXT_MAKERS.isdisjoint(names) or any(
        not forgets(name) and name not in _LEAVE_NOTHING and not name.startswith("__x86_") for name in names
    )


def stores_other_values(original: Symbol, patched: Symbol) -> bool:
    """Return whether a function stores other constants than before: numbers, strings and the like."""
    return _stored_values(original) != _stored_values(patched)


def _stored_values(function: Symbol) -> Counter[Hashable]:
    """Return the constants in the code that are stored in memory other than its stack."""
    stores = [
        at
        for at in body_of(function).instructions.values()
        if at.mnemonic == "mov" and isinstance(at.operands[0], Memory) and at.operands[0].base != RSP
    ]
    registers = {at.operands[1] for at in stores if isinstance(at.operands[1], Register)}
    numbers = {each.number for each in registers if isinstance(each, Register)}
    loads = (
        at
        for at in body_of(function).instructions.values()
        if at.mnemonic in ("mov", "movabs") and isinstance(at.operands[0], Register)
        if at.operands[0].number in numbers
    )
    found: Counter[Hashable] = Counter()
    for at in (*stores, *loads):
        if at.displacement is not None and isinstance(at.displacement.target, ConstRef):
            found[_named(at.displacement)] += 1  # several members at once
        elif isinstance(what := at.operands[1], Number):
            found[what.value if at.immediate is None else _named(at.immediate)] += 1
    return found


def _named(relocation: Relocation) -> Hashable:
    target = relocation.target
    return (target.symbol.name if isinstance(target, SymbolRef) else target), relocation.addend


def is_value(function: Symbol, depth: int = _DEPTH) -> bool:
    """Return whether a function only computes a value. It may also print, and take locks."""
    body = body_of(function)
    code = body.instructions.values()
    return (
        body.is_whole
        and any(RAX in at.writes for at in code)
        and all(_only_computes(at, depth) for at in code)
    )


def _only_computes(at: Decoded, depth: int) -> bool:
    if at.mnemonic in ("call", "jmp") or at.mnemonic[0] == "j":
        if at.immediate is None:
            return at.mnemonic != "call" and isinstance(at.operands[0], Number)
        target = at.immediate.target
        return isinstance(target, SymbolRef) and _leaves_nothing(target.symbol, depth)
    into = at.operands[0] if at.operands else None
    if not isinstance(into, Memory) or (into.base == RSP and at.mnemonic in ("mov", "movabs")):
        return True
    return at.mnemonic in ("cmp", "test", "nop", "push", "bt")


def _leaves_nothing(callee: Symbol, depth: int) -> bool:
    if callee.is_defined:
        return depth > 0 and callee.is_function and is_value(callee, depth - 1)
    return callee.name in _LEAVE_NOTHING or callee.name in PRINTERS or callee.name in PURE


def _steps_of(function: Symbol) -> list[tuple[object, ...]]:
    """Return what a function computes with, arguments of calls excepted."""
    found: list[tuple[object, ...]] = []
    for at in body_of(function).instructions.values():
        into = at.operands[0] if at.operands else None
        if isinstance(into, Register) and into.number in _ARGUMENTS:
            continue
        relocation = at.immediate or at.displacement
        if relocation is not None:
            target = relocation.target
            named = target.symbol.name if isinstance(target, SymbolRef) else repr(target)
            found.append((at.mnemonic, named, relocation.addend))
        elif at.mnemonic[0] == "j":  # its destination does not matter
            found.append((at.mnemonic,))
        else:
            found.append((function.content[at.start : at.end],))
    return found


def value_message(function: Symbol) -> str:
    """Return why a function with another result is not made live."""
    name = written_name(function)
    return (
        f"{name} changed, and code that ran at load has used its value: what was made from the old one stays"
    )


def called_at_load(
    objects: Mapping[K, ObjectFile],
    modules: Mapping[K, str] = ONE_MODULE,
    also: Collection[tuple[K, Symbol]] = (),
) -> set[tuple[K, Symbol]]:
    """Return init, exit, and the functions that they reach by calls, also through tables.

    For the arguments see uses_of_init.
    """
    return set(_Linked(objects, modules).code_of_load(also, with_tables=True))


def ran_at_load(
    objects: Mapping[K, ObjectFile],
    modules: Mapping[K, str] = ONE_MODULE,
    also: Collection[tuple[K, Symbol]] = (),
) -> set[tuple[K, Symbol]]:
    """Return init and the functions that it reaches by calls. For the arguments see uses_of_init."""
    return set(_Linked(objects, modules).code_of_load(also, with_exit=False))


def ran_message(function: Symbol, when: str = "when the module is loaded") -> str:
    """Return what it means that a function has run and is then changed."""
    return f"{written_name(function)} changed, and is called {when}: what was made from the old one stays"


def handed_to_the_kernel(obj: ObjectFile, is_own: IsOwn) -> dict[str, list[Use]]:
    """Return the variables, by name, whose address any code has passed to the kernel or stored."""
    linked = _Linked({0: obj}, ONE_MODULE)
    found: dict[str, list[Use]] = defaultdict(list)
    for function in sorted(obj.functions, key=_is_exit):
        for relocation in function.relocations:
            variable = linked.variable(0, relocation)
            if variable is None or not takes_address(function, relocation):
                continue
            name = called_with(function, relocation)
            if name is not None and (forgets(name) or is_own(name) or not linked.is_foreign(name)):
                continue
            use = Use(written_name(function), 0, variable[1].size, handed_on=True)
            for (_, reached), each in linked.reached_by(variable, use, is_handed_on=True):
                found[reached].append(each)
    return found


def tied_message(rewrite: Rewrite, use: Use) -> str:
    """Return why a new initial value is not written in place."""
    name = base_name(rewrite.original.name)
    how = (
        "has passed it on" if use.handed_on else "has stored its address" if use.is_stored else "has read it"
    )
    return (
        f"the initial value of '{name}' changed, and {use.function} {how}:"
        " what was made from the old one stays"
    )


def uses_of_init(
    objects: Mapping[K, ObjectFile],
    modules: Mapping[K, str] = ONE_MODULE,
    also: Collection[tuple[K, Symbol]] = (),
) -> Uses[K]:
    """Return the uses of each variable by code that runs at load, by (unit, name).

    ``objects``  the units of a module, or of several modules that use each other's exports
    ``modules``  the module of each unit, if there are several
    ``also``     functions that the kernel calls back while that code runs
    """
    linked = _Linked(objects, modules)
    uses: dict[tuple[K, str], list[Use]] = defaultdict(list)
    for unit, function in linked.code_of_load(also):
        for relocation in function.relocations:
            found = linked.variable(unit, relocation)
            if found is None or is_only_printed(function, relocation, linked.is_printer):
                continue
            is_handed_on = linked.is_handed_on(function, relocation)
            use = _use_of(function, relocation, found[1], is_handed_on)
            for reached, each in linked.reached_by(found, use, is_handed_on) if use else ():
                uses[reached].append(each)
    return uses


def tied_by(rewrite: Rewrite, uses: list[Use]) -> Use | None:
    """Return the use because of which a new initial value must wait for the next load, or None."""
    for offset, size in rewrite.changed_places:
        is_function = points_at_function(rewrite, offset)
        for use in uses:
            # A function that others call, and look up each time, may still be replaced.
            if is_function and (use.handed_on or (use.is_stored and offset in rewrite.looked_up)):
                continue
            if offset < use.end and use.start < offset + size:
                return use
    return None


def points_at_function(rewrite: Rewrite, offset: int) -> bool:
    """Return whether the value at this offset is a function pointer, which may be set on one side only."""
    targets = [
        relocation.target
        for side in (rewrite.original, rewrite.patched)
        for relocation in side.relocations
        if relocation.offset == offset and relocation.type == R_X86_64_64
    ]
    return bool(targets) and all(isinstance(t, SymbolRef) and _may_be_code(t.symbol) for t in targets)


def _is_exit(function: Symbol) -> bool:
    return is_exit_code(function) or EXIT_NAME in {function.name, *function.aliases}


def _may_be_code(symbol: Symbol) -> bool:
    return symbol.is_function or (not symbol.is_defined and not symbol.is_object)


def _use_of(function: Symbol, relocation: Relocation, variable: Symbol, is_handed_on: bool) -> Use | None:
    name = written_name(function)
    if takes_address(function, relocation):
        # Code that walks along the variable, or stores its address, may read all of it.
        return Use(name, 0, variable.size, is_handed_on, stores_address(function, relocation))
    access = access_of(function, relocation)
    if access.size == 0:
        return None
    if access.offset is None:
        return Use(name, 0, variable.size)
    return Use(name, access.offset, access.offset + access.size)


def _calls_what_it_finds(function: Symbol) -> bool:
    """Return whether a function calls through a pointer that it has read or was passed."""
    for at in body_of(function).instructions.values():
        if at.mnemonic in ("call", "jmp") and at.operands:
            callee = at.destination
            if callee is not None and callee.name.startswith(_THUNK):
                return True
            if at.immediate is None and not isinstance(at.operands[0], Number):
                return True
    return False


class _Linked(Generic[K]):
    """The units of a module as the linker joins them, or of several modules as the kernel does."""

    def __init__(self, objects: Mapping[K, ObjectFile], modules: Mapping[K, str]) -> None:
        self._objects = objects
        self._modules = modules
        self._functions = {
            name for obj in objects.values() for f in obj.functions for name in (f.name, *f.aliases)
        }
        self._globals: dict[str, dict[str, tuple[K, Symbol]]] = defaultdict(dict)
        for unit, obj in objects.items():
            for symbol in obj.symbols:
                if symbol.is_defined and not symbol.is_local:
                    for name in (symbol.name, *symbol.aliases):
                        self._globals[name][modules.get(unit, "")] = unit, symbol

    def is_printer(self, name: str) -> bool:
        """Return whether this names a printing function of the kernel, and none of the module's own."""
        return name in PRINTERS and name not in self._functions

    def is_foreign(self, name: str) -> bool:
        """Return whether none of these units defines a function of that name."""
        return name not in self._functions

    def code_of_load(
        self, also: Collection[tuple[K, Symbol]] = (), *, with_exit: bool = True, with_tables: bool = False
    ) -> Iterator[tuple[K, Symbol]]:
        """Yield init, exit, ``also``, and the functions that they reach by calls.

        ``with_tables``: also the functions that they may find in tables and call.
        """
        todo = [
            (unit, function)
            for unit, obj in self._objects.items()
            for function in obj.functions
            if is_for_init(function) or {function.name, *function.aliases} & LOAD_NAMES
            if with_exit or not _is_exit(function)
        ]
        # Functions are popped from the end. Exit code comes last, so that messages name code that has run.
        todo.sort(key=lambda each: _is_exit(each[1]), reverse=True)
        todo += [each for each in dict.fromkeys(also) if each not in todo]
        reached = set(todo)
        done: list[tuple[K, Symbol]] = []
        while todo:
            unit, function = todo.pop()
            yield unit, function
            done.append((unit, function))
            for relocation in function.relocations:
                found = self._target(unit, relocation)
                if found is None or not found[1].is_function or found in reached:
                    continue
                if not takes_address(function, relocation) or self._is_called_at_once(function, relocation):
                    reached.add(found)
                    todo.append(found)
            if with_tables and not todo and any(map(_calls_what_it_finds, (each for _, each in done))):
                todo += dict.fromkeys(found for each in done for found in self._found_by(*each))
                todo = [each for each in todo if each not in reached]
                reached.update(todo)

    def _found_by(self, unit: K, function: Symbol) -> Iterator[tuple[K, Symbol]]:
        """Yield the functions that a function finds in variables, or passes to others of the module."""
        for relocation in function.relocations:
            found = self._target(unit, relocation)
            if found is None or self.is_handed_on(function, relocation):
                continue
            if found[1].is_function:
                if called_with(function, relocation) in self._functions:
                    yield found
                continue
            use = _use_of(function, relocation, found[1], False) if found[1].is_object else None
            for (where, name), each in self.reached_by(found, use, False) if use else ():
                table = self._variables[where].get(name)
                for pointer in table.relocations if table is not None else ():
                    target = self._target(where, pointer)
                    if each.start <= pointer.offset < each.end and target and target[1].is_function:
                        yield target

    @functools.cached_property
    def _variables(self) -> dict[K, dict[str, Symbol]]:
        return {
            unit: {symbol.name: symbol for symbol in obj.symbols if symbol.is_object}
            for unit, obj in self._objects.items()
        }

    def _is_called_at_once(self, function: Symbol, relocation: Relocation) -> bool:
        name = called_with(function, relocation)
        return name in AT_ONCE and name not in self._functions

    def variable(self, unit: K, relocation: Relocation) -> tuple[K, Symbol] | None:
        found = self._target(unit, relocation)
        return found if found is not None and found[1].is_object else None

    def is_handed_on(self, function: Symbol, relocation: Relocation) -> bool:
        """Return whether an address that was taken or loaded is passed directly to the kernel.

        A function of the module's own does not count, because its own accesses are examined.
        """
        name = called_with(function, relocation)
        return name is not None and name not in self._functions

    def reached_by(
        self, variable: tuple[K, Symbol], use: Use, is_handed_on: bool
    ) -> Iterator[tuple[tuple[K, str], Use]]:
        """Yield the use of a variable, and uses of what its pointers in the used range lead to."""
        todo, seen = [(variable, use)], {variable}
        while todo:
            (unit, symbol), use = todo.pop()
            yield (unit, symbol.name), use
            for relocation in symbol.relocations:
                target = self.variable(unit, relocation) if use.start <= relocation.offset < use.end else None
                if target is not None and target not in seen:
                    seen.add(target)
                    whole = Use(use.function, 0, target[1].size, is_handed_on, use.is_stored)
                    todo.append((target, whole))

    def _target(self, unit: K, relocation: Relocation) -> tuple[K, Symbol] | None:
        if not isinstance(relocation.target, SymbolRef):
            return None
        symbol = relocation.target.symbol
        if symbol.is_defined:
            return unit, symbol
        # A symbol that a module does not define comes from a module that exports it.
        found = self._globals.get(symbol.name, {})
        return found.get(self._modules.get(unit, "")) or next(iter(found.values()), None)
