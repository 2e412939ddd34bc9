# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""What an edit adds keeps its home in the patch modules to come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hotreload.diff.correlate import base_name
from hotreload.patch.homes import Home, Settlement, continued, dropped, reasons_to_stay, settle
from hotreload.patch.model import Identity, PatchPlan
from tests.objects.test_module import planned

BEFORE = "void *keep; int f(int i) { return i; }"
COUNTER = "void *keep; int f(int i) { static int count = FIRST; return i + count++; }"
# A function that the kernel keeps the address of, and what it calls and writes to.
BEAT = """
    void *keep; static int beats;
    static noinline int step(int i) { return i * 3; }
    static void beat(void) { beats += step(beats); }
    int f(int i) { keep = beat; return i; }
"""


def of(tmp_path: Path, after: str) -> PatchPlan:
    return planned(tmp_path, {"unit.c": (BEFORE, after)})


def settled(
    plan: PatchPlan, patch: str, known: Mapping[Identity, Home]
) -> tuple[Settlement, dict[Identity, Home]]:
    """What a plan finds, and the homes there are when it is loaded: a piece's address is its number."""
    found = settle(plan, known, patch)
    homes = dict(known) | dict(found.at_home)
    for number, meaning in found.settling.items():
        piece = plan.pieces[number]
        assert piece.identity is not None
        homes[piece.identity] = Home(patch, 4096 + number, piece.name, 1, meaning, piece.type, piece.is_held)
    return found, homes


def told(found: Settlement, plan: PatchPlan) -> dict[str, int]:
    return {
        plan.pieces[number].name.partition(".")[0]: address for number, address in found.elsewhere.items()
    }


def redirected(found: Settlement, plan: PatchPlan) -> list[tuple[str | None, str, str]]:
    return [(o.name, f.old_name, plan.pieces[f.new_func].name) for o in found.redirected for f in o.funcs]


def test_the_first_patch_is_the_home_of_what_it_adds_and_stays_for_it(tmp_path: Path) -> None:
    plan = of(tmp_path, BEAT)
    found, homes = settled(plan, "hotreload_1", {})
    assert found.elsewhere == {}
    assert sorted(identity.name for identity in homes) == ["beat", "beats"]
    assert sorted(reasons_to_stay(plan, found)) == ["beat", "beats"]


def test_a_later_patch_shares_the_variable_and_need_not_stay(tmp_path: Path) -> None:
    _, homes = settled(of(tmp_path / "1", COUNTER.replace("FIRST", "5")), "hotreload_1", {})
    plan = of(tmp_path / "2", COUNTER.replace("FIRST", "5").replace("i + count++", "i - count++"))
    found, _ = settled(plan, "hotreload_2", homes)
    assert told(found, plan) == {"count": next(iter(homes.values())).address}
    assert (found.anew, reasons_to_stay(plan, found)) == ((), ())


@pytest.mark.parametrize(
    "other", [COUNTER.replace("FIRST", "6"), COUNTER.replace("int count = FIRST", "long count = 5")]
)
def test_another_initial_value_or_size_is_another_variable_and_that_is_told(
    other: str, tmp_path: Path
) -> None:
    _, homes = settled(of(tmp_path / "1", COUNTER.replace("FIRST", "5")), "hotreload_1", {})
    plan = of(tmp_path / "2", other)
    found, later = settled(plan, "hotreload_2", homes)
    assert (found.elsewhere, found.anew) == ({}, ("count",))
    assert [home.patch for home in later.values()] == ["hotreload_2"]


def test_static_locals_of_one_name_are_told_apart_by_their_functions(tmp_path: Path) -> None:
    two = "void *keep; int f(int i) { static int n = 1; return i + n++; } int g(int i) { static int n = 2; return i - n++; }"
    swapped = "void *keep; int g(int i) { static int n = 2; return i - n++; } int f(int i) { static int n = 1; return i + n++; }"
    _, homes = settled(of(tmp_path / "1", two), "hotreload_1", {})
    plan = of(tmp_path / "2", swapped)
    found, _ = settled(plan, "hotreload_2", homes)
    where = {identity.owners: home.address for identity, home in homes.items()}
    assert {plan.pieces[n].identity.owners: address for n, address in found.elsewhere.items()} == where  # type: ignore[union-attr]
    assert set(where) == {("f",), ("g",)}


def test_two_statics_that_nothing_tells_apart_have_no_home(tmp_path: Path) -> None:
    after = (
        "void *keep; int f(int i) { { static int n = 1; i += n++; } { static int n = 1; return i - n++; } }"
    )
    found, homes = settled(of(tmp_path, after), "hotreload_1", {})
    assert (homes, found.settling) == ({}, {})


def test_a_function_whose_address_is_kept_is_redirected_when_it_changes(tmp_path: Path) -> None:
    first = of(tmp_path / "1", BEAT)
    _, homes = settled(first, "hotreload_1", {})
    same, _ = settled(first, "hotreload_2", homes)
    assert same.redirected == ()
    plan = of(tmp_path / "2", BEAT.replace("beats += step", "beats -= step"))
    changed, _ = settled(plan, "hotreload_2", homes)
    assert redirected(changed, plan) == [("hotreload_1", "beat", "beat")]


def test_it_is_redirected_when_something_changes_that_it_calls(tmp_path: Path) -> None:
    _, homes = settled(of(tmp_path / "1", BEAT), "hotreload_1", {})
    plan = of(tmp_path / "2", BEAT.replace("i * 3", "i * 5"))
    found, _ = settled(plan, "hotreload_2", homes)
    assert redirected(found, plan) == [("hotreload_1", "beat", "beat")]


def test_it_is_redirected_when_its_variable_starts_anew(tmp_path: Path) -> None:
    _, homes = settled(of(tmp_path / "1", BEAT), "hotreload_1", {})
    plan = of(tmp_path / "2", BEAT.replace("int beats;", "int beats = 7;"))
    found, later = settled(plan, "hotreload_2", homes)
    assert (found.anew, redirected(found, plan)) == (("beats",), [("hotreload_1", "beat", "beat")])
    # The home of the function is the first patch's, its variable's the second's: that stays so.
    again, _ = settled(plan, "hotreload_3", later)
    assert (again.anew, redirected(again, plan)) == ((), [("hotreload_1", "beat", "beat")])


def test_what_cannot_be_traced_stays_as_it_was_and_that_is_told(tmp_path: Path) -> None:
    untraced = BEAT.replace("static void beat", "static notrace void beat")
    _, homes = settled(of(tmp_path / "1", untraced), "hotreload_1", {})
    plan = of(tmp_path / "2", untraced.replace("+= step", "-= step"))
    found, _ = settled(plan, "hotreload_2", homes)
    assert (found.redirected, [of.name for of in found.stranded]) == ((), ["beat"])


def test_a_function_that_is_declared_in_another_way_is_another_one(tmp_path: Path) -> None:
    # Who has the address of a work item's function calls it with a work item.
    plan = of(tmp_path, BEAT)
    _, homes = settled(plan, "hotreload_1", {})
    other = {
        identity: replace(home, type="void (*)(struct work_struct *)") for identity, home in homes.items()
    }
    found, later = settled(plan, "hotreload_2", other)
    assert (found.redirected, [of.name for of in found.redeclared]) == ((), ["beat"])
    assert {home.patch for identity, home in later.items() if identity.name == "beat"} == {"hotreload_2"}


def test_what_was_gone_for_a_while_is_new_when_it_returns(tmp_path: Path) -> None:
    plan = of(tmp_path / "1", BEAT)
    _, homes = settled(plan, "hotreload_1", {})
    without = of(tmp_path / "2", BEFORE.replace("return i", "return i + 1"))
    assert continued(homes, plan) == homes
    assert continued(homes, without) == continued(homes, None) == {}


ONCE = "void *keep; int f(int i) { SHOW return i; } int g(int i) { OTHER return i + 2; }"
STATIC = "static int once; if (!once++) keep = &i;"


WARNS = "int f(int i) { FIRST SECOND return i; }"
WARN = """{ static _Bool __section(".data.once") __already_done; if (i > 3 && !__already_done) { __already_done = 1; printk(TEXT); } }"""


def test_the_flag_of_an_added_warning_is_kept_through_later_patches(tmp_path: Path) -> None:
    def with_(first: str, second: str, name: str) -> PatchPlan:
        texts = [WARN.replace("TEXT", f'"{text}"') if text else "" for text in (first, second)]
        before = WARNS.replace("FIRST", "").replace("SECOND", "")
        after = WARNS.replace("FIRST", texts[0]).replace("SECOND", texts[1])
        return planned(tmp_path / name, {"unit.c": (before, after)})

    one = with_("one", "", "1")
    _, homes = settled(one, "hotreload_1", {})
    again = with_("another text", "", "2")
    found, _ = settled(again, "hotreload_2", homes)
    assert ([base_name(name) for name in told(found, again)], found.anew) == (["__already_done"], ())
    # Of two nobody knows which is the first; each may report, and that is told.
    two = with_("one", "two", "3")
    found, homes = settled(two, "hotreload_3", homes)
    assert (told(found, two), set(found.anew)) == ({}, {"__already_done of f"})
    later = with_("one", "three", "4")
    found, _ = settled(later, "hotreload_4", homes)
    assert (len(found.elsewhere), found.anew) == (2, ())
    # That it is gone is what the sources say, and needs no word.
    assert dropped(later, planned(tmp_path / "5", {"unit.c": (BEFORE, BEAT)}), homes) == ()


def test_a_static_local_that_moves_to_another_function_is_another_one(tmp_path: Path) -> None:
    _, homes = settled(
        of(tmp_path / "1", ONCE.replace("SHOW", STATIC).replace("OTHER", "")), "hotreload_1", {}
    )
    plan = of(tmp_path / "2", ONCE.replace("SHOW", "").replace("OTHER", STATIC))
    found, _ = settled(plan, "hotreload_2", homes)
    assert (found.elsewhere, found.anew) == ({}, ("once",))


def test_an_added_variable_that_moves_between_a_function_and_the_file_is_the_same_one(tmp_path: Path) -> None:
    source = "void *keep; FILE int f(int i) { FUNCTION keep = &count; return i + ++count; }"
    inside = source.replace("FUNCTION", "static int count;").replace("FILE", "")
    outside = source.replace("FILE", "static int count;").replace("FUNCTION", "")
    first = of(tmp_path / "1", inside)
    _, homes = settled(first, "hotreload_1", {})
    second = of(tmp_path / "2", outside)
    found, _ = settled(second, "hotreload_2", homes)
    assert (told(found, second), found.anew) == ({"count": next(iter(homes.values())).address}, ())
    assert dropped(first, second, homes) == ()
    assert dropped(first, of(tmp_path / "3", BEAT), homes) == ("count",)


def test_a_static_local_begins_anew_when_its_function_is_inlined_no_more_and_that_is_told(
    tmp_path: Path,
) -> None:
    source = "void *keep; static KIND int next(void) { static int id = 100; return ++id; } int f(int i) { return i + next(); }"
    _, homes = settled(of(tmp_path / "1", source.replace("KIND", "")), "hotreload_1", {})
    plan = of(tmp_path / "2", source.replace("KIND", "noinline"))
    found, _ = settled(plan, "hotreload_2", homes)
    assert (found.elsewhere, found.anew) == ({}, ("id",))


def test_a_static_local_is_the_same_when_its_function_is_inlined_once_more(tmp_path: Path) -> None:
    before = "void *keep; int f(int i) { return i; } int g(int i) { return i; }"
    source = "void *keep; static int next(void) { static int id = 100; return ++id; } int f(int i) { return i + next(); } int g(int i) { return i OTHER; }"
    first = planned(tmp_path / "1", {"unit.c": (before, source.replace("OTHER", ""))})
    _, homes = settled(first, "hotreload_1", {})
    second = planned(tmp_path / "2", {"unit.c": (before, source.replace("OTHER", "+ next()"))})
    found, _ = settled(second, "hotreload_2", homes)
    assert (told(found, second), found.anew) == ({"id": next(iter(homes.values())).address}, ())


def test_a_constant_is_no_more_than_its_content(tmp_path: Path) -> None:
    source = "void *keep; static const int table[] = {1, 2, 3, 4}; int f(int i) { return table[i & 3]; }"
    plan = of(tmp_path, source)
    found, homes = settled(plan, "hotreload_1", {})
    assert (homes, reasons_to_stay(plan, found)) == ({}, ())


@pytest.mark.parametrize("order", ["buf, *cur", "*cur, buf"], ids=["buffer first", "pointer first"])
def test_a_pointer_to_a_variable_that_begins_anew_does_so_too(order: str, tmp_path: Path) -> None:
    source = "void *keep; static int buf[4] = {VALUE, 2}; static int *cur = buf; int f(int i) { keep = &buf; return *cur++; }"
    if order.startswith("*"):
        source = source.replace("keep = &buf; return *cur++;", "i += *cur++; keep = &buf; return i;")
    _, homes = settled(of(tmp_path / "1", source.replace("VALUE", "1")), "hotreload_1", {})
    same, _ = settled(of(tmp_path / "2", source.replace("VALUE", "1")), "hotreload_2", homes)
    other, _ = settled(of(tmp_path / "3", source.replace("VALUE", "9")), "hotreload_2", homes)
    assert (same.anew, sorted(other.anew)) == ((), ["buf", "cur"])


def test_statics_of_one_name_stay_apart_when_an_edit_adds_a_caller_of_both(tmp_path: Path) -> None:
    source = """
        void *keep; static noinline int a(int i) { static int n = 1; return i + n++; }
        static noinline int b(int i) { static int n = 2; return i - n++; }
        int f(int i) { return a(i) * b(i); } int g(int i) { return i OTHER; }
    """
    before = "void *keep; int f(int i) { return i; } int g(int i) { return i; }"
    first = planned(tmp_path / "1", {"unit.c": (before, source.replace("OTHER", ""))})
    _, homes = settled(first, "hotreload_1", {})
    later = planned(tmp_path / "2", {"unit.c": (before, source.replace("OTHER", "+ a(i) + b(i)"))})
    found, _ = settled(later, "hotreload_2", homes)
    where = {identity.owners: home.address for identity, home in homes.items()}
    assert {later.pieces[n].identity.owners: address for n, address in found.elsewhere.items()} == where  # type: ignore[union-attr]


def test_who_stores_a_function_that_is_another_one_now_stores_the_new_one(tmp_path: Path) -> None:
    source = """
        void *keep, *kept; static void tick(void) { keep = 0; }
        static void starter(void) { keep = tick; }
        int f(int i) { kept = starter; return i; }
    """
    plan = of(tmp_path, source)
    _, homes = settled(plan, "hotreload_1", {})
    other = {i: replace(home, type="another") if i.name == "tick" else home for i, home in homes.items()}
    found, _ = settled(plan, "hotreload_2", other)
    assert ([of.name for of in found.redeclared], redirected(found, plan)) == (
        ["tick"],
        [("hotreload_1", "starter", "starter")],
    )
