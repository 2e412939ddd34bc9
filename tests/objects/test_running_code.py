# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""kbuild's object and the one with a section for each symbol: the same code, told by its meaning."""

from __future__ import annotations

from pathlib import Path

from hotreload.diff.running_code import RunningCode, match_running
from hotreload.elf.reader import read_object
from tests.objects.compiling import compiled

PLAIN = ("-fno-function-sections", "-fno-data-sections")


def matched(tmp_path: Path, running: str, base: str, *flags: str) -> RunningCode:
    return match_running(
        read_object(compiled(running, tmp_path / "plain", *PLAIN, *flags)),
        read_object(compiled(base, tmp_path / "base", *flags)),
    )


def names(found: RunningCode) -> set[str]:
    return {symbol.name for symbol in found.different}


NEIGHBOURS = (
    'static noinline int last(int a) { printk("%d", a); return a * 7; } int f(int a) { return last(a + 1); }'
)


def test_a_jump_to_a_neighbour_is_short_in_one_and_long_in_the_other_and_the_same(tmp_path: Path) -> None:
    plain = read_object(compiled(NEIGHBOURS, tmp_path / "plain", *PLAIN)).symbol("f")
    base = read_object(compiled(NEIGHBOURS, tmp_path / "base")).symbol("f")
    assert plain is not None
    assert base is not None
    assert plain.size < base.size  # else this proves nothing
    assert names(matched(tmp_path, NEIGHBOURS, NEIGHBOURS)) == set()


def test_a_jump_to_another_neighbour_is_told(tmp_path: Path) -> None:
    other = NEIGHBOURS.replace("return last(a + 1)", "return other(a + 1)")
    both = 'static noinline int other(int a) { printk("%d", a); return a * 9; } int g(int a) { return other(a); } int h(int a) { return last(a); }'
    declared = "static int last(int); static int other(int);"
    assert "f" in names(matched(tmp_path, declared + NEIGHBOURS + both, declared + other + both))


def test_the_end_of_an_array_is_not_taken_for_what_stands_behind_it(tmp_path: Path) -> None:
    source = "static int a[8], b[8]; int f(void) { int s = 0; for (int *p = a; p != a + 8; p++) s += *p; return s; } int *g(void) { return b; } void h(int i) { a[i] = b[i] = i; }"
    assert names(matched(tmp_path, source, source)) == set()


def test_another_constant_another_call_and_another_variable_are_told(tmp_path: Path) -> None:
    source = 'static int x, y; int f(void) { return x; } int g(void) { return 5; } void h(void) { printk("a"); } int k(int a) { if (a > 3) return x; return y++; } void set(int a) { x = a; y = a; }'
    other = source.replace("f(void) { return x", "f(void) { return y").replace("5", "6").replace('"a"', '"b"')
    other = other.replace("a > 3", "a < 3")
    assert names(matched(tmp_path, source, other)) == {"f", "g", "h", "k"}


def test_a_symbol_is_found_under_the_name_that_the_running_module_has(tmp_path: Path) -> None:
    source = "int f(void) { static int n; return ++n; } int g(void) { static int n; return n += 2; }"
    found = matched(tmp_path, source, source)
    assert {
        base.name: running.name for base, running in found.symbol_of.items() if base.name.startswith("n.")
    }
    assert all(base.name == running.name for base, running in found.symbol_of.items())


def test_what_has_no_size_is_found_by_its_own_name_where_others_like_it_stand(tmp_path: Path) -> None:
    # As sd_probe() in drivers/scsi/sd.c: a key of the file's beside one that a macro made, at a variable's start.
    source = "struct key {}; void use(void *); static int n; int g(void) { static struct key __key; use(&__key); return n++; } static struct key mine; int f(void) { use(&mine); return n; }"
    found = matched(tmp_path, source, source)
    assert names(found) == set()
    assert {"mine": "mine"}.items() <= {b.name: r.name for b, r in found.symbol_of.items()}.items()


SHIFTS = "int n; int f(int a, int b) { return a << b; } int g(int a, int b) { n++; return (a + b) >> b; } int h(long a) { return (int)a << 3 << n; }"


def test_what_ubsan_knows_of_a_place_is_a_part_of_the_data_in_one_and_a_section_in_the_other(
    tmp_path: Path,
) -> None:
    flags = ("-fsanitize=shift", "-fsanitize=signed-integer-overflow")
    assert names(matched(tmp_path, SHIFTS, SHIFTS, *flags)) == set()
    # The line and the column of a place are part of it.
    other = SHIFTS.replace("{ return a << b; }", "{ return  a << b; }")
    assert names(matched(tmp_path, SHIFTS, other, *flags)) == {"f.cold", "g.cold", "h.cold"}


def test_strings_that_kasan_watches_are_the_same_by_what_they_say(tmp_path: Path) -> None:
    flags = (
        "-fsanitize=kernel-address",
        "--param",
        "asan-globals=1",
        "-fsanitize=shift",
        "-fno-section-anchors",
    )
    source = (
        SHIFTS
        + 'void p(int i) { printk("one %d"); printk("two"); } const int table[3] = { 1, 2, 3 }; void q(int i) { printk("three", table[i]); }'
    )
    assert names(matched(tmp_path, source, source, *flags)) == set()
    assert names(matched(tmp_path, source, source.replace('"two"', '"TWO"'), *flags)) >= {"p"}


COPIED = 'static KEPT int scaled(int a) { printk("%d", a); return a * 7; } int f(int a) { return scaled(a) + 1; } int g(int a) { return scaled(a) - 1; }'


def test_a_function_that_kbuild_may_have_put_into_another_one_is_told_with_that_one(tmp_path: Path) -> None:
    inlined, called = COPIED.replace("KEPT", "inline"), COPIED.replace("KEPT", "noinline")
    # kbuild's object has the function itself, too, for somebody has its address.
    keep = "void *keep = (void *)scaled;"
    found = matched(tmp_path, inlined + keep, called + keep)
    holders = {one.name: {holder.name for holder in those} for one, those in found.holders.items()}
    assert holders == {"scaled": {"f", "g"}}
    assert not matched(tmp_path, called + keep, called + keep).holders
