# SPDX-License-Identifier: MIT
"""Which checkpoints are kept, and when one is gone without."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from hotreload.errors import EnvironmentFault
from hotreload.restore_points import KEPT, SLOW, Moment, RestorePoints
from hotreload.vm.checkpoints import Checkpoint, Checkpoints, TooSlowError

MOMENT = cast("Moment", None)  # nothing here looks into it


class Scripted:
    """What QEMU does with each save: the seconds it takes, or an error."""

    def __init__(self, *saves: float | Exception) -> None:
        self.saves = list(saves)
        self.number = 0
        self.gone: list[str] = []
        self.is_given_up = False

    async def save(self) -> Checkpoint:
        self.number += 1
        came = self.saves.pop(0) if self.saves else 0.1
        if isinstance(came, Exception):
            raise came
        return Checkpoint(f"checkpoint-{self.number}", came, float(self.number))

    async def delete(self, checkpoint: Checkpoint) -> None:
        self.gone.append(checkpoint.tag)

    async def restore(self, _checkpoint: Checkpoint) -> None:
        pass

    def give_up(self) -> None:
        self.is_given_up = True


def points(scripted: Scripted) -> RestorePoints:
    return RestorePoints(cast("Checkpoints", cast("Any", scripted)))


def pushes(points: RestorePoints, times: int, *, answered: bool) -> list[str | None]:
    async def story() -> list[str | None]:
        told = []
        for _ in range(times):
            told.append(await points.save(MOMENT))
            points.use()
            if answered:
                points.note_answer()
        return told

    return asyncio.run(story())


def back(points: RestorePoints) -> list[str]:
    """All that a guest can go back to, in that order."""

    async def story() -> list[str]:
        found = []
        while saved := await points.restore():
            found.append(saved.checkpoint.tag)
        return found

    return asyncio.run(story())


def test_a_guest_that_answers_no_more_does_not_cost_the_checkpoint_at_which_it_did() -> None:
    kept = points(Scripted())
    pushes(kept, 1, answered=True)
    pushes(kept, 2 * KEPT, answered=False)
    assert back(kept) == ["checkpoint-7", "checkpoint-6", "checkpoint-1"]


def test_the_oldest_goes_where_all_are_known_to_be_good() -> None:
    kept = points(Scripted())
    pushes(kept, KEPT + 1, answered=True)
    assert back(kept) == ["checkpoint-4", "checkpoint-3", "checkpoint-2"]


def test_slow_saves_are_left_out_for_a_while_and_not_for_good() -> None:
    scripted = Scripted(SLOW + 1, 0.1, SLOW + 1, SLOW + 2, SLOW + 3, 0.1)
    kept = points(scripted)
    told = pushes(kept, 9, answered=True)
    assert told[:3] == [None, None, None], "once is this machine's fault"
    assert "took 5.0 s; the next push is made without" in str(told[3])
    assert told[4] is None
    assert "took 6.0 s; the next 2 pushes are made without" in str(told[5])
    assert told[6:] == [None, None, None]
    assert scripted.number == 6
    assert back(kept)[0] == "checkpoint-6"


def test_a_save_that_does_not_end_costs_no_checkpoint_that_is_there() -> None:
    scripted = Scripted(0.1, TooSlowError("takes more than 60 s", code="HR5105"))
    kept = points(scripted)
    _, told = pushes(kept, 2, answered=True)
    assert told == (
        "HR5105 takes more than 60 s: after a crash, the guest goes back further, or is booted again"
    )
    assert not scripted.is_given_up
    assert back(kept) == ["checkpoint-1"]


def test_a_disk_that_is_full_is_given_back_with_all_that_is_on_it() -> None:
    scripted = Scripted(0.1, EnvironmentFault("no space left on device", code="HR5105"))
    kept = points(scripted)
    _, told = pushes(kept, 2, answered=True)
    assert "no checkpoints from now on: after a crash, the guest is booted again" in str(told)
    assert scripted.is_given_up
    assert back(kept) == []
