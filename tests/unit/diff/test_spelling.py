# SPDX-License-Identifier: MIT
"""How shapes are spelled."""

from __future__ import annotations

import pytest

from hotreload.diff.layouts import BOOL, SIGNED, UNSIGNED
from hotreload.diff.spelling import spelled

INT = ("int", 4, SIGNED)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (INT, "int"),
        (("int", 1, BOOL), "bool"),
        (("int", 8, UNSIGNED), "unsigned long"),
        (("*", ("*", ("void",))), "void **"),
        (("[]", 16, ("int", 1, SIGNED)), "char[16]"),
        (("[]", 0, INT), "int[]"),
        (("*", ("()", INT, (("*", ("struct", "s")), ("void",)))), "int (*)(struct s *, ...)"),
        (("()", ("void",), ()), "void (void)"),
        (("enum", "", 4), "enum"),
        (("typedef", "t"), "t"),
    ],
)
def test_a_shape_is_spelled_as_in_c(shape: tuple[object, ...], text: str) -> None:
    assert spelled(shape) == text
