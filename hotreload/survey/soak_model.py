# SPDX-License-Identifier: MIT
"""Predict the outcome of each edit of the soak's driver, and what its guest runs afterwards. Pure.

The prediction follows the rules that users are told, and shares no code with what it checks. The guest runs
what it booted plus the difference to the sources as they were compiled last. A unit that cannot be patched
holds up all others. Undo and redo walk along what was live. A crash goes back to the checkpoint before the
last push.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass

from hotreload.report.outcome import Outcome
from hotreload.survey.soak_driver import UNITS, Driver, users
from hotreload.survey.soak_program import Program, Reading, program_of, reading
from hotreload.survey.soak_statements import GuestDiesError
from hotreload.survey.soak_texts import texts

# The checkpoints that are kept when another one is made (restore_points.py keeps three including that one).
KEPT = 2


@dataclass(frozen=True, slots=True)
class Expected:
    """How a cycle ends.

    ``codes``: those of its reasons. ``dies``: whether the guest dies of the patch or while it is applied.
    """

    outcome: Outcome
    codes: frozenset[str] = frozenset()
    dies: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """A program that was live. ``number``: of its reload, or 0 for the program that was booted."""

    number: int
    program: Program


class Model:
    """The state of a session. ``disk``: the current sources. ``held``: each unit as it was compiled last."""

    def __init__(self, base: Driver) -> None:
        self.base = base
        self.disk = base
        self.held = program_of(base)
        self._base_texts = texts(base)
        self._base_program = program_of(base)
        self._steps = [Step(0, self._base_program)]
        self._place = 0
        self._floor = 0  # before this place there may be unknown steps
        self._last_number = 0
        self._points: list[tuple[int, Step]] = []  # the newest checkpoints, each as a place and its step
        self._due: set[str] = set()  # units that did not compile, and are compiled again with the next save

    def copy(self) -> Model:
        """Return a copy to try an action on."""
        other = copy.copy(self)
        for name in ("held", "_steps", "_points", "_due"):
            setattr(other, name, copy.copy(getattr(self, name)))
        return other

    # --- the state ---

    @property
    def runs(self) -> Step:
        """The step that the guest runs."""
        return self._steps[self._place]

    @property
    def still_runs(self) -> int | None:
        """The number that a report must give for what still runs."""
        return self.runs.number or None

    @property
    def reading(self) -> Reading:
        """What the guest prints. Raises what soak_program.reading raises."""
        return reading(self.runs.program)

    @property
    def does_not_compile(self) -> bool:
        return any(unit.error for unit in self.disk.units)

    @property
    def is_held_up(self) -> bool:
        """Return whether something that was compiled cannot be patched."""
        return bool(self._codes() or self._written_over() or self._never_left())

    @property
    def left_out(self) -> set[str]:
        """The units that differ from the sources and are only brought when they are saved."""
        now = program_of(self.disk)
        return {name for name in UNITS if self.held[name].code != now[name].code}

    @property
    def is_behind(self) -> bool:
        """Return whether something was undone that the next save brings back."""
        return self._code(self.held) != self._code(self.runs.program)

    @property
    def can_undo(self) -> bool:
        return self._place > self._floor

    @property
    def can_redo(self) -> bool:
        return self._place + 1 < len(self._steps)

    @property
    def is_restorable(self) -> bool:
        """Return whether a checkpoint is known."""
        return bool(self._points)

    @property
    def undoable(self) -> tuple[int, ...]:
        """The numbers of the reloads that can be undone by number."""
        return tuple(step.number for step in self._steps[self._floor + 1 : self._place + 1])

    # --- events ---

    def save(self, after: Driver) -> Expected | None:
        """Save the files that differ. Return the expected outcome, or None if no file differs."""
        before, now = texts(self.disk), texts(after)
        saved = [file for file in now if now[file] != before[file]]
        self.disk = after
        return self._saved(saved) if saved else None

    def push(self) -> Expected:
        """Run `hotreload push`, which compiles everything that differs from the base."""
        now = texts(self.disk)
        return self._saved([file for file in now if now[file] != self._base_texts[file]])

    def _saved(self, files: Collection[str]) -> Expected:
        now = texts(self.disk)
        differing = [file for file in now if now[file] != self._base_texts[file]]
        can_differ = {name for file in differing for name in users(file)}
        for name in set(UNITS) - can_differ:
            self.held[name] = self._base_program[name]
        self._due = (self._due | {name for file in files for name in users(file)}) & can_differ
        self._make_room()
        # Units that were compiled with another text of a header that one of these includes are compiled, too.
        headers = {file for name in self._due for file in self.held[name].headers if file in differing}
        behind = {
            name for file in headers for name in users(file) if self.held[name].headers[file] != now[file]
        }
        if any(self.disk.unit(name).error for name in self._due | behind):
            return Expected(Outcome.COMPILE_ERROR)
        current = program_of(self.disk)
        self.held |= {name: current[name] for name in self._due | behind}
        self._due.clear()
        return self._bring()

    def _bring(self) -> Expected:
        if codes := self._codes():
            return Expected(Outcome.REFUSED, codes)
        if self._code(self.held) == self._code(self.runs.program):
            return Expected(Outcome.NO_CHANGE)
        if codes := self._written_over():
            return Expected(Outcome.REFUSED, codes)
        self._points.append((self._place, self.runs))
        if codes := self._never_left():
            return Expected(Outcome.STALLED, codes)
        try:
            reading(self.held)
        except GuestDiesError:
            self.restore()
            return Expected(Outcome.LIVE, dies=True)
        self._last_number += 1
        self._place += 1
        self._steps[self._place :] = [Step(self._last_number, dict(self.held))]
        return Expected(Outcome.UNDONE if self._is_base(self.held) else Outcome.LIVE)

    def undo(self, number: int | None = None, *, everything: bool = False) -> Expected:
        """Run `hotreload undo`."""
        if not self._place:
            return Expected(Outcome.NO_CHANGE)
        place = 0 if everything else self._place - 1
        if number is not None:
            place = next(i for i, step in enumerate(self._steps) if step.number == number) - 1
        return self._walk(place, Outcome.UNDONE)

    def redo(self) -> Expected:
        """Run `hotreload redo`."""
        return self._walk(self._place + 1, Outcome.REDONE) if self.can_redo else Expected(Outcome.NO_CHANGE)

    def _walk(self, place: int, outcome: Outcome) -> Expected:
        self._make_room()
        if not (self._is_base(self.runs.program) and self._is_base(self._steps[place].program)):
            self._points.append((self._place, self.runs))
        if place < self._floor:
            # There are unknown steps between the two, and a redo would go to one of them.
            del self._steps[place + 1 :]
            self._floor = place
        self._place = place
        return Expected(outcome)

    def restore(self) -> None:
        """Restore the last checkpoint, after the guest died."""
        place, step = self._points.pop()
        if place > len(self._steps):
            self._floor = place = len(self._steps)
        self._place = place
        self._steps[place:] = [step]
        self.held = dict(step.program)

    def count_reload(self) -> None:
        """Count a reload that went live and got a number, but then killed the guest."""
        self._last_number += 1

    def saved_in_a_row(self, after: Driver, number: int) -> None:
        """Note that the last of several quick saves is live as reload ``number``.

        It is not known which of the earlier ones were brought together.
        """
        self.disk = after
        self.held = program_of(after)
        self._last_number = number
        self._steps = [self._steps[0], Step(number, dict(self.held))]
        self._place = self._floor = 1
        self._points = []
        self._due.clear()

    # --- rules ---

    def _make_room(self) -> None:
        del self._points[:-KEPT]

    def _is_base(self, program: Program) -> bool:
        return self._code(program) == self._code(self._base_program)

    @staticmethod
    def _code(program: Program) -> tuple[object, ...]:
        return tuple(program[name].code for name in UNITS)

    def _codes(self) -> frozenset[str]:
        """Return the codes of refusals that need only the compiled units."""
        codes = set()
        for name in UNITS:
            held, then = self.held[name], self._base_program[name]
            codes |= {"HR2101"} if held.unit.members != then.unit.members else set()
            codes |= {"HR2205"} if held.unit.exported != then.unit.exported else set()
            codes |= {"HR2201"} if held.unit.banner != then.unit.banner else set()
        return frozenset(codes)

    def _written_over(self) -> frozenset[str]:
        """Return the code of the refusal of a new initial value for a variable that the guest has changed."""
        starts = {self.held[name].unit.start != self.base.unit(name).start for name in UNITS}
        return frozenset({"HR2103"} if True in starts else ())

    def _never_left(self) -> frozenset[str]:
        """Return the code of a stall, if a thread never leaves a function that differs."""
        strides = {self.held[name].unit.stride != self.base.unit(name).stride for name in UNITS}
        return frozenset({"HR3104"} if True in strides else ())
