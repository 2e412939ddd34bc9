# SPDX-License-Identifier: MIT
"""What a program sees: one JSON object per line.

    {"v":1,"seq":7,"t":1767225600.123,"type":"apply.done","cycle":3,"rung":"patch","number":3,...}

``v`` is the version of this format, ``seq`` counts the lines of a session from 1, ``t`` is the Unix time in
seconds, and ``cycle`` counts the batches and is null outside of one. ``FIELDS`` lists what else each type
has. Those fields are always present. There may be others, and new ones may be added without a new ``v``.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from hotreload.paths import writing_to
from hotreload.report.outcome import STAGES, Outcome, Reason, ReloadReport

log = logging.getLogger(__name__)

VERSION = 1

TEXT, TEXTS, NUMBER, OBJECTS, OBJECT = "text", "texts", "number", "objects", "object"
OPTIONAL = " or null"

# Paths are absolute. ``ms`` has the milliseconds of each stage that was reached or, if it is a number, of the
# whole.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "guest.state": {"guest": TEXT, "state": TEXT},
    "watch.change": {"files": TEXTS},
    "build.start": {"units": TEXTS},
    "build.error": {"files": TEXTS, "code": TEXT, "diagnostics": TEXT},
    "diff.done": {"verdict": TEXT, "changed_functions": TEXTS, "new_functions": TEXTS, "ms": NUMBER},
    "refused": {"files": TEXTS, "reasons": OBJECTS, "still_runs": NUMBER + OPTIONAL},
    "apply.start": {"rung": TEXT, "files": TEXTS, "symbols": TEXTS},
    "apply.done": {
        "rung": TEXT,
        "number": NUMBER + OPTIONAL,
        "files": TEXTS,
        "symbols": TEXTS,
        "ms": OBJECT,
        "saved_to_live_ms": NUMBER,
    },
    "undo.done": {"number": NUMBER + OPTIONAL, "still_runs": NUMBER + OPTIONAL},
    "crash": {"code": TEXT, "title": TEXT, "function": TEXT + OPTIONAL, "number": NUMBER + OPTIONAL},
    "restore.done": {"checkpoint": TEXT, "ms": NUMBER},
    "command.done": {
        "command": TEXT,
        "status": NUMBER + OPTIONAL,
        "stdout": TEXT,
        "stderr": TEXT,
        "ms": NUMBER,
    },
    "test.case": {"name": TEXT, "result": TEXT},
    "doctor.check": {"name": TEXT, "state": TEXT, "why": TEXT, "command": TEXT + OPTIONAL},
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _all(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(item, kind) for item in value)


CHECKS: Mapping[str, Callable[[object], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    TEXTS: _all(str),
    NUMBER: _is_number,
    OBJECTS: _all(dict),
    OBJECT: lambda value: isinstance(value, dict),
}


@dataclass(frozen=True, slots=True)
class Event:
    """One line."""

    seq: int
    t: float
    type: str
    cycle: int | None
    fields: Mapping[str, Any]

    def line(self) -> str:
        """Return the event as a line of JSON. It is ASCII only, and so safe for any terminal and locale."""
        head = {"v": VERSION, "seq": self.seq, "t": self.t, "type": self.type, "cycle": self.cycle}
        return json.dumps(head | dict(self.fields), separators=(",", ":"), allow_nan=False) + "\n"


def checked(type: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields as JSON has them (paths as text, tuples as lists).

    Raises ValueError if one is wrong.
    """
    if type not in FIELDS:
        raise ValueError(f"there is no event {type!r}")
    plain = {name: _plain(value) for name, value in fields.items()}
    for name, kind in FIELDS[type].items():
        if name not in plain:
            raise ValueError(f"event {type} lacks {name!r}")
        if plain[name] is None and kind.endswith(OPTIONAL):
            continue
        if not CHECKS[kind.removesuffix(OPTIONAL)](plain[name]):
            raise ValueError(f"event {type}: {name!r} must be {kind}, not {plain[name]!r}")
    return plain


class EventSink:
    """Numbers the events of a session and writes them: into a file of its folder, to a stream, or both.

    Each line is written with one call, so that a program that follows the file never reads half a line.
    Raises EnvironmentFault (HR5107, HR5108) if the file cannot be opened.
    """

    def __init__(
        self, file: Path | None = None, stream: TextIO | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = file
        self._stream = stream
        self._clock = clock
        self._seq = 0
        self._descriptor: int | None = None
        self._missing = 0  # events that were not written since the disk is full

    def __enter__(self) -> Self:
        if self._path is not None:
            with writing_to(self._path.parent):
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o600)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def emit(self, type: str, cycle: int | None = None, **fields: Any) -> Event:
        """Write one event. Raises ValueError if its fields are not those of its type."""
        plain = checked(type, fields)
        self._seq += 1
        event = Event(self._seq, round(self._clock(), 3), type, cycle, plain)
        line = event.line()
        if self._descriptor is not None and self._path is not None:
            self._record(line)
        if self._stream is not None:
            self._stream.write(line)
            self._stream.flush()
        return event

    def _record(self, line: str) -> None:
        """Write a line completely or not at all.

        A record is not worth losing a guest and its state. If the disk is full, lines are lost, but not the
        session.
        """
        try:
            self._write(line.encode("ascii"))
        except OSError as error:
            if not self._missing:
                log.warning("%s: %s; events are not recorded from now on", self._path, error.strerror)
            self._missing += 1
        else:
            if self._missing:
                log.warning("%s: recording again, %d events are missing", self._path, self._missing)
            self._missing = 0

    def _write(self, line: bytes) -> None:
        assert self._descriptor is not None
        written = os.write(self._descriptor, line)
        if written < len(line):  # a partial write means that the disk is full
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def closing_event(report: ReloadReport) -> tuple[str, dict[str, Any]]:
    """Return the event that ends a cycle, as type and fields, from its report."""
    outcome, files = report.outcome, list(report.files)
    if outcome.rung is not None:
        return "apply.done", {
            "rung": outcome.rung,
            "number": report.number,
            "files": files,
            "symbols": list(report.symbols),
            "ms": {stage: report.milliseconds.get(stage, 0.0) for stage in STAGES},
            "saved_to_live_ms": report.saved_to_live_ms or 0.0,
        }
    if outcome is Outcome.UNDONE:
        return "undo.done", {"number": report.number, "files": files, "still_runs": report.still_runs}
    if outcome is Outcome.COMPILE_ERROR:
        return "build.error", {"files": files, "code": "HR1003", "diagnostics": report.error}
    if outcome in (Outcome.NO_CHANGE, Outcome.PATCHABLE):
        verdict = "unchanged" if outcome is Outcome.NO_CHANGE else "patchable"
        said: dict[str, Any] = {
            "verdict": verdict,
            "changed_functions": list(report.symbols),
            "new_functions": [],
        }
        return "diff.done", said | {"files": files, "ms": report.milliseconds.get("diff", 0.0)}
    reasons = [reason_object(reason) for reason in report.reasons]
    if outcome in (Outcome.CRASHED, Outcome.COMPLAINED):
        first = report.reasons[0] if report.reasons else Reason("HR4101", "the guest's kernel crashed")
        return "crash", {
            "code": first.code,
            "title": first.message,
            "function": first.symbol,
            "number": report.number,
            "reasons": reasons,
        }
    return "refused", {"files": files, "reasons": reasons, "still_runs": report.still_runs}


def reason_object(reason: Reason) -> dict[str, Any]:
    """Return a reason in the form used in all our JSON: code, symbol, message, hint, file, line."""
    return {
        "code": reason.code,
        "symbol": reason.symbol,
        "message": reason.message,
        "hint": reason.hint,
        "file": None if reason.file is None else str(reason.file),
        "line": reason.line,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value
