# SPDX-License-Identifier: MIT
"""Check whether the base object of a unit has the code that the guest runs.

The guest runs the object that kbuild made. The differ works on one compiled from the same source with a
section for each symbol, because only then does every reference have a relocation. Both have the same code,
except for what sections change: a jump to a neighbouring function may take two bytes instead of five, and a
pointer to the end of an array looks like one to whatever is behind it. So both are compared instruction by
instruction, and references by the place in kbuild's object that they mean. This is Ksplice's run-pre matching
(Arnold and Kaashoek, EuroSys 2009, section 4.3) between two objects.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hotreload.diff.compare import Comparison
from hotreload.diff.correlate import correlate
from hotreload.diff.correlation import Correlation
from hotreload.diff.special_sections import is_init, read_entries
from hotreload.elf.constants import R_X86_64_32S, R_X86_64_64
from hotreload.elf.instructions import Instruction, UndecodableError, instructions
from hotreload.elf.model import (
    ObjectFile,
    Relocation,
    StringRef,
    Symbol,
    SymbolRef,
    relocations_between,
)

_ABSOLUTE = (R_X86_64_64, R_X86_64_32S)


@dataclass(frozen=True, slots=True)
class RunningCode:
    """How the base object of a unit relates to the object that kbuild made.

    ``symbol_of``  symbol of the base object -> that of kbuild's object, whose name and size the running
                   module has
    ``different``  functions whose code differs
    ``holders``    function -> those of ``different`` that may have a copy of it, or call it in another way,
                   although they do not in the base object
    """

    symbol_of: Mapping[Symbol, Symbol]
    different: frozenset[Symbol]
    holders: Mapping[Symbol, frozenset[Symbol]] = field(default_factory=dict)

    def without(self, proved: Iterable[Symbol]) -> RunningCode:
        """Return the same without functions that were proved to be compiled from the base source."""
        return replace(self, different=self.different.difference(proved))


def match_running(plain: ObjectFile, base: ObjectFile) -> RunningCode:
    """Match the base object of a unit with the object that kbuild made of the same source."""
    correlation = correlate(plain, base)
    _pair_namesakes(correlation, plain, base)
    comparison = Comparison(correlation, read_entries(plain), read_entries(base))
    named = {symbol.name: symbol for symbol in plain.symbols}
    matcher = _Matcher(correlation, comparison, named, {**_starts(plain), **_starts(base)})
    different = frozenset(
        ours
        for ours, running in correlation.original_of.items()
        if ours.is_function and not matcher.same(running, ours)
    )
    return RunningCode(correlation.original_of, different, _holders(correlation.original_of, different))


def made_alike(plain: ObjectFile, again: ObjectFile) -> frozenset[str]:
    """Return the functions of kbuild's object that are the same in ``again``.

    ``again`` was compiled with kbuild's flags.
    """
    matched = match_running(plain, again)
    return frozenset(s.name for s in matched.symbol_of if s.is_function and s not in matched.different)


def _holders(
    running_of: Mapping[Symbol, Symbol], different: Collection[Symbol]
) -> Mapping[Symbol, frozenset[Symbol]]:
    """Return, by function, those that may have inlined it or call it in another way in the running code only.

    Compiler flags may change what gcc inlines, and with which parameters it calls a clone (``f.isra.0``).
    """
    found: dict[Symbol, set[Symbol]] = defaultdict(set)
    for holder in different:
        if holder.section is not None and is_init(holder.section):
            continue
        theirs = set(_functions_in(running_of[holder]))
        for function in _functions_in(holder):
            running = running_of.get(function)
            if running is not None and (running not in theirs or "." in function.name):
                found[function].add(holder)
    return {function: frozenset(those) for function, those in found.items()}


def _functions_in(symbol: Symbol) -> Iterator[Symbol]:
    """Yield the functions of the same object that a function calls or takes the address of."""
    for relocation in symbol.relocations:
        target = relocation.target
        if isinstance(target, SymbolRef) and target.symbol.is_function and target.symbol.is_defined:
            yield target.symbol


def _starts(obj: ObjectFile) -> Mapping[Symbol, Sequence[int]]:
    """Return the offsets in data without symbols that addresses refer to. KASAN lists each of its strings."""
    found: dict[Symbol, set[int]] = defaultdict(set)
    for section in obj.sections:
        for relocation in section.relocations if section.is_allocated else ():
            target = relocation.target
            if isinstance(target, SymbolRef) and target.symbol.anonymous and relocation.type in _ABSOLUTE:
                found[target.symbol].add(relocation.addend)
    return {symbol: sorted(places) for symbol, places in found.items()}


def _pair_namesakes(correlation: Correlation, plain: ObjectFile, base: ObjectFile) -> None:
    """Pair the remaining variables, such as those of macros, by name.

    The same source gives the same names; the comparison of the code that uses them confirms the pairs.
    """
    named = {symbol.name: symbol for symbol in plain.symbols if symbol.is_object and symbol.is_defined}
    for ours in base.symbols:
        running = named.get(ours.name) if ours.is_object and ours.is_defined else None
        if running is not None and running.size == ours.size and correlation.is_free(running, ours):
            correlation.pair(running, ours)


@dataclass(frozen=True, slots=True)
class _Matcher:
    correlation: Correlation
    comparison: Comparison
    by_name: Mapping[str, Symbol]  # of kbuild's object
    starts: Mapping[Symbol, Sequence[int]]  # offsets that are referred to in data without symbols, sorted
    parts: dict[tuple[Symbol, int, Symbol, int, int], bool] = field(default_factory=dict)  # results so far

    def same(self, running: Symbol, ours: Symbol) -> bool:
        if running.content == ours.content and self.comparison.same_relocations(
            running.relocations, ours.relocations
        ):
            return True
        try:
            left, right = list(instructions(running.content)), list(instructions(ours.content))
        except UndecodableError:
            return False
        if len(left) != len(right):
            return False
        one, other = _Side(running, left), _Side(ours, right)
        return all(self._same_instruction(one, other, number) for number in range(len(left)))

    def _same_instruction(self, running: _Side, ours: _Side, number: int) -> bool:
        left, right = running.stream[number], ours.stream[number]
        if left.is_relative_branch or right.is_relative_branch:
            return _condition(left) == _condition(right) and self._same_destination(
                running, left, ours, right
            )
        if running.bytes_of(left) != ours.bytes_of(right):
            return False
        references, others = running.references(left), ours.references(right)
        return len(references) == len(others) and all(
            one.offset - left.start == other.offset - right.start and self._same_place(one, other)
            for one, other in zip(references, others, strict=True)
        )

    def _same_destination(self, running: _Side, left: Instruction, ours: _Side, right: Instruction) -> bool:
        references, others = running.references(left), ours.references(right)
        if len(references) != len(others):
            return False
        if not references:
            return running.destination(left) == ours.destination(right)
        # The addend of a branch counts from the end of its field, so it depends on the size of the field.
        return self._same_place(references[0], others[0], left.immediate, right.immediate)

    def _same_place(self, one: Relocation, other: Relocation, short: int = 0, long: int = 0) -> bool:
        if isinstance(one.target, SymbolRef) and isinstance(other.target, SymbolRef):
            running, theirs = one.target.symbol, other.target.symbol
            if running.anonymous and theirs.anonymous:
                at, there = one.addend + short, other.addend + long
                is_same = at == there and self.comparison.same_target(one.target, other.target)
                return is_same or self._same_stretch(running, at, theirs, there)
            if (ours := self._running(theirs)) is not None and ours.section is running.section is not None:
                return running.value + one.addend + short == ours.value + other.addend + long
        if one.addend + short == other.addend + long:
            if isinstance(one.target, StringRef) and isinstance(other.target, StringRef):
                return _says_the_same(one.target.text, other.target.text)
            if self.comparison.same_target(one.target, other.target):
                return True
        return self._is_string(one, other, one.addend + short - other.addend - long)

    def _is_string(self, one: Relocation, other: Relocation, start: int) -> bool:
        """Return whether both refer to the same string.

        KASAN keeps strings apart in kbuild's object, so they are not in a mergeable section.
        """
        if not (isinstance(one.target, SymbolRef) and isinstance(other.target, StringRef)):
            return False
        running = one.target.symbol
        if not running.anonymous or start < 0:
            return False
        end = running.content.find(b"\0", start)
        return end >= 0 and _says_the_same(running.content[start:end], other.target.text)

    def _running(self, ours: Symbol) -> Symbol | None:
        """Return the symbol of kbuild's object.

        The statics of macros have no twins and are found by name, because the same source gives the same
        names.
        """
        return self.correlation.original_of.get(ours) or self.by_name.get(ours.name)

    def _same_stretch(self, running: Symbol, at: int, ours: Symbol, there: int) -> bool:
        """Return whether two places in data without symbols are the same.

        Data with a section of its own here is a part of a longer stretch in kbuild's object; UBSAN's
        descriptions of places are such data. If both are parts of a longer stretch, as KASAN's strings are,
        read-only data is the same if it is equal up to where the next object begins. Writable data must also
        be at the same offset.
        """
        assert running.section is not None
        assert ours.section is not None
        start = at - there
        is_a_part = start >= 0 and start + ours.size <= running.size
        if is_a_part and self._has_part(running, start, ours, 0, ours.size):
            return True
        can_be_written = running.section.is_writable or ours.section.is_writable
        if at < 0 or there < 0 or (can_be_written and at != there):
            return False
        ends = self._end(running, at), self._end(ours, there)
        size = min(ends[0] - at, ends[1] - there)
        if size > 0 and self._has_part(running, at, ours, there, size):
            return True
        texts = running.content[at : ends[0]].rstrip(b"\0"), ours.content[there : ends[1]].rstrip(b"\0")
        return all(text and b"\0" not in text for text in texts) and _says_the_same(*texts)

    def _end(self, symbol: Symbol, at: int) -> int:
        starts = self.starts.get(symbol, ())
        behind = bisect_right(starts, at)
        return starts[behind] if behind < len(starts) else symbol.size

    def _has_part(self, running: Symbol, at: int, ours: Symbol, there: int, size: int) -> bool:
        key = running, at, ours, there, size
        if key not in self.parts:
            self.parts[key] = True  # assumed if it refers to itself
            self.parts[key] = running.content[at : at + size] == ours.content[there : there + size] and (
                self._same_relocations(_part(running, at, size), _part(ours, there, size))
            )
        return self.parts[key]

    def _same_relocations(self, left: Sequence[Relocation], right: Sequence[Relocation]) -> bool:
        return len(left) == len(right) and all(
            (one.offset, one.type) == (other.offset, other.type) and self._same_place(one, other)
            for one, other in zip(left, right, strict=True)
        )


def _part(symbol: Symbol, at: int, size: int) -> tuple[Relocation, ...]:
    assert symbol.section is not None
    start = symbol.value + at
    return relocations_between(symbol.section, start, start + size)


def _says_the_same(running: bytes, ours: bytes) -> bool:
    """Return whether two strings are the same. A file name may have the folder of our copy before it.

    Compiler checks write file names as they were read; -fmacro-prefix-map does not change them.
    """
    return running == ours or (
        ours.startswith(b"/") and len(running) > 1 and ours.endswith(b"/" + running.removeprefix(b"/"))
    )


class _Side:
    """A function, its instructions, and what they refer to."""

    def __init__(self, symbol: Symbol, stream: list[Instruction]) -> None:
        self.symbol = symbol
        self.stream = stream
        self._numbers = {instruction.start: number for number, instruction in enumerate(stream)}
        self._references: dict[int, list[Relocation]] = {}
        at = 0
        for relocation in symbol.relocations:
            while at < len(stream) and stream[at].end <= relocation.offset:
                at += 1
            self._references.setdefault(at, []).append(relocation)

    def references(self, instruction: Instruction) -> list[Relocation]:
        return self._references.get(self._numbers[instruction.start], [])

    def bytes_of(self, instruction: Instruction) -> bytes:
        return self.symbol.content[instruction.start : instruction.end]

    def destination(self, instruction: Instruction) -> int | None:
        """Return the number of the instruction that a branch inside the function goes to."""
        field = self.bytes_of(instruction)[-instruction.immediate :]
        return self._numbers.get(instruction.end + int.from_bytes(field, "little", signed=True))


def _condition(branch: Instruction) -> int:
    """Return a branch's kind, independent of its operand size: short and near JMP are the same.

    So are short and near Jcc.
    """
    opcode = branch.opcode
    if opcode in (0xE9, 0xEB):
        return 0xEB
    return opcode - 0x0F80 + 0x70 if 0x0F80 <= opcode <= 0x0F8F else opcode
