# SPDX-License-Identifier: MIT
"""Finding where the source defines what an obstacle names."""

from __future__ import annotations

import pytest

from hotreload.diff.definitions import find_definition

SOURCE = """\
/* struct foo { old } */
struct foo *first; // struct foo {
struct __packed foo {
	int a;
	struct { int mode; } u;
};
typedef struct foo_alias { int z; } other;
typedef struct {
	long q;
} twin;
enum state { IDLE, RUN = 4 };
enum { LONE,
       NEXT };
int probe(struct foo *f);
static int tail(struct foo *f) { return probe(f); }
int probe(struct foo *f)
{
	return f->a;
}
"""


@pytest.mark.parametrize(
    ("name", "member", "line"),
    [
        ("struct foo", "", 3),
        ("struct foo", "a", 4),
        ("struct foo", "u.mode", 5),
        ("struct foo", "gone", 3),
        ("twin", "q", 9),
        ("enum state", "RUN", 11),
        ("the enum of LONE", "NEXT", 13),
        ("probe", "", 16),
    ],
)
def test_a_definition_is_found_by_its_name(name: str, member: str, line: int) -> None:
    assert find_definition(name, {"b.h": "int x;\n", "foo.h": SOURCE}, member) == f"foo.h:{line}"


def test_what_no_source_defines_has_no_place() -> None:
    assert find_definition("struct bar", {"foo.h": SOURCE}) is None
