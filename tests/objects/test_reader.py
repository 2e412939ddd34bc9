# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""What the reader makes of objects that gcc and the assembler wrote."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hotreload.elf.constants import R_X86_64_PC8, R_X86_64_PC32
from hotreload.elf.model import ConstRef, Relocation, StringRef, Symbol, SymbolRef, Target
from hotreload.elf.reader import parse_object, read_object
from hotreload.errors import InputError
from tests.objects.compiling import assembled, compiled, object_of, run

if TYPE_CHECKING:
    from hotreload.build.kernel_tree import KernelTree


def symbol(obj: object, name: str) -> Symbol:
    found = obj.symbol(name)  # type: ignore[attr-defined]
    assert isinstance(found, Symbol), f"no symbol {name}"
    return found


def targets(of: Symbol) -> list[Target]:
    return [relocation.target for relocation in of.relocations]


def reference(of: Symbol, to: str) -> Relocation:
    """The one relocation of a symbol that names another."""
    (found,) = [r for r in of.relocations if isinstance(r.target, SymbolRef) and to == r.target.symbol.name]
    return found


def test_a_string_is_named_by_its_contents(tmp_path: Path) -> None:
    obj = object_of('void f(void) { printk("one"); printk("two"); }', tmp_path)
    assert [t.text for t in targets(symbol(obj, "f")) if isinstance(t, StringRef)] == [b"one", b"two"]


def test_a_place_inside_or_before_a_string_counts_from_its_start(tmp_path: Path) -> None:
    source = """
        .section .rodata.str1.1, "aMS", @progbits, 1
        .LC0: .string "before"
        .LC1: .string "digits"
        .text
        movzbl .LC1-1(%rdi), %eax
        mov $.LC1+2, %rdi
        .data
        .quad .LC1-2
    """
    obj = read_object(assembled(source, tmp_path))
    relocations = [r for section in obj.sections for r in section.relocations]
    assert {(r.target, r.addend) for r in relocations} == {
        (StringRef(b"digits"), -1),
        (StringRef(b"digits"), 2),
        (StringRef(b"digits"), -2),
    }


def test_a_constant_of_a_mergeable_section_is_named_by_its_contents(tmp_path: Path) -> None:
    source = """
        .section .rodata.cst16, "aM", @progbits, 16
        .LC0: .quad 1, 2
        .LC1: .quad 3
        half: .quad 4
        .text
        .type f, @function
        f: movdqa .LC1(%rip), %xmm0
           movq .LC0+8(%rip), %xmm1
           movq half+0(%rip), %xmm2
        .size f, .-f
    """
    first, second, third = read_object(assembled(source, tmp_path)).functions[0].relocations
    assert first.target == ConstRef(bytes([3, *bytes(7), 4, *bytes(7)]))
    assert (second.target, second.addend) == (ConstRef(bytes([1, *bytes(7), 2, *bytes(7)])), 8 - 4)
    assert (third.target, third.addend) == (first.target, 8 - 4)


def test_an_immediate_behind_a_displacement_does_not_make_it_another_variable(tmp_path: Path) -> None:
    # Without -fdata-sections all share .bss, and the addend of `movb $1, b(%rip)` is b - 5.
    source = """
        static char a, b, c;
        void set(void) { __asm__ volatile("movb $1, %0\\n movb $1, %1\\n movb $1, %2" : "+m"(a), "+m"(b), "+m"(c)); }
        int get(void) { return a + b + c; }
    """
    obj = object_of(source, tmp_path, "-fno-data-sections")
    assert obj.section(".bss") is symbol(obj, "b").section
    assert [
        (r.target.symbol.name, r.addend)
        for r in symbol(obj, "set").relocations
        if isinstance(r.target, SymbolRef) and r.target.symbol.is_object
    ] == [("a", -5), ("b", -5), ("c", -5)]


def test_a_branch_to_another_function_of_the_section_is_a_relocation(tmp_path: Path) -> None:
    source = """
        .text
        .type near, @function
        near: jmp callee
        .size near, .-near
        .type far, @function
        far: call callee
             jne callee
             jmp 1f
        1:   ret
        .size far, .-far
        .skip 200, 0xcc
        .type callee, @function
        callee: ret
        .size callee, .-callee
        .type late, @function
        late: call callee
        .size late, .-late
    """
    obj = read_object(assembled(source, tmp_path))
    callee = SymbolRef(symbol(obj, "callee"))
    found = {name: symbol(obj, name).relocations for name in ("near", "far", "late")}
    assert [(r.type, r.target, r.addend) for r in found["far"]] == [(R_X86_64_PC32, callee, -4)] * 2
    assert [(r.type, r.target, r.addend) for r in found["late"]] == [(R_X86_64_PC32, callee, -4)]
    assert symbol(obj, "late").content == b"\xe8" + bytes(4)  # the distance is the relocation's now
    assert [r.offset for r in found["near"]] == [1]


def test_a_short_branch_to_another_function_is_a_relocation_of_one_byte(tmp_path: Path) -> None:
    source = """
        .text
        .type tail, @function
        tail: .byte 0xeb, 0
        .size tail, .-tail
        .type callee, @function
        callee: ret
        .size callee, .-callee
    """
    obj = read_object(assembled(source, tmp_path))
    (found,) = symbol(obj, "tail").relocations
    assert (found.type, found.target, found.addend) == (R_X86_64_PC8, SymbolRef(symbol(obj, "callee")), -1)


def test_aliases_are_one_symbol_under_the_name_that_other_files_can_use(tmp_path: Path) -> None:
    source = """
        static int inner(void) { return 5; }
        int outer(void) __attribute__((alias("inner")));
        int f(void) { return outer() + 1; }
    """
    obj = object_of(source, tmp_path)
    assert symbol(obj, "inner") is symbol(obj, "outer")
    assert (symbol(obj, "inner").name, symbol(obj, "inner").aliases) == ("outer", ("inner",))
    assert not symbol(obj, "inner").is_local


def test_an_empty_object_is_not_an_alias_of_the_one_behind_it(tmp_path: Path) -> None:
    # struct lock_class_key without lockdep has no bytes.
    source = """
        static struct {} key __section(".data.shared") __attribute__((used));
        static int value __section(".data.shared") __attribute__((used)) = 3;
    """
    obj = object_of(source, tmp_path)
    assert (symbol(obj, "key").size, symbol(obj, "value").size) == (0, 4)


def test_a_function_without_a_size_reaches_to_the_next_symbol(tmp_path: Path) -> None:
    source = """
        .text
        .globl first, second
        .type first, @function
        first: mov $1, %eax
               ret
        .type second, @function
        second: mov $2, %eax
                ret
    """
    obj = read_object(assembled(source, tmp_path))
    assert [f.content for f in obj.functions] == [b"\xb8\1\0\0\0\xc3", b"\xb8\2\0\0\0\xc3"]


def test_bytes_without_a_symbol_are_anonymous_symbols(tmp_path: Path) -> None:
    source = """
        .section .rodata, "a"
        .quad 1
        .type named, @object
        .size named, 8
        named: .quad 2
        .quad 3
        .text
        mov $.rodata, %rdi
        mov $.rodata+16, %rdi
    """
    obj = read_object(assembled(source, tmp_path))
    rodata = obj.section(".rodata")
    assert rodata is not None
    assert [(s.name, s.anonymous, s.size) for s in rodata.symbols] == [
        (".rodata", True, 8),
        ("named", False, 8),
        (".rodata+0x10", True, 8),
    ]
    text = obj.section(".text")
    assert text is not None
    assert [(r.target, r.addend) for r in text.relocations] == [
        (SymbolRef(rodata.symbols[0]), 0),
        (SymbolRef(rodata.symbols[2]), 0),
    ]


def test_data_that_assembly_only_labels_is_the_place_of_the_label(tmp_path: Path) -> None:
    source = """
        .data
        .globl label
        .quad 1
        label: .quad 2
        .text
        .type f, @function
        f: mov label(%rip), %rax
        .size f, .-f
    """
    (found,) = read_object(assembled(source, tmp_path)).functions[0].relocations
    assert isinstance(found.target, SymbolRef)
    assert (found.target.symbol.name, found.target.symbol.anonymous, found.addend) == (".data", True, 8 - 4)


def test_the_filling_between_functions_is_not_told(tmp_path: Path) -> None:
    source = """
        .text
        .type f, @function
        f: ret
        .size f, .-f
        .balign 16
        .type g, @function
        g: ret
        .size g, .-g
        .skip 7, 0xcc
    """
    assert [s.name for s in read_object(assembled(source, tmp_path)).symbols] == ["f", "g"]


def test_a_pointer_to_the_end_of_an_array_stays_with_the_array(tmp_path: Path) -> None:
    source = "static int a[4] = {1}; int f(void) { int s = 0; for (int *p = a; p < a + 4; p++) s += *p; return s + a[2]++; }"
    obj = object_of(source, tmp_path)
    found = [r for r in symbol(obj, "f").relocations if r.target == SymbolRef(symbol(obj, "a"))]
    assert 16 in [r.addend for r in found]


def test_undefined_absolute_and_common_symbols_have_no_section(tmp_path: Path) -> None:
    source = 'extern int there; int shared[3]; __asm__(".globl fixed; fixed = 7"); int f(void) { return there + shared[1]; }'
    obj = object_of(source, tmp_path, "-fcommon")
    assert [symbol(obj, name).section for name in ("there", "shared", "fixed")] == [None] * 3
    assert (symbol(obj, "fixed").value, symbol(obj, "shared").size) == (7, 12)


def test_an_object_of_more_sections_than_16_bits_can_number_is_read(tmp_path: Path) -> None:
    lines = [
        f'.section .text.f{i}, "ax"\n.type f{i}, @function\nf{i}: ret\n.size f{i}, .-f{i}\n'
        for i in range(66000)
    ]
    obj = read_object(assembled("".join(lines), tmp_path))
    assert len(obj.functions) == 66000
    last = obj.functions[-1]
    assert last.section is not None
    assert (last.name, last.section.name, last.content) == ("f65999", ".text.f65999", b"\xc3")


def test_each_symbol_has_the_place_and_size_that_readelf_shows(tmp_path: Path) -> None:
    source = (
        "static int a[3]; int b = 4; static int f(int i) { return a[i]++; } int g(int i) { return f(i) + b; }"
    )
    file = compiled(source, tmp_path)
    listed = [line.split() for line in run(["readelf", "-sW", str(file)], tmp_path).splitlines()]
    wanted = {
        (row[7], int(row[1], 16), int(row[2]))
        for row in listed
        if len(row) == 8 and row[3] in ("FUNC", "OBJECT")
    }
    defined = {(s.name, s.value, s.size) for s in read_object(file).symbols if s.is_function or s.is_object}
    assert defined == wanted
    assert len(wanted) == 3


# --- files that are not what they should be ---


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    source = """
        static int count = 3;
        static int helper(int i) { static int n; return n += i + count; }
        int f(int i) { if (i) printk("text %d", i); return helper(i) + helper(2 * i); }
    """
    return compiled(source, tmp_path_factory.mktemp("image")).read_bytes()


def test_a_file_cut_short_is_told_so_wherever_it_is_cut(image: bytes) -> None:
    for length in range(0, len(image), 64):
        with pytest.raises(InputError) as caught:
            parse_object(image[:length], "cut.o")
        assert (caught.value.code, "cut.o" in caught.value.message) == ("HR1009", True)


def test_random_damage_is_told_or_harmless(image: bytes) -> None:
    rng = random.Random(1)
    for _ in range(3000):
        damaged = bytearray(image)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        # Any other exception fails the test.
        with contextlib.suppress(InputError):
            parse_object(bytes(damaged), "damaged.o")


def test_random_bytes_are_no_object() -> None:
    rng = random.Random(2)
    for length in (0, 1, 4, 16, 63, 64, 200, 5000):
        for head in (b"", b"\x7fELF", b"\x7fELF\x02\x01\x01"):
            with pytest.raises(InputError):
                parse_object(head + rng.randbytes(length), "noise.o")


def test_a_program_and_a_missing_file_are_no_objects(tmp_path: Path) -> None:
    for path in (Path("/bin/sh"), tmp_path / "missing.o", tmp_path):
        with pytest.raises(InputError) as caught:
            read_object(path)
        assert str(path) in caught.value.message


def test_every_relocation_of_real_modules_gets_a_name(debian_kernel: KernelTree) -> None:
    assert debian_kernel.modules is not None
    for path in sorted(debian_kernel.modules.rglob("*.ko"))[::50]:
        obj = read_object(path)
        for section in obj.sections:
            for relocation in section.relocations:
                target = relocation.target
                if isinstance(target, SymbolRef) and target.symbol.section is not None:
                    assert target.symbol in target.symbol.section.symbols, (path.name, section.name)
