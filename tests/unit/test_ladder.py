# SPDX-License-Identifier: MIT
"""How far an edit has to go."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.build.built import BuiltModule
from hotreload.build.cmd_files import TranslationUnit
from hotreload.diff.obstacles import Obstacle
from hotreload.ladder import can_be_loaded, is_allowed, with_dependents


def module(name: str, *objects: str) -> BuiltModule:
    units = (
        TranslationUnit(Path(f"/{each}.c"), Path(f"/{each}.o"), "gcc", Path("/"), name) for each in objects
    )
    return BuiltModule(name, Path(f"/{name}.ko"), tuple(units))


@pytest.mark.parametrize(
    ("rung", "max_rung", "allowed"),
    [
        ("module", "patch", False),
        ("module", "module", True),
        ("module", "reboot", True),
        ("reboot", "module", False),
    ],
)
def test_nothing_above_the_highest_rung_is_allowed(rung: str, max_rung: str, allowed: bool) -> None:
    assert is_allowed(rung, max_rung) is allowed


def test_the_modules_that_use_one_come_with_it_and_those_that_use_them() -> None:
    modules = [module(name, name) for name in ("core", "user", "app", "other")]
    depends = {"core": set[str](), "user": {"core"}, "app": {"user"}, "other": set[str]()}
    assert with_dependents({"core"}, modules, depends) == {"core", "user", "app"}
    assert with_dependents({"app"}, modules, depends) == {"app"}


def test_modules_that_are_linked_from_one_object_go_together() -> None:
    modules = [module("one", "one", "shared"), module("two", "shared"), module("three", "three")]
    assert with_dependents({"one"}, modules, {}) == {"one", "two"}


def test_a_layout_is_past_with_a_new_module_and_a_file_of_no_unit_is_not() -> None:
    layout, nowhere = (
        Obstacle("HR2101", "struct s", "grew"),
        Obstacle("HR1002", "x.c", "is not part of this build"),
    )
    assert can_be_loaded([layout])
    assert not can_be_loaded([layout, nowhere])
