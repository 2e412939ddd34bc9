# SPDX-License-Identifier: MIT
"""Changed initial values in data that the running kernel holds: which values, and what they are called.

livepatch replaces code. Data stays where it is, and what the source now says about its first value is
written there when the patch is applied, one value at a time, each only while the old one is still in its
place. A value is what the processor writes at once: a number or pointer of 1, 2, 4 or 8 bytes, aligned to its
size, as the type says; where the object does not tell the type (gcc 12 tells none of a static local), the
widest aligned place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from hotreload.diff.compare import Comparison
from hotreload.diff.layouts import Layouts, Shape
from hotreload.elf.constants import R_X86_64_64
from hotreload.elf.model import Relocation, StringRef, Symbol, SymbolRef

WIDEST = 8


class UnwritableError(Exception):
    """Why a value cannot be written in place, as the rest of a sentence about it."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A variable with another initial value; ``places`` are the (offset, size in bytes) of what differs.

    ``is_parameter``: of the module: somebody may have set another value, and that stays.
    """

    original: Symbol
    patched: Symbol
    places: tuple[tuple[int, int], ...]
    is_parameter: bool = False


def find_rewrite(
    original: Symbol, patched: Symbol, comparison: Comparison, layouts: Layouts | None
) -> Rewrite:
    """What differs between two variables of one size; ``layouts`` of the original. Raises UnwritableError."""
    before = {relocation.offset: relocation for relocation in original.relocations}
    after = {relocation.offset: relocation for relocation in patched.relocations}
    either = before.keys() | after.keys()
    align = min(_alignment(original), _alignment(patched))
    places = set()
    for offset in either:
        one, other = before.get(offset), after.get(offset)
        if one is None or other is None or not comparison.same_relocations([one], [other]):
            _require_pointer(offset, align, one, other)
            places.add((offset, WIDEST))
    shape = layouts.shapes.get(original.name) if layouts is not None else None
    for offset in _differing(original.content, patched.content):
        if any(start <= offset < start + size for start, size in places):
            continue
        place = _place_of(offset, align, original.size, layouts, shape)
        if any(place[0] < pointer + WIDEST and pointer < sum(place) for pointer in either):
            raise UnwritableError("it is a pointer's in part")
        places.add(place)
    # Places are nested or apart: of a union or beside a bit-field the wider one is the one to write.
    wide = {p for p in places if not any(p != q and q[0] <= p[0] and sum(p) <= sum(q) for q in places)}
    return Rewrite(original, patched, tuple(sorted(wide)))


def _alignment(symbol: Symbol) -> int:
    """The alignment in bytes that a symbol surely has."""
    assert symbol.section is not None
    return gcd(symbol.section.align, symbol.value) or symbol.section.align


def _require_pointer(offset: int, align: int, *relocations: Relocation | None) -> None:
    for relocation in relocations:
        if relocation is not None and relocation.type != R_X86_64_64:
            raise UnwritableError("it is not a whole pointer")
    if offset % WIDEST or align < WIDEST:
        raise UnwritableError("it is not aligned, so it cannot be written at once")
    old = relocations[0].target if relocations[0] else None
    if isinstance(old, StringRef):
        raise UnwritableError("whether it still points at the old string cannot be told")
    if old is not None and (not isinstance(old, SymbolRef) or old.symbol.anonymous):
        raise UnwritableError("what it pointed at has no name")


def _differing(before: bytes, after: bytes) -> Iterator[int]:
    """The offsets of bytes that differ, found a word at a time."""
    if before == after:
        return
    for start in range(0, len(before), WIDEST):
        one, other = before[start : start + WIDEST], after[start : start + WIDEST]
        if one != other:
            yield from (start + i for i, byte in enumerate(one) if byte != other[i])


def _place_of(
    offset: int, align: int, size: int, layouts: Layouts | None, shape: Shape | None
) -> tuple[int, int]:
    """The (offset, size) of the value that a byte belongs to. Raises UnwritableError."""
    leaf = _leaf(layouts, shape, offset) if layouts is not None and shape is not None else None
    if leaf is None:
        width = min(align, WIDEST)
        start = offset - offset % width
        while start + width > size:
            width //= 2
            start = offset - offset % width
        return start, width
    start, width = leaf
    if width not in (1, 2, 4, 8) or start % width or align < width:
        raise UnwritableError("it is not aligned, so it cannot be written at once")
    return start, width


def _leaf(layouts: Layouts, shape: Shape, offset: int) -> tuple[int, int] | None:
    """Where the number or pointer that holds a byte begins, and its size; None for a bit-field or gap."""
    base = 0
    while True:
        step = _step(layouts, shape, offset - base)
        if step is None:
            size = 0 if _is_composed(layouts, shape) else layouts.size(shape)
            return (base, size) if size else None
        _, inside, shape, bits = step
        if bits:
            return None
        base += inside


def _is_composed(layouts: Layouts, shape: Shape) -> bool:
    return shape[0] in ("[]", "{}") or shape in layouts.aggregates


def _step(layouts: Layouts, shape: Shape, offset: int) -> tuple[str, int, Shape, int] | None:
    """The member or element that holds a byte: its name, its offset, its type, its width if a bit-field."""
    if shape[0] == "[]":
        size = layouts.size(shape[2])
        return (f"[{offset // size}]", offset - offset % size, shape[2], 0) if size else None
    fields = shape[2] if shape[0] == "{}" else next((x.fields for x in layouts.aggregates.get(shape, ())), ())
    holding = [f for f in fields if f.offset // 8 <= offset and offset * 8 < f.offset + layouts.width(f)]
    if not holding:
        return None
    field = max(holding, key=layouts.width)  # of a union, the widest
    return f".{field.name}", field.offset // 8, field.shape, field.bits


def name_of_place(layouts: Layouts | None, symbol: Symbol, name: str, offset: int) -> str:
    """What C calls the value at ``offset`` bytes in a variable: ``fops.read``, ``table[3].limit``."""
    shape = layouts.shapes.get(symbol.name) if layouts is not None else None
    if layouts is None or shape is None:
        return f"{name}+{offset}" if offset else name
    told, base = name, 0
    while (step := _step(layouts, shape, offset - base)) is not None:
        part, inside, shape, _ = step
        told += part
        base += inside
    return told
