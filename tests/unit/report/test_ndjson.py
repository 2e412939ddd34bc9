# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from hotreload.report.ndjson import FIELDS, EventSink, closing_event
from hotreload.report.outcome import Outcome, Reason, ReloadReport

FOO = Path("/src/foo.c")
REASON = Reason("HR2101", "struct grew", "foo_priv", "reload the module", Path("/src/foo.h"), 31)

# The interface: these types carry these fields for good. Adding is free, the rest is a decision.
FROZEN = {
    "guest.state": "guest state",
    "watch.change": "files",
    "build.start": "units",
    "build.error": "files code diagnostics",
    "diff.done": "verdict changed_functions new_functions ms",
    "refused": "files reasons still_runs",
    "apply.start": "rung files symbols",
    "apply.done": "rung number files symbols ms saved_to_live_ms",
    "undo.done": "number still_runs",
    "crash": "code title function number",
    "restore.done": "checkpoint ms",
    "command.done": "command status stdout stderr ms",
    "test.case": "name result",
    "doctor.check": "name state why command",
}


def test_the_types_and_their_fields_are_frozen() -> None:
    assert {type: " ".join(fields) for type, fields in FIELDS.items()} == FROZEN


def test_an_event_is_one_line_with_its_head_first() -> None:
    stream = io.StringIO()
    with EventSink(stream=stream, clock=lambda: 1767225600.12345) as sink:
        sink.emit("watch.change", cycle=3, files=[FOO])
    assert stream.getvalue() == (
        '{"v":1,"seq":1,"t":1767225600.123,"type":"watch.change","cycle":3,"files":["/src/foo.c"]}\n'
    )


def test_events_are_numbered_and_go_to_the_file_and_the_stream(tmp_path: Path) -> None:
    stream, file = io.StringIO(), tmp_path / "events.ndjson"
    with EventSink(file, stream) as sink:
        for state in ("booting", "running"):
            sink.emit("guest.state", guest="default", state=state)
        assert file.read_text() == stream.getvalue()  # while it is open
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["seq"], row["cycle"], row["state"]) for row in rows] == [
        (1, None, "booting"),
        (2, None, "running"),
    ]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_file_name_that_is_no_text_and_terminal_codes_stay_on_their_line_in_ascii(tmp_path: Path) -> None:
    stream = io.StringIO()
    with EventSink(tmp_path / "events.ndjson", stream) as sink:
        sink.emit("watch.change", files=["/src/\udcff.c", "a\nb\x1b[2J"])
    assert stream.getvalue().isascii()
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(
    ("type", "fields", "complaint"),
    [
        ("watch.changed", {}, "no event 'watch.changed'"),
        ("watch.change", {}, "lacks 'files'"),
        ("watch.change", {"files": "foo.c"}, "'files' must be texts"),
        ("restore.done", {"checkpoint": "base", "ms": True}, "'ms' must be number"),
        ("guest.state", {"guest": None, "state": "up"}, "'guest' must be text"),
    ],
)
def test_an_event_that_breaks_the_interface_is_not_written(
    type: str, fields: dict[str, Any], complaint: str
) -> None:
    stream = io.StringIO()
    with EventSink(stream=stream) as sink, pytest.raises(ValueError, match=complaint):
        sink.emit(type, **fields)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_an_event_that_keeps_the_interface(outcome: Outcome) -> None:
    report = ReloadReport(outcome, number=3, files=(FOO,), reasons=(REASON,), error="foo.c:1: error")
    type, fields = closing_event(report)
    with EventSink(stream=io.StringIO()) as sink:
        assert sink.emit(type, 1, **fields).type == type


def test_a_live_edit_carries_every_stage_and_the_time_from_save_to_live() -> None:
    report = ReloadReport(
        Outcome.LIVE,
        number=12,
        files=(FOO,),
        symbols=("foo_read",),
        milliseconds={"build": 780.0, "push": 70.0},
        saved_to_live_ms=940.25,
    )
    stages = {
        "watch": 0.0,
        "build": 780.0,
        "diff": 0.0,
        "link": 0.0,
        "push": 70.0,
        "load": 0.0,
        "complete": 0.0,
    }
    assert closing_event(report) == (
        "apply.done",
        {
            "rung": "patch",
            "number": 12,
            "files": [FOO],
            "symbols": ["foo_read"],
            "ms": stages,
            "saved_to_live_ms": 940.25,
        },
    )


def test_a_refusal_carries_every_reason_whole() -> None:
    type, fields = closing_event(ReloadReport(Outcome.REFUSED, files=(FOO,), reasons=(REASON, REASON)))
    assert type == "refused"
    assert fields["reasons"][1] == {
        "code": "HR2101",
        "symbol": "foo_priv",
        "message": "struct grew",
        "hint": "reload the module",
        "file": "/src/foo.h",
        "line": 31,
    }


def test_a_full_disk_costs_the_records_lines_and_not_the_session(caplog: pytest.LogCaptureFixture) -> None:
    said = io.StringIO()
    with EventSink(Path("/dev/full"), said) as sink:
        sink.emit("guest.state", guest="g", state="ready")
    assert "No space left on device" in caplog.text
    assert json.loads(said.getvalue())["state"] == "ready"


def test_each_time_the_disk_is_full_is_told_once_and_no_line_is_half_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, (_, most) = tmp_path / "events.ndjson", resource.getrlimit(resource.RLIMIT_FSIZE)
    with EventSink(file) as sink:
        for time in ("first", "second"):
            sink.emit("guest.state", guest=time, state="ready")
            # What a process may write at most stands for what is free.
            resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 20, most))
            try:
                for _ in range(3):
                    sink.emit("guest.state", guest="lost", state="ready")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            sink.emit("guest.state", guest=f"after the {time}", state="ready")
    told = [json.loads(line)["guest"] for line in file.read_text().splitlines()]
    assert told == ["first", "after the first", "second", "after the second"]
    begins, ends = (
        "No space left on device; events are not recorded from now on",
        "recording again, 3 events are missing",
    )
    assert [message.partition(": ")[2] for message in caplog.messages] == [begins, ends, begins, ends]
