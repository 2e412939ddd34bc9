# SPDX-License-Identifier: MIT
"""BTF sections built as data: what the format allows and a compiler seldom writes."""

from __future__ import annotations

import struct

import pytest

from hotreload.elf import btf
from hotreload.elf.btf import Array, BtfError, Member, parse_btf, says_the_same

INT32 = (1, btf.INT, 0, 0, 4, 0x01000020)  # name at 1: "int"


def section(*types: tuple[int, ...], strings: bytes = b"\0int\0", header: int = 24) -> bytes:
    """A section of these types: (name, kind, flag, vlen, size, words behind them...)."""
    words = b"".join(
        struct.pack(f"<{3 + len(tail)}I", name, flag << 31 | kind << 24 | vlen, size, *tail)
        for name, kind, flag, vlen, size, *tail in types
    )
    start = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, header, 0, len(words), len(words), len(strings))
    return start + bytes(header - 24) + words + strings


def test_types_are_numbered_from_one_and_zero_is_void() -> None:
    table = parse_btf(section(INT32))
    assert (table[0].kind, table[1].kind, table[1].name, table[1].size) == (btf.VOID, btf.INT, "int", 4)
    assert len(table) == 2


def test_every_kind_has_the_length_that_the_specification_gives_it() -> None:
    kinds = [
        INT32,
        (0, btf.PTR, 0, 0, 1),
        (0, btf.ARRAY, 0, 0, 0, 1, 1, 7),
        (0, btf.STRUCT, 0, 2, 8, 1, 1, 0, 1, 1, 32),
        (0, btf.UNION, 0, 1, 4, 1, 1, 0),
        (0, btf.ENUM, 0, 2, 4, 1, 0, 1, 1),
        (1, btf.FWD, 1, 0, 0),
        (1, btf.TYPEDEF, 0, 0, 1),
        (0, btf.VOLATILE, 0, 0, 1),
        (0, btf.CONST, 0, 0, 1),
        (0, btf.RESTRICT, 0, 0, 2),
        (1, btf.FUNC, 0, btf.GLOBAL, 13),
        (0, btf.FUNC_PROTO, 0, 2, 1, 1, 1, 0, 0),
        (1, btf.VAR, 0, 0, 1, btf.STATIC),
        (1, btf.DATASEC, 0, 1, 4, 14, 0, 4),
        (1, btf.FLOAT, 0, 0, 8),
        (1, btf.DECL_TAG, 0, 0, 4, 0xFFFFFFFF),
        (1, btf.TYPE_TAG, 0, 0, 1),
        (1, btf.ENUM64, 0, 1, 8, 1, 1, 1),
    ]
    table = parse_btf(section(*kinds))
    assert [kind.kind for kind in table.types[1:]] == list(range(1, 20))
    assert table.array(table[3]) == Array(1, 7)
    assert table.parameters(table[13]) == [("int", 1), ("", 0)]
    assert table[12].vlen == btf.GLOBAL
    assert table[7].flag


def test_offsets_of_a_struct_with_bit_fields_carry_their_widths() -> None:
    plain = (0, btf.STRUCT, 0, 1, 4, 1, 1, 3 << 24 | 8)
    fields = (0, btf.STRUCT, 1, 2, 4, 1, 1, 3 << 24 | 8, 1, 1, 32)
    table = parse_btf(section(INT32, plain, fields))
    assert table.members(table[2]) == [Member("int", 1, 3 << 24 | 8, 0)]
    assert table.members(table[3]) == [Member("int", 1, 8, 3), Member("int", 1, 32, 0)]


def test_enum_values_are_signed_and_64_bit_ones_have_two_words() -> None:
    table = parse_btf(
        section(
            (0, btf.ENUM, 0, 2, 4, 1, 0xFFFFFFFF, 1, 5),
            (0, btf.ENUM64, 0, 1, 8, 1, 0xFFFFFFFF, 0xFFFFFFFF),
            (0, btf.ENUM64, 1, 1, 8, 1, 0xFFFFFFFE, 0xFFFFFFFF),
        )
    )
    assert table.constants(table[1]) == [("int", -1), ("int", 5)]
    assert table.constants(table[2]) == [("int", 2**64 - 1)]
    assert table.constants(table[3]) == [("int", -2)]


def test_a_name_may_be_the_end_of_another_string() -> None:
    strings = b"\0counter_t\0"
    table = parse_btf(section((9, btf.INT, 0, 0, 4, 0), (1, btf.TYPEDEF, 0, 0, 1), strings=strings))
    assert [kind.name for kind in table.types] == ["", "t", "counter_t"]


def test_names_after_one_in_utf8_are_found() -> None:
    strings = "\0größe\0int\0".encode()
    table = parse_btf(section((1, btf.FWD, 0, 0, 0), (9, btf.FWD, 0, 0, 0), strings=strings))
    assert [kind.name for kind in table.types] == ["", "größe", "int"]


def test_a_longer_header_is_skipped_by_its_own_length() -> None:
    assert parse_btf(section(INT32, header=32))[1].name == "int"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "too few"),
        (b"\xeb\x9f" + section(INT32)[2:], "not little-endian"),
        (section(INT32)[:2] + b"\2" + section(INT32)[3:], "version 2"),
        (section(INT32)[:-1], "names more than"),
        (section(INT32, strings=b"\0int"), "do not begin and end with a NUL"),
        (section((1, 25, 0, 0, 4)), "type kind 25 is not known"),
        (section((1, btf.INT, 0, 0, 4)), "cut off"),
        (section((1, btf.STRUCT, 0, 2, 4, 1, 1, 0)), "cut off"),
        (section((77, btf.PTR, 0, 0, 0)), "no string at 0x4d"),
    ],
)
def test_what_is_not_btf_is_an_error_that_says_what_is_wrong(data: bytes, said: str) -> None:
    with pytest.raises(BtfError, match=said):
        parse_btf(data)


def test_a_type_that_gcc_12_could_not_describe_keeps_its_number() -> None:
    assert [kind.kind for kind in parse_btf(section((0, btf.VOID, 0, 0, 0), INT32)).types[1:]] == [
        btf.VOID,
        btf.INT,
    ]


def test_a_number_behind_the_last_type_is_an_error() -> None:
    with pytest.raises(BtfError, match="no type 2, the last one is 1"):
        parse_btf(section(INT32))[2]


def test_only_the_path_and_what_stands_behind_it_may_differ_between_same_sections() -> None:
    def unit(path: bytes, *more: tuple[int, ...], size: int = 4, parameter: int = 1, value: int = 7) -> bytes:
        strings = b"\0int\0A\0" + path + b"\0f\0.bss\0"
        f = strings.index(b"f\0.bss")
        enum = (0, btf.ENUM, 0, 1, size, 5, value)
        prototype = (0, btf.FUNC_PROTO, 0, 1, 1, f, parameter)
        sections = (f + 2, btf.DATASEC, 0, 1, 4, 1, 0, 4)
        return section(INT32, enum, prototype, *more, sections, strings=strings)

    settled = parse_btf(unit(b"/base.c")).settled
    assert says_the_same(settled, unit(b"/home/x.c"))
    assert not says_the_same(settled, unit(b"/home/x.c", INT32))
    assert not says_the_same(settled, unit(b"/home/x.c", parameter=2))
    assert not says_the_same(settled, unit(b"/home/x.c", size=8))
    assert not says_the_same(settled, unit(b"/home/x.c", value=8))
    assert not says_the_same(settled, unit(b"/base.c").replace(b"\0A\0", b"\0B\0"))
