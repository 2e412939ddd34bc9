# SPDX-License-Identifier: MIT
"""How a cycle ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.cycle import Cycle
from hotreload.diff.obstacles import NotPatchableError, Obstacle
from hotreload.errors import (
    EnvironmentFault,
    InputError,
    KernelUnfitError,
    SessionError,
    TransitionStalledError,
)
from hotreload.history import Step
from hotreload.patch.model import PatchPlan
from hotreload.report.outcome import Outcome, ReloadReport


def test_what_was_compiled_with_an_edit_that_was_refused_is_named_when_it_goes_live() -> None:
    cycle = Cycle((Path("a.c"),), 0.0, lambda _type, _fields: None)  # a.c was taken back; nothing is compiled
    report = cycle.went_live(Step(2, PatchPlan((), (), ()), ("f", "g")), Step(1, None, ("f",)))
    assert report.symbols == ("g",)


def test_what_was_found_out_on_the_way_is_told_of_an_edit_that_failed_too() -> None:
    climbs: list[ReloadReport] = []
    cycle = Cycle((Path("a.c"),), 0.0, lambda _type, fields: climbs.append(fields["report"]))
    cycle.notes.append("HR5107 no checkpoint of the guest")
    stalled = TransitionStalledError("it takes long", tasks=("cat (140) sleeps",))
    assert cycle.failed(stalled, None).notes == ("cat (140) sleeps", "HR5107 no checkpoint of the guest")
    refusal = NotPatchableError([Obstacle("HR2101", "s", "grew")])
    assert cycle.failed(refusal, None).notes == ("HR5107 no checkpoint of the guest",)
    cycle.announce_climb(refusal, ["m"], None)
    assert climbs[0].notes == (), "once is enough: what comes of it has them"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InputError("Kbuild builds no module: it has no obj-m", code="HR1007"), Outcome.REFUSED),
        (EnvironmentFault("no space left", code="HR5107"), Outcome.FAILED),
        (KernelUnfitError("the headers are of another configuration"), Outcome.FAILED),
    ],
)
def test_what_is_wrong_with_one_edit_is_how_that_edit_ends(error: SessionError, outcome: Outcome) -> None:
    report = Cycle((Path("Kbuild"),), 0.0, lambda _type, _fields: None).failed(error, 3)
    assert (report.outcome, report.still_runs) == (outcome, 3)
    assert [(each.code, each.message) for each in report.reasons] == [(error.code, error.message)]
