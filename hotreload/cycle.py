# SPDX-License-Identifier: MIT
"""One cycle, from a save to its report: the data collected on the way, and a report for each outcome."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hotreload.build.compile import SomeFailedError
from hotreload.compared import Compared
from hotreload.deploy.livepatch import AppliedPatch
from hotreload.diff.obstacles import NotPatchableError, Obstacle
from hotreload.errors import (
    CompileError,
    EditError,
    EnvironmentFault,
    GuestCrashedError,
    KernelUnfitError,
    PatchRejectedError,
    SessionError,
    TransitionStalledError,
)
from hotreload.history import Step
from hotreload.patch.changed_since import changed_since
from hotreload.patch.homes import Settlement
from hotreload.report.outcome import Outcome, Reason, ReloadReport

Announce = Callable[[str, Mapping[str, Any]], None]

THE_SAME = "the code is the same"
AS_BOOTED = "the sources are those that the guest booted with"

_OUTCOMES = {
    CompileError: Outcome.COMPILE_ERROR,
    PatchRejectedError: Outcome.REJECTED,
    TransitionStalledError: Outcome.STALLED,
    GuestCrashedError: Outcome.CRASHED,
    EnvironmentFault: Outcome.FAILED,
    KernelUnfitError: Outcome.FAILED,
}


@dataclass(slots=True)
class Cycle:
    """The data of the cycle that is under way. ``saved_at`` is time.monotonic() of the last save."""

    files: tuple[Path, ...]
    saved_at: float
    announce: Announce
    compared: list[Compared] = field(default_factory=list)
    milliseconds: dict[str, float] = field(default_factory=dict)
    is_saved: bool = False  # the save of a checkpoint before the change has begun
    notes: list[str] = field(default_factory=list)
    moved: frozenset[str] = frozenset()  # as in PatchPlan

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to the time of the stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = (time.monotonic() - started) * 1000
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent

    def announce_difference(self) -> None:
        """Announce how the units of this edit differ, before the guest is changed."""
        diffs = [each.diff for each in self.compared]
        self.announce(
            "diff.done",
            {
                "files": self.files,
                "verdict": "patchable",
                "changed_functions": [name for diff in diffs for name in diff.changed_functions],
                "new_functions": [symbol.name for diff in diffs for symbol in diff.new_functions],
                "ms": self.milliseconds["diff"],
            },
        )

    def announce_climb(
        self, refusal: NotPatchableError, modules: Collection[str], still_runs: int | None
    ) -> ReloadReport:
        """Announce why a patch is not enough, and what the next rung will lose. Return what was announced."""
        names = ", ".join(f"{name}.ko" for name in sorted(modules))
        lost = "its state is lost" if len(modules) == 1 else "their state is lost"
        hint = f"needs a module reload: {names}; {lost}"
        hinted = NotPatchableError(replace(each, hint=hint) for each in refusal.obstacles)
        # The notes are reported with the outcome.
        report = replace(self.failed(hinted, still_runs), notes=())
        self.announce("climb", {"report": report})
        return report

    def note_times(self, applied: AppliedPatch) -> None:
        """Record the times of a deployment.

        ``push`` is the transfer, ``load`` is insmod, and ``complete`` is the time from then until all tasks
        run new code.
        """
        self.milliseconds |= {
            "push": applied.push_ms,
            "load": applied.load_ms,
            "complete": max(0.0, applied.complete_ms - applied.load_ms),
        }

    def note_settlement(self, settlement: Settlement, reset: tuple[str, ...] = ()) -> None:
        """Note which functions and variables that earlier reloads added start again from scratch."""
        if settlement.anew:
            names = ", ".join(settlement.anew)
            self.notes.append(
                "HR2104 starts again from its initial value, because its type, initial value or function"
                f" changed: {names}"
            )
        if reset:
            names = ", ".join(reset)
            self.notes.append(
                "HR2104 starts again from its initial value with each patch, because several have that"
                f" name: {names}"
            )

    def note_variables(self, names: Iterable[str]) -> None:
        """Note variables that earlier reloads added and that no code uses any more."""
        if told := ", ".join(names):
            self.notes.append(f"HR2104 no longer exists, though something may still hold its address: {told}")

    def note_dropped(self, names: tuple[str, ...]) -> None:
        """Note variables that earlier reloads added and that the sources no longer have."""
        if names:
            self.notes.append(
                f"HR2104 no longer exists, and would start again from its initial value: {', '.join(names)}"
            )

    def notes_of_units(self) -> list[str]:
        """Return the notes on all units. A variable that moved to another unit is not reported as lost."""
        notes = (note for each in self.compared for note in each.diff.notes)
        return [note.message for note in notes if note.code != "HR2104" or note.symbol not in self.moved]

    # --- endings ---

    def went_live(self, step: Step, before: Step) -> ReloadReport:
        """Return the report of a guest that runs the sources.

        It does so with a patch, or without one if nothing differs from what it booted.
        """
        live_ms = (time.monotonic() - self.saved_at) * 1000
        undone = [name for name in before.symbols if name not in step.symbols]
        changed = self._of_this_edit(step, before)
        notes = self.notes_of_units()
        notes += [
            f"{fn} is replaced too, because it {why}"
            for each in self.compared
            for fn, why in each.diff.callers_promoted.items()
        ]
        if undone:
            notes.append(f"back to the code that the guest booted with: {', '.join(undone)}")
        notes += self.notes
        outcome = Outcome.LIVE if step.plan else Outcome.UNDONE
        return ReloadReport(
            outcome,
            step.number,
            self.files,
            changed if step.plan else tuple(undone),
            self.milliseconds,
            live_ms,
            notes=tuple(notes) if step.plan else (AS_BOOTED, *self.notes),
            still_runs=step.number,
        )

    def _of_this_edit(self, step: Step, before: Step) -> tuple[str, ...]:
        names = [name for each in self.compared for name in each.diff.changed_names]
        # Add what was compiled with an earlier, refused edit, and was not compiled again.
        names += [name for name in step.symbols if name not in before.symbols]
        told = tuple(name for name in dict.fromkeys(names) if name in step.symbols)
        if step.plan is None:
            return told
        # The plan also has what earlier saves changed. ``status`` shows the sum, this report only the
        # difference.
        exits = {name for each in self.compared for name in each.diff.exit_names}
        changed = changed_since(before.plan, step.plan) | exits
        of_this_save = tuple(name for name in told if name in changed)
        return of_this_save or tuple(sorted(changed)) or told

    def went_anew(self, step: Step, modules: Collection[str]) -> ReloadReport:
        """Return the report of a guest that runs the sources because these modules were reloaded."""
        return ReloadReport(
            Outcome.RELOADED,
            step.number,
            self.files,
            tuple(f"{name}.ko" for name in sorted(modules)),
            self.milliseconds,
            (time.monotonic() - self.saved_at) * 1000,
            notes=tuple(self.notes),
            still_runs=step.number,
        )

    def no_change(self, still_runs: int | None) -> ReloadReport:
        """Return the report of an edit that did not change the code."""
        notes = self.notes_of_units() + self.notes
        return ReloadReport(
            Outcome.NO_CHANGE,
            None,
            self.files,
            milliseconds=self.milliseconds,
            notes=tuple(notes) or (THE_SAME,),
            still_runs=still_runs,
        )

    def would_be(self, symbols: tuple[str, ...], still_runs: int | None) -> ReloadReport:
        """Return the report of a dry run."""
        note = "dry run: nothing was sent to the guest"
        return ReloadReport(
            Outcome.PATCHABLE,
            None,
            self.files,
            symbols,
            self.milliseconds,
            notes=(note,),
            still_runs=still_runs,
        )

    def _to_blame(self, error: EditError | SessionError) -> tuple[Path, ...]:
        """Return the files that an error is about.

        If some of the saved sources compiled and others did not, these are the ones that did not.
        """
        if not isinstance(error, SomeFailedError):
            return self.files
        broken = tuple(unit.source for unit in error.failed)
        others = {pair.unit.source for pair in error.pairs}
        return tuple(file for file in self.files or broken if file in broken or file not in others)

    def failed(self, error: EditError | SessionError, still_runs: int | None) -> ReloadReport:
        """Return the report of an edit that failed. The guest was left as it was (or died)."""
        outcome = next(
            (_OUTCOMES[kind] for kind in type(error).__mro__ if kind in _OUTCOMES), Outcome.REFUSED
        )
        reasons: tuple[Reason, ...] = (Reason(error.code, error.message, hint=error.hint),)
        if isinstance(error, NotPatchableError):
            reasons = tuple(map(_reason, error.obstacles))
        elif isinstance(error, CompileError):
            reasons = ()
        # Notes from earlier stages are still true when the edit fails.
        notes = [*(error.tasks if isinstance(error, TransitionStalledError) else ()), *self.notes]
        text = getattr(error, "diagnostics", "") or getattr(error, "excerpt", "")
        return ReloadReport(
            outcome,
            None,
            self._to_blame(error),
            (),
            self.milliseconds,
            None,
            reasons,
            tuple(notes),
            text,
            still_runs,
        )


def with_waiting(report: ReloadReport, waits: Collection[str]) -> ReloadReport:
    """Return the report with notes on edits that wait for a load.

    Notes that say that the guest runs the sources are removed, because it does not.
    """
    if not waits:
        return report
    notes = (note for note in report.notes if note not in (THE_SAME, AS_BOOTED))
    return replace(report, notes=(*notes, *waits))


def _reason(obstacle: Obstacle) -> Reason:
    file, _, line = (obstacle.where or "").rpartition(":")
    if not line.isdigit():  # a file without a line
        file, line = obstacle.where or "", ""
    return Reason(
        obstacle.code,
        obstacle.message,
        obstacle.symbol,
        obstacle.hint,
        Path(file) if file else None,
        int(line) if file and line else None,
    )
