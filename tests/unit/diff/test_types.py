# SPDX-License-Identifier: MIT
"""What cannot be had from gcc 12: odd shapes as data."""

from __future__ import annotations

import struct

import pytest

from hotreload.diff.layouts import Layouts, parse
from hotreload.diff.spelling import spelled
from hotreload.diff.types import compare_layouts
from hotreload.elf import btf

INT = ("int", 4, 1 << 24)


def section(strings: bytes, *types: tuple[int, ...]) -> bytes:
    """A section of these types: (name, kind, vlen, size, words behind them...)."""
    words = b"".join(
        struct.pack(f"<{3 + len(tail)}I", name, kind << 24 | vlen, size, *tail)
        for name, kind, vlen, size, *tail in types
    )
    return (
        struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(words), len(words), len(strings)) + words + strings
    )


def global_function(parameter: int) -> bytes:
    """int f(int) or int f(f's first type), with the linkage that later compilers write."""
    return section(
        b"\0int\0f\0long\0",
        (1, btf.INT, 0, 4, 0x01000020),
        (7, btf.INT, 0, 8, 0x01000040),
        (0, btf.FUNC_PROTO, 1, 1, 0, parameter),
        (5, btf.FUNC, btf.GLOBAL, 3),
    )


def test_the_linkage_of_a_function_counts_where_the_compiler_writes_it() -> None:
    diff = compare_layouts(global_function(1), global_function(2))
    assert [(o.code, o.symbol) for o in diff.obstacles] == [("HR2205", "f")]


def test_a_64_bit_constant_that_changed_is_refused() -> None:
    def enum(high: int) -> bytes:
        return section(b"\0e\0A\0", (1, btf.ENUM64, 1, 8, 3, 1, high))

    diff = compare_layouts(enum(1), enum(2))
    assert [o.message for o in diff.obstacles] == [
        "enum e: 'A' changed its value from 4294967297 to 8589934593"
    ]


def test_the_original_may_be_parsed_once_for_many_comparisons() -> None:
    original = parse(global_function(1))
    assert isinstance(original, Layouts)
    assert compare_layouts(original, global_function(1)).obstacles == ()
    assert len(compare_layouts(original, global_function(2)).obstacles) == 1


@pytest.mark.parametrize("broken", [b"", b"\0" * 40, global_function(1)[:-1]])
def test_a_broken_section_is_not_compared_and_a_note_says_why(broken: bytes) -> None:
    diff = compare_layouts(global_function(1), broken)
    assert not diff.compared
    assert diff.obstacles == ()
    assert "could not be compared" in diff.notes[0].message


@pytest.mark.parametrize(
    "types",
    [
        [(1, btf.TYPEDEF, 0, 2), (1, btf.TYPEDEF, 0, 1), (1, btf.VAR, 0, 1, 0)],
        [(0, btf.CONST, 0, 1), (1, btf.VAR, 0, 1, 0)],
        [(0, btf.PTR, 0, 1)],
        [(0, btf.STRUCT, 1, 4, 1, 1, 0), (1, btf.TYPEDEF, 0, 1)],
        [(1, btf.TYPEDEF, 0, 9)],
    ],
    ids=["two typedefs", "a qualifier", "a pointer", "a nameless struct", "a missing type"],
)
def test_types_that_no_c_can_mean_do_not_hang_the_comparison(types: list[tuple[int, ...]]) -> None:
    assert compare_layouts(section(b"\0t\0", *types), section(b"\0u\0", *types)).obstacles == ()


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (INT, "int"),
        (("int", 1, 4 << 24), "bool"),
        (("int", 8, 0), "unsigned long"),
        (("*", ("*", ("void",))), "void **"),
        (("[]", 16, ("int", 1, 1 << 24)), "char[16]"),
        (("[]", 0, INT), "int[]"),
        (("*", ("()", INT, (("*", ("struct", "s")), ("void",)))), "int (*)(struct s *, ...)"),
        (("()", ("void",), ()), "void (void)"),
        (("enum", "", 4), "enum"),
        (("typedef", "t"), "t"),
    ],
)
def test_a_shape_is_spelled_as_in_c(shape: tuple[object, ...], text: str) -> None:
    assert spelled(shape) == text
