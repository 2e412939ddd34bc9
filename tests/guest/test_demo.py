# SPDX-License-Identifier: MIT
"""`hotreload demo` as a user runs it: a process, its output, and nothing left of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotreload.demo.examples.ticker_edits import STEPS
from hotreload.demo.idle import PROC, descendants, parents, stat_fields
from hotreload.paths import runtime_folder
from hotreload.vm.image import GuestImage

COMMAND = [sys.executable, "-m", "hotreload", "demo"]
LIMIT = 150.0
GONE_LIMIT = 10.0


class Demo:
    """A demo that runs, and all the processes that were seen below it."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.seen: frozenset[int] = frozenset()
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                COMMAND,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "TMPDIR": str(output.parent)},  # -9 leaves the driver's copy there
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        self._watch(lambda: text in self.text)

    def wait(self) -> int:
        self._watch(lambda: self.process.poll() is not None)
        return self.process.wait()

    def _watch(self, over: object) -> None:
        assert callable(over)
        deadline = time.monotonic() + LIMIT
        while not over():
            assert time.monotonic() < deadline, self.text
            self.seen |= descendants(self.process.pid, parents())
            time.sleep(0.05)

    @property
    def names(self) -> set[str]:
        return {name for pid in self.seen if (name := _name(pid))}

    def left(self) -> set[int]:
        """The processes that are still there a moment after the end."""
        deadline = time.monotonic() + GONE_LIMIT
        while (left := {pid for pid in self.seen if _lives(pid)}) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


def _lives(pid: int) -> bool:
    try:
        return stat_fields((PROC / str(pid) / "stat").read_text())[0] not in "ZX"
    except OSError:
        return False


def _name(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


@pytest.fixture
def others() -> frozenset[str]:
    """What the guests of other tests have in the runtime folder."""
    return frozenset(leftovers())


@pytest.fixture
def demo(tmp_path: Path, guest_image: GuestImage, others: frozenset[str]) -> Iterator[Demo]:
    assert others is not None  # looked at before the demo has anything of its own
    assert guest_image.initramfs.exists()  # what a first run fetches and builds is there
    running = Demo(tmp_path / "output")
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def leftovers() -> list[str]:
    """Sockets and guests in the runtime folder."""
    guests = runtime_folder() / "guests"
    return [*map(str, runtime_folder().glob("vm-*")), *map(str, guests.glob("demo-*"))]


def test_the_demo_shows_every_edit_in_the_guest_and_leaves_nothing(
    demo: Demo, others: frozenset[str]
) -> None:
    demo.wait_for("[1/")
    assert "qemu-system-x86" in demo.names
    before = set(leftovers()) - others
    assert demo.wait() == 0, demo.text
    text = demo.text
    for number, step in enumerate(STEPS, 1):
        assert f"[{number}/{len(STEPS)}] {step.title}" in text
    words = re.findall(r"^\d\d:\d\d:\d\d ([a-z]+(?: change)?) ", text, re.MULTILINE)
    assert words == [
        *("live", "live", "live", "no change", "error", "no change", "live"),
        *("refused", "rejected", "undone", "live", "crashed", "refused", "reloaded"),
    ]
    assert re.search(r"after +line 1 of this file: age \d+, feeling \w+", text)
    assert re.search(r"after +/proc/ticker has views \d+ \(nobody cares\)", text)
    assert re.search(r"main\.c:\d+:\d+: error: expected", text)
    assert re.search(r"live +main\.c +.*interval_ms", text)
    assert re.search(r"after +every 250 ms", text)
    assert re.search(r"refused +main\.c +HR2101 .*ticker_reader", text)
    assert re.search(r"rejected +main\.c +HR2301 module ticker is in use", text)
    assert re.search(r"\(pid\s+\d+\)", text)  # a line may end in it
    assert re.search(r"crashed +HR4101 .* in ticker_stats_show\+0x\w+\s+\(stats\.c:\d+\)", text)
    assert re.search(r"reloaded +main\.c, stats\.c +ticker\.ko", text)
    ups = [tuple(map(float, pair)) for pair in re.findall(r"state +up ([\d.]+) -> ([\d.]+) s", text)]
    assert len(ups) == len(STEPS)
    assert all(early < late for early, late in ups)
    assert sorted(ups) == ups  # one boot
    assert re.search(r"^# +outcome +files .* saved to live$", text, re.MULTILINE)
    assert "Everything was checked" in text
    assert "\x1b" not in text
    # Lines with a path are as long as that is.
    paths = ("/hotreload-demo-", "/report.txt")
    assert max(len(line) for line in text.splitlines() if not any(path in line for path in paths)) < 100
    assert before
    assert not set(leftovers()) & before
    assert demo.left() == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_demo_that_is_ended_takes_everything_with_it(
    demo: Demo, others: frozenset[str], number: signal.Signals
) -> None:
    demo.wait_for("[2/")
    assert "qemu-system-x86" in demo.names
    demo.process.send_signal(number)
    assert demo.wait() == (130 if number is signal.SIGINT else -signal.SIGKILL)
    assert demo.left() == set()
    if number is signal.SIGINT:  # nobody can clean up after -9; the next one does
        assert set(leftovers()) <= others
        assert "Traceback" not in demo.text


def test_a_demo_whose_reader_has_gone_ends_at_once(guest_image: GuestImage, others: frozenset[str]) -> None:
    assert guest_image.initramfs.exists()
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.readline()
        running.stdout.close()
        assert running.wait(timeout=LIMIT) == 141
        assert running.stderr.read() == b""
    assert set(leftovers()) <= others


def test_a_demo_that_cannot_start_says_why_and_ends_with_that_status(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hotreload", "demo", "-K", str(tmp_path / "missing")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"hotreload: error\[HR1009\]: .*missing is not a folder\n  hint: .*\n", done.stderr)
