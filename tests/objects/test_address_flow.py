# SPDX-License-Identifier: MIT
"""Who may hold an address: which uses of one are harmless, and which let it get away."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.elf.address_flow import NEVER, AddressFlow, Sought
from hotreload.elf.model import ObjectFile, Symbol, SymbolRef
from hotreload.elf.reader import read_object
from hotreload.elf.readers import forgets
from tests.objects.compiling import assembled, compiled

HEAD = """
    typedef unsigned long size_t;
    struct s { int a, b; const char *name; };
    static const struct s t[4] = {{1, 2, "a"}, {3, 4, "b"}, {5, 6, "c"}};
    extern const struct s *kept; extern struct box { const struct s *of; int n; } *box;
    void keep(const void *); void fill(struct s *); int other(int);
    void *memcpy(void *, const void *, size_t); int _dev_err(const void *, const char *, ...);
    void *bsearch(const void *, const void *, size_t, size_t, int (*)(const void *, const void *));
    static noinline int sum(const struct s *p, int n) { int s = 0; while (n--) s += (p++)->a; return s; }
    static noinline void put(const struct s *p) { kept = p; }
    static noinline const struct s *find(int i) {
        for (int n = 0; n < 4; n++) if (t[n].a == i) return &t[n];
        return 0;
    }
    static int by_a(const void *k, const void *e) { return *(int *)k - ((struct s *)e)->a; }
"""


def seen(obj: ObjectFile) -> list[Symbol]:
    return [s for s in obj.symbols if s.section is not None and s.section.name != "__mcount_loc"]


def how_it_gets_away(
    tmp_path: Path, source: str, name: str = "t", depth: int = 0, least: int = 0, flags: str = ""
) -> str | None:
    obj = read_object(compiled(source, tmp_path, *flags.split()))
    target = obj.symbol(name)
    assert target is not None
    flow = AddressFlow(seen(obj), forgets)
    holders = [f for f in obj.functions if any(r.target == SymbolRef(target) for r in f.relocations)]
    assert holders
    return flow.gets_away(Sought(SymbolRef(target), depth, least), holders)


@pytest.mark.parametrize(
    "body",
    [
        "return t[i].a;",
        "int s = 0; for (const struct s *p = t; p < t + 4; p++) s += p->a * other(p->b); return s;",
        "const struct s *p = i > 3 ? &t[1] : &t[2]; other(i); return p->a + p->b;",
        "return sum(t, i);",
        "return sum(&t[i & 1], 2) + other(2);",
        "const struct s *p = find(i); return p ? p->b : 0;",
        "const struct s *p = find(i); return p ? p - t : 0;",
        "struct s copy; fill(&copy); copy = t[i & 3]; fill(&copy); return copy.a;",
        "struct s copy[4]; memcpy(copy, t, sizeof(t)); fill(copy); return copy[i].b;",
        '_dev_err(0, "%d %p", i, t); return 0;',
        "const struct s *p = bsearch(&i, t, 4, sizeof(*t), by_a); return p ? p->b : 0;",
        "kept = 0; return t[box->n].a;",
    ],
)
def test_an_address_that_only_feeds_loads_is_held_by_nobody(body: str, tmp_path: Path) -> None:
    assert how_it_gets_away(tmp_path, f"{HEAD} int f(int i) {{ {body} }}") is None


def test_a_call_that_ends_a_function_does_not_return(tmp_path: Path) -> None:
    body = """
    struct s copy;
    for (int n = 0; n < i; n++)
        for (const struct s *p = t; p < t + 4; p++) { fill(&copy); printk("%d", p->a); }
    """
    found = how_it_gets_away(tmp_path, f"{HEAD} void f(int i) {{ {body} }}", flags="-fstack-protector-strong")
    assert found is None


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ("kept = t; return 0;", "f stores it"),
        ("kept = i > 3 ? &t[1] : &t[2]; return 0;", "f stores it"),
        ("return kept == t;", "f compares something with it"),
        ("return box->of == &t[i];", "f compares something with it"),
        ("return kept - t;", "f compares something with it"),
        ("keep(t); return 0;", "f passes it to keep"),
        ("struct box b = {t, 4}; keep(&b); return 0;", "f stores it"),
        ("put(t); return 0;", "f stores it"),
        ("put(find(i)); return 0;", "f stores it"),
        ("box->of = find(i); return 0;", "f stores it"),
        ("return sum(t, i) + (kept == find(i));", "f compares something with it"),
        ("return (long)&t[i] >> 3;", "f returns it"),
        ("((void (*)(const void *))box->of)(t); return 0;", "f passes it to a function through a pointer"),
        ("int (*volatile see)(const struct s *, int) = sum; const struct s *p = t; return see(p, 3);", "f "),
    ],
)
def test_an_address_that_is_stored_compared_or_passed_on_gets_away(
    body: str, how: str, tmp_path: Path
) -> None:
    found = how_it_gets_away(tmp_path, f"{HEAD} long f(int i) {{ {body} }}")
    assert found is not None
    assert how.removeprefix("f") in found, found


SEARCH = """
    int strncasecmp(const char *, const char *, size_t);
    static noinline const char *search(const char *at, const char *end, const char *what) {
        for (; at < end; at++) if (!strncasecmp(at, what, 1)) return at;
        return 0;
    }
    const char *f(const char *at, const char *end) {
        for (at = search(at, end, text); at && at < end; at++) if (*at == 10) return 0;
        return at;
    }
    const char *g(const char *at, const char *end, const char *what) { return search(at, end, what); }
"""


def test_what_is_left_in_rdx_is_returned_only_by_a_function_that_may_return_two(tmp_path: Path) -> None:
    obj = read_object(
        compiled(
            f"typedef unsigned long size_t; static const char text[4] = {{ 1, 2, 3, 4 }}; {SEARCH}", tmp_path
        )
    )
    target, function = obj.symbol("text"), obj.symbol("f")
    assert target is not None
    assert function is not None
    sought = Sought(SymbolRef(target), least=NEVER, least_compared=0)
    one, two = (
        AddressFlow(seen(obj), forgets, registers=lambda _function, known=known: known) for known in (1, 2)
    )
    assert one.gets_away(sought, [function]) is None
    assert two.gets_away(sought, [function]) is not None  # it may be the second half of a struct


def test_a_function_of_the_drivers_own_may_keep_what_one_of_the_kernels_forgets(tmp_path: Path) -> None:
    source = f"{HEAD} int f(int i) {{ return strcmp2(t); }}"
    own = source.replace("int f", "static noinline int strcmp2(const void *p) { kept = p; return 1; } int f")
    assert how_it_gets_away(tmp_path, own) is not None


@pytest.mark.parametrize(
    ("body", "away"),
    [
        ('_dev_err(0, "%s", t[i].name); return 0;', False),
        ("return t[i].name[0];", False),
        ("kept = (void *)t[i].name; return 0;", True),
        ("return (long)t[i].name;", True),
        ("const struct s *p = find(i); keep(p->name); return 0;", True),
        ("keep(t); return 0;", False),
    ],
)
def test_what_is_loaded_through_an_address_is_followed_if_it_is_asked_for(
    body: str, away: bool, tmp_path: Path
) -> None:
    found = how_it_gets_away(tmp_path, f"{HEAD} long f(int i) {{ {body} }}", depth=1, least=1)
    assert (found is not None) == away, found


JUMPS = """
    .section .text.f, "ax", @progbits
    .globl f
    .type f, @function
f:  pushq %%rbx
    movq $t, %%rbx
    %s
    popq %%rbx
    ret
    .size f, . - f
    .section .rodata.t, "a", @progbits
    .type t, @object
t:  .quad 1
    .size t, 8
"""


@pytest.mark.parametrize(
    ("code", "away"),
    [
        ("movl (%rbx), %eax", False),
        ("movq %rbx, 8(%rsp)", False),
        ("movq %rbx, -8(%rsp); movq -8(%rsp), %rax", True),
        ("movq %rbx, (%rdi)", True),
        ("movq %rbx, %gs:8", True),
        ("xchgq %rbx, (%rdi)", True),
        ("lock xaddq %rbx, (%rdi)", True),
        ("wrmsr", False),
        ("movq %rbx, %rax; wrmsr", True),
        ("movq %rbx, %rsi; movl $2, %ecx; rep movsq", False),
        ("movq %rbx, %rsi; subq %rcx, %rsi; shrl $3, %ecx; rep movsq", False),
        ("movq %rbx, %rsi; subq %rcx, %rsi; movq %rsi, %rax; rep movsq", True),
        ("movq %rbx, %rsi; subq %rcx, %rsi; adcl $3, %ecx; rep movsq", True),
        ("movq %rbx, %rsi; call match_token; xorl %eax, %eax", False),
        ("movq %rbx, %rdi; call match_token; xorl %eax, %eax", True),
        ("movq %rbx, %rax; stosq", True),
        ("movl %ebx, %ecx; movl %ecx, (%rdi)", True),
        ("movb $1, %bl; movq %rbx, (%rdi)", True),
        ("xorl %ebx, %ebx; movq %rbx, (%rdi)", False),
        ("call printk; xorl %eax, %eax", False),
        ("movq %rbx, %rsi; jmp *(%rdi)", True),
        ("popq %rbx; jmp *(%rdi)", False),
        ("leaq 8(%rsp), %rax; movq %rbx, 16(%rsp)", True),
    ],
)
def test_each_kind_of_instruction_leaves_an_address_alone_or_lets_it_get_away(
    code: str, away: bool, tmp_path: Path
) -> None:
    obj = read_object(assembled(JUMPS % code, tmp_path))
    function, target = obj.symbol("f"), obj.symbol("t")
    assert function is not None
    assert target is not None
    found = AddressFlow(obj.symbols, forgets).gets_away(Sought(SymbolRef(target)), [function])
    assert (found is not None) == away, found
