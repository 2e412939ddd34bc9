# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""Functions whose addresses somebody holds: under another name, exchanged, or gone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from hotreload.build.compile import ObjectPair
from hotreload.compared import Compared, Original
from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.unit_diff import UnitContext, diff_unit, unit_object_of
from hotreload.elf.reader import read_object
from hotreload.renamed_across import held_across_units, renames_across
from tests.objects.compiling import compiled

if TYPE_CHECKING:
    from hotreload.build.base import AnyBase
    from hotreload.build.cmd_files import TranslationUnit

WORK = """
    struct work { void (*fn)(struct work *); int n; };
    void queue(struct work *); int x;
    static struct work first, second;
"""
ONE = (
    WORK
    + """
    static void tick(struct work *w) { w->n++; queue(w); }
    int show(int i) { return i + x; }
    void start(void) { first.fn = tick; queue(&first); x = 1; }
"""
)
TWO = (
    WORK
    + """
    static void red(struct work *w) { w->n++; queue(w); }
    static void blue(struct work *w) { w->n--; queue(w); }
    void start(void) { first.fn = red; queue(&first); second.fn = blue; queue(&second); }
"""
)
TABLE = """
    struct ops { int (*get)(int); int (*put)(int); const char *name; };
    static int get_it(int i) { return i * 3; }
    static int put_it(int i) { return i * 5; }
    const struct ops ops = { .get = get_it, .put = put_it, .name = "it" };
"""


def diff(tmp_path: Path, before: str, after: str, *flags: str) -> ObjectDiff:
    original = read_object(compiled(before, tmp_path / "before", "-g", *flags))
    patched = read_object(compiled(after, tmp_path / "after", "-g", *flags))
    return diff_unit(unit_object_of(original), unit_object_of(patched), {}, types_known=True)


def pairs(found: ObjectDiff) -> dict[str, str]:
    """The functions whose twin has another name."""
    return {
        one.name: other.name
        for other, one in found.original_of.items()
        if one.is_function and one.name != other.name
    }


def codes(found: ObjectDiff) -> list[tuple[str, str]]:
    return [(obstacle.code, obstacle.symbol) for obstacle in found.obstacles]


def test_a_callback_that_is_renamed_at_its_registration_is_the_same_function(tmp_path: Path) -> None:
    found = diff(tmp_path, ONE, ONE.replace("tick", "beat"))
    assert (found.verdict, pairs(found)) == ("unchanged", {"tick": "beat"})
    (note,) = found.notes
    assert note.message == "beat takes the place of tick: anything that holds tick runs beat"


def test_one_that_changed_besides_is_redirected_under_its_old_name(tmp_path: Path) -> None:
    found = diff(tmp_path, ONE, ONE.replace("tick", "beat").replace("w->n++", "w->n += 7"))
    assert (found.verdict, [(t.original.name, t.patched.name) for t in found.changed]) == (
        "patchable",
        [("tick", "beat")],
    )
    assert found.new_functions == ()


@pytest.mark.parametrize("place", ["__init void start", "void start"])
def test_the_function_that_registers_it_may_change_elsewhere(place: str, tmp_path: Path) -> None:
    before = ONE.replace("void start", place)
    found = diff(
        tmp_path, before, before.replace("tick", "beat").replace("x = 1;", "x = 1; queue(0); x = 2;")
    )
    assert pairs(found) == {"tick": "beat"}
    assert "HR2207" not in dict(codes(found))


def test_a_static_local_of_a_renamed_callback_keeps_its_value(tmp_path: Path) -> None:
    before = ONE.replace("w->n++;", "static int calls; w->n = calls++;")
    found = diff(tmp_path, before, before.replace("tick", "beat").replace("calls++", "++calls"))
    assert (found.verdict, found.new_data) == ("patchable", ())


def test_another_registration_that_came_at_the_same_time_is_another_function(tmp_path: Path) -> None:
    # The first item is not given to ``beat``: it must not run it.
    after = (
        ONE.replace("tick", "beat")
        .replace("first.fn", "second.fn")
        .replace("queue(&first)", "queue(&second)")
    )
    found = diff(tmp_path, ONE, after)
    assert (pairs(found), codes(found)) == ({}, [("HR2207", "tick")])


def test_a_callback_in_another_member_is_another_function(tmp_path: Path) -> None:
    before = "struct two { void (*a)(void); void (*b)(void); }; void use(struct two *); static void red(void) { use(0); } void start(struct two *t) { use(t); t->a = red; use(t); }"
    found = diff(tmp_path, before, before.replace("red", "blue").replace("t->a", "t->b"))
    assert (pairs(found), codes(found)) == ({}, [("HR2207", "red")])


def test_another_prototype_makes_it_another_function(tmp_path: Path) -> None:
    after = ONE.replace("tick(struct work *w) { w->n++; queue(w); }", "beat(void *w) { queue(w); }").replace(
        "= tick", "= (void *)beat"
    )
    assert codes(diff(tmp_path, ONE, after)) == [("HR2207", "tick")]


def test_without_types_nothing_is_proved(tmp_path: Path) -> None:
    original = read_object(compiled(ONE, tmp_path / "before"))
    patched = read_object(compiled(ONE.replace("tick", "beat"), tmp_path / "after"))
    assert codes(diff_unit(unit_object_of(original), unit_object_of(patched), {}))[0] == ("HR2207", "tick")


def test_a_callback_that_is_gone_is_refused(tmp_path: Path) -> None:
    after = ONE.replace("static void tick(struct work *w) { w->n++; queue(w); }", "").replace(
        "first.fn = tick;", ""
    )
    assert codes(diff(tmp_path, ONE, after)) == [("HR2207", "tick")]


def test_one_that_became_part_of_its_only_caller_is_refused(tmp_path: Path) -> None:
    after = ONE.replace("first.fn = tick;", "tick(x ? &first : &second);")
    assert codes(diff(tmp_path, ONE, after)) == [("HR2207", "tick")]


def test_a_function_that_is_only_called_goes_silently(tmp_path: Path) -> None:
    before = "void q(int); static noinline int help(int i) { q(i); return i * 3; } int f(int i) { return help(i) + 1; }"
    found = diff(
        tmp_path,
        before,
        "void q(int); static noinline int helper(int i) { q(i); return i * 7; } int f(int i) { return helper(i) + 1; }",
    )
    assert (found.verdict, found.notes) == ("patchable", ())


ALIKE = (
    "static noinline int a(int k) { return k * 3 + x; }",
    "static noinline int b(int k) { return k * 3 + x; }",
)
USERS = "int f(int i) { return a(i) + b(i); }"


def test_two_functions_that_gcc_made_one_are_not_renamed_when_they_change_places(tmp_path: Path) -> None:
    before, after = (f"int x; {one} {other} {USERS}" for one, other in (ALIKE, ALIKE[::-1]))
    found = diff(tmp_path, before, after)
    assert (found.verdict, found.notes) == ("unchanged", ())
    renamed = diff(tmp_path, f"int x; {ALIKE[0]} int f(int i) {{ return a(i); }}",
                   f"int x; {ALIKE[1]} int f(int i) {{ return b(i); }}")  # fmt: skip
    assert [note.code for note in renamed.notes] == ["HR2207"]


def test_two_callbacks_that_are_renamed_in_one_save_keep_their_places(tmp_path: Path) -> None:
    found = diff(tmp_path, TWO, TWO.replace("red", "warm").replace("blue", "cold"))
    assert pairs(found) == {"red": "warm", "blue": "cold"}


def test_names_that_are_exchanged_are_exchanged_in_the_guest(tmp_path: Path) -> None:
    swapped = TWO.replace("red", "RED").replace("blue", "red").replace("RED", "blue")
    found = diff(tmp_path, TWO, swapped)
    assert (found.verdict, pairs(found)) == ("unchanged", {"red": "blue", "blue": "red"})


def test_registrations_that_are_exchanged_are_no_renaming(tmp_path: Path) -> None:
    # Who holds ``red`` already holds it still, and its code has the same name.
    after = TWO.replace("first.fn = red", "first.fn = blue").replace("second.fn = blue", "second.fn = red")
    found = diff(tmp_path, TWO, after)
    assert (found.verdict, pairs(found), found.changed_functions) == ("patchable", {}, ("start",))


def test_names_that_are_exchanged_while_one_changes_go_with_the_code_of_the_other(tmp_path: Path) -> None:
    swapped = TWO.replace("red", "RED").replace("blue", "red").replace("RED", "blue").replace("n--", "n -= 3")
    found = diff(tmp_path, TWO, swapped)
    assert (found.verdict, pairs(found)) == ("patchable", {"red": "blue", "blue": "red"})
    assert [twins.original.name for twins in found.changed] == ["blue"]


def test_places_that_are_exchanged_while_both_functions_change_are_a_doubt(tmp_path: Path) -> None:
    after = TWO.replace("first.fn = red", "first.fn = blue").replace("second.fn = blue", "second.fn = red")
    found = diff(tmp_path, TWO, after.replace("w->n++", "w->n += 2").replace("w->n--", "w->n -= 2"))
    assert (pairs(found), codes(found)) == ({}, [("HR2207", "blue"), ("HR2207", "red")])


HANDLERS = """
    typedef int (*handler)(int); void q(int);
    static int one(int i) { q(1); return i + 1; }
    static int two(int i) { q(2); return i * 2; }
    static int three(int i) { q(3); return -i; }
    static handler const all[] = { one, two, three };
    handler held;
    int call(int i) { return held(i); }
    void hold(int i) { held = all[i]; }
"""


@pytest.mark.parametrize("order", ["{ two, one, three }", "{ two, three, one }"])
def test_a_table_whose_rows_are_reordered_renames_nothing(order: str, tmp_path: Path) -> None:
    found = diff(tmp_path, HANDLERS, HANDLERS.replace("{ one, two, three }", order))
    assert (found.verdict, pairs(found)) == ("patchable", {})


def test_a_table_that_loses_its_first_row_and_gets_a_last_one_renames_nothing(tmp_path: Path) -> None:
    after = HANDLERS.replace("static int one(int i) { q(1); return i + 1; }", "").replace(
        "{ one, two, three }", "{ two, three, four }"
    )
    found = diff(
        tmp_path, HANDLERS, after.replace("static handler", "static int four(int i) { q(4); return i; } static handler")
    )  # fmt: skip
    assert (pairs(found), codes(found)) == ({}, [("HR2207", "one")])


def test_names_may_go_round_in_a_circle(tmp_path: Path) -> None:
    names = {"one": "TWO", "two": "THREE", "three": "ONE"}
    after = HANDLERS
    for name, now in names.items():
        after = after.replace(name, now)
    assert pairs(diff(tmp_path, HANDLERS, after.replace("TWO", "two").replace("THREE", "three").replace("ONE", "one"))) == {
        "one": "two", "two": "three", "three": "one",
    }  # fmt: skip


def test_a_name_that_another_function_has_now_is_a_doubt(tmp_path: Path) -> None:
    # The timer runs ``beat`` in the sources; ``tick`` is a function that nobody ever gave to it.
    after = ONE.replace("tick", "beat").replace("static void beat", "static struct work other; static void tick(struct work *w) { w->n = 0; } static void beat").replace("first.fn", "other.fn = tick; first.fn")  # fmt: skip
    assert codes(diff(tmp_path, ONE, after)) == [("HR2207", "tick")]


def test_a_held_function_that_has_other_parameters_is_refused(tmp_path: Path) -> None:
    before = ONE + "int part(int i) { return i; }"
    after = before.replace("tick", "beat").replace(
        "int part(int i) { return i; }", "int tick(int i) { return i; }"
    )
    assert {code for code, _ in codes(diff(tmp_path, before, after))} == {"HR2207"}


def test_a_function_that_is_not_registered_any_more_goes_on_under_its_name_with_the_same_parameters(
    tmp_path: Path,
) -> None:
    before = ONE.replace("static void tick", "static noinline void tick")
    after = before.replace("first.fn = tick;", "tick(x ? &first : &second);")
    assert codes(diff(tmp_path, before, after)) == []
    other = after.replace("tick(struct work *w) { w", "tick(struct work *w, int i) { w->n += i; w")
    other = other.replace("&second)", "&second, x)")
    assert codes(diff(tmp_path, before, other)) == [("HR2207", "tick")]


@pytest.mark.parametrize("section", ["___ksymtab_gpl+hash", ".export_symbol"])
def test_an_export_holds_no_address_of_a_function(section: str, tmp_path: Path) -> None:
    # Up to v6.4 each export has a section of its own, without a symbol.
    before = f"""int hash(int n) {{ return n; }}
        __asm__(".section \\"{section}\\", \\"a\\"; .long hash - ., 0; .previous");"""
    assert codes(diff(tmp_path, before, before.replace("int hash", "long hash"))) == []


def test_callbacks_may_get_another_parameter_where_they_are_registered(tmp_path: Path) -> None:
    before = "typedef int (*cb)(void *); void reg(void *); static int one(int *i) { return sizeof(*i); } void start(void) { reg(one); }"
    found = diff(
        tmp_path, before, before.replace("int *i) { return sizeof(*i)", "char *i) { return sizeof(*i)")
    )
    assert (codes(found), found.changed_functions) == ([], ("one",))


def test_a_name_may_be_passed_on(tmp_path: Path) -> None:
    # red becomes blue, and what was blue becomes green.
    after = TWO.replace("blue", "green").replace("red", "blue")
    assert pairs(diff(tmp_path, TWO, after)) == {"red": "blue", "blue": "green"}


def test_one_registration_that_changes_while_both_stay_is_an_edit_like_any_other(tmp_path: Path) -> None:
    before = (
        TWO.replace("int x;", "int x; void *both(int i);").replace("second.fn = blue; queue(&second);", "")
        + "void *both(int i) { return i ? red : blue; }"
    )
    found = diff(tmp_path, before, before.replace("first.fn = red", "first.fn = blue"))
    assert (found.verdict, pairs(found), found.changed_functions) == ("patchable", {}, ("start",))


def test_lines_of_two_registrations_that_change_places_are_no_renaming(tmp_path: Path) -> None:
    before = 'struct t { const char *name; void (*fn)(void); }; void q(int); static void a(void) { q(1); } static void b(void) { q(2); } struct t all[2] = { { "a", a }, { "b", b } };'
    after = before.replace('{ "a", a }, { "b", b }', '{ "b", b }, { "a", a }')
    assert pairs(diff(tmp_path, before, after)) == {}


def test_an_entry_of_a_table_is_a_place(tmp_path: Path) -> None:
    found = diff(tmp_path, TABLE, TABLE.replace("get_it", "fetch").replace("i * 3", "i * 4"))
    assert (found.verdict, pairs(found)) == ("patchable", {"get_it": "fetch"})


def test_two_that_become_one_are_two(tmp_path: Path) -> None:
    after = (
        TABLE.replace("static int put_it(int i) { return i * 5; }", "")
        .replace("put_it", "get_it")
        .replace("get_it", "do_it")
    )
    assert {symbol for code, symbol in codes(diff(tmp_path, TABLE, after)) if code == "HR2207"} == {
        "get_it",
        "put_it",
    }


def test_a_renamed_opener_of_a_renamed_callback_is_followed(tmp_path: Path) -> None:
    before = "int single(int (*)(int)); static int show(int i) { return i * 3; } static int open(int i) { return i + single(show); } struct ops { int (*open)(int); }; const struct ops ops = { .open = open };"
    found = diff(
        tmp_path,
        before,
        before.replace("show", "print")
        .replace("int open(int i)", "int open_it(int i)")
        .replace("= open }", "= open_it }"),
    )
    assert pairs(found) == {"show": "print", "open": "open_it"}


HEADER = (
    "struct work { void (*fn)(struct work *); int n; }; void queue(struct work *); void tick(struct work *);"
)
DEFINES = HEADER + "void tick(struct work *w) { w->n++; queue(w); }"
USES = (
    HEADER
    + "struct work item = { .fn = tick }; void kick(struct work *w) { w->fn = tick; queue(w); } void now(struct work *w) { tick(w); w->n = 3; }"
)


@dataclass(frozen=True)
class Unit:
    object: Path


@dataclass(frozen=True)
class Module:
    name: str
    units: tuple[Unit, ...]


def across(tmp_path: Path, after: dict[str, str]) -> tuple[dict[str, ObjectDiff], list[str]]:
    """Two units of a module as the pipeline compares them; what stands in the way of both together."""
    before = {"defines.c": DEFINES, "uses.c": USES}
    modules = (Module("drv", tuple(Unit(Path(name)) for name in before)),)
    base = cast("AnyBase", SimpleNamespace(modules=modules))
    compared: dict[Path, Compared] = {}

    def compare(name: str, renames: dict[str, str]) -> None:
        original = unit_object_of(read_object(compiled(before[name], tmp_path / "before", "-g", name=name)))
        patched = unit_object_of(read_object(compiled(after[name], tmp_path / "after", "-g", name=name)))
        found = diff_unit(original, patched, {}, types_known=True, context=UnitContext(renames=renames))
        pair = ObjectPair(cast("TranslationUnit", SimpleNamespace(source=Path(name))), Path(), Path())
        compared[Path(name)] = Compared(pair, cast("Original", None), found, renames=renames)

    for name in before:
        compare(name, {})
    for key, renames in renames_across(base, compared).items():
        compare(str(key), renames)
    held = [obstacle.code for obstacle in held_across_units(base, compared)]
    return {str(key): each.diff for key, each in compared.items()}, held


def test_a_global_callback_is_known_under_its_new_name_in_every_unit(tmp_path: Path) -> None:
    after = {
        "defines.c": DEFINES.replace("tick", "beat").replace("n++", "n--"),
        "uses.c": USES.replace("tick", "beat"),
    }
    diffs, held = across(tmp_path, after)
    assert [(d.verdict, d.changed_functions) for d in diffs.values()] == [
        ("patchable", ("tick",)),
        ("unchanged", ()),
    ]
    assert held == []


def test_a_global_callback_that_is_gone_is_refused_for_the_unit_that_gave_it_away(tmp_path: Path) -> None:
    uses = USES.replace("tick(w);", "").replace("w->fn = tick;", "").replace("= { .fn = tick }", "")
    _, held = across(tmp_path, {"defines.c": HEADER, "uses.c": uses})
    assert held == ["HR2207"]


def test_a_global_callback_that_has_two_successors_is_refused(tmp_path: Path) -> None:
    after = {
        "defines.c": DEFINES.replace("tick", "beat"),
        "uses.c": USES.replace("tick", "beat").replace(".fn = beat", ".fn = queue"),
    }
    _, held = across(tmp_path, after)
    assert held == ["HR2207"]
