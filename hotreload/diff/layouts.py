# SPDX-License-Identifier: MIT
"""The layouts of types in one object: what gcc wrote into ``.BTF``, as shapes that can be compared.

Every type becomes a *shape*, a tuple without numbers of the type table, in which a pointer's target is its
name only (what it points to is compared on its own). Types that are the same are equal tuples.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from hotreload.elf import btf
from hotreload.elf.model import ObjectFile

# ("int", size, encoding) ("float", size) ("void",) ("*", target) ("[]", length, element)
# ("()", result, parameters)
# ("struct" | "union" | "enum" | "typedef", name): a typedef only where what it names has no name of its own;
# ("enum", "", size)  ("{}", size, fields): without any name.
Shape = tuple[Any, ...]

VOID: Final[Shape] = ("void",)
_POINTER_SIZE: Final = 8
_TRANSPARENT: Final = frozenset((btf.TYPEDEF, btf.CONST, btf.VOLATILE, btf.RESTRICT, btf.TYPE_TAG))
_QUALIFIERS: Final = _TRANSPARENT - {btf.TYPEDEF}


class Field(NamedTuple):
    """A member, those of nested nameless structs among their parent's: ``u.x`` (offset and width in bits).

    ``bits`` is the width of a bit-field and 0 for all others.
    """

    name: str
    offset: int
    bits: int
    shape: Shape


class Layout(NamedTuple):
    """A struct or union of ``size`` bytes."""

    size: int
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Layouts:
    """The types of one object, by name. A name may stand for several types, each local to a function.

    ``constants`` are the (name, value) of all enums, with the enum they belong to: in C they share one scope.
    ``variables`` are those that can be written, ``shapes`` are of all.
    """

    aggregates: Mapping[Shape, tuple[Layout, ...]]
    enums: Mapping[Shape, int]
    constants: Mapping[tuple[str, int], str]
    functions: Mapping[str, tuple[Shape, ...]]
    exported: frozenset[str]
    variables: Mapping[str, tuple[Shape, ...]]
    shapes: Mapping[str, Shape]
    settled: btf.Settled

    def size(self, shape: Shape) -> int:
        """The bytes that a value takes; 0 where that is not known."""
        kind = shape[0]
        if kind in ("int", "float", "{}"):
            return int(shape[1])
        if kind == "*":
            return _POINTER_SIZE
        if kind == "[]":
            return int(shape[1]) * self.size(shape[2])
        if kind == "enum":
            return int(shape[2]) if len(shape) > 2 else self.enums.get(shape, 0)
        return max((layout.size for layout in self.aggregates.get(shape, ())), default=0)

    def width(self, field: Field) -> int:
        """The bits that a field takes."""
        return field.bits or self.size(field.shape) * 8


# One reload asks for the same section's types several times: 20 ms each for a large one.
@functools.lru_cache(maxsize=4)
def parse(data: bytes) -> Layouts:
    """The layouts of a raw ``.BTF`` section. Raises btf.BtfError."""
    table = btf.parse_btf(data)
    collector = _Collector(_Reader(table))
    try:
        for number, of in enumerate(table.types):
            collector.add(number, of)
    except RecursionError:
        raise btf.BtfError("the types are nested without end") from None
    return collector.result()


def section_of(obj: ObjectFile) -> bytes | None:
    """The raw ``.BTF`` of an object that has one."""
    section = obj.section(".BTF")
    return section.data if section is not None else None


class _Reader:
    """Gives each type of a table its shape, once."""

    def __init__(self, table: btf.TypeTable) -> None:
        self.table = table
        self.known: dict[int, Shape] = {0: VOID}

    def shape(self, number: int) -> Shape:
        found = self.known.get(number)
        if found is None:
            self.known[number] = (
                VOID  # what contains itself without a name is no C; do not follow it for ever
            )
            found = self.known[number] = self._shape(self.table[number])
        return found

    def _shape(self, of: btf.Type) -> Shape:
        kind = of.kind
        if kind == btf.PTR:
            return ("*", self.shape(of.size))
        if kind in (btf.STRUCT, btf.UNION):
            word = "struct" if kind == btf.STRUCT else "union"
            return (word, of.name) if of.name else ("{}", *self.layout(of))
        if kind in _TRANSPARENT:
            if kind == btf.TYPEDEF and self._is_nameless(of.size):
                return ("typedef", of.name)
            return self.shape(of.size)
        if kind == btf.INT:
            return ("int", of.size, of.tail[0])
        if kind == btf.ARRAY:
            element, length = self.table.array(of)
            return ("[]", length, self.shape(element))
        if kind in (btf.ENUM, btf.ENUM64):
            return ("enum", of.name) if of.name else ("enum", "", of.size)
        if kind == btf.FWD:
            return ("union" if of.flag else "struct", of.name)
        if kind == btf.FUNC_PROTO:
            return ("()", self.shape(of.size), tuple(self.shape(t) for _, t in self.table.parameters(of)))
        if kind == btf.FLOAT:
            return ("float", of.size)
        return VOID

    def _is_nameless(self, number: int) -> bool:
        of = self.unqualified(number)
        return of.kind in (btf.STRUCT, btf.UNION) and not of.name

    def unqualified(self, number: int) -> btf.Type:
        of = self.table[number]
        for _ in range(8):
            if of.kind not in _QUALIFIERS:
                break
            of = self.table[of.size]
        return of

    def layout(self, of: btf.Type) -> Layout:
        return Layout(of.size, tuple(self._fields(of, "", 0)))

    def _fields(self, of: btf.Type, prefix: str, base: int) -> Iterator[Field]:
        known, make = self.known, tuple.__new__
        for name, number, offset, bits in self.table.members(of):
            shape = known.get(number) or self.shape(number)
            if shape[0] == "{}":
                inner = prefix + name + "." if name else prefix
                for part in shape[2]:
                    yield Field(inner + part.name, base + offset + part.offset, part.bits, part.shape)
            else:
                yield make(Field, (prefix + name, base + offset, bits, shape))

    def is_constant(self, number: int) -> bool:
        """Whether a variable of this type cannot be written."""
        of = self.table[number]
        for _ in range(len(self.table)):  # a type of a broken table may be an alias of itself
            if of.kind == btf.ARRAY:
                of = self.table[of.tail[0]]
            elif of.kind in _TRANSPARENT and of.kind != btf.CONST:
                of = self.table[of.size]
            else:
                break
        return of.kind == btf.CONST


@dataclass(frozen=True, slots=True)
class _Collector:
    """Sorts the types of a table by what they are and their name."""

    reader: _Reader
    aggregates: dict[Shape, list[Layout]] = field(default_factory=dict)
    enums: dict[Shape, int] = field(default_factory=dict)
    constants: dict[tuple[str, int], str] = field(default_factory=dict)
    functions: dict[str, list[Shape]] = field(default_factory=dict)
    exported: set[str] = field(default_factory=set)
    variables: dict[str, list[Shape]] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)

    def add(self, number: int, of: btf.Type) -> None:
        reader, kind = self.reader, of.kind
        if kind in (btf.STRUCT, btf.UNION):
            if of.name:
                self.aggregates.setdefault(reader.shape(number), []).append(reader.layout(of))
        elif kind == btf.TYPEDEF:
            if (shape := reader.shape(number)) == ("typedef", of.name):
                self.aggregates.setdefault(shape, []).append(reader.layout(reader.unqualified(of.size)))
        elif kind in (btf.ENUM, btf.ENUM64):
            pairs = reader.table.constants(of)
            self.enums[reader.shape(number)] = of.size
            label = f"enum {of.name}" if of.name else f"the enum of {pairs[0][0]}" if pairs else ""
            self.constants.update(dict.fromkeys(pairs, label))
        elif kind == btf.FUNC:
            self.functions.setdefault(of.name, []).append(reader.shape(of.size))
            if of.vlen == btf.GLOBAL:
                self.exported.add(of.name)
        elif kind == btf.VAR and of.tail[0] != btf.EXTERN:
            self.shapes.setdefault(of.name, reader.shape(of.size))
            if not reader.is_constant(of.size):
                self.variables.setdefault(of.name, []).append(reader.shape(of.size))

    def result(self) -> Layouts:
        return Layouts(
            {shape: tuple(found) for shape, found in self.aggregates.items()},
            self.enums,
            self.constants,
            {name: tuple(found) for name, found in self.functions.items() if name},
            frozenset(self.exported),
            {name: tuple(found) for name, found in self.variables.items() if name},
            self.shapes,
            self.reader.table.settled,
        )
