# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from hotreload.report.console import WORDS
from hotreload.report.outcome import Outcome


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.LIVE, 0),
        (Outcome.NO_CHANGE, 0),
        (Outcome.UNDONE, 0),
        (Outcome.COMPILE_ERROR, 3),
        (Outcome.REFUSED, 4),
        (Outcome.REJECTED, 4),
        (Outcome.CRASHED, 5),
        (Outcome.STALLED, 6),
    ],
)
def test_an_outcome_becomes_the_exit_status_of_the_interface(outcome: Outcome, status: int) -> None:
    assert outcome.exit_status == status


def test_every_outcome_has_its_word_of_at_most_nine_letters() -> None:
    assert set(WORDS) == set(Outcome)
    assert max(len(word) for word, _ in WORDS.values()) == 9


def test_the_rung_is_the_one_that_brought_the_change() -> None:
    assert [Outcome.LIVE.rung, Outcome.RELOADED.rung, Outcome.REFUSED.rung] == ["patch", "module", None]
