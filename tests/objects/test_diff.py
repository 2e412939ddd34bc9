# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""Two versions of a source, and what the differ makes of them. First what travels, then what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hotreload.diff.object_diff import ObjectDiff, diff_objects
from hotreload.diff.unit_diff import unit_object_of
from hotreload.elf.model import Symbol
from hotreload.elf.reader import read_object
from tests.objects.compiling import assembled, compiled, difference

if TYPE_CHECKING:
    from hotreload.build.kernel_tree import KernelTree


def names(symbols: tuple[Symbol, ...]) -> list[str]:
    return sorted(symbol.name for symbol in symbols)


def codes(diff: ObjectDiff) -> list[str]:
    return sorted({obstacle.code for obstacle in diff.obstacles})


def told(diff: ObjectDiff) -> str:
    return "\n".join(map(str, (*diff.obstacles, *(f"{note.code} {note.message}" for note in diff.notes))))


def twins(diff: ObjectDiff) -> dict[str, str]:
    return {patched.name: original.name for patched, original in diff.original_of.items()}


# --- code ---

NEIGHBOURS = """
    int total;
    int before(int i) { return i ? i + total : 7; }
    int edited(int i) { total += i; printk("edited %d", i); return LAST; }
    int after(int i) { printk("after %d", i); return before(i) + 1; }
"""


def test_edited_function_is_changed_and_its_neighbours_are_not(tmp_path: Path) -> None:
    before, after = NEIGHBOURS.replace("LAST", "0"), NEIGHBOURS.replace("LAST", "total * 5")
    diff = difference(tmp_path, before, after)
    assert (diff.verdict, diff.changed_functions, names(diff.carried)) == (
        "patchable",
        ("edited",),
        ["edited"],
    )
    assert (diff.new_functions, diff.removed_functions, diff.new_data, told(diff)) == ((), (), (), "")


def test_a_comment_changes_nothing(tmp_path: Path) -> None:
    source = "int f(int i) { return i; }"
    diff = difference(tmp_path, source, "/* What follows\n is f. */\n" + source)
    assert (diff.verdict, diff.carried) == ("unchanged", ())


def test_a_changed_string_changes_the_functions_that_use_it_though_their_code_is_the_same(
    tmp_path: Path,
) -> None:
    source = 'void f(void) { printk("one"); } void g(void) { printk("two"); } void h(void) { printk("one"); }'
    diff = difference(tmp_path, source, source.replace('"one"); } void g', '"ONE"); } void g'))
    assert diff.changed_functions == ("f",)


def test_a_string_that_moves_to_another_place_changes_nothing(tmp_path: Path) -> None:
    before = 'void f(void) { printk("f"); } void g(void) { printk("g"); }'
    after = 'void f(void) { printk("something new"); printk("f"); } void g(void) { printk("g"); }'
    assert difference(tmp_path, before, after).changed_functions == ("f",)


def test_a_changed_wide_string_changes_its_users(tmp_path: Path) -> None:
    source = (
        'const unsigned short *f(void) { return L"abc"; } const unsigned short *g(void) { return L"xyz"; }'
    )
    assert difference(tmp_path, source, source.replace("abc", "abd")).changed_functions == ("f",)


CONSTANT = """
    .section .rodata.cst16, "aM", @progbits, 16
    .LC0: .quad 1, 2
    .LC1: .quad 3, FOUR
    .section .text.f, "ax"
    .globl f, g
    .type f, @function
    f: call __fentry__
       movdqa .LC0(%rip), %xmm0
       ret
    .size f, .-f
    .section .text.g, "ax"
    .type g, @function
    g: call __fentry__
       movdqa .LC1(%rip), %xmm0
       ret
    .size g, .-g
"""


def test_a_changed_constant_in_a_mergeable_section_changes_its_users(tmp_path: Path) -> None:
    one = assembled(CONSTANT.replace("FOUR", "4"), tmp_path / "one")
    two = assembled(CONSTANT.replace("FOUR", "5"), tmp_path / "two")
    assert diff_objects(read_object(one), read_object(two)).changed_functions == ("g",)


def test_an_edited_helper_that_is_inlined_changes_its_callers(tmp_path: Path) -> None:
    source = "static inline int helper(int i) { return i * 3; } int f(int i) { return helper(i); } int g(int i) { return i; }"
    diff = difference(tmp_path, source, source.replace("* 3", "* 5"))
    assert (diff.changed_functions, names(diff.carried)) == (("f",), ["f"])


def test_a_helper_that_stays_a_function_changes_alone(tmp_path: Path) -> None:
    source = "static noinline int helper(int i) { return i * 3; } int f(int i) { return helper(i) + 1; }"
    diff = difference(tmp_path, source, source.replace("* 3", "* 5"))
    assert diff.changed_functions == ("helper",)


def test_a_new_function_travels_with_its_own_static_and_string(tmp_path: Path) -> None:
    before = "int f(int i) { return i; }"
    after = """
        static noinline int fresh(int i) { static int n; printk("fresh"); return n += i; }
        int f(int i) { return fresh(i); }
    """
    diff = difference(tmp_path, before, after)
    assert (diff.verdict, diff.changed_functions, names(diff.new_functions)) == (
        "patchable",
        ("f",),
        ["fresh"],
    )
    assert names(diff.new_data) == ["n.0"]
    assert names(diff.carried) == ["f", "fresh", "n.0"]


def test_a_removed_function_is_told(tmp_path: Path) -> None:
    before = "static noinline int gone(int i) { return i * 3; } int f(int i) { return gone(i) + 1; }"
    diff = difference(tmp_path, before, "int f(int i) { return i + 1; }")
    assert (diff.changed_functions, names(diff.removed_functions)) == (("f",), ["gone"])


def test_a_cold_part_changes_its_whole_function(tmp_path: Path) -> None:
    source = """
        void fatal(const char *) __attribute__((cold));
        int f(int *p) { if (!p) { fatal("no p"); return CODE; } return *p; }
        int g(int *p) { if (!p) { fatal("none"); return 9; } return *p; }
    """
    diff = difference(tmp_path, source.replace("CODE", "5"), source.replace("CODE", "6"))
    assert "f.cold" in {symbol.name for symbol in diff.carried}
    assert (diff.changed_functions, [t.original.name for t in diff.changed]) == (("f",), ["f"])
    assert diff.callers_promoted == {}


def test_clones_whose_numbers_changed_are_the_same_functions(tmp_path: Path) -> None:
    source = """
        .section .text.clone, "ax"
        .type foo.isra.NUMBER, @function
        foo.isra.NUMBER: call __fentry__
            ret
        .size foo.isra.NUMBER, .-foo.isra.NUMBER
        .section .text.f, "ax"
        .type f, @function
        f: call __fentry__
           jmp foo.isra.NUMBER
        .size f, .-f
    """
    one = assembled(source.replace("NUMBER", "0"), tmp_path / "one")
    two = assembled(source.replace("NUMBER", "4"), tmp_path / "two")
    diff = diff_objects(read_object(one), read_object(two))
    assert (diff.verdict, twins(diff)["foo.isra.4"]) == ("unchanged", "foo.isra.0")


@pytest.mark.parametrize("flags", [(), ("-fjump-tables",)], ids=["compares", "jump table"])
def test_a_switch_changes_only_with_its_function(flags: tuple[str, ...], tmp_path: Path) -> None:
    case = 'int %s(int i) { switch (i) { case 0: return printk("a"); case 1: return printk("b"); case 2: return 9;'
    case += ' case 3: return printk("d"); case 4: return i * 77; case 5: return %s; case 6: return 1; } return 0; }\n'
    before = case % ("f", 10) + case % ("g", 20)
    after = case % ("f", 10) + case % ("g", 'printk("new")')
    assert difference(tmp_path / "same", before, before, *flags).verdict == "unchanged"
    diff = difference(tmp_path / "edit", before, after, *flags)
    assert diff.changed_functions == ("g",)
    assert [s.name for s in diff.carried if s.anonymous] == ([".rodata.g"] if flags else [])


def test_a_table_of_a_computed_goto_travels_with_its_function(tmp_path: Path) -> None:
    source = """
        int f(int i) {
            static const void *const places[] = { &&a, &&b };
            goto *places[i];
            a: printk("a"); return 1;
            b: printk("TEXT"); return 2;
        }
    """
    diff = difference(tmp_path, source, source.replace("TEXT", "b"))
    assert (diff.verdict, names(diff.carried)) == ("patchable", ["f", "places.0"])


# --- entries of special sections ---

ENTRIES = """
#define BUG(line) __asm__ volatile("1: ud2\\n.pushsection __bug_table, \\"aw\\"\\n2: .long 1b - .\\n.long %c0 - .\\n" \\
    ".word %c1\\n.word 0\\n.org 2b + 12\\n.popsection" :: "i"("unit.c"), "i"(line))
#define LOAD(x, p) __asm__ volatile("1: mov (%1), %0\\n2:\\n.pushsection __ex_table, \\"a\\"\\n.balign 4\\n" \\
    ".long 1b - .\\n.long 2b - .\\n.long 3\\n.popsection" : "=r"(x) : "r"(p))
#define ALTERNATIVE(old, new) __asm__ volatile("661: " old "\\n662:\\n.pushsection .altinstructions, \\"a\\"\\n" \\
    ".long 661b - .\\n.long 663f - .\\n.word 12\\n.byte 662b - 661b\\n.byte 664f - 663f\\n.popsection\\n" \\
    ".pushsection .altinstr_replacement, \\"ax\\"\\n663: " new "\\n664:\\n.popsection")
"""


@pytest.mark.parametrize(
    ("body", "section"),
    [
        ("if (x) BUG(7);", "__bug_table"),
        ("long y; LOAD(y, &x); x = y;", "__ex_table"),
        ('ALTERNATIVE("nop", "cli");', ".altinstructions"),
    ],
)
def test_entries_travel_with_their_function_only(body: str, section: str, tmp_path: Path) -> None:
    source = (
        ENTRIES + f"long f(long x) {{ {body} return x + 1; }} long g(long x) {{ {body} return x + END; }}"
    )
    diff = difference(tmp_path, source.replace("END", "2"), source.replace("END", "3"))
    assert (diff.verdict, diff.changed_functions) == ("patchable", ("g",))
    ((owner, entries),) = diff.entries.items()
    assert (owner.name, [e.row.name for e in entries if e.row.name != "__mcount_loc"]) == ("g", [section])


def test_a_changed_replacement_of_an_alternative_changes_its_function(tmp_path: Path) -> None:
    source = (
        ENTRIES
        + 'int f(void) { ALTERNATIVE("nop", "cli"); return 1; } int g(void) { ALTERNATIVE("nop", "WITH"); return 2; }'
    )
    diff = difference(tmp_path, source.replace("WITH", "sti"), source.replace("WITH", "hlt"))
    assert diff.changed_functions == ("g",)


def test_the_order_in_which_the_tables_are_first_used_changes_nothing(tmp_path: Path) -> None:
    before = ENTRIES + "void f(void) { } long g(long *p) { long x; LOAD(x, p); if (x) BUG(1); return x; }"
    after = before.replace("void f(void) { }", "void f(long x) { if (x) BUG(2); }")
    assert difference(tmp_path, before, after).changed_functions == ("f",)


def test_entries_of_an_unknown_form_are_refused(tmp_path: Path) -> None:
    odd = '__asm__(".pushsection __ex_table, \\"a\\"\\n.long f - .\\n.popsection");'
    diff = difference(tmp_path, "int f(void) { return 1; }", "int f(void) { return 2; }" + odd)
    assert codes(diff) == ["HR2208"]


# --- static variables of functions ---


def test_a_static_local_keeps_its_twin_though_its_number_changed(tmp_path: Path) -> None:
    before = "int f(void) { static int count; return ++count; }"
    after = before.replace("++count", "count += 2") + " int g(void) { static int other; return ++other; }"
    diff = difference(tmp_path, before, after)
    (number,) = [name for name in twins(diff) if name.startswith("count.")]
    assert (diff.verdict, twins(diff)[number]) == ("patchable", "count.0")
    assert number != "count.0"
    assert number not in names(diff.carried)


def test_two_static_locals_of_one_name_keep_their_twins_by_their_functions(tmp_path: Path) -> None:
    before = "int f(void) { static int n; return ++n; } int g(void) { static int n; return n += 3; }"
    after = before.replace("3", "4") + " int late(void) { static int n; return n -= 9; }"
    one = read_object(compiled(before, tmp_path / "before"))
    two = read_object(compiled(after, tmp_path / "after"))
    diff = diff_objects(one, two)
    assert diff.verdict == "patchable"
    for function in ("f", "g"):
        (ours,), (theirs,) = statics(one.symbol(function)), statics(two.symbol(function))
        assert diff.original_of[theirs] is ours


def statics(function: Symbol | None) -> list[Symbol]:
    assert function is not None
    found = [getattr(r.target, "symbol", None) for r in function.relocations]
    return list(dict.fromkeys(s for s in found if s is not None and s.is_object))


def test_two_static_locals_of_one_name_in_one_unchanged_function_keep_their_order(tmp_path: Path) -> None:
    source = "int f(int i) { if (i) { static int n; return ++n; } else { static int n; return n += 7; } } int g(void) { return END; }"
    diff = difference(tmp_path, source.replace("END", "1"), source.replace("END", "2"))
    assert (diff.verdict, diff.changed_functions) == ("patchable", ("g",))


def test_two_static_locals_of_one_name_in_one_changed_function_are_refused(tmp_path: Path) -> None:
    source = "int f(int i) { if (i) { static int n; return ++n; } else { static int n; return n += STEP; } }"
    diff = difference(tmp_path, source.replace("STEP", "7"), source.replace("STEP", "200"))
    assert codes(diff) == ["HR2104"]


def test_empty_static_locals_of_one_name_have_nothing_to_lose(tmp_path: Path) -> None:
    # netdev_lockdep_set_classes() without lockdep
    source = "struct key {}; int f(int i) { static struct key k __attribute__((used)); return END; } int g(void) { static struct key k __attribute__((used)); return 3; }"
    diff = difference(tmp_path, source.replace("END", "1"), source.replace("END", "2"))
    assert (diff.verdict, diff.changed_functions) == ("patchable", ("f",))


def test_a_static_local_that_moved_to_another_function_is_refused(tmp_path: Path) -> None:
    before = "int f(void) { static int n; return ++n; } int g(void) { return 1; }"
    after = "int f(void) { return 1; } int g(void) { static int n; return ++n; }"
    diff = difference(tmp_path, before, after)
    assert (codes(diff), diff.obstacles[0].symbol) == (["HR2104"], "n")


def test_two_functions_that_disagree_about_a_static_local_are_refused(tmp_path: Path) -> None:
    # f now uses b's n, g still a's: to pair by f alone would give a's value to b.
    source = """
        static inline int a(void) { static int n; return ++n; }
        static inline int b(void) { static int n; return ++n; }
        int f(void) { return WHICH(); }
        int g(void) { return a() * 3; }
    """
    diff = difference(tmp_path, source.replace("WHICH", "a"), source.replace("WHICH", "b"))
    assert codes(diff) == ["HR2104"]


def test_a_variable_of_the_file_may_have_the_name_of_a_macros_static(tmp_path: Path) -> None:
    source = "static int descriptor; static int _rs; int f(void) { return descriptor++ + _rs++ + LAST; }"
    diff = difference(tmp_path, source.replace("LAST", "1"), source.replace("LAST", "2"))
    assert (names(diff.carried), twins(diff)["descriptor"], twins(diff)["_rs"]) == (
        ["f"],
        "descriptor",
        "_rs",
    )


def test_a_static_of_a_macro_is_never_paired_and_travels(tmp_path: Path) -> None:
    once = '{ static _Bool __already_done __section(".data.once"); if (!__already_done) { __already_done = 1; printk(TEXT); } }'
    source = f"void f(void) {once} void g(void) {once}"
    before, after = source.replace("TEXT", '"x"'), source.replace("TEXT", '"x"', 1).replace("TEXT", '"y"')
    diff = difference(tmp_path, before, after)
    assert (diff.verdict, diff.changed_functions) == ("patchable", ("g",))
    assert not [name for name in twins(diff) if name.startswith("__already_done")]
    assert [name.split(".")[0] for name in names(diff.carried)] == ["__already_done", "g"]


def test_a_variable_that_is_gone_is_told(tmp_path: Path) -> None:
    diff = difference(
        tmp_path, "static int n; int f(void) { return ++n; }", "int f(void) { static int n; return ++n; }"
    )
    assert (diff.verdict, [(n.code, n.symbol) for n in diff.notes]) == ("patchable", [("HR2104", "n")])


# --- data ---

ONE = "int f(int i) { return x[i]++; }"


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ("int x[2] = {1, 2};", "int x[3] = {1, 2, 3};", "HR2101"),
        ("static int x[2];", "static int x[4];", "HR2101"),
        ("static int x[2];", "static int x[2] __attribute__((aligned(64)));", "HR2101"),
        ("int x[2] __section(\".data..percpu\");", "int x[3] __section(\".data..percpu\");", "HR2101"),
        ("int x[2] __section(\".data..percpu\");", "int x[2];", "HR2105"),
        ("int x[2];", "int x[2] __section(\".data..percpu\");", "HR2105"),
        ("int x[2] __section(\".data..ro_after_init\");", "int x[2];", "HR2105"),
        ("int x[2] __section(\".init.data\");", "int x[2];", "HR2105"),
        ("int x[2];", "int x[2]; int y __section(\".data..percpu\");", "HR2105"),
        ("int x[2]; int y __section(\".data..percpu\");", "int x[2];", "HR2105"),
        ("int x[2];", "int x[2]; const int __param_y __section(\"__param\") = 1;", "HR2105"),
        ("int x[2]; static const int __param_y __section(\"__param\") __attribute__((used)) = 1;", "int x[2]; static const int __param_y __section(\"__param\") __attribute__((used)) = 2;", "HR2103"),
        ("int x[2];", "int x[2]; __asm__(\".pushsection .mine, \\\"a\\\"\\n.quad f\\n.popsection\");", "HR2208"),
    ],
)  # fmt: skip
def test_data_that_the_guest_holds_cannot_change(before: str, after: str, code: str, tmp_path: Path) -> None:
    diff = difference(tmp_path, f"{before} {ONE}", f"{after} {ONE}")
    assert (diff.verdict, codes(diff)) == ("refused", [code]), told(diff)


def test_a_changed_size_of_common_storage_is_refused(tmp_path: Path) -> None:
    diff = difference(tmp_path, f"int x[2]; {ONE}", f"int x[4]; {ONE}", "-fcommon")
    assert codes(diff) == ["HR2101"]


PARAMETER = """
    struct ops { int flags; }; struct ops one, two; int x;
    static const struct { const char *name; void *mod; const struct ops *ops; int perm; void *arg; } __param_x
        __section("__param") __attribute__((used)) = { "x", 0, &one, PERM, &x };
"""


def test_of_a_parameter_the_kernel_looks_up_the_operations_and_nothing_else(tmp_path: Path) -> None:
    before = PARAMETER.replace("PERM", "0644")
    diff = difference(tmp_path, before, before.replace("&one", "&two"))
    assert (diff.verdict, [rewrite.original.name for rewrite in diff.rewrites]) == (
        "patchable",
        ["__param_x"],
    )
    both = before.replace("&one", "&two").replace("0644", "0444")
    for after in (PARAMETER.replace("PERM", "0444"), both, before.replace("&x }", "&two }")):
        assert codes(difference(tmp_path, before, after)) == ["HR2103"]


def test_a_message_tells_where_a_value_changed(tmp_path: Path) -> None:
    tables = [
        f'extern int n; struct __attribute__((packed)) {{ char c; int o; }} x __section(".init.data") = {{1, {value}}}; '
        f'static int y[2] __section(".data..percpu") __attribute__((used)) = {{1, {value}}};'
        f'static const int __param_z __section("__param") __attribute__((used)) = {value};'
        for value in (2, 3)
    ]
    told = [obstacle.message for obstacle in difference(tmp_path, *tables).obstacles]
    changed = "the initial value of 'y' changed at offset 4: 0x2 -> 0x3"
    assert f"{changed}; the kernel reads .data..percpu only when it loads the module" in told
    assert (
        "the mode or type of the module parameter 'z' changed: the kernel reads parameters only at load"
        in told
    )


def test_a_clone_and_a_per_cpu_variable_are_told_in_the_words_of_the_source(tmp_path: Path) -> None:
    before = 'static noinline int f(int n, int unused) { return printk("a") + n; } int g(int n) { return f(n, 1); }'
    diff = difference(tmp_path, before, before.replace('"a"', '"b"'))
    assert diff.changed[0].original.name.startswith(("f.isra.", "f.constprop."))
    assert diff.changed_functions == ("f",)
    counter = 'int y __section(".data..percpu");'
    told = [o.message for o in difference(tmp_path / "c", before, before + counter).obstacles]
    assert told == ["the per-CPU variable 'y' was added: the kernel allocates per-CPU data only at load"]


@pytest.mark.parametrize(
    ("before", "after", "places"),
    [
        ("int x[4] = {1, 2};", "int x[4] = {1, 3};", ((4, 4),)),
        ("int x[4];", "int x[4] = {0, 0, 0, 0x10000};", ((12, 4),)),
        ("long x[2];", "long x[2] = {1, 2};", ((0, 8), (8, 8))),
        ("short x[3] = {1, 2, 3};", "short x[3] = {1, 2, 4};", ((4, 2),)),
        ("char x[] = \"abcde\";", "char x[] = \"abXde\";", ((0, 4), (4, 2))),
        ("char x[2][4] = {\"abc\", \"def\"};", "char x[2][4] = {\"abc\", \"dxf\"};", ((4, 4),)),
        ("_Bool x[4];", "_Bool x[4] = {0, 1};", ((1, 1),)),
        ("struct { int id; char c; int n; } x[2] = {{1, 2, 3}, {4, 5, 6}};", "struct { int id; char c; int n; } x[2] = {{1, 2, 3}, {4, 5, 7}};", ((20, 4),)),
        ("struct { int id; char c; int n; } x[2] = {{1, 2, 3}, {4, 5, 6}};", "struct { int id; char c; int n; } x[2] = {{1, 2, 3}, {7, 5, 8}};", ((12, 4), (16, 1), (20, 4))),
        ("struct { char name[5]; int n; } x[2] = {{\"a\", 1}};", "struct { char name[5]; int n; } x[2] = {{\"b\", 1}};", ((0, 4), (4, 1))),
        ("struct { int a; struct { int b, c; } in; } x = {1, {2, 3}};", "struct { int a; struct { int b, c; } in; } x = {1, {5, 6}};", ((4, 4), (8, 4))),
        ("struct __attribute__((packed)) { char c; int n; } x = {1, 2};", "struct __attribute__((packed)) { char c; int n; } x = {1, 3};", ((1, 1), (2, 2), (4, 1))),
        ("struct { char c; int *p; } x[2];", "extern int y; struct { char c; int *p; } x[2] = {{0, &y}};", ((8, 8),)),
        ("struct { char c; short s; int i; } x[2];", "struct { char c; short s; int i; } x[2] = {{}, {1, 2, 3}};", ((8, 1), (10, 2), (12, 4))),
        ("struct { int b; int a : 3; int c : 5; long l; } x;", "struct { int b; int a : 3; int c : 5; long l; } x = {1, 2};", ((0, 4), (4, 4))),
        ("union { long l; int i; char c; } x;", "union { long l; int i; char c; } x = {0x600000006};", ((0, 8),)),
        ("struct { int a : 3, b : 5; } x[2];", "struct { int a : 3, b : 5; } x[2] = {{1, 2}};", ((0, 4),)),
    ],
)  # fmt: skip
def test_a_new_initial_value_is_written_value_by_value(
    before: str, after: str, places: tuple[tuple[int, int], ...], tmp_path: Path
) -> None:
    use = "void *keep; void f(void) { keep = &x; }"
    base, patched = (
        read_object(compiled(f"{source} {use}", tmp_path / name, "-gdwarf-4"))
        for name, source in (("before", before), ("after", after))
    )
    diff = diff_objects(base, patched, unit_object_of(base).layouts)
    assert [(rewrite.original.name, rewrite.places) for rewrite in diff.rewrites] == [("x", places)], told(
        diff
    )
    assert (diff.verdict, diff.changed_functions, names(diff.carried)) == ("patchable", (), [])


def test_new_data_travels(tmp_path: Path) -> None:
    diff = difference(tmp_path, "int f(void) { return 1; }", "static int n = 4; int f(void) { return n++; }")
    assert (diff.verdict, names(diff.new_data)) == ("patchable", ["n"])


def test_a_constant_table_travels_with_those_who_read_it(tmp_path: Path) -> None:
    source = 'static const char *const words[] = {"a", "WORD"}; const char *f(int i) { return words[i]; } int g(void) { return 1; }'
    diff = difference(tmp_path, source.replace("WORD", "b"), source.replace("WORD", "c"))
    assert (diff.verdict, diff.changed_functions, names(diff.carried)) == (
        "patchable",
        ("f",),
        ["f", "words"],
    )


def test_a_table_whose_strings_are_told_by_their_addresses_is_written_where_it_is(tmp_path: Path) -> None:
    source = 'static const char *const words[] = {"a", "WORD"}; const char *cur; int f(int i) { return cur == words[i]; } void g(int i) { cur = words[i]; }'
    diff = difference(tmp_path, source.replace("WORD", "b"), source.replace("WORD", "c"))
    assert [(rewrite.original.name, rewrite.places) for rewrite in diff.rewrites] == [("words", ((8, 8),))]
    assert (diff.verdict, names(diff.carried)) == ("patchable", [])


def test_a_constant_that_becomes_a_variable_travels_with_those_who_read_it(tmp_path: Path) -> None:
    # The old one is in memory that cannot be written.
    diff = difference(
        tmp_path,
        "static const int x[2] = {1, 2}; int f(int i) { return x[i]; }",
        "static int x[2] = {1, 2}; int f(int i) { return x[i]++; }",
    )
    assert (diff.verdict, names(diff.carried)) == ("patchable", ["f", "x"])


OPS = """
    struct ops { int (*read)(void); };
    int register_ops(const struct ops *);
    static int one(void) { return 1; }
    static int two(void) { return 2; }
    static int (*volatile keep[])(void) = {one, two};
    static const struct ops ops = {READ};
    int WHERE start(void) { return register_ops(&ops); }
    int f(void) { return keep[0] != 0; }
"""


@pytest.mark.parametrize("where", ["__init", ""], ids=["init", "a function that may have run"])
def test_a_changed_table_of_functions_that_was_registered_is_written_where_it_is(
    where: str, tmp_path: Path
) -> None:
    source = OPS.replace("WHERE", where)
    diff = difference(tmp_path, source.replace("READ", "one"), source.replace("READ", "two"))
    assert [(rewrite.original.name, rewrite.places) for rewrite in diff.rewrites] == [("ops", ((0, 8),))]
    assert (diff.verdict, names(diff.carried)) == ("patchable", [])


@pytest.mark.parametrize(
    ("use", "held"),
    [
        ("int f(int i) { return x[i].a; }", False),
        ("int f(int i) { return look(&x[i & 1], 3); }", True),
        ("int f(int i) { return memcmp(&i, &x[i & 1], 4); }", False),
        ("int f(int i) { kept = &x[1]; return i; }", True),
        ("int f(int i) { return kept == x; }", True),
        ("const struct s *f(int i) { return &x[1]; }", True),
    ],
)
def test_a_changed_constant_whose_address_is_stored_or_compared_is_written_where_it_is(
    use: str, held: bool, tmp_path: Path
) -> None:
    source = f"struct s {{ int a, b; }}; static const struct s x[2] = {{{{1, 2}}, {{3, VALUE}}}}; const struct s *kept; int look(const struct s *, int); int memcmp(const void *, const void *, unsigned long); {use}"
    diff = difference(tmp_path, source.replace("VALUE", "4"), source.replace("VALUE", "5"))
    assert (diff.verdict, bool(diff.rewrites), "x" in names(diff.carried)) == ("patchable", held, not held), (
        told(diff)
    )


TABLE = "struct driver { const char *name; const int *ids; }; static const int ids[] = {1, NEW 0}; struct driver driver = {0, ids}; int f(int i) { return i; }"


def test_a_table_that_grew_travels_if_only_variables_point_at_it(tmp_path: Path) -> None:
    diff = difference(tmp_path, TABLE.replace("NEW", ""), TABLE.replace("NEW", "2,"))
    assert (diff.verdict, names(diff.carried)) == ("patchable", ["ids"]), told(diff)
    assert [(rewrite.original.name, rewrite.places) for rewrite in diff.rewrites] == [("driver", ((8, 8),))]


@pytest.mark.parametrize(
    ("was", "now", "more"),
    [
        pytest.param("", "2,", "const int *g(void) { return ids; }", id="code may hold places in it"),
        pytest.param("2,", "", "", id="old code may count on what is gone"),
    ],
)
def test_a_table_of_another_size_is_refused_where_it_may_be_used_on(
    was: str, now: str, more: str, tmp_path: Path
) -> None:
    diff = difference(tmp_path, TABLE.replace("NEW", was) + more, TABLE.replace("NEW", now) + more)
    assert codes(diff) == ["HR2101"], told(diff)


def test_a_string_for_the_trace_buffer_stays_the_kernels(tmp_path: Path) -> None:
    # tracepoint_string() of include/linux/tracepoint.h
    use = '{ static const char *___tp_str __section("__tracepoint_str") = "TEXT"; trace(___tp_str); return END; }'
    f, g = use.replace("TEXT", "f"), use.replace("TEXT", "g").replace("END", "i")
    source = f"void trace(const char *); int f(int i) {f} int g(int i) {g}"
    diff = difference(tmp_path, source.replace("END", "1"), source.replace("END", "2"))
    assert (diff.verdict, names(diff.carried)) == ("patchable", ["f"]), told(diff)
    fresh = difference(tmp_path, source.replace("END", "1"), source.replace("END", "1").replace('"f"', '"h"'))
    assert codes(fresh) == ["HR2105"]


def test_data_that_only_assembly_knows_is_refused(tmp_path: Path) -> None:
    source = """
        __asm__(".pushsection .data.mine, \\"aw\\"\\n.globl mine\\nmine: .long 0\\n.popsection");
        extern int mine;
        int f(void) { return mine += STEP; }
    """
    diff = difference(tmp_path, source.replace("STEP", "1"), source.replace("STEP", "2"))
    assert codes(diff) == ["HR2105"]


def test_new_neighbours_in_a_shared_section_are_refused(tmp_path: Path) -> None:
    # The end of a is where b begins, or what now stands between them.
    shared = '__section(".data..read_mostly")'
    source = f"""
        static int a[4] {shared} = {{1}}; NEW static int b {shared} = 7;
        int f(void) {{ int s = START; for (int *p = a; p < a + 4; p++) s += *p; return s; }}
        int g(void) {{ return b++ + a[1]++; }}
    """
    fresh = f"static int n {shared} __attribute__((used)) = 9;"
    plain = source.replace("NEW", "").replace("START", "0")
    assert (
        difference(tmp_path / "1", plain, source.replace("NEW", "").replace("START", "1")).verdict
        == "patchable"
    )
    diff = difference(tmp_path / "2", plain, source.replace("NEW", fresh).replace("START", "1"))
    assert codes(diff) == ["HR2105"]
    # What only reads and writes within them cannot mean another one.
    within = source.replace("NEW", fresh).replace("START", "0").replace("a[1]++", "a[2]++")
    diff = difference(tmp_path / "3", plain, within)
    assert (diff.verdict, diff.changed_functions) == ("patchable", ("g",)), told(diff)


def test_variables_that_share_a_section_may_change_places(tmp_path: Path) -> None:
    shared = '__section(".data..read_mostly")'
    one, two = f"static int one {shared} = 1;", f"static long two {shared} = 2;"
    code = "int f(void) { return one += STEP; } long g(void) { return two++ + one; }"
    diff = difference(tmp_path, one + two + code.replace("STEP", "1"), two + one + code.replace("STEP", "2"))
    assert (diff.verdict, diff.changed_functions) == ("patchable", ("f",)), told(diff)
    assert names(diff.carried) == ["f"]
    fresh = f"static int three {shared} = 3;" + code.replace("STEP", "three++")
    diff = difference(tmp_path / "2", one + two + code.replace("STEP", "1"), two + one + fresh)
    assert (diff.verdict, sorted(names(diff.carried))) == ("patchable", ["f", "three"]), told(diff)


# --- exports ---

# include/linux/export.h of v6.1, and since v6.5.
EXPORT_TABLE = """
    #define EXPORT(sym, table, ns) __asm__(".section \\"__ksymtab_strings\\",\\"aMS\\",%progbits,1\\n" \\
        "__kstrtab_" #sym ": .asciz \\"" #sym "\\"\\n __kstrtabns_" #sym ": .asciz \\"" ns "\\"\\n" \\
        ".section \\"___ksymtab" table "+" #sym "\\", \\"a\\"\\n .balign 4\\n" "__ksymtab_" #sym ":\\n" \\
        ".long " #sym "- .\\n .long __kstrtab_" #sym "- .\\n .long __kstrtabns_" #sym "- .\\n .previous");
"""
EXPORT_LABEL = """
    #define EXPORT(sym, license, ns) __asm__(".section \\".export_symbol\\",\\"a\\"\\n __export_symbol_" #sym ":\\n" \\
        ".asciz \\"" license "\\"\\n .asciz \\"" ns "\\"\\n .balign 8\\n .quad " #sym "\\n .previous");
"""
TWO = "int f(int i) { return i; } int g(int i) { return END; }"


@pytest.mark.parametrize("how", [EXPORT_TABLE, EXPORT_LABEL], ids=["a table", "a label"])
@pytest.mark.parametrize(
    ("before", "after", "verdict", "told"),
    [
        ('EXPORT(g, "", "")', 'EXPORT(f, "", "") EXPORT(g, "", "")', "patchable", "f is now exported"),
        ('EXPORT(g, "", "")', 'EXPORT(g, "_gpl", "")', "patchable", "g is exported to other modules"),
        ('EXPORT(g, "", "ONE")', 'EXPORT(g, "", "TWO")', "patchable", "g is exported to other modules"),
        ('EXPORT(f, "", "") EXPORT(g, "", "")', 'EXPORT(g, "", "")', "patchable", "f is no longer exported"),
        ('EXPORT(f, "", "") EXPORT(g, "", "")', 'EXPORT(g, "", "") EXPORT(f, "", "")', "patchable", ""),
    ],
)  # fmt: skip
def test_a_new_export_waits_and_one_that_is_gone_is_told(
    how: str, before: str, after: str, verdict: str, told: str, tmp_path: Path
) -> None:
    diff = difference(tmp_path, how + TWO.replace("END", "1") + before, how + TWO.replace("END", "2") + after)
    messages = [each.message for each in (*diff.obstacles, *diff.notes)]
    assert (diff.verdict, diff.changed_functions) == (verdict, ("g",)), messages
    assert len(messages) == bool(told)
    assert all(message.startswith(told) for message in messages)


# --- code that cannot be redirected ---

INIT = "int f(void) { return RUN; } int __init start(void) { return INIT; }"


def test_changed_init_code_alone_is_refused(tmp_path: Path) -> None:
    source = INIT.replace("RUN", "1")
    assert codes(difference(tmp_path, source.replace("INIT", "1"), source.replace("INIT", "2"))) == ["HR2201"]


def test_changed_init_code_beside_another_change_is_a_note(tmp_path: Path) -> None:
    diff = difference(
        tmp_path, INIT.replace("RUN", "1").replace("INIT", "1"), INIT.replace("RUN", "2").replace("INIT", "2")
    )
    assert (diff.verdict, diff.changed_functions) == ("patchable", ("f",))
    assert [(note.code, note.symbol) for note in diff.notes] == [("HR2201", "start")]


def test_init_code_that_became_running_code_travels(tmp_path: Path) -> None:
    source = "int g; static noinline WHERE int twice(void) { return g *= 2; } int __init start(void) { return twice(); } int f(void) { return END; }"
    before = source.replace("WHERE", "__init").replace("END", "1")
    diff = difference(tmp_path, before, source.replace("WHERE", "").replace("END", "twice()"))
    assert (diff.verdict, names(diff.carried)) == ("patchable", ["f", "twice"])


def test_running_code_must_not_use_what_is_freed_after_init(tmp_path: Path) -> None:
    before = "int f(void) { return 1; }"
    after = 'static int __section(".init.data") n; int f(void) { return ++n; }'
    assert "HR2201" in codes(difference(tmp_path, before, after))


UNTRACED = "int seen; static noinline notrace int low(int i) { seen = i; return i * STEP; } int f(int i) { return low(i) + 1; } int g(int i) { return i; }"


def test_a_changed_function_that_cannot_be_traced_travels_with_its_callers(tmp_path: Path) -> None:
    diff = difference(tmp_path, UNTRACED.replace("STEP", "3"), UNTRACED.replace("STEP", "5"))
    assert (diff.verdict, diff.changed_functions, names(diff.carried)) == ("patchable", ("f",), ["f", "low"])
    assert diff.callers_promoted == {"f": "calls low, which is not traceable"}


@pytest.mark.parametrize(
    "more",
    [
        pytest.param("void *address = low;", id="its address is data"),
        pytest.param("void take(void *); void h(void) { take(low); }", id="its address is taken"),
        pytest.param("int __init start(void) { return low(4); }", id="init calls it"),
        pytest.param('int outside(int) __attribute__((alias("low")));', id="other files call it"),
    ],
)
def test_a_changed_function_that_cannot_be_traced_is_refused_unless_all_callers_are_known(
    more: str, tmp_path: Path
) -> None:
    source = UNTRACED + more
    assert codes(difference(tmp_path, source.replace("STEP", "3"), source.replace("STEP", "5"))) == ["HR2202"]


def test_an_alternatives_call_of_an_untraceable_function_makes_its_holder_travel(tmp_path: Path) -> None:
    source = ENTRIES + UNTRACED + 'int h(int i) { ALTERNATIVE("call other", "call low"); return i; }'
    diff = difference(tmp_path, source.replace("STEP", "3"), source.replace("STEP", "5"))
    assert diff.changed_functions == ("f", "h")


def test_what_ubsan_knows_of_a_place_travels_with_it(tmp_path: Path) -> None:
    source = "int f(int a, int b) { return END + (a << b); }"
    sanitized = "-fsanitize=shift"
    diff = difference(tmp_path, source.replace("END", "1"), source.replace("END", "2"), sanitized)
    assert (diff.verdict, diff.changed_functions) == ("patchable", ("f",))


FOLDED = """
    int q(int); int z;
    static noinline int one(int i) { z += q(i) * 3; z -= q(z) + 7; return q(z * i); }
    static noinline int two(int i) { z += q(i) * 3; z -= q(z) + 7; return q(z * i); }
    int f(int i) { return one(i) + 1; }
    int g(int i) { return two(i) + 2; }
"""


@pytest.mark.parametrize("way", ["part", "join"])
def test_functions_that_gcc_folds_may_part_and_join(way: str, tmp_path: Path) -> None:
    before, after = (
        FOLDED,
        FOLDED.replace("+ 7; return q(z * i); }\n    int f", "+ 8; return q(z * i); }\n    int f"),
    )
    assert before != after
    diff = difference(tmp_path, *((before, after) if way == "part" else (after, before)))
    assert (diff.verdict, diff.changed_functions) == ("patchable", ("g",))


COLD = """
    .section .text.unlikely, "ax"; .type bye.cold, @function; bye.cold: VALUE; ret; .size bye.cold, .-bye.cold
    .section .exit.text, "ax"; .type bye, @function; bye: jmp bye.cold; .size bye, .-bye
    .globl cleanup_module; .type cleanup_module, @function; .set cleanup_module, bye; .size cleanup_module, .-bye
"""


def test_the_cold_part_of_code_for_unloading_is_such_code(tmp_path: Path) -> None:
    pair = [assembled(COLD.replace("VALUE", value), tmp_path / value) for value in ("inc %eax", "dec %eax")]
    diff = diff_objects(*map(read_object, pair))
    assert [(o.code, o.message) for o in diff.obstacles] == [
        ("HR2201", "bye changed, and runs only when the module is loaded or unloaded")
    ]


@pytest.mark.parametrize("way", ["split", "joined"])
def test_names_that_part_or_join_are_refused(way: str, tmp_path: Path) -> None:
    alias = 'int n; void f(void) { n++; } void g(void) __attribute__((alias("f")));'
    apart = "int n; void f(void) { n++; } void g(void) { n--; }"
    pair = (alias, apart) if way == "split" else (apart, alias)
    assert codes(difference(tmp_path, *pair)) == ["HR2208"]


def test_tables_that_were_the_same_may_become_two(tmp_path: Path) -> None:
    before = "void show(int); static const int a[] = { 1, 2, 3 }, b[] = { 1, 2, 3 }; void one(int i) { show(a[i]); } void two(int i) { show(b[i]); }"
    for number, (was, now) in enumerate([("b[] = { 1", "b[] = { 7"), (" a[] = { 1", " a[] = { 7")]):
        diff = difference(tmp_path / str(number), before, before.replace(was, now))
        assert (diff.verdict, codes(diff)) == ("patchable", [])
        assert "two" in diff.changed_functions


def test_code_that_nothing_names_cannot_change_unseen(tmp_path: Path) -> None:
    source = '__asm__(".text\\n.globl stub\\nstub: mov $VALUE, %eax\\nret"); int f(void) { return 1; }'
    assert codes(difference(tmp_path, source.replace("VALUE", "1"), source.replace("VALUE", "2"))) == [
        "HR2208"
    ]


def test_a_circle_of_constants_is_compared_to_its_end(tmp_path: Path) -> None:
    source = """
        struct node { const struct node *next; int value; };
        static const struct node a, b;
        static const struct node b = {&a, 1}, a = {&b, VALUE};
        int f(int i) { const struct node *p = &b; while (i--) p = p->next; return p->value; }
    """
    diff = difference(tmp_path, source.replace("VALUE", "1"), source.replace("VALUE", "2"))
    assert (diff.verdict, [rewrite.original.name for rewrite in diff.rewrites]) == ("patchable", ["a"])


# --- nothing changed ---


def test_kernel_modules_do_not_differ_from_themselves(debian_kernel: KernelTree) -> None:
    assert debian_kernel.modules is not None
    seen = 0
    for path in sorted(debian_kernel.modules.rglob("*.ko"))[::25]:
        one, two = read_object(path), read_object(path)
        locals_ = [symbol.name for symbol in one.symbols if symbol.is_function and symbol.is_local]
        if len(locals_) != len(set(locals_)):
            continue  # several units linked together: names say too little
        diff = diff_objects(one, two)
        assert (path.name, diff.verdict, told(diff)) == (path.name, "unchanged", "")
        seen += 1
    assert seen > 20


def test_a_new_tracepoint_is_told_as_one_thing(tmp_path: Path) -> None:
    new = (
        'int __tracepoint_rx __section("__tracepoints") = 1; int __event_rx __section("_ftrace_events") = 1;'
    )
    new += '__asm__(".pushsection __tracepoints_ptrs, \\"a\\"\\n.long __tracepoint_rx - .\\n.popsection");'
    more = difference(tmp_path, f"int x[2]; {ONE}", f"int x[2]; {new} {ONE}")
    message = "the tracepoint 'rx' was added: the kernel learns of tracepoints only when it loads a module"
    assert [(o.code, o.message) for o in more.obstacles] == [("HR2105", message)]
