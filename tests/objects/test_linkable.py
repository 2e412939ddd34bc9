# SPDX-License-Identifier: MIT
"""Edits that each compile, and that make could not link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from hotreload.build.base import AnyBase
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import ObjectPair
from hotreload.compared import Compared, Original
from hotreload.diff.unit_diff import UnitObject
from hotreload.elf.linkage import linkage_of
from hotreload.linkable import unlinkable
from tests.objects.compiling import difference, object_of

USER = "int part(int); extern int level; int use(int x) { return part(x) + level; }"
PART = "int level = 2; int part(int x) { return x + 1; }"
NAMES = ("user.c", "part.c", "spare.c")


def found(
    tmp_path: Path, edits: Mapping[str, str], module: str = "drv", exporter: str = ""
) -> list[tuple[str, str, str]]:
    """What stands in the way of these edits, of a module of three units; ``exporter``: where the last one,
    which exports ``part`` now, is."""
    before = dict(zip(NAMES, (USER, PART, "int spare(void) { return 3; }"), strict=True))
    objects = {name: object_of(text, tmp_path / f"old-{name}") for name, text in before.items()}
    units = {name: SimpleNamespace(source=Path(name), object=Path(name), module=module) for name in NAMES}
    base = SimpleNamespace(modules=[SimpleNamespace(name=module, units=tuple(units.values()))])
    compared = {}
    for name, text in edits.items():
        original = cast("Original", SimpleNamespace(base=UnitObject(objects[name], None)))
        compared[Path(name)] = Compared(
            ObjectPair(cast("TranslationUnit", units[name]), Path(), Path()),
            original,
            difference(tmp_path / name, before[name], text),
            linkage=linkage_of(object_of(text, tmp_path / f"new-{name}")),
        )
    names = {name for obj in objects.values() for name in linkage_of(obj).defines}
    if exporter:
        diff = replace(difference(tmp_path, "int n;", "int n;"), new_exports=frozenset({"part"}))
        unit = cast("TranslationUnit", SimpleNamespace(module=exporter))
        pair = ObjectPair(unit, Path(), Path())
        compared[Path("other.c")] = Compared(pair, cast("Original", None), diff)
    obstacles = unlinkable(
        cast("AnyBase", base),
        compared,
        lambda unit: objects[unit.source.name],
        lambda _, name: name in names,
        lambda unit, gone: not linkage_of(objects[unit.source.name]).needs.isdisjoint(gone),
    )
    return [(each.code, each.symbol, each.where) for each in obstacles]


def test_what_is_weak_in_another_unit_takes_the_place_of_what_is_gone(tmp_path: Path) -> None:
    edits = {
        "part.c": "int level = 2;",
        "spare.c": "__attribute__((weak)) int part(int x) { return x + 9; }",
    }
    assert found(tmp_path, edits) == [("HR2208", "part", "spare.c")]


@pytest.mark.parametrize(("exporter", "is_missed"), [("", True), ("drv", True), ("other", False)])
def test_what_another_module_exports_from_now_on_is_found_there(
    exporter: str, is_missed: bool, tmp_path: Path
) -> None:
    missed = found(tmp_path, {"part.c": "int level = 2;"}, exporter=exporter)
    assert missed == ([("HR2209", "part", "user.c")] if is_missed else [])


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        pytest.param({"part.c": "int level = 2;"}, [("HR2209", "part", "user.c")], id="gone"),
        pytest.param(
            {"part.c": PART.replace("part", "parts")},
            [("HR2209", "part", "user.c")],
            id="renamed, but its user",
        ),
        pytest.param(
            {"part.c": PART.replace("int level", "static int level").replace("x + 1", "x + level")},
            [("HR2209", "level", "user.c")],
            id="a variable that becomes static",
        ),
        pytest.param(
            {"part.c": "int part(int); int level = 2; int all(void) { return part(1); }", "user.c": "int n;"},
            [("HR2209", "part", "part.c")],
            id="used where it was defined",
        ),
        pytest.param(
            {"part.c": "int level = 2;", "spare.c": "int part(int x) { return x + 9; }"}, [], id="moved"
        ),
        pytest.param(
            {"part.c": PART.replace("part", "parts"), "user.c": USER.replace("part", "parts")},
            [],
            id="renamed everywhere",
        ),
        pytest.param({"spare.c": "static int spare(void) { return 3; }"}, [], id="nobody uses it"),
        pytest.param(
            {"user.c": USER + " int spare(void) { return 4; }"},
            [("HR2208", "spare", "user.c")],
            id="there already",
        ),
        pytest.param(
            {
                "user.c": USER + " int two(void) { return 4; }",
                "part.c": PART + " int two(void) { return 5; }",
            },
            [("HR2208", "two", "user.c"), ("HR2208", "two", "part.c")],
            id="new in both",
        ),
        pytest.param(
            {"user.c": USER + " __attribute__((weak)) int spare(void) { return 4; }"}, [], id="weak"
        ),
    ],
)
def test_what_make_could_not_link_is_refused(
    edits: dict[str, str], expected: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    assert found(tmp_path, edits) == expected


def test_of_the_kernel_the_units_are_looked_at_that_mention_what_is_gone(tmp_path: Path) -> None:
    edits = {"part.c": "int level = 2;"}
    assert found(tmp_path, edits, "vmlinux") == [("HR2209", "part", "user.c")]
    assert found(tmp_path / "none", {"spare.c": "static int spare(void) { return 3; }"}, "vmlinux") == []
