# SPDX-License-Identifier: MIT
"""An interrupt ends what runs in the event loop, wherever it finds that."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, signal, sys
from hotreload import interrupts

class Told:
    def __init__(self, number):
        self.number = number

    def __del__(self):
        # Python prints what is raised here, and goes on: as in callbacks of many a library.
        signal.raise_signal(self.number)

async def main(first, again):
    try:
        Told(first)
        await asyncio.sleep(again and 60)
        print("went on")
    finally:
        print("cleans up")
        if again:
            signal.raise_signal(again)
            await asyncio.sleep(60)

first, again = map(int, sys.argv[1:])
try:
    interrupts.run(main(first, again))
except KeyboardInterrupt:
    print("interrupted")
signal.raise_signal(signal.SIGTERM)
"""


def said(first: signal.Signals, again: int = 0, *, ignored: tuple[signal.Signals, ...] = ()) -> list[str]:
    def ignore() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(first)), str(int(again))],
        capture_output=True,
        text=True,
        timeout=30,
        preexec_fn=ignore,
    )
    assert "KeyboardInterrupt" in done.stderr.splitlines()[-1], done.stderr  # of SIGTERM after the end
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_that_comes_where_exceptions_are_lost_ends_the_work(number: signal.Signals) -> None:
    assert said(number) == ["cleans up", "interrupted"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_of_a_script_that_had_sigint_ignored_ends_the_work(number: signal.Signals) -> None:
    assert said(number, ignored=(signal.SIGINT,)) == ["cleans up", "interrupted"]


def test_one_that_is_ignored_does_nothing() -> None:
    assert said(signal.SIGINT, ignored=(signal.SIGINT,)) == ["went on", "cleans up"]
    assert said(signal.SIGHUP, ignored=(signal.SIGHUP,)) == ["went on", "cleans up"]


@pytest.mark.parametrize("ignored", [(), (signal.SIGINT,)])
def test_a_second_one_does_not_wait_for_the_end(ignored: tuple[signal.Signals, ...]) -> None:
    assert said(signal.SIGTERM, signal.SIGTERM, ignored=ignored) == ["cleans up", "interrupted"]
