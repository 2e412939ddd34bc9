# SPDX-License-Identifier: MIT

"""Which strings of a patch may still be pointed at when the code that made them has returned."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.elf.model import StringRef
from hotreload.elf.reader import read_object
from hotreload.elf.references import handed_to, is_put_away
from hotreload.patch.escapes import escapes
from tests.objects.compiling import assembled, compiled

CODE = """
    .section .rodata.str1.1, \"aMS\", @progbits, 1
.LC0: .string \"text\"
    .section .text.f, \"ax\", @progbits
    .type f, @function
f:  %s
    %s
    call printk
1:  ret
    .size f, . - f
"""


@pytest.mark.parametrize(
    ("body", "reader"),
    [
        ('printk("text");', "printk"),
        ('printk("text"); printk("more");', "printk"),
        ('register_it(7, "text");', "register_it"),
        ('p->name = "text";', None),
        ('p->name = "text"; printk("text");', None),
        ('if (p->name) printk("text"); else register_it(1, "text");', "printk"),
        ('printk("text %d", p->n);', "printk"),
        ('int n = ++p->n; printk("text %d %d", n, p->table[n & 3]);', "printk"),
        ('int local; fill(&local); printk("text %d %p", p->n, &local);', "printk"),
        ('p->call2("text");', None),
    ],
)
def test_a_string_is_handed_to_the_next_function_called_or_goes_its_own_way(
    body: str, reader: str | None, tmp_path: Path
) -> None:
    source = (
        "struct p { int n; int table[4]; const char *name; void (*call)(int); void (*call2)(const char *); };"
        "void fill(int *);"
        "void register_it(int, const char *);"
        f"void f(struct p *p) {{ {body} }}"
    )
    function = read_object(compiled(source, tmp_path)).symbol("f")
    assert function is not None
    strings = [r for r in function.relocations if isinstance(r.target, StringRef)]
    assert (handed_to(function, strings[0]) if strings else None) == reader


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ('printk("text");', False),
        ('printk("%s", "text");', False),
        ('register_it(7, "text");', True),
        ('*where = "text";', True),
        ('other = "text"; printk("%s", other);', True),
    ],
)
def test_what_is_stored_or_given_to_a_stranger_escapes(body: str, kept: bool, tmp_path: Path) -> None:
    source = (
        f"const char *other; void register_it(int, const char *); void f(const char **where) {{ {body} }}"
    )
    function = read_object(compiled(source, tmp_path)).symbol("f")
    assert function is not None
    strings = [r for r in function.relocations if isinstance(r.target, StringRef)]
    assert strings
    assert any(escapes(function, relocation) for relocation in strings) == kept


def test_a_returned_string_escapes(tmp_path: Path) -> None:
    function = read_object(compiled('const char *f(void) { return "text"; }', tmp_path)).symbol("f")
    assert function is not None
    (string,) = [r for r in function.relocations if isinstance(r.target, StringRef)]
    assert escapes(function, string)


@pytest.mark.parametrize(
    ("between", "handed"),
    [
        ("", True),
        ("xorl %eax, %eax; movq 8(%rdx), %rsi; leaq 8(%rsp), %rdx", True),
        ("movq %rdi, %rbx", False),
        ("movq %rdi, 8(%rdx)", False),
        ("movq %rsi, 8(%rdx)", True),
        ("pushq %rdi", False),
        ("xchgq %rdi, %rbx", False),
        ("cmovneq %rdi, %rbx", False),
        ("leaq (%rdi), %rbx", False),
        ("leaq 8(%rsp,%rdi), %rbx", False),
        ("leaq (%rax,%rdi,2), %rbx", False),
        ("leaq 1(%rax), %rdx; cltq", True),
        ("leaq 8(%r15), %rbx; leaq (%rax,%r15), %rbx", True),
        ("leaq 8(,%rax,4), %rbx; leaq .LC0(%rip), %rbx", True),
        ("jne 1f", False),
    ],
)
def test_an_address_that_is_copied_on_its_way_is_not_only_handed_on(
    between: str, handed: bool, tmp_path: Path
) -> None:
    function = read_object(assembled(CODE % ("movq $.LC0, %rdi", between), tmp_path)).symbol("f")
    assert function is not None
    string = next(r for r in function.relocations if isinstance(r.target, StringRef))
    assert (handed_to(function, string) == "printk") == handed


@pytest.mark.parametrize(
    ("use", "put_away"),
    [
        ("movq $.LC0, 8(%rdi)", True),
        ("movq $.LC0, (%r12)", True),
        ("movq $.LC0, place(%rip)", True),
        ("movq $.LC0, -8(%rbp)", True),  # a displacement that looks like the register's ModRM
        ("movq $.LC0, -57(%rbx,%rcx)", True),
        ("movq $.LC0, %rdi", False),
        ("movl $.LC0, %r12d", False),
        ("cmpq $.LC0, 8(%rdi)", True),
        ("cmpq $.LC0, %rax", True),
        ("cmpq $.LC0, %r12", True),
        ("addq $.LC0, %r12", False),
        ("leaq .LC0(%rip), %rdi", False),
    ],
)
def test_an_address_is_put_away_by_what_stores_or_compares_it(
    use: str, put_away: bool, tmp_path: Path
) -> None:
    function = read_object(assembled(CODE % (use, ""), tmp_path)).symbol("f")
    assert function is not None
    string = next(r for r in function.relocations if isinstance(r.target, StringRef))
    assert is_put_away(function, string) == put_away


@pytest.mark.parametrize("register", ["rbx", "rbp", "r12", "rax"])
def test_an_address_in_a_register_that_is_no_argument_survives_the_call(
    register: str, tmp_path: Path
) -> None:
    function = read_object(assembled(CODE % (f"movq $.LC0, %{register}", ""), tmp_path)).symbol("f")
    assert function is not None
    string = next(r for r in function.relocations if isinstance(r.target, StringRef))
    assert handed_to(function, string) is None


@pytest.mark.parametrize(
    ("load", "handed"),
    [
        ("leaq .LC0(,%rax,8), %rdi", True),
        ("leaq .LC0(%rip), %rdi", True),
        ("leaq .LC0(,%rax,8), %r9", True),
        ("addq $.LC0, %rdi", True),
        ("leaq .LC0(,%rax,8), %rbx", False),
        ("addq $.LC0, %r12", False),
        ("subq $.LC0, %rdi", False),
    ],
)
def test_a_place_in_a_table_is_handed_on_as_its_beginning_is(load: str, handed: bool, tmp_path: Path) -> None:
    function = read_object(assembled(CODE % (load, ""), tmp_path)).symbol("f")
    assert function is not None
    string = next(r for r in function.relocations if isinstance(r.target, StringRef))
    assert (handed_to(function, string) == "printk") == handed


def test_the_last_byte_of_the_instruction_before_is_not_taken_for_a_prefix(tmp_path: Path) -> None:
    # $0x41 ends in what would be REX.B: edi would be taken for r15d, whose copies nobody looks for.
    code = CODE % ("movb $0x41, %al; .byte 0xc7, 0xc7; .long .LC0", "movq %rdi, 8(%rdx)")
    function = read_object(assembled(code, tmp_path)).symbol("f")
    assert function is not None
    string = next(r for r in function.relocations if isinstance(r.target, StringRef))
    assert handed_to(function, string) is None
