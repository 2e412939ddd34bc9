# SPDX-License-Identifier: MIT
"""How a cycle ends."""

from __future__ import annotations

from pathlib import Path

from hotreload.cycle import Cycle
from hotreload.history import Step
from hotreload.patch.model import PatchPlan


def test_what_was_compiled_with_an_edit_that_was_refused_is_named_when_it_goes_live() -> None:
    cycle = Cycle((Path("a.c"),), 0.0, lambda _type, _fields: None)  # a.c was taken back; nothing is compiled
    report = cycle.went_live(Step(2, PatchPlan((), (), ()), ("f", "g")), Step(1, None, ("f",)))
    assert report.symbols == ("g",)
