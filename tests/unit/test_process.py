# SPDX-License-Identifier: MIT
"""Programs that hotreload starts, and what those start, end with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotreload import process
from tests.guest.faults import guards_of

PARENT = """
import asyncio, sys
from hotreload import guard, process

guard.ASKED = {asked}

async def main():
    await process.spawn(["sh", "-c", sys.argv[1]], stdout=None, tidies={tidies})
    await asyncio.sleep(60)

asyncio.run(main())
"""


def living(family: str) -> list[str]:
    """The processes with this word in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"FAMILY={family}" in (place / "environ").read_text().split("\0"):
                found.append(place.name)
        except OSError:
            continue
    return found


def ends(what: str, left: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while said := left():
        assert time.monotonic() < deadline, f"{what}: {said}"
        time.sleep(0.01)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[str]:
    yield tmp_path.name
    for pid in living(tmp_path.name):
        os.kill(int(pid), signal.SIGKILL)


def killed(family: str, script: str, *, asked: int = 100, tidies: bool = False) -> None:
    """Have hotreload start a shell, and kill hotreload as soon as that has said something."""
    words = [sys.executable, "-c", PARENT.format(asked=asked, tidies=tidies), script]
    environment = {**os.environ, "FAMILY": family}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"there\n"
        # The guard was started before, but may not have got to its first instruction on a busy machine.
        ends("there is no guard", lambda: not guards_of(parent.pid))
        parent.kill()
        parent.wait()
        ends("they live on", lambda: living(family))
        ends("so does the guard", lambda: guards_of(parent.pid))


SLEEPERS = "sleep 61 & sh -c 'sleep 62 & sleep 63' & setsid sleep 64 &"


def test_what_a_program_has_started_ends_when_hotreload_is_killed(family: str) -> None:
    killed(family, f"{SLEEPERS} echo there; wait")


def test_it_ends_even_where_the_program_itself_has_ended_before(family: str) -> None:
    killed(family, f"{SLEEPERS} echo there")


def test_a_program_that_takes_something_back_may_do_so(family: str, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.touch()
    child = f"(trap 'rm {half}.2; exit' TERM; touch {half}.2; echo there; while :; do sleep 0.1; done)"
    killed(family, f"trap 'rm {half}; exit' TERM; {child} & wait", tidies=True)
    assert not half.exists()
    assert not Path(f"{half}.2").exists()


def test_one_that_does_not_listen_is_killed(family: str) -> None:
    killed(family, "trap '' TERM; sleep 61 & echo there; wait", asked=2, tidies=True)


FORKING = """
import os, time
from hotreload import guard

guard.word()
if os.fork() == 0:
    print("there", flush=True)
    time.sleep(60)
time.sleep(60)
"""


def test_a_fork_does_not_keep_the_guard_from_seeing_the_end(family: str) -> None:
    environment = {**os.environ, "FAMILY": family}
    words = [sys.executable, "-c", FORKING]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"there\n"
        parent.kill()
        parent.wait()
        ends("the guard waits on", lambda: guards_of(parent.pid))
        assert living(family), "a session in the background is no program that was started"


def test_of_what_a_program_says_the_beginning_is_kept_and_the_rest_counted() -> None:
    done = asyncio.run(process.run(["sh", "-c", "yes | head -c 300000; echo oh >&2; exit 3"], most=6))
    assert (done.status, done.stdout, done.stderr) == (3, b"y\ny\ny\n\n(and 299994 bytes more)\n", b"oh\n")


def test_lines_may_be_longer_than_what_a_stream_holds() -> None:
    async def lines() -> list[str]:
        stream = asyncio.StreamReader()
        stream.feed_data(b"x" * 200_000 + b"\nshort\nno end")
        stream.feed_eof()
        return [line async for line in process.lines_of(stream)]

    assert asyncio.run(lines()) == ["x" * 200_000, "short", "no end"]
