# SPDX-License-Identifier: MIT
"""Changed initial values in data that the running kernel holds: which values, and what C calls them.

livepatch replaces code. Data stays where it is, and a new initial value in the source is written there when
the patch is applied, but only as long as the old value is still in place. A value is what the source treats
as one:

    a number or pointer      of 1, 2, 4 or 8 bytes, by its type; for bit-fields, the word that has them
    an array of bytes        a name, a hardware address: compared as a whole
    an element of a table    of structs, if several of its members differ: the row was replaced
    a variable               as a whole, if the object does not tell its type

A value of several words is written word by word at a single moment, after all of it was compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from hotreload.diff.compare import Comparison
from hotreload.diff.layouts import BOOL, Layouts, Shape
from hotreload.elf.constants import R_X86_64_64
from hotreload.elf.model import ConstRef, Relocation, Symbol, SymbolRef

WIDEST = 8

Place = tuple[int, int]  # offset and size in bytes


class UnwritableError(Exception):
    """Why a value cannot be written in place, as the rest of a sentence."""


@dataclass(frozen=True, slots=True)
class Value:
    """One value.

    ``start``    its offset, which determines its name in C
    ``places``   the words that are compared and written at once
    ``changed``  those of them that are to be changed
    """

    start: int
    places: tuple[Place, ...]
    changed: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A variable with another initial value: the ``values`` that differ.

    ``is_parameter``  it is a module parameter; if somebody has set it by hand, it stays that way
    ``looked_up``     the offsets where the kernel looks for a function at each call
    """

    original: Symbol
    patched: Symbol
    values: tuple[Value, ...]
    is_parameter: bool = False
    looked_up: frozenset[int] = frozenset()

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(place for value in self.values for place in value.places)

    @property
    def changed_places(self) -> tuple[Place, ...]:
        """The places that are to be changed, without those that are only compared."""
        return tuple(place for value in self.values for place in value.changed)


def find_rewrite(
    original: Symbol,
    patched: Symbol,
    comparison: Comparison,
    layouts: Layouts | None,
    is_parameter: bool = False,
) -> Rewrite:
    """Return what differs between two variables of one size. Raises UnwritableError.

    ``layouts``: the types of the original.
    """
    pointers = _pointers(original, patched)
    differing = set(_differing(original.content, patched.content))
    before, after = _by_offset(original), _by_offset(patched)
    for offset in pointers:
        one, other = before.get(offset), after.get(offset)
        if one is None or other is None or not comparison.same_relocations([one], [other]):
            differing.add(offset)
            _require_written(one, other)
    section = original.section
    is_constant = section is not None and not section.is_writable
    shape = layouts.shapes.get(original.name) if layouts is not None else None
    found = _Values(layouts, original.size, _alignment(original, patched), pointers, is_constant)
    values: dict[Place, Value] = {}
    for stretch in found.stretches(shape, sorted(differing)):
        places = found.places(shape, stretch)
        written = {p for p in places if any(_holds(p, offset) for offset in differing)}
        # Nobody writes to a constant, so words that stay the same need not be compared.
        looked_at = () if is_constant else {p for p in places if _is_known(before.get(p[0]))}
        values[stretch] = Value(
            stretch[0], tuple(p for p in places if p in written or p in looked_at), tuple(sorted(written))
        )
    return Rewrite(original, patched, tuple(values[key] for key in sorted(values)), is_parameter)


def _by_offset(symbol: Symbol) -> dict[int, Relocation]:
    return {relocation.offset: relocation for relocation in symbol.relocations}


def _pointers(original: Symbol, patched: Symbol) -> frozenset[int]:
    """Return the offsets of pointers in either. Raises UnwritableError for another kind of relocation."""
    relocations = (*original.relocations, *patched.relocations)
    if any(relocation.type != R_X86_64_64 for relocation in relocations):
        raise UnwritableError("a relocation in it is not a 64-bit address")
    return frozenset(relocation.offset for relocation in relocations)


def _alignment(*symbols: Symbol) -> int:
    """Return the alignment in bytes that all symbols are sure to have."""
    sections = [(symbol.section, symbol.value) for symbol in symbols]
    return min(gcd(section.align, value) or section.align for section, value in sections if section)


def _require_written(old: Relocation | None, new: Relocation | None) -> None:
    """Raise UnwritableError if an old pointer cannot be recognized, or a new one not be written."""
    anonymous = old is not None and isinstance(old.target, SymbolRef) and old.target.symbol.anonymous
    if anonymous or (old is not None and isinstance(old.target, ConstRef)):
        raise UnwritableError("the old target of the pointer has no name")
    if new is not None and isinstance(new.target, ConstRef):
        raise UnwritableError("the new target of the pointer has no name")


def _is_known(pointer: Relocation | None) -> bool:
    """Return whether the value of a word is known: a number, or an address with a name."""
    target = pointer.target if pointer is not None else None
    return target is None or (isinstance(target, SymbolRef) and not target.symbol.anonymous)


def _differing(before: bytes, after: bytes) -> Iterator[int]:
    """Yield the offsets of bytes that differ. Compares a word at a time first."""
    if before == after:
        return
    for start in range(0, len(before), WIDEST):
        one, other = before[start : start + WIDEST], after[start : start + WIDEST]
        if one != other:
            yield from (start + i for i, byte in enumerate(one) if byte != other[i])


@dataclass(frozen=True, slots=True)
class _Values:
    """Finds the values of a variable. ``pointers``: offsets of words that are pointers for certain."""

    layouts: Layouts | None
    size: int
    align: int
    pointers: frozenset[int]
    is_constant: bool

    def stretches(self, shape: Shape | None, offsets: list[int]) -> list[Place]:
        """Return the (offset, size) of the values that contain these bytes.

        Of nested ones, only the outermost is returned.
        """
        found = dict.fromkeys(self._stretch(shape, offset, offsets) for offset in offsets)
        return [p for p in found if not any(p != q and q[0] <= p[0] and sum(p) <= sum(q) for q in found)]

    def _stretch(self, shape: Shape | None, offset: int, offsets: list[int]) -> Place:
        if self.layouts is None or shape is None:
            # A pointer is a value by itself, and nobody else writes parts of a constant.
            is_pointer = any(_holds((pointer, WIDEST), offset) for pointer in self.pointers)
            return self._word(offset, WIDEST) if is_pointer or self.is_constant else (0, self.size)
        element, found = self._leaf(self.layouts, shape, offset)
        if element is not None and any(_holds(element, o) and not _holds(found, o) for o in offsets):
            return element
        return found

    def _leaf(self, layouts: Layouts, shape: Shape, offset: int) -> tuple[Place | None, Place]:
        """Return the innermost element of a table of structs that contains a byte, and the value in it."""
        base, element = 0, None
        while not _is_bytes(shape):
            step = _step(layouts, shape, offset - base)
            if step is None:
                size = 0 if _is_composed(layouts, shape) else layouts.size(shape)
                return element, (base, size) if size else self._word(offset, WIDEST)
            _, inside, inner, bits = step
            if bits:
                return element, self._word(offset, layouts.size(inner) or WIDEST)
            base += inside
            if shape[0] == "[]" and _is_composed(layouts, inner) and not _is_bytes(inner):
                element = base, layouts.size(inner)
            shape = inner
        return element, (base, layouts.size(shape))

    def _word(self, offset: int, width: int) -> Place:
        """Return the aligned word around a byte, at most ``width`` bytes; inside a pointer, the pointer."""
        for pointer in self.pointers:
            if pointer <= offset < pointer + WIDEST:
                return pointer, WIDEST
        width = min(self.align, width, WIDEST)
        while True:
            start = offset - offset % width
            meets = any(p < start + width and start < p + WIDEST for p in self.pointers)
            if start + width <= self.size and not meets:
                return start, width
            width //= 2

    def places(self, shape: Shape | None, stretch: Place) -> tuple[Place, ...]:
        """Return the words of a value. For a struct, return those of its members without the padding."""
        start, size = stretch
        if self.layouts is None or shape is None:
            return tuple(self._words(start, start + size))
        found: list[Place] = []
        at = start
        while at < start + size:
            if at not in self.pointers and _is_filling(self.layouts, shape, at):
                at += 1
                continue
            end = sum(self._leaf(self.layouts, shape, at)[1])
            found += self._words(at, end)
            at = end
        return tuple(found)

    def _words(self, at: int, end: int) -> Iterator[Place]:
        """Cut a stretch into words.

        The words are the same each time, because a value that was written is found again by its place.
        """
        while at < end:
            width = WIDEST
            while width > 1 and at not in self.pointers:
                meets = not self.pointers.isdisjoint(range(at, at + width))
                if at % width == 0 and at + width <= end and not meets:
                    break
                width //= 2
            yield at, width
            at += width


def _holds(stretch: Place, offset: int) -> bool:
    return stretch[0] <= offset < sum(stretch)


def _is_bytes(shape: Shape) -> bool:
    """Return whether a type is an array of characters or bytes, which is one value."""
    if shape[0] != "[]":
        return False
    element = shape[2]
    return bool(element[:2] == ("int", 1) and element[2] != BOOL)


def _is_filling(layouts: Layouts, shape: Shape, offset: int) -> bool:
    """Return whether a byte is padding between the members of a struct."""
    base = 0
    while (step := _step(layouts, shape, offset - base)) is not None:
        if step[3]:
            return False
        base += step[1]
        shape = step[2]
    return _is_composed(layouts, shape)


def _is_composed(layouts: Layouts, shape: Shape) -> bool:
    return shape[0] in ("[]", "{}") or shape in layouts.aggregates


def _step(layouts: Layouts, shape: Shape, offset: int) -> tuple[str, int, Shape, int] | None:
    """Return the member or element that contains a byte: name, offset, type, and width if a bit-field."""
    if shape[0] == "[]":
        size = layouts.size(shape[2])
        return (f"[{offset // size}]", offset - offset % size, shape[2], 0) if size else None
    fields = shape[2] if shape[0] == "{}" else next((x.fields for x in layouts.aggregates.get(shape, ())), ())
    holding = [f for f in fields if f.offset // 8 <= offset and offset * 8 < f.offset + layouts.width(f)]
    if not holding:
        return None
    field = max(holding, key=layouts.width)  # in a union, the widest
    return f".{field.name}", field.offset // 8, field.shape, field.bits


def name_of_place(layouts: Layouts | None, symbol: Symbol, name: str, offset: int) -> str:
    """Return C's name for the value at ``offset`` bytes in a variable: ``fops.read``, ``table[3].limit``."""
    shape = layouts.shapes.get(symbol.name) if layouts is not None else None
    if layouts is None or shape is None:
        return f"{name}+{offset}" if offset else name
    told, base = name, 0
    while (step := _step(layouts, shape, offset - base)) is not None:
        part, inside, shape, _ = step
        told += part
        base += inside
    return told


def member_of_place(layouts: Layouts, symbol: Symbol, offset: int) -> tuple[str, str] | None:
    """Return (struct, member) for the value at ``offset``, of the innermost struct that has a name."""
    shape = layouts.shapes.get(symbol.name)
    found, base = None, 0
    while shape is not None and (step := _step(layouts, shape, offset - base)) is not None:
        part, inside, inner, _ = step
        if shape[0] in ("struct", "union", "typedef"):
            found = str(shape[1]), part.removeprefix(".")
        base += inside
        shape = inner
    return found
