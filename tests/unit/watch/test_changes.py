# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.watch.changes import ChangeBatch, Debounce, Hint, SourceChange, compare


def test_a_batch_is_due_a_quiet_time_after_its_last_event() -> None:
    debounce = Debounce(quiet=0.015)
    assert debounce.due() is None
    debounce.note("foo.c", Hint.COMPLETE, now=10.000)
    assert debounce.due() == pytest.approx(10.015)
    debounce.note("foo.h", Hint.COMPLETE, now=10.010)
    assert debounce.due() == pytest.approx(10.025)
    assert debounce.take() == (frozenset({"foo.c", "foo.h"}), 10.010)
    assert debounce.due() is None


def test_events_that_never_stop_do_not_hold_a_batch_back_for_ever() -> None:
    debounce = Debounce(quiet=0.015, limit=0.3)
    for tick in range(100):
        debounce.note("foo.c", Hint.COMPLETE, now=10 + tick / 100)
    assert debounce.due() == pytest.approx(10.3)


def test_a_file_that_was_created_but_not_closed_is_waited_for() -> None:
    debounce = Debounce(quiet=0.015, patience=0.120)
    debounce.note("foo.c", Hint.OPENED, now=10.0)
    assert debounce.due() == pytest.approx(10.120)
    debounce.note("foo.c", Hint.COMPLETE, now=10.050)
    assert debounce.due() == pytest.approx(10.065)


def test_a_file_that_vanished_may_come_back() -> None:
    debounce = Debounce(quiet=0.015, patience=0.120)
    debounce.note("foo.c", Hint.GONE, now=10.0)
    debounce.note("bar.c", Hint.COMPLETE, now=10.0)
    assert debounce.due() == pytest.approx(10.120)


def test_setting_the_times_of_an_open_file_does_not_make_it_complete() -> None:
    debounce = Debounce(quiet=0.015, patience=0.120)
    debounce.note("foo.c", Hint.OPENED, now=10.0)
    debounce.note("foo.c", Hint.TOUCHED, now=10.0)
    assert debounce.due() == pytest.approx(10.120)
    debounce.take()
    debounce.note("foo.c", Hint.TOUCHED, now=20.0)
    assert debounce.due() == pytest.approx(20.015)


def test_only_what_differs_from_the_last_delivery_is_a_change() -> None:
    delivered = {"same.c": b"1", "edited.c": b"1", "removed.c": b"1", "untouched.c": b"1"}
    now = {"same.c": b"1", "edited.c": b"2", "removed.c": None, "new.c": b"1", "came-and-went.c": None}
    assert compare(delivered, now) == (
        SourceChange(Path("edited.c"), "modified"),
        SourceChange(Path("new.c"), "created"),
        SourceChange(Path("removed.c"), "deleted"),
    )


def test_batches_of_the_same_changes_are_equal_whenever_they_were_saved() -> None:
    changes = (SourceChange(Path("foo.c"), "modified"),)
    assert ChangeBatch(changes, saved_at=1.0) == ChangeBatch(changes, saved_at=2.0)
    assert ChangeBatch(changes).paths == (Path("foo.c"),)
