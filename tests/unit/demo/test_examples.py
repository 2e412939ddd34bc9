# SPDX-License-Identifier: MIT
"""The example driver, the ways to save, and what the demo's steps demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hotreload.demo.examples import WAYS_TO_SAVE, Edit, copy_example, sources
from hotreload.demo.examples.ticker_edits import (
    END_OF_PART,
    STEPS,
    Step,
    Unexpected,
    View,
    check_state,
    parse_view,
)
from hotreload.report.outcome import Outcome, Reason, ReloadReport

END = f"{END_OF_PART}\n"
LOOKED = END.join(
    (
        "12.34 11.02\n",
        "6b1f0a52-0000-4000-8000-000000000001\n",
        "line 1: age 4, calm\n\n",
        "line 17: age 4, calm\n",
        "ticks 41\nage   4\nopens 3\nlines 20\ninterval 100\n",
        "hotreload_2\n",
    )
)
VIEW = parse_view(LOOKED)
LATER = replace(
    VIEW, uptime=13.5, kept_line="line 20: age 5, calm", proc={**VIEW.proc, "ticks": "53", "opens": "4"}
)


def test_what_the_guest_answers_becomes_a_view() -> None:
    assert VIEW.uptime == 12.34
    assert VIEW.boot_id.startswith("6b1f0a52")
    assert (VIEW.ticks, VIEW.opens, VIEW.kept_number) == (41, 3, 17)
    assert VIEW.proc == {"ticks": "41", "age": "4", "opens": "3", "lines": "20", "interval": "100"}
    assert VIEW.patches == ("hotreload_2",)


def test_a_file_that_is_empty_for_a_moment_is_a_part_of_the_answer() -> None:
    assert parse_view(LOOKED.replace("line 17: age 4, calm\n", "")).kept_number == -1


def test_no_live_patch_is_an_empty_list() -> None:
    assert parse_view(LOOKED.replace("hotreload_2\n", "")).patches == ()


@pytest.mark.parametrize("text", ["", "cat: can't open '/dev/ticker'\n", LOOKED.replace("12.34", "up")])
def test_an_answer_of_another_shape_is_unexpected(text: str) -> None:
    with pytest.raises(Unexpected):
        parse_view(text)


def test_a_guest_that_goes_on_keeps_its_state() -> None:
    check_state(VIEW, LATER)


@pytest.mark.parametrize(
    "lost",
    [
        replace(LATER, boot_id="another"),
        replace(LATER, uptime=1.0),
        replace(LATER, proc={**LATER.proc, "ticks": "2"}),
        replace(LATER, proc={**LATER.proc, "opens": "1"}),
        replace(LATER, kept_line="line 1: age 5, calm"),
        replace(LATER, kept_line=""),
    ],
)
def test_each_kind_of_lost_state_is_noticed(lost: View) -> None:
    with pytest.raises(Unexpected):
        check_state(VIEW, lost)


def test_steps_fit_one_after_the_other_and_all_is_undone_before_the_guest_crashes() -> None:
    texts = dict(sources())
    for step in STEPS:
        changed = step.texts(texts)
        assert any(texts[name] != text for name, text in changed.items()), step.title
        texts |= changed
        if step.outcome is Outcome.UNDONE:
            assert texts == sources()


def test_every_outcome_that_a_person_meets_is_played() -> None:
    wanted = {Outcome.LIVE, Outcome.NO_CHANGE, Outcome.COMPILE_ERROR, Outcome.REJECTED, Outcome.UNDONE}
    assert {step.outcome for step in STEPS} == wanted | {Outcome.RELOADED}
    assert any(step.crash for step in STEPS)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.outcome.value)
def test_no_step_accepts_another_outcome(step: Step) -> None:
    for outcome in Outcome:
        if outcome is not step.outcome:
            with pytest.raises(Unexpected, match="outcome"):
                step.check_report(ReloadReport(outcome))


def test_a_refusal_for_another_reason_is_unexpected() -> None:
    step = next(step for step in STEPS if step.outcome is Outcome.REJECTED)
    step.check_report(ReloadReport(Outcome.REJECTED, reasons=(Reason(step.code or "", "as it must be"),)))
    with pytest.raises(Unexpected, match="HR1004"):
        step.check_report(ReloadReport(Outcome.REJECTED, reasons=(Reason("HR1004", "another"),)))


def test_no_live_edit_is_believed_when_the_guest_shows_what_it_showed_before() -> None:
    for step in STEPS:
        if step.outcome in (Outcome.LIVE, Outcome.UNDONE) and not step.crash:
            with pytest.raises(Unexpected):
                step.check(VIEW, LATER)


def test_an_edit_that_fits_twice_or_nowhere_is_an_error() -> None:
    assert Edit("a.c", "one", "two").applied("one;") == "two;"
    for text in ("one one", "three"):
        with pytest.raises(ValueError, match=r"a\.c"):
            Edit("a.c", "one", "two").applied(text)


@pytest.mark.parametrize("save", WAYS_TO_SAVE)
def test_every_way_to_save_leaves_the_text_and_nothing_else(
    save: Callable[[Path, str], None], tmp_path: Path
) -> None:
    file = tmp_path / "foo.c"
    file.write_text("old")
    file.chmod(0o640)
    save(file, "new\n")
    assert file.read_text() == "new\n"
    assert [path.name for path in tmp_path.iterdir()] == ["foo.c"]


def test_the_copy_is_source_only_and_never_over_another(tmp_path: Path) -> None:
    folder = copy_example(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["Kbuild", "main.c", "stats.c", "ticker.h"]
    with pytest.raises(FileExistsError):
        copy_example(tmp_path)
