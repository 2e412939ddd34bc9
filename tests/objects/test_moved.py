# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""Variables that went to another unit of their module with code: they are where they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from hotreload.diff.running_code import match_running
from hotreload.diff.unit_diff import diff_unit, unit_object_of
from hotreload.elf.reader import read_object
from hotreload.patch.kernel_symbols import KernelSymbols
from hotreload.patch.model import PatchPlan, UnitDiff
from hotreload.patch.plan import plan_patch
from hotreload.patch.symbols import ModuleSymbols, SymbolPosition
from tests.objects.compiling import compiled, linked
from tests.objects.test_module import EXPORTS

FLAGS = ("-g", "-gdwarf-5")
SHOW = "int show(int x) { return next(x) + 1; }"
NEXT = "noinline int next(int by) { static int ticket = 100; ticket += by; return ticket; }"
BUMP = "int bump(int by) { count += by; return count; }"


def planned(folder: Path, units: Mapping[str, tuple[str, str]]) -> PatchPlan:
    """As in test_module.py, but with what the debugging information tells."""
    plain = {
        name: compiled(
            before, folder / "plain", "-fno-function-sections", "-fno-data-sections", *FLAGS, name=name
        )
        for name, (before, _) in units.items()
    }
    symbols = ModuleSymbols("drv", linked(folder, *plain.values(), name="drv.ko"))
    diffs = []
    for name, texts in units.items():
        base, patched = (
            unit_object_of(read_object(compiled(text, folder / side, *FLAGS, name=name)))
            for side, text in zip(("base", "patched"), texts, strict=True)
        )
        diff = diff_unit(base, patched, {}, types_known=True)
        assert diff.obstacles == ()
        running = match_running(read_object(plain[name]), base.object)
        diffs.append(UnitDiff("drv", name, symbols.block_of(name, 0), diff, running))
    return plan_patch([d for d in diffs if d.diff.brings], KernelSymbols(EXPORTS, {"drv": symbols}))


def places(plan: PatchPlan) -> set[str]:
    """The variables of the guest that the patch refers to."""
    targets = {r.target for piece in plan.pieces for r in piece.relocations}
    return {target.name for target in targets if isinstance(target, SymbolPosition)}


def carried(plan: PatchPlan) -> set[str]:
    return {piece.name.split(".")[0] for piece in plan.pieces}


def test_a_static_local_goes_with_its_function_to_another_unit(tmp_path: Path) -> None:
    declared = "int next(int by); "
    units = {
        "main.c": ("static " + NEXT + SHOW, declared + SHOW),
        "util.c": ("int scale(int v) { return v * 10; }", "int scale(int v) { return v * 10; } " + NEXT),
    }
    plan = planned(tmp_path, units)
    assert {name.split(".")[0] for name in places(plan)} >= {"ticket"}
    assert "ticket" not in carried(plan)
    assert plan.moved == {"ticket"}


@pytest.mark.parametrize(
    ("start", "name", "is_same"),
    [
        pytest.param("&list, &list", "add", True, id="an empty list"),
        pytest.param("&head, &head", "add", False, id="it points elsewhere"),
        pytest.param("&list, &list", "push", False, id="no function came along"),
    ],
)
def test_a_variable_of_the_file_goes_with_a_function(
    start: str, name: str, is_same: bool, tmp_path: Path
) -> None:
    head = "struct l { struct l *next, *prev; }; extern struct l head; struct l head; "
    code = f"static struct l list = {{ {start} }}; static noinline int add(struct l *x) {{ x->next = list.next; list.next = x; return 0; }} "
    there = head.removesuffix("struct l head; ") + code.replace("add", name)
    units = {
        "main.c": (
            head + code + "int one(struct l *x) { return add(x); }",
            head + "int one(struct l *x) { return 0; }",
        ),
        "util.c": ("int two(void *x) { return 2; }", there + f"int two(void *x) {{ return {name}(x); }}"),
    }
    plan = planned(tmp_path, units)
    assert ("list" in places(plan), "list" in carried(plan)) == (is_same, not is_same)


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        pytest.param("static int level = 7;", "int level = 7;", True, id="now global"),
        pytest.param("static int level = 7;", "int level = 8;", False, id="another first value"),
        pytest.param("static int level = 7;", "long level = 7;", False, id="another type"),
    ],
)
def test_a_variable_that_its_unit_goes_on_to_use_is_the_same(
    old: str, new: str, is_same: bool, tmp_path: Path
) -> None:
    use = "int raise_it(int by) { level += by; return level; }"
    units = {
        "main.c": (
            old + use,
            new.split(" =")[0].replace("int", "extern int").replace("long", "extern long") + ";" + use,
        ),
        "util.c": ("int get(void) { return 0; }", new + " int get(void) { return level; }"),
    }
    plan = planned(tmp_path, units)
    assert ("level" in places(plan), "level" in carried(plan)) == (is_same, not is_same)
