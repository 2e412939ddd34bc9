# SPDX-License-Identifier: MIT
"""The log of a console that somebody else keeps: it is truncated, or replaced, while it is read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hotreload.report.crash import CrashReport
from hotreload.session.alert import WINDOW, ConsoleReader
from hotreload.session.loss import loss
from hotreload.vm.machine import PANICKED

RECORDED = Path(__file__).parents[2] / "recorded" / "6.1"
COMPLAINT = (RECORDED / "warn_once.txt").read_text()
LONG = 1_000_000  # bytes: more than is read at once


def heard(log: Path, *changes: Callable[[], None]) -> tuple[list[str], list[str]]:
    """The titles of what is heard until one is, while this happens to the log, and the lines told of it."""
    said: list[str] = []

    async def story() -> list[str]:
        reader = ConsoleReader(log, said.append)
        reader.skip()
        complaints = reader.complaints()
        hearing = asyncio.ensure_future(anext(complaints))
        for change in changes:
            await asyncio.sleep(0.3)  # a look or two
            change()
        async with asyncio.timeout(60):
            return [(await hearing).title]

    return asyncio.run(story()), said


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "console.log"
    file.write_text("text of before\n" * (LONG // 15))
    return file


def test_a_log_that_is_truncated_is_heard_from_its_beginning(log: Path) -> None:
    titles, said = heard(log, lambda: os.truncate(log, 0), lambda: log.write_text(COMPLAINT))
    assert (len(titles), said) == (1, [])


def test_a_log_that_is_truncated_and_written_on_behind_a_hole_is_heard(log: Path) -> None:
    with log.open("r+") as qemu:
        qemu.seek(0, os.SEEK_END)

        def write() -> None:
            qemu.write(COMPLAINT)
            qemu.flush()

        titles, said = heard(log, lambda: os.truncate(log, 0), write)
    assert (len(titles), said) == (1, [])


def test_a_log_that_is_another_file_is_heard_from_its_beginning_and_that_is_told(log: Path) -> None:
    def rotate() -> None:
        log.rename(log.with_suffix(".1"))

    def begin() -> None:
        log.write_text(COMPLAINT + "more\n" * LONG)

    titles, said = heard(log, rotate, begin)
    assert len(titles) == 1
    (line,) = said
    assert line.startswith(f"{log} was replaced by another file")


def test_more_than_is_read_at_once_is_all_heard(log: Path) -> None:
    def flood() -> None:
        with log.open("a") as qemu:
            qemu.write("[    1.000000] text\n" * (2 * LONG // 20) + COMPLAINT)

    titles, _said = heard(log, flood)
    assert len(titles) == 1


def test_who_looks_late_hears_what_is_behind_a_piece(log: Path) -> None:
    async def story() -> int:
        reader = ConsoleReader(log)
        reader.skip()
        with log.open("a") as qemu:
            qemu.write(COMPLAINT + "[    1.000000] text\n" * (3 * WINDOW // 20) + COMPLAINT)
        heard = 0
        async with asyncio.timeout(60):
            async for _crash in reader.complaints():
                heard += 1
                if heard == 2:
                    break
                await asyncio.sleep(2)  # longer than a complaint is waited for
        return heard

    assert asyncio.run(story()) == 2


@pytest.mark.parametrize("shown", [5, 100, 700])
def test_a_complaint_that_is_cut_where_a_piece_ends_is_heard_whole_and_once(log: Path, shown: int) -> None:
    line = "[    1.000000] text\n"
    before = ((2 * WINDOW - shown) // len(line) + 1) * len(line)

    async def story() -> list[CrashReport]:
        reader = ConsoleReader(log)
        reader.skip()
        found: list[CrashReport] = []

        async def hear() -> None:
            async for crash in reader.complaints():
                found.append(crash)

        hearing = asyncio.create_task(hear())
        with log.open("a") as qemu:
            qemu.write((line * (before // len(line)))[: 2 * WINDOW - shown - 1] + "\n" + COMPLAINT)
            left = 5  # looks behind the one that found it: it is told once
            async with asyncio.timeout(60):
                while left:  # a kernel that goes on talking
                    qemu.write(line)
                    qemu.flush()
                    await asyncio.sleep(0.1)
                    left -= bool(found)
        hearing.cancel()
        await asyncio.wait({hearing})
        return found

    (crash,) = asyncio.run(story())
    assert crash.complete


def test_what_a_guest_died_of_is_found_in_a_log_that_was_begun_anew(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text((RECORDED / "null_dereference.txt").read_text())
    error = asyncio.run(loss(PANICKED, log, LONG))
    assert "NULL pointer dereference" in error.message
