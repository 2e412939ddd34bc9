# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""Code that edits added, that the sources have no more, and whose address somebody may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hotreload.patch.homes import Home, Settlement, continued, settle
from hotreload.patch.left_behind import LeftBehind, left_behind, renamed
from hotreload.patch.model import Identity, PatchPlan
from tests.objects.test_homes import BEAT, BEFORE, redirected, settled
from tests.objects.test_module import planned

GONE = BEFORE.replace("return i", "return i + 1")


def plan_of(tmp_path: Path, after: str) -> PatchPlan:
    """A plan whose functions have a prototype, as those of units with types have."""
    plan = planned(tmp_path, {"unit.c": (BEFORE, after)})
    return replace(
        plan, pieces=tuple(replace(p, type="void (void)" if p.identity else "") for p in plan.pieces)
    )


def left(before: PatchPlan, known: Mapping[Identity, Home], now: PatchPlan | None) -> LeftBehind:
    homes = renamed(before, now).homes(continued(known, before))
    settlement = settle(now, homes, "hotreload_2") if now else Settlement()
    return left_behind(before, known, now, homes, settlement)


def names(found: LeftBehind) -> list[tuple[str, str, str]]:
    return [(module, obstacle.code, obstacle.symbol) for module, obstacle in found.obstacles]


@pytest.mark.parametrize("after", [GONE, None])
def test_a_function_that_left_the_sources_is_in_the_way(after: str | None, tmp_path: Path) -> None:
    first = plan_of(tmp_path / "1", BEAT)
    _, homes = settled(first, "hotreload_1", {})
    found = left(first, homes, plan_of(tmp_path / "2", after) if after else None)
    assert names(found) == [("drv", "HR2207", "beat")]
    assert (found.modules, found.but_of(frozenset(("drv",)))) == ({"drv"}, LeftBehind())


def test_what_is_still_there_is_not_in_the_way(tmp_path: Path) -> None:
    first = plan_of(tmp_path / "1", BEAT)
    _, homes = settled(first, "hotreload_1", {})
    assert left(first, homes, plan_of(tmp_path / "2", BEAT.replace("+= step", "-= step"))) == LeftBehind()


def test_one_that_is_renamed_goes_on_in_its_home(tmp_path: Path) -> None:
    first = plan_of(tmp_path / "1", BEAT)
    _, homes = settled(first, "hotreload_1", {})
    later = plan_of(
        tmp_path / "2",
        BEAT.replace("beat(", "tick(").replace("keep = beat", "keep = tick").replace("+= step", "-= step"),
    )
    assert left(first, homes, later) == LeftBehind()
    found, now = settled(later, "hotreload_2", renamed(first, later).homes(homes))
    assert redirected(found, later) == [("hotreload_1", "beat", "tick")]
    # And once more, and gone at last.
    third = plan_of(
        tmp_path / "3",
        BEAT.replace("beat(", "pulse(").replace("keep = beat", "keep = pulse").replace("+= step", "^= step"),
    )
    of_later = {identity: home for identity, home in now.items() if identity.name != "beat"}
    found, _ = settled(third, "hotreload_3", renamed(later, third).homes(of_later))
    assert [(f.old_name, third.pieces[f.new_func].name) for o in found.redirected for f in o.funcs] == [
        ("beat", "pulse")
    ]
    assert names(left(later, of_later, None)) == [("drv", "HR2207", "tick")]


def test_a_variable_that_begins_with_a_renamed_function_goes_on(tmp_path: Path) -> None:
    source = "struct t { void (*fn)(void); int n; }; void *keep; static void beat(void) { keep = 0; } static struct t timer = { beat, 3 }; int f(int i) { keep = &timer; return i; }"
    first = plan_of(tmp_path / "1", source)
    _, homes = settled(first, "hotreload_1", {})
    later = plan_of(tmp_path / "2", source.replace("beat", "tick"))
    found, _ = settled(later, "hotreload_2", renamed(first, later).homes(homes))
    assert (found.anew, found.redirected, left(first, homes, later)) == ((), (), LeftBehind())


def test_a_static_local_of_a_renamed_function_keeps_its_home(tmp_path: Path) -> None:
    source = """
        void *keep; static int beat(void) { static int n = 3; return n++; }
        int f(int i) { keep = beat; return i; }
    """
    first = plan_of(tmp_path / "1", source)
    _, homes = settled(first, "hotreload_1", {})
    later = plan_of(tmp_path / "2", source.replace("beat", "tick"))
    found, now = settled(later, "hotreload_2", renamed(first, later).homes(homes))
    assert (found.anew, {home.patch for home in now.values()}) == ((), {"hotreload_1"})


def test_one_with_another_prototype_is_no_renamed_one(tmp_path: Path) -> None:
    first = plan_of(tmp_path / "1", BEAT)
    _, homes = settled(first, "hotreload_1", {})
    later = plan_of(tmp_path / "2", BEAT.replace("beat(", "tick(").replace("keep = beat", "keep = tick"))
    later = replace(
        later, pieces=tuple(replace(p, type="void (int)") if p.name == "tick" else p for p in later.pieces)
    )
    assert names(left(first, homes, later)) == [("drv", "HR2207", "beat")]


@pytest.mark.parametrize(
    ("source", "change"),
    [
        (BEAT.replace("static void beat", "static notrace void beat"), ("+= step", "-= step")),
        (BEAT, ("keep = beat", "keep = beat")),
    ],
)
def test_old_code_that_cannot_be_redirected_is_in_the_way(
    source: str, change: tuple[str, str], tmp_path: Path
) -> None:
    first = plan_of(tmp_path / "1", source)
    _, homes = settled(first, "hotreload_1", {})
    if change[0] == change[1]:  # declared in another way, which no object tells without types
        homes = {identity: replace(home, type="int (long)") for identity, home in homes.items()}
    assert names(left(first, homes, plan_of(tmp_path / "2", source.replace(*change)))) == [
        ("drv", "HR2202", "beat")
    ]


def test_a_variable_that_somebody_may_point_at_is_told(tmp_path: Path) -> None:
    first = plan_of(tmp_path, "void *keep; static int node; int f(int i) { keep = &node; return i; }")
    _, homes = settled(first, "hotreload_1", {})
    found = left(first, homes, None)
    assert (found.obstacles, [identity.name for identity in found.variables]) == ((), ["node"])


def test_what_returns_to_its_home_by_undo_was_never_left_behind(tmp_path: Path) -> None:
    first = plan_of(tmp_path / "1", BEAT)
    _, homes = settled(first, "hotreload_1", {})
    later = plan_of(tmp_path / "2", BEAT.replace("beat(", "tick(").replace("keep = beat", "keep = tick"))
    now = renamed(first, later).homes(homes)
    assert left_behind(later, now, first, homes, settle(first, homes, "hotreload_3")) == LeftBehind()
