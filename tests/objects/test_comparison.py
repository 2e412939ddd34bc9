# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""What compilers and assemblers are free to choose changes no function: places, numbers, names, forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.diff.object_diff import ObjectDiff, diff_objects
from hotreload.elf.reader import read_object
from tests.objects.compiling import assembled, compiled, difference, linked, run


def between(one: Path, other: Path) -> ObjectDiff:
    return diff_objects(read_object(one), read_object(other))


FUNCTION = """
    .section .text.{name}, "ax"
    .globl {name}
    .type {name}, @function
    {name}: call __fentry__
    {body}
    ret
    .size {name}, .-{name}
"""


def test_constants_that_changed_places_and_labels_change_nothing(tmp_path: Path) -> None:
    pool = '.section .rodata.cst16, "aM", @progbits, 16\n'
    f = FUNCTION.format(name="f", body="movdqa .LC{}(%rip), %xmm0")
    one = pool + ".LC0: .quad 1, 2\n.LC1: .quad 3, 4\n" + f.format(0)
    two = pool + ".LC7: .quad 3, 4\n.LC8: .quad 1, 2\n" + f.format(8)
    diff = between(assembled(one, tmp_path / "one"), assembled(two, tmp_path / "two"))
    assert diff.verdict == "unchanged"


def test_variables_that_changed_places_in_a_shared_section_are_told_apart_behind_an_immediate(
    tmp_path: Path,
) -> None:
    # movb $1, x(%rip) has the addend x-5: counted as -4 it would be the byte of the variable before.
    data = ".data\n{}\n"
    a, b = ".type a, @object\na: .byte 1\n.size a, 1", ".type b, @object\nb: .byte 2\n.size b, 1"
    f = FUNCTION.format(name="f", body="movb $1, b(%rip)")
    one = assembled(data.format(f"{a}\n{b}") + f, tmp_path / "one")
    assert "R_X86_64_PC32\t.data-0x4" in run(["objdump", "-dr", str(one)], tmp_path)
    swapped = assembled(data.format(f"{b}\n{a}") + f, tmp_path / "two")
    other = assembled(data.format(f"{a}\n{b}") + f.replace("b(%rip)", "a(%rip)"), tmp_path / "three")
    assert between(one, swapped).changed == ()
    assert between(one, other).changed_functions == ("f",)


def test_a_pointer_to_the_end_of_an_array_is_not_one_to_what_stands_behind_it(tmp_path: Path) -> None:
    # Without -fdata-sections both arrays share a section, and f's loop ends where the next one begins.
    source = "static int a[4] = {1, 2, 3, 4}; static int b[4] = {5, 6, 7, 8}; MORE int f(void) { int s = 0; for (int *p = a; p < a + 4; p++) s += (*p)++; for (int *p = b; p < b + 4; p++) s -= (*p)++; return s; }"
    plain = compiled(source.replace("MORE", ""), tmp_path / "plain", "-fno-data-sections")
    more = compiled(source.replace("MORE", "int c[2] = {9, 9};"), tmp_path / "more", "-fno-data-sections")
    assert between(plain, plain).verdict == "unchanged"
    assert between(plain, more).changed == ()


def test_the_numbers_of_unique_names_change_nothing(tmp_path: Path) -> None:
    source = 'static const char __UNIQUE_ID_licenseNUMBER[] __section(".modinfo") __attribute__((used)) = "license=GPL"; static void *__UNIQUE_ID___addressable_fNUMBER __section(".discard.addressable") __attribute__((used)) = (void *)0; int f(int i) { return i; }'
    diff = difference(tmp_path, source.replace("NUMBER", "12"), source.replace("NUMBER", "345"))
    assert (diff.verdict, diff.notes) == ("unchanged", ())


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("low.isra.0", "low.isra.3"),
        ("low.constprop.0", "low.constprop.1"),
        ("low.part.0", "low.part.5"),
        ("low.constprop.0.isra.0", "low.constprop.2.isra.0"),
        ("low.llvm.123456789", "low.llvm.987654321"),
    ],
)
def test_a_clone_with_another_number_is_the_same(was: str, now: str, tmp_path: Path) -> None:
    source = FUNCTION.format(name="NAME", body="").replace(".globl NAME", "") + FUNCTION.format(
        name="f", body="call NAME"
    )
    diff = between(
        assembled(source.replace("NAME", was), tmp_path / "one"),
        assembled(source.replace("NAME", now), tmp_path / "two"),
    )
    assert diff.verdict == "unchanged"
    assert {(b.name, a.name) for a, b in diff.original_of.items()} >= {(was, now)}


def test_cold_parts_follow_their_function_through_a_change_of_its_number(tmp_path: Path) -> None:
    source = (
        FUNCTION.format(name="low.isra.N", body="jmp low.isra.N.cold").replace(".globl low.isra.N", "")
        + """
        .section .text.unlikely.low, "ax"
        .type low.isra.N.cold, @function
        low.isra.N.cold: mov $VALUE, %eax
        ret
        .size low.isra.N.cold, .-low.isra.N.cold
        """
        + FUNCTION.format(name="f", body="call low.isra.N")
    )
    one = assembled(source.replace(".N", ".0").replace("VALUE", "1"), tmp_path / "one")
    two = assembled(source.replace(".N", ".1").replace("VALUE", "2"), tmp_path / "two")
    diff = between(one, two)
    assert (diff.verdict, [t.original.name for t in diff.changed]) == ("patchable", ["low.isra.0"])
    assert {symbol.name for symbol in diff.carried} == {"low.isra.1", "low.isra.1.cold"}


def test_names_of_one_function_change_together(tmp_path: Path) -> None:
    # As SYSCALL_DEFINE does: __x64_sys_f is another name of __se_sys_f.
    source = 'noinline long __se_sys_f(long i) { return i + END; } long __x64_sys_f(long) __attribute__((alias("__se_sys_f"))); long g(long i) { return __x64_sys_f(i); }'
    assert difference(tmp_path / "same", source.replace("END", "1"), source.replace("END", "1")).changed == ()
    diff = difference(tmp_path, source.replace("END", "1"), source.replace("END", "2"))
    (changed,) = diff.changed
    assert diff.verdict == "patchable"
    assert {changed.original.name, *changed.original.aliases} == {"__se_sys_f", "__x64_sys_f"}


def test_empty_objects_at_one_place_stay_different_ones(tmp_path: Path) -> None:
    # A lock_class_key has no size without lockdep, and several may stand where the next variable begins.
    source = "struct key {}; static struct key one, two; static int n; void use(void *); int f(void) { use(&one); use(&WHICH); return n++; }"
    before, after = (
        source.replace("WHICH", "two"),
        source.replace("WHICH", "two").replace("one, two;", "two, one;"),
    )
    assert difference(tmp_path, before, after).verdict == "unchanged"
    assert difference(tmp_path / "b", before, source.replace("WHICH", "n")).changed_functions == ("f",)


def test_symbols_of_sections_may_be_missing(tmp_path: Path) -> None:
    # as leaves out the symbols of sections that nothing refers to (binutils 2.36), ld -r puts them back.
    source = 'static int n; int f(void) { printk("f"); return n++; } int g(void) { return f(); }'
    plain = compiled(source, tmp_path)
    whole = linked(tmp_path, plain, name="whole.o")
    sections = [run(["readelf", "-sW", str(path)], tmp_path).count(" SECTION ") for path in (plain, whole)]
    assert sections[0] < sections[1]
    assert between(plain, whole).verdict == "unchanged"


def test_functions_in_another_order_change_nothing(tmp_path: Path) -> None:
    f, g = 'int f(int i) { printk("f"); return i; }', 'int g(int i) { printk("g"); return i + 1; }'
    assert difference(tmp_path, f"{f} {g}", f"{g} {f}").verdict == "unchanged"


@pytest.mark.parametrize(
    ("static", "declaration"),
    [
        ("__key", "static struct { long keys[2]; } __key;"),
        ("__warned", 'static _Bool __section(".data.unlikely") __warned;'),
        ("__already_done", 'static _Bool __section(".data.once") __already_done;'),
        ("_rs", "static struct { long state[5]; } _rs;"),
        ("_entry", "static const struct { const char *fmt; int line; } _entry = { TEXT, 1 };"),
        ("__print_once", 'static _Bool __section(".data.once") __print_once;'),
    ],
)
def test_a_macros_static_is_never_taken_for_another_places(
    static: str, declaration: str, tmp_path: Path
) -> None:
    # A new one before the old one: the two must not swap what they remember.
    use = f"{{ {declaration} printk(TEXT, &{static}); }}"
    source = "void f(int i) { if (i > 1) FIRST } void g(void) SECOND"
    before = source.replace("FIRST", "i++;").replace("SECOND", use.replace("TEXT", '"g"'))
    after = source.replace("FIRST", use.replace("TEXT", '"f"')).replace("SECOND", use.replace("TEXT", '"g"'))
    diff = difference(tmp_path, before, after)
    assert (diff.verdict, diff.changed_functions) == ("patchable", ("f",))
    assert not {s.name.partition(".")[0] for s in diff.original_of} & {static}
