# SPDX-License-Identifier: MIT
"""Edits of types, compiled as the tool compiles them: which ones live data survives."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from hotreload.diff.definitions import located
from hotreload.diff.layouts import parse
from hotreload.diff.type_pair import LayoutDiff
from hotreload.diff.types import compare_layouts, global_functions
from hotreload.elf.reader import read_object
from tests.conftest import require

FLAGS = ("-O2", "-gdwarf-4", "-ffunction-sections", "-fdata-sections", "-fno-common", "-c")


BOTH = "struct a { long x, y; }; struct b { long y, x; }; struct a va; struct b vb; void *p;\n"
WRITES = "void f(void) { struct %s *it = p; it->x = 1; }\n"
PASSES = (
    "static __attribute__((noinline)) long f(struct {0} *it) {{ return it->x; }}\n"
    "static __attribute__((noinline)) long g(struct {0} *it) {{ return it->y; }}\n"
    "long h(void) {{ return f(&v{0}) + g(&v{0}); }}\n"
)
READS = "long g(void) { struct %s *it = p; return it->x; }\n"


@pytest.fixture(scope="module", autouse=True)
def _has_gcc() -> None:
    require(shutil.which("gcc"), "gcc", "apt-get install gcc")


def compiled(folder: Path, name: str, source: str) -> Path:
    (folder / name).with_suffix(".c").write_text(source)
    subprocess.run(["gcc", *FLAGS, f"{name}.c", "-o", f"{name}.o"], cwd=folder, check=True)
    return folder / f"{name}.o"


def compared(folder: Path, before: str, after: str) -> LayoutDiff:
    one, other = compiled(folder, "before", before), compiled(folder, "after", after)
    original, patched = read_object(one), read_object(other)
    return compare_layouts(parse(original), parse(patched), global_functions(original))


class Edit(NamedTuple):
    """Two sources of one unit. ``said`` is part of the first obstacle, or else of the first note."""

    before: str
    after: str
    code: str | None = None
    said: str = ""


def of(struct: str) -> str:
    """A unit whose live data is a list of these structs."""
    return f"{struct}\nstruct s *live;\nlong use(void) {{ return (long)live->a; }}\n"


def enum(constants: str) -> str:
    return f"enum e {{ {constants} }};\nenum e live;\nint use(void) {{ return live == A; }}\n"


EDITS = {
    # struct members
    "a member at the end": Edit(
        of("struct s { int a; long b; };"),
        of("struct s { int a; long b; int mode; };"),
        "HR2101",
        "struct s grew 16 -> 24 bytes: field 'mode' added at offset 16",
    ),
    "a member in front": Edit(
        of("struct s { int a; };"),
        of("struct s { long n; int a; };"),
        "HR2101",
        "struct s grew 4 -> 16 bytes: field 'n' added at offset 0",
    ),
    "a member removed": Edit(
        of("struct s { int a; int b; int c; };"),
        of("struct s { int a; int c; };"),
        "HR2101",
        "struct s shrank 12 -> 8 bytes: field 'b' removed from offset 4",
    ),
    "two members swapped": Edit(
        of("struct s { int a; int b; };"),
        of("struct s { int b; int a; };"),
        "HR2101",
        "struct s changed: field 'a' moved from offset 0 to 4",
    ),
    "a member that pushes another into padding": Edit(
        of("struct s { char a; char c; long b; };"),
        of("struct s { char a; char n; char c; long b; };"),
        "HR2101",
        "struct s changed: field 'n' added at offset 1, field 'c' moved from offset 1 to 2",
    ),
    "a member that takes the place of another": Edit(
        of("struct s { int a; int b; };"),
        of("struct s { int a; float c; };"),
        "HR2101",
        "struct s changed: field 'c' replaced 'b' at offset 4",
    ),
    "another size": Edit(
        of("struct s { int a; };"),
        of("struct s { long a; };"),
        "HR2101",
        "struct s grew 4 -> 8 bytes: field 'a' changed its type from int to long",
    ),
    "another sign": Edit(
        of("struct s { int a; };"), of("struct s { unsigned a; };"), None, "now unsigned int, was int"
    ),
    "an integer that became a pointer": Edit(
        of("struct s { unsigned long a; };"), of("struct s { int *a; };"), "HR2101", "unsigned long to int *"
    ),
    "a pointer to another struct": Edit(
        of("struct x { int q; }; struct y { long q; }; struct s { struct x *a; }; struct y *y;"),
        of("struct x { int q; }; struct y { long q; }; struct s { struct y *a; }; struct y *y;"),
        "HR2101",
        "from struct x * to struct y *",
    ),
    "a longer array": Edit(
        of("struct s { char a[8]; };"), of("struct s { char a[9]; };"), "HR2101", "char[8] to char[9]"
    ),
    "an array of the same size": Edit(
        of("struct s { int a[4]; };"), of("struct s { long a[2]; };"), "HR2101", "from int[4] to long[2]"
    ),
    "a flexible array": Edit(
        of("struct s { int a; };"),
        of("struct s { int a; int more[]; };"),
        "HR2101",
        "'more' added at offset 4, past",
    ),
    "a wider bit-field": Edit(
        of("struct s { unsigned a:3, b:4; };"),
        of("struct s { unsigned a:4, b:4; };"),
        "HR2101",
        "field 'a' changed its width from 3 bits to 4 bits",
    ),
    "a bit-field moved": Edit(
        of("struct s { unsigned a:3; unsigned b:3; };"),
        of("struct s { unsigned b:3; unsigned a:3; };"),
        "HR2101",
        "field 'a' moved from offset 0 to 0:3",
    ),
    "a bit-field of another sign": Edit(
        of("struct s { unsigned a:3; };"), of("struct s { int a:3; };"), None, "now int, was unsigned int"
    ),
    "a function pointer with another parameter": Edit(
        of("struct s { int (*a)(struct s *); };"),
        of("struct s { int (*a)(struct s *, int); };"),
        "HR2101",
        "from int (*)(struct s *) to int (*)(struct s *, int)",
    ),
    "a function pointer with another result": Edit(
        of("struct s { int (*a)(void); };"),
        of("struct s { long (*a)(void); };"),
        "HR2101",
        "to long (*)(void)",
    ),
    "a function pointer behind a typedef": Edit(
        of("typedef int (*cb)(int); struct s { cb a; };"),
        of("typedef int (*cb)(long); struct s { cb a; };"),
        "HR2101",
        "from int (*)(int) to int (*)(long)",
    ),
    "a typedef that means something else": Edit(
        of("typedef int v; struct s { v a; };"),
        of("typedef long v; struct s { v a; };"),
        "HR2101",
        "from int to long",
    ),
    "packed": Edit(
        of("struct s { char c; int a; };"),
        of("struct s { char c; int a; } __attribute__((packed));"),
        "HR2101",
        "struct s shrank 8 -> 5 bytes: field 'a' moved from offset 4 to 1",
    ),
    "another alignment": Edit(
        of("struct s { int a; };"),
        of("struct s { int a; } __attribute__((aligned(64)));"),
        "HR2101",
        "struct s grew 4 -> 64 bytes",
    ),
    # nesting
    "an embedded struct that grew": Edit(
        of("struct in { int x; }; struct s { struct in i; int a; };"),
        of("struct in { int x; int y; }; struct s { struct in i; int a; };"),
        "HR2101",
        "struct in grew 4 -> 8 bytes: field 'y' added at offset 4",
    ),
    "a member of a nameless union": Edit(
        of("struct s { union { int a; long b; } ; };"),
        of("struct s { union { int a; long b; long c[2]; } ; };"),
        "HR2101",
        "struct s grew 8 -> 16 bytes: field 'c' added at offset 0",
    ),
    "a member of a nested struct": Edit(
        of("struct s { int a; struct { int x; int z; } u; };"),
        of("struct s { int a; struct { int z; int x; } u; };"),
        "HR2101",
        "field 'u.x' moved from offset 4 to 8",
    ),
    "an array of nameless structs": Edit(
        of("struct s { int a; struct { int x; int z; } t[2]; };"),
        of("struct s { int a; struct { int z; int x; } t[2]; };"),
        "HR2101",
        "struct s changed: field 't'",
    ),
    "a union's member": Edit(
        "union u { int a; char b[4]; }; union u live;\n",
        "union u { int a; char b[8]; }; union u live;\n",
        "HR2101",
        "union u grew 4 -> 8 bytes: field 'b' changed its type from char[4] to char[8]",
    ),
    "a nameless struct behind a typedef": Edit(
        "typedef struct { int a; int b; } t; t *live;\n",
        "typedef struct { int b; int a; } t; t *live;\n",
        "HR2101",
        "t changed: field 'a' moved from offset 0 to 4",
    ),
    "a struct that only function bodies use": Edit(
        "struct s { int a; };\nvoid *get(void);\nint f(void) { struct s *p = get(); return p->a; }\n",
        "struct s { int b; int a; };\nvoid *get(void);\nint f(void) { struct s *p = get(); return p->a; }\n",
        "HR2101",
        "struct s grew 4 -> 8 bytes: field 'b' added at offset 0",
    ),
    "two structs of one name, one changed": Edit(
        "void *g(void);\nlong f(void) { struct l { int a; } *p = g(); return p->a; }\n"
        "long h(void) { struct l { long a; } *p = g(); return p->a; }\n",
        "void *g(void);\nlong f(void) { struct l { int a; } *p = g(); return p->a; }\n"
        "long h(void) { struct l { int b; long a; } *p = g(); return p->a; }\n",
        "HR2101",
        "struct l grew 8 -> 16 bytes: field 'b' added at offset 0",
    ),
    "two structs of one name, both changed": Edit(
        "void *g(void);\nlong f(void) { struct l { int a; } *p = g(); return p->a; }\n"
        "long h(void) { struct l { long a; } *p = g(); return p->a; }\n",
        "void *g(void);\nlong f(void) { struct l { int c, a; } *p = g(); return p->a; }\n"
        "long h(void) { struct l { int b; long a; } *p = g(); return p->a; }\n",
        "HR2101",
        "one of the types of struct l changed",
    ),
    # variables
    "a variable of another sign": Edit(
        "int v = 1;\n", "unsigned v = 1;\n", None, "now unsigned int, was int"
    ),
    "a number that became true or false": Edit(
        "char v = 1;\n", "_Bool v = 1;\n", "HR2101", "'v' changed its type from char to bool"
    ),
    "a number that became an enum": Edit(
        "int v = 1;\n", "enum e { A, B }; enum e v = 1;\n", None, "now enum e, was int"
    ),
    "constants of 64 bits that change places": Edit(
        "enum e { A = 1ULL << 33, B = 1ULL << 34 }; enum e v = A;\n",
        "enum e { A = 1ULL << 34, B = 1ULL << 33 }; enum e v = A;\n",
        "HR2102",
        "'A' changed its value from 8589934592 to 17179869184",
    ),
    "a struct that is renamed and grows": Edit(
        "struct sess { int id; }; int f(struct sess *s) { return s->id; }\n",
        "struct session { char *name; int id; }; int f(struct session *s) { return s->id; }\n",
        "HR2101",
        "struct session grew 4 -> 16 bytes: field 'name' added at offset 0",
    ),
    "a struct that is renamed with all that names it": Edit(
        "struct a { long x; long y; }; void *p; long f(void) { struct a *one = p; return one->x; }\n",
        "struct b { long y; long x; }; void *p; long f(void) { struct b *other = p; return other->x; }\n",
        "HR2101",
        "struct b changed: field 'x' moved from offset 0 to 8",
    ),
    "a struct that is only renamed": Edit(
        "struct a { struct a *next; int x; }; struct a *p; int f(void) { return p->x; }\n",
        "struct b { struct b *next; int x; }; struct b *p; int f(void) { return p->x; }\n",
        None,
        "struct a is now called struct b",
    ),
    "another struct in all functions that find it": Edit(
        BOTH + WRITES % "a" + READS % "a",
        BOTH + WRITES % "b" + READS % "b",
        "HR2101",
        "f and g use struct b where they used struct a",
    ),
    "another struct in one function": Edit(
        BOTH + WRITES % "a" + READS % "a",
        BOTH + WRITES % "a" + READS % "b",
    ),
    "another struct that is passed on": Edit(
        BOTH + PASSES.format("a"),
        BOTH + PASSES.format("b"),
    ),
    "another struct beside one that is not used any more": Edit(
        "struct a { int x; }; struct a *p; int f(void) { return p->x; }\n",
        "struct b { long many[4]; }; long g(struct b *q) { return q->many[0]; }\n",
    ),
    "a variable's nameless struct": Edit(
        "static struct { int a, b; } v; int f(void) { return v.a++; }\n",
        "static struct { int b, a; } v; int f(void) { return v.a++; }\n",
        "HR2101",
        "the struct of 'v' changed: field 'a' moved from offset 0 to 4",
    ),
    "a table of functions": Edit(
        "int (*v[2])(int);\n", "int (*v[2])(long);\n", "HR2101", "from int (*)(int)[2] to int (*)(long)[2]"
    ),
    # enums
    "a constant in the middle": Edit(
        enum("A, B, C"),
        enum("A, N, B, C"),
        "HR2102",
        "enum e: 'B' changed its value from 1 to 2 (and 1 more)",
    ),
    "a constant's value": Edit(
        enum("A = 1, B"), enum("A = 4, B = 2"), "HR2102", "'A' changed its value from 1 to 4"
    ),
    "a negative value": Edit(enum("A = -1"), enum("A = -2"), "HR2102", "from -1 to -2"),
    "a constant of a nameless enum": Edit(
        "enum { A, B }; int use(int k) { return k == B; }\n",
        "enum { A, N, B }; int use(int k) { return k == B; }\n",
        "HR2102",
        "the enum of A: 'B' changed its value from 1 to 2",
    ),
    "the end marker": Edit(
        enum("A, MAX"), enum("A, B, MAX"), "HR2102", "'MAX' changed its value from 1 to 2"
    ),
    "an enum of another size": Edit(
        "enum e { A } __attribute__((packed)); enum e live;\n",
        "enum e { A }; enum e live;\n",
        "HR2102",
        "grew 1 -> 4",
    ),
    # prototypes
    "a global function's parameter": Edit(
        "int f(int a) { return a; }\n",
        "int f(long a) { return a; }\n",
        "HR2205",
        "f() changed its prototype from int (int) to int (long)",
    ),
    "one parameter more": Edit(
        "int f(int a) { return a; }\n",
        "int f(int a, int b) { return a + b; }\n",
        "HR2205",
        "to int (int, int)",
    ),
    "a global function's result": Edit(
        "int f(void) { return 1; }\n", "void f(void) { }\n", "HR2205", "to void (void)"
    ),
    # what live data survives, with a note
    "a member in padding": Edit(
        of("struct s { int a; long b; };"),
        of("struct s { int a; int n; long b; };"),
        None,
        "struct s: field 'n' was added in padding at offset 4",
    ),
    "a bit-field in unused bits": Edit(
        of("struct s { unsigned a:3; };"),
        of("struct s { unsigned a:3, n:2; };"),
        None,
        "in padding at offset 0:3",
    ),
    "a member renamed": Edit(
        of("struct s { int a; int b; };"),
        of("struct s { int a; int c; };"),
        None,
        "field 'b' is now called 'c'",
    ),
    "another view in a union": Edit(
        "union u { int a; char b[4]; }; union u live;\n",
        "union u { int a; char b[4]; short c; }; union u live;\n",
        None,
        "field 'c' is another view of the bytes at offset 0",
    ),
    "a member removed before padding": Edit(
        of("struct s { long b; int a; int c; };"),
        of("struct s { long b; int a; };"),
        None,
        "field 'c' was removed",
    ),
    "a void pointer that got its type": Edit(
        of("struct s { void *a; };"), of("struct s { struct s *a; };"), None, "is now struct s *, was void *"
    ),
    "a pointer to a struct that is the same but for its name": Edit(
        of("struct x { int q; }; struct y { int q; }; struct s { struct x *a; }; struct y *y;"),
        of("struct x { int q; }; struct y { int q; }; struct s { struct y *a; }; struct y *y;"),
        None,
        "field 'a' is now struct y *, was struct x *",
    ),
    "an enum that got a name": Edit(
        of("struct s { enum { X } a; };"),
        of("struct s { enum n { X } a; };"),
        None,
        "is now enum n, was enum",
    ),
    "a constant at the end": Edit(enum("A, B"), enum("A, B, C"), None, "enum e: 'C' = 2 was added"),
    "a constant removed": Edit(enum("A, B"), enum("A"), None, "enum e: 'B' = 1 was removed"),
    # what is no change at all
    "a comment": Edit(of("struct s { int a; };"), of("/* x */\n\nstruct s { int a; /* y */ };")),
    "a function before all others": Edit(
        of("struct s { int a; };"), "int n(char *p, long q) { return *p + q; }\n" + of("struct s { int a; };")
    ),
    "an include": Edit(
        of("struct s { int a; };"), "#include <stdio.h>\nFILE *f;\n" + of("struct s { int a; };")
    ),
    "a new type": Edit(of("struct s { int a; };"), "struct n { long q; } n;\n" + of("struct s { int a; };")),
    "a type removed": Edit(
        "struct n { long q; } *n;\n" + of("struct s { int a; };"), of("struct s { int a; };")
    ),
    "declarations in another order": Edit(
        of("struct x { int q; } *x; struct y { long z; } *y; struct s { int a; };"),
        of("struct y { long z; } *y; struct s { int a; }; struct x { int q; } *x;"),
    ),
    "nameless structs in another order": Edit(
        of("struct { int q;} x; struct { long z;} y; typedef struct { int c; } t; t z; struct s { int a; };"),
        of("typedef struct { int c; } t; t z; struct { long z;} y; struct { int q;} x; struct s { int a; };"),
    ),
    "a definition for what was only declared": Edit(
        of("struct x; struct s { struct x *a; };"),
        of("struct x { int q; }; struct s { struct x *a; }; struct x *y;"),
    ),
    "a declaration instead of the definition": Edit(
        of("struct x { int q; }; struct s { struct x *a; };"), of("struct x; struct s { struct x *a; };")
    ),
    "another name of the same type": Edit(
        of("typedef unsigned int u32; struct s { unsigned a; };"),
        of("typedef unsigned int u32; struct s { u32 a; };"),
    ),
    "another word for a signed byte": Edit(of("struct s { char a; };"), of("struct s { signed char a; };")),
    "another word for eight bytes": Edit(of("struct s { long a; };"), of("struct s { long long a; };")),
    "a bit-field of a narrower type": Edit(
        of("struct s { unsigned a:3; int b; };"), of("struct s { unsigned char a:3; int b; };")
    ),
    "a variable's size, which is for the comparison of data": Edit("int v = 1;\n", "long v = 1;\n"),
    "a qualifier": Edit(
        of("struct s { char *p; int a; };"), of("struct s { const char *p; volatile int a; };")
    ),
    "a nameless struct around members": Edit(
        of("struct s { int a; int b; };"), of("struct s { struct { int a; int b; }; };")
    ),
    "a static function's prototype": Edit(
        "static __attribute__((noinline)) int f(int a) { return a; } int g(void) { return f(1); }\n",
        "static __attribute__((noinline)) long f(long a) { return a; } int g(void) { return f(1); }\n",
    ),
    "a parameter's name": Edit("int f(int a) { return a; }\n", "int f(int b) { return b; }\n"),
    "a second struct of one name": Edit(
        "void *g(void);\nlong f(void) { struct l { int a; } *p = g(); return p->a; }\n",
        "void *g(void);\nlong h(void) { struct l { long a; } *p = g(); return p->a; }\n"
        "long f(void) { struct l { int a; } *p = g(); return p->a; }\n",
    ),
    "a new enum": Edit(enum("A, B"), enum("A, B") + "enum n { N, M } n;\n"),
    "an enum in the order of its values": Edit(enum("A = 0, B = 1"), enum("B = 1, A = 0")),
    "a constant table of another type": Edit(
        "static const char t[2] = {1, 2}; int f(int i) { return t[i]; }\n",
        "static const unsigned char t[2] = {1, 2}; int f(int i) { return t[i]; }\n",
    ),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edit_of_a_type_is_refused_exactly_when_live_data_would_be_misread(
    edit: Edit, tmp_path: Path
) -> None:
    diff = compared(tmp_path, edit.before, edit.after)
    assert diff.compared
    assert [o.code for o in diff.obstacles[:1]] == ([edit.code] if edit.code else [])
    told = [o.message for o in diff.obstacles] if edit.code else [n.message for n in diff.notes]
    assert edit.said in (told[0] if told else "")
    if not edit.said:
        assert diff.notes == ()


def test_a_struct_that_changed_only_because_of_another_comes_after_it_and_names_it(tmp_path: Path) -> None:
    outer = "struct outer { struct inner i; }; struct s { struct outer o[2]; int a; };"
    diff = compared(
        tmp_path, of("struct inner { int x; };" + outer), of("struct inner { int x; int y; };" + outer)
    )
    assert [o.message for o in diff.obstacles] == [
        "struct inner grew 4 -> 8 bytes: field 'y' added at offset 4",
        "struct outer grew 4 -> 8 bytes: field 'i' contains struct inner, which grew 4 -> 8 bytes",
        "struct s grew 12 -> 20 bytes: field 'o' contains struct outer, which grew 4 -> 8 bytes",
    ]


def test_causes_come_before_consequences(tmp_path: Path) -> None:
    def structs(more: str) -> str:
        inner, other = f"struct x {{ int a; {more} }};", f"struct y {{ long b; {more} }} *y;"
        return of(f"{inner} struct s {{ struct x x; int a; }}; {other}")

    diff = compared(tmp_path, structs(""), structs("int n;"))
    assert [o.symbol for o in diff.obstacles] == ["struct x", "struct y", "struct s"]


def test_an_embedded_struct_of_the_same_size_is_told_once(tmp_path: Path) -> None:
    outer = "struct s { struct in i; int a; };"
    diff = compared(tmp_path, of("struct in { int x, y; };" + outer), of("struct in { int y, x; };" + outer))
    assert [o.symbol for o in diff.obstacles] == ["struct in"]


def test_an_obstacle_knows_the_line_of_the_member(tmp_path: Path) -> None:
    after = of("/* struct s { */\nstruct s {\n\tint a;\n\tlong mode;\n};")
    diff = compared(tmp_path, of("struct s { int a; };"), after)
    assert [o.where for o in located(diff, {"other.h": "struct so {};", "foo.h": after}).obstacles] == [
        "foo.h:4"
    ]


def test_a_struct_of_a_header_is_not_gone_because_nothing_uses_it_any_more(tmp_path: Path) -> None:
    before = of("struct s { int a; long b; };")
    after = of("struct s { int a; long c; long b; };").replace("struct s", "struct t")
    one, other = (parse(read_object(compiled(tmp_path, n, t))) for n, t in (("x", before), ("y", after)))
    assert [o.symbol for o in compare_layouts(one, other, (), {"y.c": after}).obstacles] == ["struct t"]
    # Defined in a header of the kernel's; the other one in a header that has both.
    for sources in ({"y.c": "long use(void);"}, {"y.h": before + after}):
        diff = compare_layouts(one, other, (), sources)
        assert "struct t" not in [o.symbol for o in diff.obstacles]


def test_an_object_without_types_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text("int x;\n")
    subprocess.run(["gcc", "-c", "x.c"], cwd=tmp_path, check=True)
    assert parse(read_object(tmp_path / "x.o")) is None
    diff = compare_layouts(None, parse(read_object(compiled(tmp_path, "y", "int x;\n"))))
    assert not diff.compared
    assert "could not be compared: an object has no debugging information" in diff.notes[0].message
