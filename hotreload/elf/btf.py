# SPDX-License-Identifier: MIT
"""The types of a unit, as ``gcc -gbtf`` wrote them down: a raw ``.BTF`` section into an immutable table.

The format is Documentation/bpf/btf.rst of the kernel: a header, the types one after the other (type 1 first;
0 is ``void``), the strings. Everything in it is a little-endian 32-bit word, so the whole section is
unpacked at once and a type keeps its tail of words, which is given names only when somebody asks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final, NamedTuple

MAGIC: Final = 0xEB9F
HEADER: Final = struct.Struct("<HBBIIIII")  # magic version flags hdr_len type_off type_len str_off str_len

VOID: Final = 0
INT: Final = 1
PTR: Final = 2
ARRAY: Final = 3
STRUCT: Final = 4
UNION: Final = 5
ENUM: Final = 6
FWD: Final = 7
TYPEDEF: Final = 8
VOLATILE: Final = 9
CONST: Final = 10
RESTRICT: Final = 11
FUNC: Final = 12
FUNC_PROTO: Final = 13
VAR: Final = 14
DATASEC: Final = 15
FLOAT: Final = 16
DECL_TAG: Final = 17
TYPE_TAG: Final = 18
ENUM64: Final = 19

# Words behind the first three: so many for the type, and so many for each of its vlen elements.
_TAIL: Final[dict[int, tuple[int, int]]] = {
    VOID: (0, 0),  # gcc 12 writes one where it cannot describe a type (vectors, complex numbers)
    INT: (1, 0),
    PTR: (0, 0),
    ARRAY: (3, 0),
    STRUCT: (0, 3),
    UNION: (0, 3),
    ENUM: (0, 2),
    FWD: (0, 0),
    TYPEDEF: (0, 0),
    VOLATILE: (0, 0),
    CONST: (0, 0),
    RESTRICT: (0, 0),
    FUNC: (0, 0),  # its vlen is the linkage
    FUNC_PROTO: (0, 2),
    VAR: (1, 0),
    DATASEC: (0, 3),
    FLOAT: (0, 0),
    DECL_TAG: (1, 0),
    TYPE_TAG: (0, 0),
    ENUM64: (0, 3),
}

# Kinds whose elements have names, and the words of an element.
_WITH_NAMES: Final = {STRUCT: 3, UNION: 3, ENUM: 2, ENUM64: 3}

STATIC: Final = 0
GLOBAL: Final = 1
EXTERN: Final = 2


class BtfError(ValueError):
    """These bytes are no BTF that the specification knows."""


class Type(NamedTuple):
    """One type. ``size`` is its size in bytes, or the type it refers to, as the kind has it.

    ``flag`` is kind_flag: bit-fields in a struct, a union behind a FWD, signed values of an enum. ``vlen`` is
    the number of elements, and the linkage of a FUNC. ``tail`` holds the words that follow.
    """

    kind: int
    name: str
    size: int
    vlen: int
    flag: bool
    tail: tuple[int, ...]


class Member(NamedTuple):
    """A member of a struct or union: ``offset`` in bits; ``bits`` is the width of a bit-field, or 0."""

    name: str
    type: int
    offset: int
    bits: int


class Array(NamedTuple):
    element: int
    length: int


class TypeTable:
    """The types of one section, by their numbers; number 0 is void."""

    __slots__ = ("_strings", "_text", "settled", "types")

    def __init__(self, types: tuple[Type, ...], strings: dict[int, str], text: bytes, words: bytes) -> None:
        self.types = types
        self.settled = _settled(types, words, text)
        self._strings = strings
        self._text = text

    def __len__(self) -> int:
        return len(self.types)

    def __getitem__(self, number: int) -> Type:
        try:
            return self.types[number]
        except IndexError:
            raise BtfError(f"there is no type {number}, the last one is {len(self.types) - 1}") from None

    def members(self, kind: Type) -> list[Member]:
        """The members of a struct or union, in the order of the source."""
        tail = kind.tail
        name = self._name
        rows = zip(tail[::3], tail[1::3], tail[2::3], strict=True)
        if kind.flag:
            return [Member(name(n), t, where & 0xFFFFFF, where >> 24) for n, t, where in rows]
        return [Member(name(n), t, where, 0) for n, t, where in rows]

    def constants(self, kind: Type) -> list[tuple[str, int]]:
        """Names and values of an ENUM or ENUM64. The sign of a value is that of the enum where it has one."""
        tail = kind.tail
        if kind.kind == ENUM:
            # Before kind_flag meant the sign (Linux v6.0), and in gcc 12, every value was a __s32.
            return [
                (self._name(n), v - ((v & 0x80000000) << 1))
                for n, v in zip(tail[::2], tail[1::2], strict=True)
            ]
        return [
            (self._name(n), _signed64(low | high << 32) if kind.flag else low | high << 32)
            for n, low, high in zip(tail[::3], tail[1::3], tail[2::3], strict=True)
        ]

    def parameters(self, kind: Type) -> list[tuple[str, int]]:
        """Names and types of a FUNC_PROTO's parameters; the last one is ("", 0) for ``...``."""
        return [(self._name(n), t) for n, t in zip(kind.tail[::2], kind.tail[1::2], strict=True)]

    def array(self, kind: Type) -> Array:
        """Element type and length of an ARRAY."""
        return Array(kind.tail[0], kind.tail[2])

    def _name(self, offset: int) -> str:
        found = self._strings.get(offset)
        return _string(self._text, offset) if found is None else found


def parse_btf(data: bytes) -> TypeTable:
    """The table of a raw ``.BTF`` section. Raises BtfError."""
    words, text = _sections(data)
    # A name that begins inside another string (the format allows to share ends) is not in this table.
    pieces = text.split(b"\0")
    strings = dict(zip(accumulate((len(p) + 1 for p in pieces), initial=0), _decoded(text), strict=False))
    found = [Type(VOID, "", 0, 0, False, ())]
    found += _types(words, strings, text)
    return TypeTable(tuple(found), strings, text, _raw_types(data))


class Settled(NamedTuple):
    """What another section with the same types has in common with this one.

    The bytes of all types up to the last struct, union or enum, the strings that those use, and the types
    behind, without the names of parameters.
    """

    types: bytes
    strings: bytes
    rest: tuple[tuple[object, ...], ...]


def says_the_same(settled: Settled, data: bytes) -> bool:
    """Whether a section has the types that ``settled`` says; False when in doubt. Raises BtfError.

    Two compiles of one source do not make equal sections: gcc 12 puts the source's path among the strings,
    and behind it the names of parameters and sections. This takes a tenth of the time of parsing.
    """
    words, text = _sections(data)
    if not _raw_types(data).startswith(settled.types) or not text.startswith(settled.strings):
        return False
    return _outlines(_types(words[len(settled.types) // 4 :], {}, text)) == settled.rest


def _raw_types(data: bytes) -> bytes:
    _, _, _, header, offset, size, _, _ = HEADER.unpack_from(data)
    return data[header + offset : header + offset + size]


def _settled(types: tuple[Type, ...], raw: bytes, text: bytes) -> Settled:
    last = max((n for n, kind in enumerate(types) if kind.kind in _WITH_NAMES), default=0)
    size = sum(12 + 4 * len(kind.tail) for kind in types[1 : last + 1])
    end = text.find(b"\0", _last_name(types[1 : last + 1], raw[:size])) + 1
    return Settled(raw[:size], text[:end], _outlines(types[last + 1 :]))


def _last_name(types: tuple[Type, ...], raw: bytes) -> int:
    """The highest offset of a name that the ``types`` in ``raw`` use."""
    words = struct.unpack(f"<{len(raw) // 4}I", raw)
    at = last = 0
    for kind in types:
        step = _WITH_NAMES.get(kind.kind) or (2 if kind.kind == FUNC_PROTO else 0)
        last = max(last, words[at], *(kind.tail[::step] if step else ()))
        at += 3 + len(kind.tail)
    return last


def _outlines(types: Iterable[Type]) -> tuple[tuple[object, ...], ...]:
    """Types to be compared, but for the names of parameters, and for sections, which are no types of data."""
    return tuple(
        (*kind[:5], kind.tail[1::2] if kind.kind == FUNC_PROTO else kind.tail)
        for kind in types
        if kind.kind != DATASEC
    )


def _sections(data: bytes) -> tuple[tuple[int, ...], bytes]:
    """The words of the types, and the strings."""
    if len(data) < HEADER.size:
        raise BtfError(f"{len(data)} bytes are too few for a header")
    magic, version, _, header, type_offset, type_size, string_offset, string_size = HEADER.unpack_from(data)
    if magic != MAGIC or version != 1:
        raise BtfError(f"magic {magic:#06x}, version {version}: not little-endian BTF of version 1")
    types, strings = header + type_offset, header + string_offset
    if type_size % 4 or max(types + type_size, strings + string_size) > len(data):
        raise BtfError(f"the header names more than the {len(data)} bytes there are")
    text = data[strings : strings + string_size]
    if text[:1] != b"\0" or text[-1:] != b"\0":
        raise BtfError("the strings do not begin and end with a NUL")
    return struct.unpack_from(f"<{type_size // 4}I", data, types), text


def _decoded(text: bytes) -> list[str]:
    return text.decode("utf-8", "replace").split("\0")


def _types(words: tuple[int, ...], strings: dict[int, str], text: bytes) -> Iterator[Type]:
    at, end = 0, len(words)
    tail_of = _TAIL
    known = strings.get
    make = tuple.__new__
    while at + 3 <= end:
        name_at, info, size = words[at : at + 3]
        number = info >> 24 & 0x1F
        vlen = info & 0xFFFF
        shape = tail_of.get(number)
        if shape is None:
            raise BtfError(f"type kind {number} is not known")
        start = at + 3
        stop = start + shape[0] + shape[1] * vlen
        if stop > end:
            break
        name = known(name_at)
        if name is None:
            name = _string(text, name_at)
        # Half the time of NamedTuple's own constructor, for the one place that makes thousands.
        yield make(Type, (number, name, size, vlen, info >> 31 != 0, words[start:stop]))
        at = stop
    if at != end:
        raise BtfError("the last type is cut off")


def _string(text: bytes, offset: int) -> str:
    end = text.find(b"\0", offset)
    if end < 0:
        raise BtfError(f"no string at {offset:#x}")
    return text[offset:end].decode("utf-8", "replace")


def _signed64(value: int) -> int:
    return value - ((value & 1 << 63) << 1)
