# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

from hotreload.report.outcome import Outcome, Reason, ReloadReport
from hotreload.report.table import align, cycles_table


def test_columns_are_aligned_and_lines_end_clean() -> None:
    assert align(["name", "ms"], [["build", "780"], ["a longer one", "4"]], right=[1]) == (
        "name           ms\n"
        "build         780\n"
        "a longer one    4"
    )  # fmt: skip


def test_the_table_of_cycles_shows_the_stages_that_were_reached() -> None:
    here = Path("/home/me/drv")
    reports = [
        ReloadReport(
            Outcome.LIVE,
            number=1,
            files=(here / "counter.c",),
            symbols=("counter_read", "step"),
            milliseconds={"build": 412.0, "load": 61.0},
            saved_to_live_ms=655.0,
        ),
        ReloadReport(Outcome.NO_CHANGE, files=(here / "counter.c",), milliseconds={"build": 398.0}),
        ReloadReport(Outcome.REFUSED, files=(here / "a.h",), reasons=(Reason("HR2101", "it grew"),)),
        ReloadReport(Outcome.UNDONE, number=1, symbols=("counter_read",), saved_to_live_ms=48.0),
    ]
    assert cycles_table(reports, here) == (
        "#  outcome    files      changed             build  load  saved to live\n"
        "1  live       counter.c  counter_read, step   0.41  0.06         0.66 s\n"
        "   no change  counter.c                       0.40\n"
        "   refused    a.h        HR2101\n"
        "1  undone                counter_read                            0.05 s"
    )


def test_no_cycles_is_said_in_words() -> None:
    assert cycles_table([], Path("/")) == "no reloads yet"
