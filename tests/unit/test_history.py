# SPDX-License-Identifier: MIT
"""Undo and redo walk along the steps; a reload drops the steps that were undone."""

from __future__ import annotations

from hotreload.history import History
from hotreload.patch.model import PatchPlan


def plan(name: str) -> PatchPlan:
    return PatchPlan((), (), (name,))


def three() -> History:
    history = History()
    for name in ("a", "b", "c"):
        history.add(plan(name), (name,))
    return history


def test_the_guest_runs_what_it_booted_until_something_is_live() -> None:
    history = History()
    assert (history.running, history.current.plan, history.before(None), history.after()) == (
        None,
        None,
        None,
        None,
    )


def test_numbers_count_up_and_are_not_used_again() -> None:
    history = three()
    history.place = 1
    assert history.add(plan("d"), ("d",)).number == 4
    assert [step.number for step in history.steps] == [0, 1, 4]


def test_undoing_a_number_goes_to_before_it() -> None:
    history = three()
    assert (history.before(None), history.before(3), history.before(2), history.before(1)) == (2, 2, 1, 0)


def test_what_is_not_live_cannot_be_undone() -> None:
    history = three()
    history.place = 1
    assert (history.before(3), history.before(9), history.before(0)) == (None, None, None)


def test_redo_goes_to_the_step_that_was_undone_last() -> None:
    history = three()
    assert history.after() is None
    history.place = 1
    assert history.after() == 2
