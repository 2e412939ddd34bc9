# SPDX-License-Identifier: MIT

"""Which strings and constants of a patch may still be pointed at when the code that used them is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.diff.holders import address_flow
from hotreload.elf.model import StringRef, Symbol
from hotreload.elf.reader import read_object
from hotreload.patch.escapes import Escapes
from tests.objects.compiling import assembled, compiled

CODE = """
    .section .rodata.str1.1, \"aMS\", @progbits, 1
.LC0: .string \"text\"
    .section .text.f, \"ax\", @progbits
    .type f, @function
f:  %s
    %s
    call printk
    %s
1:  ret
    .size f, . - f
"""


def is_kept(function: Symbol | None) -> bool:
    """Whether a string that a function uses may be kept."""
    assert function is not None
    strings = [r for r in function.relocations if isinstance(r.target, StringRef)]
    assert strings
    told = Escapes([function], address_flow([function], {}, is_whole=False))
    return any(told.escapes(function, relocation) for relocation in strings)


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ('printk("text");', False),
        ('printk("%s", "text");', False),
        ('printk("text %d", p->n);', False),
        ('int n = ++p->n; printk("text %d %d", n, p->table[n & 3]);', False),
        ('int local; fill(&local); printk("text %d %p", p->n, &local);', False),
        ('const char *s = p->n ? "text" : "other"; fill(&p->n); printk("%s", s);', False),
        ('register_it(7, "text");', True),
        ('p->name = "text";', True),
        ('p->name = "text"; printk("text");', True),
        ('if (p->name) printk("text"); else register_it(1, "text");', True),
        ('if (p->name == "text") printk("text");', True),
        ('p->call2("text");', True),
        ('const char *a[2] = {"text", "b"}; fill(a); printk("text");', True),
    ],
)
def test_what_is_stored_or_given_to_a_stranger_escapes(body: str, kept: bool, tmp_path: Path) -> None:
    source = (
        "struct p { int n; int table[4]; const char *name; void (*call)(int); void (*call2)(const char *); };"
        "void fill(void *);"
        "void register_it(int, const char *);"
        f"void f(struct p *p) {{ {body} }}"
    )
    assert is_kept(read_object(compiled(source, tmp_path)).symbol("f")) == kept


def test_a_returned_string_escapes(tmp_path: Path) -> None:
    assert is_kept(
        read_object(compiled('const char *f(void) { return "text"; }', tmp_path)).symbol("f")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("between", "kept"),
    [
        ("", False),
        ("xorl %eax, %eax; movq 8(%rdx), %rsi; leaq 8(%rsp), %rdx", False),
        ("movq %rdi, %rbx", False),
        ("movq %rdi, 8(%rdx)", True),
        ("movq %rsi, 8(%rdx)", False),
        ("pushq %rdi", False),
        ("xchgq %rdi, %rbx", True),
        ("leaq 8(%rsp,%rdi), %rbx; movq %rbx, (%rdx)", True),
        ("leaq (%rax,%rdi,2), %rbx; movq %rbx, (%rdx)", True),
        ("leaq (%rax,%r15), %rbx; movq %rbx, (%rdx)", False),
        ("leaq 8(,%rax,4), %rbx; leaq .LC0(%rip), %rbx", False),
        ("cmpq %rdi, (%rdx)", True),
        ("testq %rdi, %rdi; jne 1f", False),
    ],
)
@pytest.mark.parametrize("load", ["movq $.LC0, %rdi", "leaq .LC0(%rip), %rdi", "leaq .LC0(,%rax,8), %rdi"])
def test_an_address_is_followed_on_its_way(load: str, between: str, kept: bool, tmp_path: Path) -> None:
    assert is_kept(read_object(assembled(CODE % (load, between, ""), tmp_path)).symbol("f")) == kept


@pytest.mark.parametrize("register", ["rbx", "rbp", "r12"])
@pytest.mark.parametrize(("after", "kept"), [("", False), ("movq %%%s, (%%rax)", True)])
def test_an_address_in_a_register_that_is_no_argument_survives_the_call(
    register: str, after: str, kept: bool, tmp_path: Path
) -> None:
    code = CODE % (f"movq $.LC0, %{register}", "", after % register if after else "")
    assert is_kept(read_object(assembled(code, tmp_path)).symbol("f")) == kept


@pytest.mark.parametrize(
    "use",
    [
        "movq $.LC0, 8(%rdi)",
        "movq $.LC0, (%r12)",
        "movq $.LC0, place(%rip)",
        "movq $.LC0, -8(%rbp)",  # rbp points anywhere
        "movq $.LC0, -57(%rbx,%rcx)",
        "cmpq $.LC0, 8(%rdi)",
        "cmpq $.LC0, %rax",
        "cmpq $.LC0, %r12",
    ],
)
def test_an_address_that_is_stored_or_compared_at_once_is_kept(use: str, tmp_path: Path) -> None:
    assert is_kept(read_object(assembled(CODE % (use, "", ""), tmp_path)).symbol("f"))


def test_the_last_byte_of_the_instruction_before_is_not_taken_for_a_prefix(tmp_path: Path) -> None:
    # $0x41 ends in what would be REX.B: edi would be taken for r15d, whose copies nobody looks for.
    code = CODE % ("movb $0x41, %al; .byte 0xc7, 0xc7; .long .LC0", "movq %rdi, 8(%rdx)", "")
    assert is_kept(read_object(assembled(code, tmp_path)).symbol("f"))
