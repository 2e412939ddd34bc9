# SPDX-License-Identifier: MIT
"""Which variable of an edited source keeps the value of which: told by declarations, from C."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.unit_diff import UnitContext, diff_unit, unit_object_of
from hotreload.elf.reader import read_object
from tests.objects.compiling import compiled

DEBUG = ("-gdwarf-4", "-fno-var-tracking")


def compared(tmp_path: Path, before: str, after: str, *flags: str, **known: object) -> ObjectDiff:
    """The whole answer about an edit; lines stand one below the other, so that they have numbers."""
    one, other = (
        unit_object_of(read_object(compiled(text, tmp_path / name, *DEBUG, *extra)))
        for name, text, extra in (("before", before, ()), ("after", after, flags))
    )
    return diff_unit(one, other, {"unit.c": after}, types_known=True, context=UnitContext(**known))  # type: ignore[arg-type]


def kept(diff: ObjectDiff) -> dict[str, str]:
    """The writable variables that keep their values: the name in the patched object -> in the original."""
    return {
        patched.name: original.name
        for patched, original in diff.original_of.items()
        if patched.is_object and patched.section is not None and patched.section.is_writable
    }


def without_numbers(names: dict[str, str]) -> dict[str, str]:
    return {one.partition(".")[0]: other.partition(".")[0] for one, other in names.items()}


def refusals(diff: ObjectDiff) -> list[tuple[str, str]]:
    return [(obstacle.code, obstacle.symbol) for obstacle in diff.obstacles]


COUNTER = """
    static noinline int rx(int k) { static int n; n += k; return n; }
    static noinline int tx(int k) { static int n; n += k; return n * 3; }
    int f(int k) { return rx(k) - tx(k); }
"""


def test_a_static_local_belongs_to_the_function_that_declares_it_whoever_it_is_inlined_into(
    tmp_path: Path,
) -> None:
    diff = compared(tmp_path, COUNTER, COUNTER.replace("noinline ", ""))
    assert diff.verdict == "patchable"
    # gcc numbers them from the last one on, so that rx has n.1 in both.
    assert {(diff.declared_in[now], was) for now, was in kept(diff).items()} == {("rx", "n.1"), ("tx", "n.0")}


def test_the_static_local_of_a_function_that_is_gone_is_not_that_of_one_that_came(tmp_path: Path) -> None:
    before = "static int reads(void) { static int n; return ++n; } int f(void) { return reads(); }"
    after = "static int errors(void) { static int n; return n++; } int f(void) { return errors(); }"
    diff = compared(tmp_path, before, after)
    assert (diff.verdict, kept(diff)) == ("patchable", {})
    assert [(note.code, note.message) for note in diff.notes] == [
        ("HR2104", "'n' is another variable now: it starts again, and the old value stays behind")
    ]


def test_a_patch_has_its_own_lock_class_with_its_own_name(tmp_path: Path) -> None:
    # lockdep compares the pointers to the names of a class, and the name travels.
    source = """void init_lock(const char *, void *); int f(int i) {
        { static struct { long subkeys[SIZE]; } __key; init_lock("&lock", &__key); } return i + STEP; }"""
    with_lockdep, without = source.replace("SIZE", "2"), source.replace("SIZE", "0")
    diff = compared(tmp_path / "1", with_lockdep.replace("STEP", "1"), with_lockdep.replace("STEP", "2"))
    assert (diff.verdict, list(kept(diff).values()), diff.notes) == ("patchable", [], ())
    assert [symbol.name.partition(".")[0] for symbol in diff.carried if symbol.is_object] == ["__key"]
    diff = compared(tmp_path / "2", without.replace("STEP", "1"), without.replace("STEP", "2"))
    assert (diff.verdict, list(kept(diff).values()), diff.notes) == ("patchable", ["__key.0"], ())


@pytest.mark.parametrize("how", ["static", "static noinline", "", "noinline"])
def test_the_static_local_of_a_function_that_only_has_another_name_keeps_its_value(
    how: str, tmp_path: Path
) -> None:
    before = f"void q(int); {how} int next_id(void) {{ static int id = 7; q(1); return id++; }}"
    before += " int f(void) { return next_id(); }"
    diff = compared(tmp_path, before, before.replace("next_id", "new_id"))
    # Other units may call a global function by its name, so it is a new one.
    verdict = "patchable" if how == "noinline" else "unchanged"
    assert (diff.verdict, list(kept(diff).values())) == (verdict, ["id.0"])
    assert [note.message for note in diff.notes] == [
        "next_id was renamed to new_id, with the same code: traces show the old name"
    ] * (how == "static noinline") + [
        "'id' is now a variable of new_id, and keeps its value: the code is the same"
    ]


@pytest.mark.parametrize(
    ("was", "now", "is_kept"),
    [
        ("unsigned win[4]", "unsigned long win[2]", False),
        ("unsigned win[4]", "int win[4]", True),
        ("long win", "char *win", False),
        ("struct { int a, b; } win", "struct { int b, a; } win", False),
        ("int win", "unsigned win", True),
        ("int win", "long win", False),
        ("char *win", "void *win", True),
    ],
)
def test_a_static_local_of_another_type_is_refused_unless_its_bytes_mean_the_same(
    was: str, now: str, is_kept: bool, tmp_path: Path
) -> None:
    source = "void take(void *); int f(int i) {{ static {0}; take(&win); return i + {1}; }}"
    diff = compared(tmp_path, source.format(was, 1), source.format(now, 2))
    assert (refusals(diff), bool(kept(diff))) == ([] if is_kept else [("HR2104", "win")], is_kept)


def test_a_static_local_that_becomes_a_variable_of_the_file_keeps_its_value(tmp_path: Path) -> None:
    before = "int f(void) { static int count; return ++count; } int g(void) { return 1; }"
    after = "static int count; int f(void) { return ++count; } int g(void) { return count = 0; }"
    there, back = compared(tmp_path, before, after), compared(tmp_path, after, before)
    assert [(d.verdict, without_numbers(kept(d))) for d in (there, back)] == [
        ("patchable", {"count": "count"})
    ] * 2
    assert ("HR2104", "count") in [(note.code, note.symbol) for note in there.notes]


def test_a_static_local_that_moves_into_a_part_of_its_function_is_refused(tmp_path: Path) -> None:
    before = "int f(int i) { static int count; return i + ++count; }"
    after = "static int next(void) { static int count; return ++count; } int f(int i) { return i + next(); }"
    assert refusals(compared(tmp_path, before, after)) == [("HR2104", "count")]


BLOCKS = """
int f(int k)
{
    if (k) {
        static int n;
        return n += k;
    }
    static int n;
    return n += 100;
}
"""


def test_two_static_locals_of_one_name_are_told_apart_by_their_places(tmp_path: Path) -> None:
    diff = compared(tmp_path, BLOCKS, BLOCKS.replace("100", "200"))
    assert (diff.verdict, kept(diff)) == ("patchable", {"n.0": "n.0", "n.1": "n.1"})
    # A third one in front of them leaves them their lines.
    more = BLOCKS.replace("int f(int k)\n{", "int f(int k)\n{ if (k > 9) { static int n; return n -= k; }")
    diff = compared(tmp_path, BLOCKS, more)
    assert (diff.verdict, sorted(kept(diff).values())) == ("patchable", ["n.0", "n.1"])
    # Without lines nobody knows which is which.
    assert refusals(compared(tmp_path, BLOCKS, " ".join(more.split()))) == [("HR2104", "n")]


PLACE = """
int once(int);
int f(int i)
{
    static _Bool __section(".data.once") __already_done;
    if (i && !__already_done) { __already_done = 1; printk("once"); }
    return i + END;
}
"""


def test_a_flag_of_a_macro_is_kept_where_its_place_is_clear(tmp_path: Path) -> None:
    diff = compared(tmp_path, PLACE.replace("END", "1"), PLACE.replace("END", "2"))
    assert (diff.verdict, kept(diff)) == ("patchable", {"__already_done.0": "__already_done.0"})


ONCE = """
#define ONCE(text) { \\
    static _Bool __section(".data.once") __already_done; \\
    if (!__already_done) { __already_done = 1; printk(text); } \\
}
int f(int i)
{
    ONCE("first")
    return i;
}
"""
TWICE = ONCE.replace("    return", '    ONCE("second")\n    return')


def test_a_flag_of_a_macro_is_kept_beside_a_new_one(tmp_path: Path) -> None:
    assert list(kept(compared(tmp_path, ONCE, TWICE)).values()) == ["__already_done.0"]
    # Of two places one went; the one whose line is there is meant.
    diff = compared(tmp_path, TWICE, TWICE.replace('    ONCE("first")\n', "\n"))
    assert kept(diff) == {"__already_done.0": "__already_done.0"}


def test_the_flags_of_macros_move_with_their_function(tmp_path: Path) -> None:
    diff = compared(tmp_path, TWICE, "\n\n" + TWICE.replace("return i", "return i + 1"))
    both = {"__already_done.0": "__already_done.0", "__already_done.1": "__already_done.1"}
    assert (kept(diff), diff.notes) == (both, ())
    # Where they moved apart as well, each may report once more; and that is said.
    apart = compared(
        tmp_path, TWICE, "\n\n" + TWICE.replace('    ONCE("second")', '    i *= 3;\n    ONCE("other")')
    )
    assert (apart.verdict, kept(apart)) == ("patchable", {})
    assert ("HR2104", "__already_done") in [(note.code, note.symbol) for note in apart.notes]


def test_static_locals_move_with_a_function_whose_code_is_the_same(tmp_path: Path) -> None:
    moved = compared(tmp_path, BLOCKS, "\n\n" + BLOCKS)
    assert kept(moved) == {"n.0": "n.0", "n.1": "n.1"}
    assert refusals(compared(tmp_path, BLOCKS, "\n\n" + BLOCKS.replace("100", "200"))) == [("HR2104", "n")]


FOLDED = """
static int enabled; static int limit = 5; static struct { int a, b; } state;
int f(void) { static int calls = 3; return enabled + limit + calls + state.a; }
void g(int n) { enabled = n; state.a = n; state.b = n; }
void h(int n) { limit = n; }
"""


def test_a_variable_without_a_writer_or_reader_is_declared_though_gcc_gives_it_no_storage(
    tmp_path: Path,
) -> None:
    diff = compared(tmp_path, FOLDED, FOLDED.replace("enabled = n; ", "").replace("limit + ", ""))
    assert diff.folded == {("", "enabled"), ("", "limit")}
    assert ("f", "calls") in diff.without_storage  # nothing has ever written to it
    whole = compared(
        tmp_path,
        FOLDED,
        FOLDED.replace("enabled = n; ", "").replace("limit + ", ""),
        "-fno-ipa-reference-addressable",
    )
    assert (whole.verdict, whole.folded) == ("patchable", frozenset())
    assert {"enabled", "limit", "state"} <= kept(whole).keys()
    assert whole.rewrites == ()


def test_an_initial_value_that_gcc_drops_is_not_taken_for_an_edit(tmp_path: Path) -> None:
    source = (
        "static int limit = 5; void h(int n) { *(volatile int *)&limit = n; } int f(void) { return READ; }"
    )
    diff = compared(tmp_path, source.replace("READ", "limit"), source.replace("READ", "1"))
    assert diff.folded == {("", "limit")}


def test_what_a_reload_added_is_folded_too(tmp_path: Path) -> None:
    added = "static int extra; int f(void) { return extra; } "
    diff = compared(tmp_path, "int f(void) { return 1; }", added, added=frozenset({("", "extra")}))
    assert diff.folded == {("", "extra")}
    assert compared(tmp_path, "int f(void) { return 1; }", added).folded == frozenset()


def test_compound_literals_are_known_by_their_tables_and_values(tmp_path: Path) -> None:
    source = """
        struct item {{ const char *name; int hits; }};
        {0} static struct item *first = &(struct item){{ "a", 1 }}, *second = &(struct item){{ "b", 2 }};
        struct item **both(int i) {{ return i ? &first : &second; }}
        int f(void) {{ return first->hits++ + {1}; }}
    """
    new = 'static struct item *spare = &(struct item){ "z", 7 };'
    diff = compared(tmp_path, source.format("", 1), source.format(new, "spare->hits++"))
    assert diff.obstacles == ()
    names = set(kept(diff).values())
    assert {name for name in names if name.startswith("__compound")} == {
        "__compound_literal.0",
        "__compound_literal.1",
    }


def test_the_prototype_of_a_global_function_may_change_with_its_callers(tmp_path: Path) -> None:
    before = "int twice(int n) { return 2 * n; } int f(void) { return twice(1); }"
    after = "int twice(int n, int m) { return m * n; } int f(void) { return twice(1, 2); }"
    assert compared(tmp_path, before, after).obstacles == ()


RENAMED = """
    struct list { struct list *next; };
    static struct list devices = { &devices }; static int limit = 4; static int hits;
    static struct list *const heads[] = { &devices };
    struct list *first(int i) { hits++; return i < limit ? devices.next : heads[i]; }
    int told(void) { return hits; }
    void set(int most) { limit = most; }
    void add(struct list *one) { static int added; one->next = devices.next; devices.next = one; added++; }
"""


@pytest.mark.parametrize("name", ["devices", "limit", "hits", "added"])
def test_a_static_variable_with_another_name_and_the_same_uses_keeps_its_value(
    name: str, tmp_path: Path
) -> None:
    diff = compared(tmp_path, RENAMED, RENAMED.replace(name, "other"))
    assert (diff.verdict, without_numbers(kept(diff))["other"]) == ("unchanged", name)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("static int hits;", "static int other; static int hits;"),
        ("return hits;", "return other + 1;"),
        ("int limit = 4", "int limit = 4; static int other = 5"),
        ("return hits;", "return hits + added2;"),
    ],
)
def test_another_variable_beside_it_is_another_one(was: str, now: str, tmp_path: Path) -> None:
    """One that is new while the old one is there, or whose code changed, begins anew."""
    after = RENAMED.replace(was, now).replace("hits++", "other++" if "other" in now else "hits++")
    if "other +" in now:
        after = after.replace("int hits", "int other")
    if "added2" in now:
        after = after.replace("int added", "").replace("static ;", "").replace("added++", "added2++")
        after = after.replace("static int hits;", "static int hits, added2;")
    diff = compared(tmp_path, RENAMED, after)
    assert not {"other", "added2"} & without_numbers(kept(diff)).keys()


def test_a_variable_that_nothing_uses_any_more_is_not_the_one_that_is_used_instead(tmp_path: Path) -> None:
    before = "static int a, b; int f(void) { return ++a; }"
    assert kept(compared(tmp_path, before, before.replace("++a", "++b"))) == {}
    told = before.replace("a, b", "b /* was a */").replace("++a", "++b")
    assert kept(compared(tmp_path / "told", before.replace("a, b", "a"), told)) == {"b": "a"}


def test_a_renamed_variable_goes_on_in_the_edits_to_come(tmp_path: Path) -> None:
    before = "static int a; int f(void) { return ++a; }"
    renamed = before.replace("a;", "b;").replace("++a", "++b")
    first = compared(tmp_path, before, renamed)
    assert (kept(first), first.renamed_variables) == ({"b": "a"}, {("", "b"): ("", "a")})
    known = {"live": first}

    changed = renamed.replace("++b", "(b += 2)")
    assert kept(compared(tmp_path, before, changed)) == {}
    assert kept(compared(tmp_path, before, changed, **known)) == {"b": "a"}
    retyped = changed.replace("static int b", "static char *b")
    assert refusals(compared(tmp_path, before, retyped, **known)) == [("HR2104", "a")]

    both = "static int a, b; int f(void) { return ++b; } int g(void) { return ++a; }"
    assert refusals(compared(tmp_path, before, both, **known)) == [("HR2104", "b")]
    assert refusals(compared(tmp_path, before, before, **known)) == []
    third = compared(tmp_path, before, before.replace("a;", "c;").replace("++a", "++c"), **known)
    assert (refusals(third), kept(third)) == ([], {"c": "a"})


def test_a_static_local_of_a_renamed_function_goes_on_in_the_edits_to_come(tmp_path: Path) -> None:
    before = "noinline static int old(void) { static int n = 3; return ++n; } int f(void) { return old(); }"
    renamed = before.replace("old", "new")
    first = compared(tmp_path, before, renamed)
    assert without_numbers(kept(first)) == {"n": "n"}
    assert first.renamed_variables == {("new", "n"): ("old", "n")}
    known = {"live": first}

    changed = renamed.replace("++n", "(n += 2)")
    assert kept(compared(tmp_path, before, changed)) == {}
    assert without_numbers(kept(compared(tmp_path, before, changed, **known))) == {"n": "n"}
    both = changed + before.replace("int f", "int g")
    assert refusals(compared(tmp_path, before, both, **known)) == [("HR2104", "n")]


def test_a_static_local_goes_on_if_its_function_is_edited_and_then_renamed(tmp_path: Path) -> None:
    before = "noinline static int old(void) { static int n = 3; return ++n; } int f(void) { return old(); }"
    edited = before.replace("++n", "(n += 2)")
    live = compared(tmp_path, before, edited)
    renamed = edited.replace("old", "new")
    assert kept(compared(tmp_path, before, renamed)) == {}
    second = compared(tmp_path, before, renamed, live=live)
    assert without_numbers(kept(second)) == {"n": "n"}
    assert second.renamed_variables == {("new", "n"): ("old", "n")}

    # Another edit and another name later.
    other = renamed.replace("n += 2", "n += 5")
    third = compared(tmp_path, before, other, live=second)
    last = compared(tmp_path, before, other.replace("new", "newer"), live=third)
    assert (refusals(last), without_numbers(kept(last))) == ([], {"n": "n"})

    # Another edit together with the new name, or two functions that may be the one, prove nothing.
    assert kept(compared(tmp_path, before, other, live=live)) == {}
    twice = renamed + renamed.replace("new", "newer").replace("int f", "int g")
    assert kept(compared(tmp_path, before, twice, live=live)) == {}


def test_one_of_two_functions_that_is_renamed_while_the_other_goes(tmp_path: Path) -> None:
    text = "static noinline int NAME(int k) { static int n; static const int by[] = { TIMES, 7 }; n += by[k];"
    text += " return n; } int NAME_it(int k) { return NAME(k); } "
    rx, tx, rcv = (text.replace("NAME", name).replace("TIMES", "1") for name in ("rx", "tx", "rcv"))

    def after_both(folder: str, before: str, last: str) -> dict[tuple[str, str], tuple[str, str]]:
        edited, gone = (each.replace("by[k]", "2 * by[k]") for each in (before, last))
        live = compared(tmp_path / folder, before, edited)
        return dict(compared(tmp_path / folder, before, gone, live=live).renamed_variables)

    assert after_both("alike", rx + tx, rcv) == {}
    # Here, a constant tells which one it is.
    assert after_both("told", rx + tx.replace("1, 7", "9, 7"), rcv) == {("rcv", "n"): ("rx", "n")}


def test_a_variable_that_an_edit_has_added_is_none_of_the_originals(tmp_path: Path) -> None:
    before = "static int a; int f(void) { return ++a; }"
    renamed = before.replace("a;", "b;").replace("++a", "++b")
    assert kept(compared(tmp_path, before, renamed, added={("", "b")})) == {}
