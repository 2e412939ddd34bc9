# SPDX-License-Identifier: MIT
"""The outcome of one cycle as values: the rows of ``hotreload history``, the source of lines and events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

# In the order in which a save passes them. These are the keys of ``ReloadReport.milliseconds``.
STAGES = ("watch", "build", "diff", "link", "push", "load", "complete")


class Outcome(StrEnum):
    """How a cycle ended."""

    LIVE = "live"
    RELOADED = "reloaded"
    RESTORED = "restored"
    REBOOTED = "rebooted"
    NO_CHANGE = "no_change"
    PATCHABLE = "patchable"  # in a dry run
    REFUSED = "refused"
    REJECTED = "rejected"
    FAILED = "failed"  # due to a fault of this machine
    COMPILE_ERROR = "compile_error"
    STALLED = "stalled"
    CRASHED = "crashed"
    COMPLAINED = "complained"  # and the kernel goes on
    UNDONE = "undone"
    REDONE = "redone"

    @property
    def exit_status(self) -> int:
        """The exit status of a command that ends with this outcome (see the table in README.md)."""
        failures = {"compile_error": 3, "refused": 4, "rejected": 4, "crashed": 5, "stalled": 6, "failed": 7}
        return failures.get(self, 0)

    @property
    def rung(self) -> str | None:
        """The rung of the ladder that brought the change, or None if none did."""
        rungs = {"live": "patch", "redone": "patch", "reloaded": "module", "restored": "restore"}
        return (rungs | {"rebooted": "reboot"}).get(self)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an edit did not go live: the fact, with old and new value, and what to do about it."""

    code: str
    message: str
    symbol: str | None = None
    hint: str | None = None
    file: Path | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """The outcome of one cycle.

    ``number``           of the reload; None if nothing was sent
    ``symbols``          what changed: functions and variables, or the modules that were reloaded
    ``milliseconds``     by stage (``STAGES``); a stage that was not reached has no key
    ``saved_to_live_ms`` from the last event of the save to the new code running, transition included
    ``reasons``          of a refusal, a rejection, a stall or a crash: all of them at once
    ``notes``            further lines for the reader: what was done about it, what else to know
    ``error``            output of a tool, such as gcc's diagnostics in gcc's own form
    ``still_runs``       the reload whose code the guest runs, or None for the code that it booted with
    """

    outcome: Outcome
    number: int | None = None
    files: tuple[Path, ...] = ()
    symbols: tuple[str, ...] = ()
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    saved_to_live_ms: float | None = None
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""
    still_runs: int | None = None
    time: datetime = field(default_factory=lambda: datetime.now().astimezone())
