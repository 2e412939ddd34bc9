# SPDX-License-Identifier: MIT
"""What the demo prints; that it plays at all is tests/guest/test_demo.py."""

from __future__ import annotations

from pathlib import Path

from hotreload.demo.play import WIDTH, changed_lines, times_table, without_folders
from hotreload.report.outcome import Outcome, ReloadReport


def test_a_diff_shows_the_change_with_a_line_around_it() -> None:
    assert changed_lines("a\nb\nc\nd\ne\n", "a\nb\nC\nd\ne\n") == [" b", "-c", "+C", " d"]


def test_the_closing_table_sums_the_stages_up_and_stays_narrow() -> None:
    names = tuple(f"a_function_with_a_long_name_{number}" for number in range(9))
    files = tuple(Path(f"/somewhere/source_number_{number}.c") for number in range(9))
    spent = {
        "watch": 20.0,
        "build": 300.0,
        "diff": 10.0,
        "link": 5.0,
        "push": 50.0,
        "load": 10.0,
        "complete": 2.0,
    }
    live = ReloadReport(Outcome.LIVE, 12, files, names, spent, 397.0)
    same = ReloadReport(
        Outcome.NO_CHANGE, files=files[:1], notes=("comments only",), milliseconds={"build": 300.0}
    )
    header, first, second = times_table([live, same]).splitlines()
    assert header.split()[-7:] == ["watch", "build", "patch", "guest", "saved", "to", "live"]
    assert first.split()[-6:] == ["0.02", "0.30", "0.01", "0.06", "0.40", "s"]
    assert second.split()[:4] == ["no", "change", "source_number_0.c", "comments"]
    assert max(map(len, (header, first, second))) <= WIDTH


def test_progress_names_files_without_their_folders() -> None:
    assert without_folders("CC [M] /tmp/x/ticker/main.o") == "CC [M] main.o"
    assert without_folders("fetching a (1/2 MB)") == "fetching a (1/2 MB)"
