# SPDX-License-Identifier: MIT
"""A guest that is slow is told from one that is dead."""

from __future__ import annotations

import asyncio

import pytest

from hotreload.deploy.guest import CommandResult, run_in_time
from hotreload.errors import GuestUnreachableError

SLOW = "grep x /proc/kallsyms"


class BusyGuest:
    """Needs 0.3 s for one command, or loses its first answer; answers others at once, or never."""

    agent = "agent"

    def __init__(self, *, is_alive: bool, loses_answer: bool = False) -> None:
        self.asked: list[str] = []
        self._is_alive = is_alive
        self._loses_answer = loses_answer

    async def run(self, command: str, *, stdin: bytes | None = None, timeout: float = 30.0) -> CommandResult:
        assert stdin is None
        self.asked.append(command)
        async with asyncio.timeout(timeout):
            if self._loses_answer and self.asked == [SLOW]:
                await asyncio.Event().wait()
            await asyncio.sleep(0.3 if command == SLOW else 0 if self._is_alive else 60)
        return CommandResult(0, command.encode(), b"")


def test_a_slow_command_has_more_time_while_the_guest_answers_others() -> None:
    guest = BusyGuest(is_alive=True)
    assert asyncio.run(run_in_time(guest, SLOW, timeout=0.1)).text == SLOW
    assert set(guest.asked) == {SLOW, "true"}


def test_a_command_whose_answer_was_lost_is_sent_once_more() -> None:
    guest = BusyGuest(is_alive=True, loses_answer=True)
    assert asyncio.run(run_in_time(guest, SLOW, timeout=0.15)).text == SLOW
    assert guest.asked.count(SLOW) == 2


def test_a_guest_that_answers_nothing_is_given_up() -> None:
    with pytest.raises(GuestUnreachableError, match="did not answer"):
        asyncio.run(run_in_time(BusyGuest(is_alive=False), SLOW, timeout=0.1))


def test_what_runs_code_of_the_user_has_its_time_and_no_more() -> None:
    guest = BusyGuest(is_alive=True)
    with pytest.raises(GuestUnreachableError):
        asyncio.run(run_in_time(guest, SLOW, timeout=0.1, patience=1))
    assert guest.asked == [SLOW]
