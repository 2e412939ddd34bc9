# SPDX-License-Identifier: MIT
"""What the compiler says about a unit's types and variables: its DWARF, as a tree of entries.

The format is in chapter 7 of DWARF 4 and 5. The compiler is asked for version 4 (build/gcc.py); objects from
elsewhere have either. pyelftools takes 20 times as long for the same work, more than the compile of a small
unit. So here each abbreviation becomes one ``struct`` if its forms have a fixed size, and an entry keeps its
values as a tuple; the abbreviation knows which value is where. Entries that nothing here needs, above all the
copies of inlined functions, are skipped with their children.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hotreload.elf.model import DebugSections, Symbol

# Tags and attributes, DWARF 5 figures 7.3 and 7.5.
ARRAY_TYPE: Final = 0x01
ENUMERATION_TYPE: Final = 0x04
FORMAL_PARAMETER: Final = 0x05
LEXICAL_BLOCK: Final = 0x0B
MEMBER: Final = 0x0D
POINTER_TYPE: Final = 0x0F
STRUCTURE_TYPE: Final = 0x13
SUBROUTINE_TYPE: Final = 0x15
TYPEDEF: Final = 0x16
UNION_TYPE: Final = 0x17
UNSPECIFIED_PARAMETERS: Final = 0x18
INLINED_SUBROUTINE: Final = 0x1D
SUBRANGE_TYPE: Final = 0x21
BASE_TYPE: Final = 0x24
CONST_TYPE: Final = 0x26
ENUMERATOR: Final = 0x28
SUBPROGRAM: Final = 0x2E
VARIABLE: Final = 0x34
VOLATILE_TYPE: Final = 0x35
RESTRICT_TYPE: Final = 0x37
ATOMIC_TYPE: Final = 0x47
_CALL_SITE: Final = frozenset((0x48, 0x4109))  # the second is the GNU extension to version 4

AT_SIBLING: Final = 0x01
AT_LOCATION: Final = 0x02
AT_NAME: Final = 0x03
AT_BYTE_SIZE: Final = 0x0B
AT_BIT_OFFSET: Final = 0x0C  # counted from the most significant bit of the storage unit
AT_BIT_SIZE: Final = 0x0D
AT_CONST_VALUE: Final = 0x1C
AT_INLINE: Final = 0x20  # of the abstract instance of a function that was inlined
AT_UPPER_BOUND: Final = 0x2F
AT_ABSTRACT_ORIGIN: Final = 0x31
AT_COUNT: Final = 0x37
AT_DATA_MEMBER_LOCATION: Final = 0x38
AT_DECL_COLUMN: Final = 0x39
AT_DECL_FILE: Final = 0x3A
AT_DECL_LINE: Final = 0x3B
AT_DECLARATION: Final = 0x3C
AT_ENCODING: Final = 0x3E
AT_SPECIFICATION: Final = 0x47
AT_TYPE: Final = 0x49
AT_DATA_BIT_OFFSET: Final = 0x6B

OP_ADDR: Final = 0x03

# DW_ATE_* of base types.
ATE_BOOLEAN: Final = 0x02
ATE_FLOATS: Final = frozenset((0x03, 0x04))  # complex, float
ATE_SIGNED: Final = frozenset((0x05, 0x06))  # signed, signed_char

# Forms (figure 7.6) of one size, with their struct code. Addresses have 8 bytes, offsets 4.
_FIXED: Final = {
    0x01: "Q", 0x05: "H", 0x06: "I", 0x07: "Q", 0x0B: "B", 0x0C: "B", 0x0E: "I", 0x11: "B", 0x12: "H",
    0x13: "I", 0x14: "Q", 0x17: "I", 0x19: "", 0x1E: "16s", 0x1F: "I", 0x20: "Q", 0x21: "",
}  # fmt: skip
_ADDR, _STRP, _FLAG_PRESENT, _IMPLICIT_CONST, _LINE_STRP = 0x01, 0x0E, 0x19, 0x21, 0x1F
_BLOCK2, _BLOCK4, _STRING, _BLOCK, _BLOCK1 = 0x03, 0x04, 0x08, 0x09, 0x0A
_SDATA, _UDATA, _REF_UDATA, _REF_ADDR, _EXPRLOC = 0x0D, 0x0F, 0x15, 0x10, 0x18
_REF1, _REF8 = 0x11, 0x14
_HAS_CHILDREN: Final = 1


class DwarfError(ValueError):
    """The debugging information is damaged, or of a kind that is not supported here."""


class Abbreviation:
    """The encoding of one kind of entry. ``place`` maps an attribute to its index among an entry's values."""

    __slots__ = ("constants", "forms", "has_children", "is_skipped", "place", "read", "tag")

    def __init__(
        self, tag: int, has_children: bool, rows: list[tuple[int, int, int]], longer_references: bool
    ) -> None:
        """``rows``: attribute, form, and the value of an implicit constant.

        ``longer_references``: whether DW_FORM_ref_addr has 8 bytes, as in DWARF 2.
        """
        self.tag = tag
        self.has_children = has_children
        self.constants: dict[int, int] = {}
        self.place: dict[int, int] = {}
        self.forms: list[int] = []
        for attribute, form, value in rows:
            if form == _IMPLICIT_CONST:
                self.constants[attribute] = value
            elif form == _FLAG_PRESENT:
                self.constants[attribute] = 1
            else:
                self.place[attribute] = len(self.forms)
                self.forms.append(form)
        self.is_skipped = tag == INLINED_SUBROUTINE or tag in _CALL_SITE
        self.read = _reader_of(self.forms, longer_references)


_Read = Callable[[bytes, int], tuple[tuple[Any, ...], int]]


def _reader_of(forms: list[int], longer_references: bool) -> _Read:
    """Return a function that takes bytes and a place, and returns an entry's values and the next place."""
    steps: list[struct.Struct | int] = []
    codes = ""
    for form in forms:
        # In DWARF 2, this form has the size of an address.
        code = "I" if form == _REF_ADDR and not longer_references else _FIXED.get(form)
        if code is not None:
            codes += code
            continue
        if codes:
            steps.append(struct.Struct("<" + codes))
        steps.append(form)
        codes = ""
    if codes:
        steps.append(struct.Struct("<" + codes))
    if not steps:
        return lambda _data, at: ((), at)
    if len(steps) == 1 and isinstance(only := steps[0], struct.Struct):
        unpack, size = only.unpack_from, only.size
        return lambda data, at: (unpack(data, at), at + size)
    return lambda data, at: _read_steps(steps, data, at)


def _read_steps(steps: list[struct.Struct | int], data: bytes, at: int) -> tuple[tuple[Any, ...], int]:
    values: list[Any] = []
    for step in steps:
        if isinstance(step, struct.Struct):
            values += step.unpack_from(data, at)
            at += step.size
        else:
            value, at = _varying(step, data, at)
            values.append(value)
    return tuple(values), at


def _varying(form: int, data: bytes, at: int) -> tuple[Any, int]:
    if form in (_EXPRLOC, _BLOCK):
        size, at = _uleb(data, at)
        return data[at : at + size], at + size
    if form in (_UDATA, _REF_UDATA):
        return _uleb(data, at)
    if form == _SDATA:
        return _sleb(data, at)
    if form == _STRING:
        end = data.index(b"\0", at)
        return data[at:end], end + 1
    if form in (_BLOCK1, _BLOCK2, _BLOCK4):
        width = {_BLOCK1: 1, _BLOCK2: 2, _BLOCK4: 4}[form]
        size = int.from_bytes(data[at : at + width], "little")
        return data[at + width : at + width + size], at + width + size
    raise DwarfError(f"values of form {form:#x} are not supported")


@dataclass(slots=True, eq=False)
class Entry:
    """A debugging information entry.

    ``offset`` is its place in its section; ``values`` are in the order of its abbreviation.
    """

    offset: int
    kind: Abbreviation
    values: tuple[Any, ...]
    children: list[Entry] = field(default_factory=list)

    @property
    def tag(self) -> int:
        return self.kind.tag

    def get(self, attribute: int) -> Any:
        """Return the value of an attribute as it is encoded; None if the entry does not have it."""
        place = self.kind.place.get(attribute)
        return self.values[place] if place is not None else self.kind.constants.get(attribute)

    def number(self, attribute: int, default: int = 0) -> int:
        """Return the value of an attribute that is a number, or ``default``."""
        value = self.get(attribute)
        return value if isinstance(value, int) else default


class DebugInfo:
    """The entries of one object. ``units`` are its compile units."""

    def __init__(self, sections: DebugSections) -> None:
        """Read all entries. Raises DwarfError."""
        self._sections = sections
        self.units: list[Entry] = []
        self.entries: dict[int, Entry] = {}
        self._names: dict[int, str] = {}  # offset in the strings -> text
        self._starts: dict[int, int] = {}  # offset of an entry -> offset of its unit, except in the first
        try:
            self._read()
        except (struct.error, IndexError, KeyError, ValueError) as error:
            raise DwarfError(f"the debugging information is damaged or not supported: {error}") from error

    # --- what an entry says ---

    def name(self, entry: Entry) -> str:
        """Return the name of an entry, or of the entry that it is a copy of; empty if there is none."""
        place = entry.kind.place.get(AT_NAME)
        if place is None:
            origin = self.target(entry, AT_ABSTRACT_ORIGIN) or self.target(entry, AT_SPECIFICATION)
            return self.name(origin) if origin is not None else ""
        value = entry.values[place]
        if isinstance(value, bytes):
            return value.decode(errors="replace")
        if entry.kind.forms[place] == _LINE_STRP:
            return _text(self._sections.line_strings, value)
        if value not in self._names:
            self._names[value] = _text(self._sections.strings, value)
        return self._names[value]

    def origins(self, entry: Entry) -> Iterator[Entry]:
        """Yield the entry, and then those whose declaration or abstract instance it completes."""
        one: Entry | None = entry
        for _ in range(8):
            if one is None:
                return
            yield one
            one = self.target(one, AT_ABSTRACT_ORIGIN) or self.target(one, AT_SPECIFICATION)

    def target(self, entry: Entry, attribute: int) -> Entry | None:
        """Return the entry that an attribute refers to."""
        value = entry.get(attribute)
        if value is None:
            return None
        form = entry.kind.forms[entry.kind.place[attribute]]
        if _REF1 <= form <= _REF8 or form == _REF_UDATA:
            value += self._start_of(entry.offset)
        return self.entries.get(value)

    def type_of(self, entry: Entry) -> Entry | None:
        """Return the entry of the type of a variable, member or function; None for void."""
        for one in self.origins(entry):
            if (found := self.target(one, AT_TYPE)) is not None:
                return found
        return None

    def address(self, entry: Entry) -> tuple[Symbol, int] | None:
        """Return the symbol, and the place in it, of a variable with a fixed address; None if it has none."""
        location = entry.get(AT_LOCATION)
        if not isinstance(location, bytes) or location[:1] != bytes((OP_ADDR,)) or len(location) != 9:
            return None
        return self._sections.addresses.get(self._place_of_location(entry) + 1)

    # --- reading ---

    def _read(self) -> None:
        data, at = self._sections.info, 0
        tables: dict[int, dict[int, Abbreviation]] = {}
        while at < len(data):
            start = at
            length, version = struct.unpack_from("<IH", data, at)
            if length >= 0xFFFFFFF0 or version not in (2, 3, 4, 5):
                raise DwarfError(f"units of version {version} are not supported")
            if version == 5:
                kind, size, table = struct.unpack_from("<BBI", data, at + 6)
                if kind != 1:
                    raise DwarfError(f"units of type {kind} are not supported")
                first = at + 12
            else:
                table, size = struct.unpack_from("<IB", data, at + 6)
                first = at + 11
            if size != 8:
                raise DwarfError(f"addresses of {size} bytes are not supported")
            if table not in tables:
                tables[table] = _abbreviations(self._sections.abbreviations, table, version == 2)
            at = start + 4 + length
            self.units.append(self._read_unit(data[:at], start, first, tables[table]))

    def _read_unit(self, data: bytes, start: int, at: int, kinds: Mapping[int, Abbreviation]) -> Entry:
        entries = self.entries
        root: Entry | None = None
        open_: list[Entry] = []
        end = len(data)
        while at < end:
            offset = at
            code = data[at]
            at += 1
            if code & 0x80:
                code, at = _uleb(data, offset)
            if not code:
                if not open_:
                    break
                open_.pop()
                continue
            kind = kinds[code]
            values, at = kind.read(data, at)
            if kind.is_skipped and root is not None:
                at = self._behind(kind, values, start, at, data, kinds)
                continue
            entry = Entry(offset, kind, values)
            entries[offset] = entry
            if root is None:
                root = entry
            else:
                open_[-1].children.append(entry)
            if kind.has_children:
                open_.append(entry)
        if root is None:
            raise DwarfError("a unit has no entries")
        if start:
            self._starts.update(dict.fromkeys((o for o in entries if start <= o < end), start))
        return root

    def _behind(
        self,
        kind: Abbreviation,
        values: tuple[Any, ...],
        start: int,
        at: int,
        data: bytes,
        kinds: Mapping[int, Abbreviation],
    ) -> int:
        """Return the place after an entry and its children."""
        if not kind.has_children:
            return at
        place = kind.place.get(AT_SIBLING)
        if place is not None:
            return start + int(values[place])
        depth = 1
        while depth:
            code, at = _uleb(data, at)
            if not code:
                depth -= 1
                continue
            inner = kinds[code]
            _, at = inner.read(data, at)
            depth += inner.has_children
        return at

    def _start_of(self, offset: int) -> int:
        return self._starts.get(offset, 0)

    def _place_of_location(self, entry: Entry) -> int:
        """Return where the bytes of a location are in the section.

        Relocations are known by place, not by entry.
        """
        data = self._sections.info
        _, at = _uleb(data, entry.offset)
        kind = entry.kind
        wanted = kind.place[AT_LOCATION]
        for number, form in enumerate(kind.forms):
            code = _FIXED.get(form)
            if number == wanted:
                return at + (len(_uleb_bytes(data, at)) if form in (_EXPRLOC, _BLOCK) else 1)
            if code is not None:
                at += struct.calcsize("<" + code)
            else:
                _, at = _varying(form, data, at)
        raise DwarfError("the location of a variable was not found")


def _abbreviations(data: bytes, at: int, longer_references: bool) -> dict[int, Abbreviation]:
    found: dict[int, Abbreviation] = {}
    while True:
        code, at = _uleb(data, at)
        if not code:
            return found
        tag, at = _uleb(data, at)
        has_children = data[at] == _HAS_CHILDREN
        at += 1
        rows = []
        while True:
            attribute, at = _uleb(data, at)
            form, at = _uleb(data, at)
            value = 0
            if form == _IMPLICIT_CONST:
                value, at = _sleb(data, at)
            if not attribute and not form:
                break
            rows.append((attribute, form, value))
        found[code] = Abbreviation(tag, has_children, rows, longer_references)


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _uleb_bytes(data: bytes, at: int) -> bytes:
    _, end = _uleb(data, at)
    return data[at:end]


def _sleb(data: bytes, at: int) -> tuple[int, int]:
    value, end = _uleb(data, at)
    bits = 7 * (end - at)
    return value - (1 << bits if value >> (bits - 1) & 1 else 0), end


def _text(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode(errors="replace")
