# SPDX-License-Identifier: MIT
"""Pair functions that were renamed.

places.py decides what proves that two names are one function. This module reads the places from two objects.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace

from hotreload.diff.correlation import Correlation
from hotreload.diff.layouts import Layouts
from hotreload.diff.obstacles import RELOAD_MODULE, Note, Obstacle
from hotreload.diff.places import Answer, Question, Reference, Referrer, Step, steps_of
from hotreload.diff.special_sections import is_entry_section, is_export_table, is_inert, is_init
from hotreload.elf.constants import PC_RELATIVE
from hotreload.elf.model import ObjectFile, Relocation, Symbol, SymbolRef
from hotreload.elf.references import (
    is_direct_branch,
    points_at_start,
    start_of_instruction,
    takes_address,
)

_NUMBER = re.compile(r"\.\d+")
# A function of the object, represented by its original if it has a twin; or the name of one in another unit.
Function = Symbol | str


@dataclass(frozen=True, slots=True)
class Renames:
    """Pairs renamed functions. ``before``, ``after``: the types; without them nothing is proved."""

    result: Correlation
    original: ObjectFile
    patched: ObjectFile
    before: Layouts | None
    after: Layouts | None

    def pair_by_hint(self) -> None:
        """Pair the functions that other units of the module know to be renamed."""
        result = self.result
        before = {s.name: s for s in self.original.functions if s not in result.patched_of}
        after = {s.name: s for s in self.patched.functions if s not in result.original_of}
        for old, new in result.known.items():
            if old in before and new in after and self._have_equal_prototypes(before[old], after[new]):
                self._pair(before[old], after[new])

    def pair_by_places(self) -> None:
        """Pair functions whose addresses are taken at the same places."""
        while (found := self._found()).successors:
            for one in found.successors.keys() & self.result.patched_of.keys():
                assert isinstance(one, Symbol)
                self.result.unpair(one)
            for one, other in found.successors.items():
                self._pair(one, other)

    def pair_by_code(self) -> None:
        """Pair static functions with the same code that are only called.

        Then their variables are the same, too.
        """
        result, places = self.result, self._places()

        def only_called(obj: ObjectFile, paired: Mapping[Symbol, Symbol]) -> dict[Hashable, Symbol]:
            free = [s for s in _symbols(_running(obj, paired)) if s.is_local]
            held = places.held(obj) if free else set()
            codes = [(places.code(s), s) for s in free if s not in held]
            count = Counter(code for code, _ in codes)
            return {code: s for code, s in codes if count[code] == 1}

        before = only_called(self.original, result.patched_of)
        after = only_called(self.patched, result.original_of) if before else {}
        for code in before.keys() & after.keys():
            one, other = before[code], after[code]
            if self._have_equal_prototypes(one, other):
                result.pair(one, other)
                if {one.name, *one.aliases} & {other.name, *other.aliases}:
                    continue  # gcc folded several equal functions, and kept another of their names
                message = f"{one.name} was renamed to {other.name}, with the same code"
                result.notes.append(Note("HR2207", one.name, f"{message}: traces show the old name"))

    def _pair(self, one: Function, other: Function) -> None:
        if isinstance(one, Symbol) and isinstance(other, Symbol):
            self.result.pair(one, other)
            self.result.renamed[one] = other
        elif isinstance(one, str) and isinstance(other, str):
            self.result.elsewhere[one] = other

    def _found(self) -> Answer[Function]:
        result, places = self.result, self._places()
        if not places.may_have_moved():
            return Answer({}, frozenset())
        names, others = _named_elsewhere(self.original), _named_elsewhere(self.patched)
        question: Question[Function] = Question(
            {*_running(self.original, result.patched_of), *(places.foreign & names)},
            {*_running(self.patched, result.original_of), *(places.foreign & others)},
            self._have_equal_prototypes,
            lambda one, other: places.are_the_same_code(one, self._as_patched(other)),
        )
        found = question.answer(step for twins in result.original_of.items() for step in places.steps(*twins))
        return replace(
            found, successors={one: self._as_patched(other) for one, other in found.successors.items()}
        )

    def _places(self) -> _Places:
        names, others = _named_elsewhere(self.original), _named_elsewhere(self.patched)
        elsewhere = self.result.elsewhere
        return _Places(self.result, (names ^ others) - {*elsewhere, *elsewhere.values()})

    def refuse_other_meanings(self) -> None:
        """Refuse functions whose name stands for another function now, if somebody may hold the old one.

        Refuse other parameters as well if somebody may call the function with the old ones.
        """
        doubtful = sorted(_symbols(self._found().doubtful), key=lambda symbol: symbol.name)
        for one in doubtful:
            message = f"{one.name} changed, and another function's address is now taken where its own was"
            self._refuse(one, f"{message}: cannot tell which of the two its holders should run")
        places = self._places()
        for one, other in list(self.result.patched_of.items()):
            if one in doubtful or not self._has_another_prototype(one, other):
                continue
            if places.are_lost(one, self.original):
                message = f"the parameters of {one.name} changed, and something may still hold its address"
                self._refuse(one, f"{message} and call it with the old ones")

    def _refuse(self, one: Symbol, message: str) -> None:
        self.result.obstacles.append(Obstacle("HR2207", one.name, message, RELOAD_MODULE))

    def _has_another_prototype(self, one: Symbol, other: Symbol) -> bool:
        if not one.is_function or one in self.result.renamed or self.before is None or self.after is None:
            return False
        prototypes = self.before.functions.get(one.name), self.after.functions.get(other.name)
        return None not in prototypes and prototypes[0] != prototypes[1]

    def _as_patched(self, function: Function) -> Function:
        """Return the patched function of one that stays.

        Until here, such a function is represented by its original.
        """
        patched_of = self.result.patched_of
        return patched_of.get(function, function) if isinstance(function, Symbol) else function

    def _have_equal_prototypes(self, one: Function, other: Function) -> bool:
        other = self._as_patched(other)
        if isinstance(one, str) or isinstance(other, str):
            # Only the unit that defines them knows their prototypes.
            return isinstance(one, str) and isinstance(other, str)
        if self.before is None or self.after is None:
            return False
        prototypes = self.before.functions.get(one.name, ())
        return bool(prototypes) and prototypes == self.after.functions.get(other.name, ())


def _symbols(functions: Iterable[Function]) -> Iterator[Symbol]:
    return (one for one in functions if isinstance(one, Symbol))


def _running(obj: ObjectFile, paired: Mapping[Symbol, Symbol]) -> Iterator[Function]:
    for symbol in obj.functions:
        if symbol not in paired and symbol.section is not None and not is_init(symbol.section):
            yield symbol


def _named_elsewhere(obj: ObjectFile) -> set[str]:
    return {symbol.name for symbol in obj.symbols if not symbol.is_defined and symbol.name}


@dataclass(frozen=True, slots=True)
class _Places:
    """The places where symbols refer to functions.

    ``foreign``: names of other units' symbols that only one side refers to.
    """

    result: Correlation
    foreign: Set[str]

    def may_have_moved(self) -> bool:
        """Return whether any symbol refers to other functions than its twin does, calls excepted."""
        return any(
            [self._key(r) for r in self._loose(original)] != [self._key(r) for r in self._loose(patched)]
            for patched, original in self.result.original_of.items()
        )

    def steps(self, patched: Symbol, original: Symbol) -> Iterator[Step[Function]]:
        """Yield what became of the places in two twins."""
        if any(True for _ in self._loose(original)):
            yield from steps_of(self._referrer(original), self._referrer(patched))

    def are_the_same_code(self, one: Function, other: Function) -> bool:
        """Return whether a function of the original has the same code as one of the patched object."""
        if isinstance(one, str) or isinstance(other, str):
            return False
        return self.code(one) == self.code(other)

    def held(self, obj: ObjectFile) -> set[Symbol]:
        """Return the functions that are used in other ways than by calls."""
        targets = (r.target for symbol in obj.symbols for r in self._loose(symbol))
        return {target.symbol for target in targets if isinstance(target, SymbolRef)}

    def code(self, function: Symbol) -> Hashable:
        return function.content, tuple(
            (r.offset, r.type, r.addend, "itself" if r.target == SymbolRef(function) else self._text(r))
            for r in function.relocations
        )

    def are_lost(self, function: Symbol, original: ObjectFile) -> bool:
        """Return whether a place that took the address of a function does not take it any more."""
        holders = [
            s for s in original.symbols if any(r.target == SymbolRef(function) for r in self._loose(s))
        ]
        return any(self._is_lost(function, holder) for holder in holders)

    def _is_lost(self, function: Symbol, holder: Symbol) -> bool:
        referrer, patched = self._referrer(holder), self.result.patched_of.get(holder)
        if not any(reference.function is function for reference in referrer.references):
            return False
        if patched is None:
            return True
        steps = steps_of(referrer, self._referrer(patched))
        return any(step.old is function and step.new is not function for step in steps)

    def _loose(self, symbol: Symbol) -> Iterator[Relocation]:
        """Yield the relocations to functions, except direct calls and exports, which go by name."""
        section = symbol.section
        if section is None or is_inert(section) or is_entry_section(section):
            return
        if is_export_table(section.name):
            return
        for relocation in symbol.relocations:
            target = relocation.target
            if not isinstance(target, SymbolRef) or not self._may_be_function(target.symbol):
                continue
            is_call = section.is_code and relocation.type in PC_RELATIVE
            if not (is_call and is_direct_branch(symbol.content, relocation.offset)):
                yield relocation

    def _may_be_function(self, symbol: Symbol) -> bool:
        return symbol.is_function if symbol.is_defined else symbol.name in self.foreign

    def _key(self, relocation: Relocation) -> Function:
        assert isinstance(relocation.target, SymbolRef)
        symbol = relocation.target.symbol
        return self.result.original_of.get(symbol, symbol) if symbol.is_defined else symbol.name

    def _referrer(self, symbol: Symbol) -> Referrer[Function]:
        assert symbol.section is not None
        loose = self._loose(symbol)
        taken = {r.offset for r in loose if takes_address(symbol, r) and points_at_start(symbol, r)}
        is_code = symbol.section.is_code
        references: list[Reference[Function]] = []
        end = 0
        for relocation in symbol.relocations:
            function = self._key(relocation) if relocation.offset in taken else None
            other = () if function is not None else (relocation.addend, self._text(relocation))
            start = start_of_instruction(symbol.content, relocation.offset) if is_code else relocation.offset
            start = max(end, start)
            bytes_of = symbol.content[end:start], symbol.content[start : relocation.offset]
            end = relocation.offset
            references.append(Reference(relocation.offset, *bytes_of, function, (relocation.type, other)))
        return Referrer(is_code, symbol.content, tuple(references), symbol.content[end:])

    def _text(self, relocation: Relocation) -> Hashable:
        """Return what a reference means that does not take a function's address."""
        target = relocation.target
        if not isinstance(target, SymbolRef):
            return target
        symbol, result = target.symbol, self.result
        if not symbol.is_defined:
            return ("function",) if symbol.name in self.foreign else symbol.name
        if symbol in result.original_of or symbol in result.patched_of:
            return result.original_of.get(symbol, symbol)
        # A symbol without a twin may be the function in question, or a static local that is not paired yet.
        if symbol.is_function:
            return ("function",)
        return "data", symbol.size, "" if symbol.anonymous else _NUMBER.sub("", symbol.name)
