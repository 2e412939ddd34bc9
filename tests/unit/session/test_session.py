# SPDX-License-Identifier: MIT
"""What of a session can be told without a guest; tests/guest/test_watch.py has the rest."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from hotreload.cli.main import main
from hotreload.cli.verbs import guest_command
from hotreload.errors import GuestCrashedError, GuestUnreachableError
from hotreload.fault_line import SourceLine
from hotreload.paths import state_folder
from hotreload.session.loss import crashed_report, loss
from hotreload.session.order import KEPT_SESSIONS, make_state_folder, new_state
from hotreload.vm.machine import State, Trouble

RECORDED = Path(__file__).parents[2] / "recorded"


# Records.


def test_the_records_of_the_last_sessions_are_kept_and_those_of_other_guests_left_alone() -> None:
    other = new_state("other")
    make_state_folder(other)
    made = []
    for _ in range(KEPT_SESSIONS + 3):
        made.append(new_state("mine"))
        make_state_folder(made[-1])
    assert sorted((state_folder() / "guests" / "mine").iterdir()) == made[-KEPT_SESSIONS:]
    assert other.is_dir()


# A lost guest.


def test_a_panic_is_told_with_its_cause_and_what_the_console_said_is_kept(tmp_path: Path) -> None:
    console = RECORDED / "6.1" / "null_dereference.txt"
    error = asyncio.run(loss(Trouble(State.PANICKED, "the guest's kernel panicked"), console))
    assert isinstance(error, GuestCrashedError)
    report = crashed_report(error, SourceLine(Path("/d/foo.c"), 88), 14, tmp_path, ["gdb -batch foo.ko"])
    assert (report.number, report.reasons[0].code, report.outcome.exit_status) == (14, error.code, 5)
    text = (tmp_path / "report.txt").read_text()
    assert "the guest ran reload #14" in text
    assert "RIP: 0010:" in text
    assert text.endswith("\ncommands for a closer look:\n  gdb -batch foo.ko\n")


@pytest.mark.parametrize("state", [State.HALTED, State.STOPPED])
def test_a_guest_that_ended_otherwise_is_unreachable(state: State, tmp_path: Path) -> None:
    error = asyncio.run(loss(Trouble(state, "it ended"), tmp_path / "console.log"))
    assert isinstance(error, GuestUnreachableError)
    assert (error.code, error.message) == ("HR4103", "the guest is lost: it ended")


# Commands without a session.


@pytest.mark.parametrize(
    "words", [("push",), ("undo",), ("redo",), ("history",), ("status",), ("why",), ("guest", "stop"),
              ("guest", "exec", "true"), ("guest", "ssh"), ("guest", "show"), ("guest", "logs")],
)  # fmt: skip
def test_a_command_without_a_guest_is_status_8_and_says_how_to_get_one(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 8
    assert capsys.readouterr().err == (
        f"hotreload: error[HR4103]: no guest is running for {tmp_path}\n"
        "  hint: hotreload watch or hotreload guest start\n"
    )


def test_a_guest_that_is_named_is_named_in_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--guest", "big"]) == 8
    assert "the guest big is not running" in capsys.readouterr().err


def test_two_folders_are_one_too_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path), str(tmp_path)]) == 2
    assert "error[HR1009]: only one folder at a time" in capsys.readouterr().err


def test_no_guests_is_an_answer_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guest", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"v": 1, "guests": []}


def test_one_word_is_a_shell_command_and_several_are_a_program_with_arguments() -> None:
    assert guest_command(["cat /proc/x | wc -l"]) == "cat /proc/x | wc -l"
    assert guest_command(["grep", "two words", "/f"]) == "grep 'two words' /f"
    assert guest_command([]) is None
