# SPDX-License-Identifier: MIT
"""The types of one object, from its DWARF, as shapes that can be compared.

Every type becomes a *shape*, a tuple without references into the object. A struct with a name appears in it
by its name only, because its members are compared on their own. Equal types have equal shapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from hotreload.diff.variables import Variable, variables_of
from hotreload.elf import dwarf
from hotreload.elf.dwarf import DebugInfo, DwarfError, Entry
from hotreload.elf.garbage import uncollected
from hotreload.elf.model import ObjectFile

# ("int", size, kind) ("float", size) ("void",) ("*", target) ("[]", length, element)
# ("()", result, parameters)
# ("struct" | "union" | "enum", name)
# ("typedef", name): only if the struct that it names has no name of its own
# ("enum", "", size)  ("{}", size, fields): without any name
# The kind of an integer is SIGNED, UNSIGNED or BOOL. An ellipsis is a last parameter of VOID.
Shape = tuple[Any, ...]

VOID: Final[Shape] = ("void",)
UNSIGNED: Final = 0
SIGNED: Final = 1
BOOL: Final = 2
_POINTER_SIZE: Final = 8
_QUALIFIERS: Final = frozenset(
    (dwarf.CONST_TYPE, dwarf.VOLATILE_TYPE, dwarf.RESTRICT_TYPE, dwarf.ATOMIC_TYPE)
)
_TRANSPARENT: Final = _QUALIFIERS | {dwarf.TYPEDEF}
_AGGREGATES: Final = {dwarf.STRUCTURE_TYPE: "struct", dwarf.UNION_TYPE: "union"}
# A length of 0 may be written as an upper bound of -1, in the width of the attribute's form.
_NO_LENGTH: Final = frozenset((0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, -1))


class Field(NamedTuple):
    """A member of a struct or union, ``offset`` in bits from its start.

    The members of a nested unnamed struct are listed among those of the outer one: ``u.x``. ``bits`` is the
    width of a bit-field and 0 for all others.
    """

    name: str
    offset: int
    bits: int
    shape: Shape


class Layout(NamedTuple):
    """A struct or union of ``size`` bytes."""

    size: int
    fields: tuple[Field, ...]


class Member(NamedTuple):
    """A member of a struct, or of a variable, whose name is the ``holder`` then."""

    holder: Shape | str
    name: str
    shape: Shape

    @property
    def is_pointer(self) -> bool:
        """Whether it is a pointer, or an array of pointers."""
        shape = self.shape
        while shape[0] == "[]":
            shape = shape[2]
        return bool(shape[0] == "*")


@dataclass(frozen=True, slots=True)
class Layouts:
    """The types of one object, by name. A name may stand for several types, each local to a function.

    ``constants``  the (name, value) pairs of all enums, which share one scope in C -> their enum
    ``variables``  the shapes of writable file-scope variables, by name
    ``shapes``     the shapes of all variables that have an address, by symbol
    ``declared``   all variables that keep their values, including those that gcc has optimized away
    ``holders``    the struct that a variable or parameter is or points at, by (function, name); the function
                   is empty for variables of the file
    ``locals``     those of the holders that are variables of a function, and no parameters
    ``handled``    the structs that a function may handle: those of its own variables, and those of the
                   functions of the same file that were inlined, whether into this one or into others
    """

    aggregates: Mapping[Shape, tuple[Layout, ...]]
    enums: Mapping[Shape, int]
    constants: Mapping[tuple[str, int], str]
    functions: Mapping[str, tuple[Shape, ...]]
    variables: Mapping[str, tuple[Shape, ...]]
    shapes: Mapping[str, Shape]
    declared: tuple[Variable, ...]
    holders: Mapping[tuple[str, str], Shape]
    locals: frozenset[tuple[str, str]]
    handled: Mapping[str, frozenset[Shape]]

    def size(self, shape: Shape) -> int:
        """Return the size of a value in bytes, or 0 if it is unknown."""
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
        """Return the width of a field in bits."""
        return field.bits or self.size(field.shape) * 8

    def has_types_of(self, other: Layouts) -> bool:
        """Return whether these types include all structs, enums and variables of ``other`` unchanged."""
        return (
            self.constants.items() >= other.constants.items()
            and self.enums.items() >= other.enums.items()
            and self.aggregates.items() >= other.aggregates.items()
            and self.variables.items() >= other.variables.items()
        )


@uncollected()
def parse(obj: ObjectFile) -> Layouts | None:
    """Return the types of an object, or None if it has no debugging information. Raises DwarfError."""
    if obj.debug is None:
        return None
    info = DebugInfo(obj.debug)
    collector = _Collector(_Reader(info))
    try:
        for unit in info.units:
            collector.add_all(unit)
        for entry in info.entries.values():
            collector.add_type(entry)
        return collector.result(tuple(variables_of(info, collector.reader.shape)))
    except RecursionError:
        raise DwarfError("the types are nested too deeply") from None
    except (ValueError, IndexError, KeyError) as error:
        raise DwarfError(f"the debugging information is inconsistent: {error}") from error


class _Reader:
    """Computes the shape of each type once."""

    def __init__(self, info: DebugInfo) -> None:
        self.info = info
        self.known: dict[int, Shape] = {}

    def shape(self, entry: Entry | None) -> Shape:
        if entry is None:
            return VOID
        found = self.known.get(entry.offset)
        if found is None:
            # An unnamed type that contains itself is not valid C. Do not recurse into it for ever.
            self.known[entry.offset] = VOID
            found = self.known[entry.offset] = self._shape(entry)
        return found

    def _shape(self, of: Entry) -> Shape:
        info, tag = self.info, of.tag
        if tag == dwarf.POINTER_TYPE:
            return ("*", self.shape(info.type_of(of)))
        if tag in _AGGREGATES:
            name = info.name(of)
            return (_AGGREGATES[tag], name) if name else ("{}", *self.layout(of))
        if tag in _TRANSPARENT:
            target = info.type_of(of)
            if tag == dwarf.TYPEDEF and self._is_nameless(target):
                return ("typedef", info.name(of))
            return self.shape(target)
        if tag == dwarf.BASE_TYPE:
            return _base_type(of)
        if tag == dwarf.ARRAY_TYPE:
            return self._array(of)
        if tag == dwarf.ENUMERATION_TYPE:
            name = info.name(of)
            return ("enum", name) if name else ("enum", "", of.number(dwarf.AT_BYTE_SIZE))
        if tag in (dwarf.SUBROUTINE_TYPE, dwarf.SUBPROGRAM):
            return ("()", self.shape(info.type_of(of)), tuple(self._parameters(of)))
        return VOID

    def _array(self, of: Entry) -> Shape:
        shape = self.shape(self.info.type_of(of))
        for part in reversed(of.children):
            if part.tag == dwarf.SUBRANGE_TYPE:
                shape = ("[]", _length(part), shape)
        return shape

    def _parameters(self, of: Entry) -> Iterator[Shape]:
        for part in of.children:
            if part.tag == dwarf.FORMAL_PARAMETER:
                yield self.shape(self.info.type_of(part))
            elif part.tag == dwarf.UNSPECIFIED_PARAMETERS:
                yield VOID

    def _is_nameless(self, of: Entry | None) -> bool:
        of = self.unqualified(of)
        return of is not None and of.tag in _AGGREGATES and not self.info.name(of)

    def unqualified(self, of: Entry | None) -> Entry | None:
        while of is not None and of.tag in _QUALIFIERS:
            of = self.info.type_of(of)
        return of

    def layout(self, of: Entry) -> Layout:
        return Layout(of.number(dwarf.AT_BYTE_SIZE), tuple(self._fields(of, "", 0)))

    def _fields(self, of: Entry, prefix: str, base: int) -> Iterator[Field]:
        info = self.info
        for member in of.children:
            if member.tag != dwarf.MEMBER:
                continue
            name = info.name(member)
            shape = self.shape(info.type_of(member))
            bits = member.number(dwarf.AT_BIT_SIZE)
            offset = base + _bit_offset(member, bits, self._storage)
            if shape[0] == "{}":
                inner = prefix + name + "." if name else prefix
                for part in shape[2]:
                    yield Field(inner + part.name, offset + part.offset, part.bits, part.shape)
            else:
                yield Field(prefix + name, offset, bits, shape)

    def _storage(self, member: Entry) -> int:
        """Return the size in bytes of the storage unit that DWARF 4 counts a bit-field's offset in."""
        size = member.number(dwarf.AT_BYTE_SIZE)
        of = self.info.type_of(member)
        while not size and of is not None:
            size = of.number(dwarf.AT_BYTE_SIZE)
            of = self.info.type_of(of)
        return size

    def is_constant(self, of: Entry | None) -> bool:
        """Return whether a variable of this type cannot be written."""
        while of is not None and (of.tag == dwarf.ARRAY_TYPE or of.tag in _TRANSPARENT):
            if of.tag == dwarf.CONST_TYPE:
                return True
            of = self.info.type_of(of)
        return False

    def aggregate_behind(self, of: Entry | None) -> Shape | None:
        """Return the named struct that a value is, or points at through any number of pointers and arrays."""
        shape = behind(self.shape(of))
        return shape if shape[0] in ("struct", "union", "typedef") else None


def behind(shape: Shape) -> Shape:
    """Return a shape without its outer pointers and arrays."""
    while shape[0] in ("*", "[]"):
        shape = shape[-1]
    return shape


def _base_type(of: Entry) -> Shape:
    size, encoding = of.number(dwarf.AT_BYTE_SIZE), of.number(dwarf.AT_ENCODING)
    if encoding in dwarf.ATE_FLOATS:
        return ("float", size)
    if encoding == dwarf.ATE_BOOLEAN:
        return ("int", size, BOOL)
    return ("int", size, SIGNED if encoding in dwarf.ATE_SIGNED else UNSIGNED)


def _length(part: Entry) -> int:
    """Return the length of a dimension, or 0 if it has none that is known at compile time."""
    count, upper = part.get(dwarf.AT_COUNT), part.get(dwarf.AT_UPPER_BOUND)
    if isinstance(count, int):
        return count
    return upper + 1 if isinstance(upper, int) and upper not in _NO_LENGTH else 0


def _bit_offset(member: Entry, bits: int, storage: Any) -> int:
    place = member.get(dwarf.AT_DATA_BIT_OFFSET)
    if place is not None:
        return int(place)
    offset = member.number(dwarf.AT_DATA_MEMBER_LOCATION) * 8
    from_top = member.get(dwarf.AT_BIT_OFFSET)
    # DWARF 4 counts from the most significant bit of the storage unit.
    return offset + int(storage(member)) * 8 - int(from_top) - bits if from_top is not None else offset


@dataclass(frozen=True, slots=True)
class _Collector:
    """Sorts the types of an object by kind and name."""

    reader: _Reader
    aggregates: dict[Shape, list[Layout]] = field(default_factory=dict)
    enums: dict[Shape, int] = field(default_factory=dict)
    constants: dict[tuple[str, int], str] = field(default_factory=dict)
    functions: dict[str, list[Shape]] = field(default_factory=dict)
    variables: dict[str, list[Shape]] = field(default_factory=dict)
    holders: dict[tuple[str, str], Shape] = field(default_factory=dict)
    locals: set[tuple[str, str]] = field(default_factory=set)
    files: dict[str, int] = field(default_factory=dict)
    inlined: set[str] = field(default_factory=set)

    def add_all(self, unit: Entry) -> None:
        """Add the functions and variables of a compile unit."""
        for entry in unit.children:
            if entry.tag == dwarf.SUBPROGRAM:
                self._add_function(entry)
            elif entry.tag == dwarf.VARIABLE and not entry.get(dwarf.AT_DECLARATION):
                self._add_variable(entry)

    def _add_function(self, of: Entry) -> None:
        info = self.reader.info
        name = info.name(of)
        if not name or of.get(dwarf.AT_DECLARATION):
            return
        if of.get(dwarf.AT_ABSTRACT_ORIGIN) is None:
            self.functions.setdefault(name, []).append(self.reader.shape(of))
        self._add_holders(name, of)
        if file := of.number(dwarf.AT_DECL_FILE):
            self.files[name] = file
            if of.get(dwarf.AT_INLINE):
                self.inlined.add(name)

    def _add_holders(self, function: str, of: Entry) -> None:
        info = self.reader.info
        for entry in of.children:
            if entry.tag == dwarf.LEXICAL_BLOCK:
                self._add_holders(function, entry)
            elif entry.tag in (dwarf.VARIABLE, dwarf.FORMAL_PARAMETER):
                behind = self.reader.aggregate_behind(info.type_of(entry))
                if behind is not None and (name := info.name(entry)):
                    self.holders[function, name] = behind
                    if entry.tag == dwarf.VARIABLE:
                        self.locals.add((function, name))

    def _add_variable(self, of: Entry) -> None:
        info = self.reader.info
        kind = info.type_of(of)
        name = info.name(of)
        behind = self.reader.aggregate_behind(kind)
        if behind is not None:
            self.holders["", name] = behind
        if name and not self.reader.is_constant(kind):
            known = self.variables.setdefault(name, [])
            # A declaration without "extern" comes before the definition that completes it.
            if of.get(dwarf.AT_SPECIFICATION) is None or not known:
                known.append(self.reader.shape(kind))

    def add_type(self, of: Entry) -> None:
        reader, tag = self.reader, of.tag
        if tag in _AGGREGATES:
            if not of.get(dwarf.AT_DECLARATION) and reader.info.name(of):
                self.aggregates.setdefault(reader.shape(of), []).append(reader.layout(of))
        elif tag == dwarf.TYPEDEF:
            name = reader.info.name(of)
            if reader.shape(of) == ("typedef", name):
                target = reader.unqualified(reader.info.type_of(of))
                assert target is not None, "it names a struct"
                self.aggregates.setdefault(("typedef", name), []).append(reader.layout(target))
        elif tag == dwarf.ENUMERATION_TYPE and not of.get(dwarf.AT_DECLARATION):
            self._add_enum(of)

    def _add_enum(self, of: Entry) -> None:
        info = self.reader.info
        pairs = [
            (info.name(one), one.number(dwarf.AT_CONST_VALUE))
            for one in of.children
            if one.tag == dwarf.ENUMERATOR
        ]
        self.enums[self.reader.shape(of)] = of.number(dwarf.AT_BYTE_SIZE)
        name = info.name(of)
        label = f"enum {name}" if name else f"the enum of {pairs[0][0]}" if pairs else ""
        self.constants.update(dict.fromkeys(pairs, label))

    def result(self, declared: tuple[Variable, ...]) -> Layouts:
        return Layouts(
            {shape: tuple(found) for shape, found in self.aggregates.items()},
            self.enums,
            self.constants,
            {name: tuple(found) for name, found in self.functions.items()},
            {name: tuple(found) for name, found in self.variables.items()},
            {one.symbol.name: one.shape for one in declared if one.symbol is not None},
            declared,
            self.holders,
            frozenset(self.locals),
            self._handled(),
        )

    def _handled(self) -> dict[str, frozenset[Shape]]:
        own: dict[str, set[Shape]] = {name: set() for name in self.files}
        of_file: dict[int, set[Shape]] = defaultdict(set)
        for (function, _), shape in self.holders.items():
            if function in own:
                own[function].add(shape)
                if function in self.inlined:
                    of_file[self.files[function]].add(shape)
        return {name: frozenset(found | of_file[self.files[name]]) for name, found in own.items()}
