# SPDX-License-Identifier: MIT
"""What hotreload is to make of each edit of the soak's driver, and what its guest is to run then. Pure.

It is told by the rules that users are told, and shares no code with what it judges: the guest runs what it
booted plus the difference to the sources as they were compiled last; a unit that cannot be patched holds up
all; undo and redo walk along what was live; a crash goes back to the checkpoint before the last push.
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

# Checkpoints that are kept when another one is made (restore_points.py keeps three, the newest included).
KEPT = 2


@dataclass(frozen=True, slots=True)
class Expected:
    """How a cycle ends; ``codes`` of its reasons; ``dies``: the guest, of the patch or on the way to it."""

    outcome: Outcome
    codes: frozenset[str] = frozenset()
    dies: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What was live, ``number`` 0: what it booted."""

    number: int
    program: Program


class Model:
    """``disk``: the sources as they are; ``held``: each unit as it was compiled last."""

    def __init__(self, base: Driver) -> None:
        self.base = base
        self.disk = base
        self.held = program_of(base)
        self._base_texts = texts(base)
        self._base_program = program_of(base)
        self._steps = [Step(0, self._base_program)]
        self._place = 0
        self._floor = 0  # before that place there may be steps that nobody knows of
        self._last_number = 0
        self._points: list[tuple[int, Step]] = []  # the newest checkpoints, as places with the step there
        self._due: set[str] = set()  # units to compile with the next save, for they did not compile

    def copy(self) -> Model:
        """To see what would come of something."""
        other = copy.copy(self)
        for name in ("held", "_steps", "_points", "_due"):
            setattr(other, name, copy.copy(getattr(self, name)))
        return other

    # --- what is ---

    @property
    def runs(self) -> Step:
        """What the guest runs."""
        return self._steps[self._place]

    @property
    def still_runs(self) -> int | None:
        """The number that a report has to tell."""
        return self.runs.number or None

    @property
    def reading(self) -> Reading:
        """What the guest answers. Raises as soak_driver.reading."""
        return reading(self.runs.program)

    @property
    def does_not_compile(self) -> bool:
        return any(unit.error for unit in self.disk.units)

    @property
    def is_held_up(self) -> bool:
        """Something that was compiled cannot be patched."""
        return bool(self._codes() or self._written_over() or self._never_left())

    @property
    def left_out(self) -> set[str]:
        """Units that the guest does not run as the sources have them, and that nothing brings but a save."""
        now = program_of(self.disk)
        return {name for name in UNITS if self.held[name].code != now[name].code}

    @property
    def is_behind(self) -> bool:
        """Something was undone that the next save brings back."""
        return self._code(self.held) != self._code(self.runs.program)

    @property
    def can_undo(self) -> bool:
        return self._place > self._floor

    @property
    def can_redo(self) -> bool:
        return self._place + 1 < len(self._steps)

    @property
    def is_restorable(self) -> bool:
        """A checkpoint is known."""
        return bool(self._points)

    @property
    def undoable(self) -> tuple[int, ...]:
        """The numbers of the reloads that can be undone by their number."""
        return tuple(step.number for step in self._steps[self._floor + 1 : self._place + 1])

    # --- what happens ---

    def save(self, after: Driver) -> Expected | None:
        """The files that differ were saved; None: none did."""
        before, now = texts(self.disk), texts(after)
        saved = [file for file in now if now[file] != before[file]]
        self.disk = after
        return self._saved(saved) if saved else None

    def push(self) -> Expected:
        """`hotreload push`: whatever differs from the base is compiled."""
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
        # What was made of another text of a header that one of these includes comes with it.
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
        """`hotreload undo`."""
        if not self._place:
            return Expected(Outcome.NO_CHANGE)
        place = 0 if everything else self._place - 1
        if number is not None:
            place = next(i for i, step in enumerate(self._steps) if step.number == number) - 1
        return self._walk(place, Outcome.UNDONE)

    def redo(self) -> Expected:
        """`hotreload redo`."""
        return self._walk(self._place + 1, Outcome.REDONE) if self.can_redo else Expected(Outcome.NO_CHANGE)

    def _walk(self, place: int, outcome: Outcome) -> Expected:
        self._make_room()
        if not (self._is_base(self.runs.program) and self._is_base(self._steps[place].program)):
            self._points.append((self._place, self.runs))
        if place < self._floor:
            # Between the two are steps that nobody knows of, and a redo would go to one of them.
            del self._steps[place + 1 :]
            self._floor = place
        self._place = place
        return Expected(outcome)

    def restore(self) -> None:
        """The guest died, and is back at its last checkpoint."""
        place, step = self._points.pop()
        if place > len(self._steps):
            self._floor = place = len(self._steps)
        self._place = place
        self._steps[place:] = [step]
        self.held = dict(step.program)

    def count_reload(self) -> None:
        """A reload that killed the guest was live before, and had its number."""
        self._last_number += 1

    def saved_in_a_row(self, after: Driver, number: int) -> None:
        """Nobody knows which of several quick saves were one; the last is live as reload ``number``."""
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
        """What is wrong with what was compiled, before any of it is sent."""
        codes = set()
        for name in UNITS:
            held, then = self.held[name], self._base_program[name]
            codes |= {"HR2101"} if held.unit.members != then.unit.members else set()
            codes |= {"HR2205"} if held.unit.exported != then.unit.exported else set()
            codes |= {"HR2201"} if held.unit.banner != then.unit.banner else set()
        return frozenset(codes)

    def _written_over(self) -> frozenset[str]:
        """A new initial value of what the guest has changed: its memory says so."""
        starts = {self.held[name].unit.start != self.base.unit(name).start for name in UNITS}
        return frozenset({"HR2103"} if True in starts else ())

    def _never_left(self) -> frozenset[str]:
        """A thread stands in a function that differs."""
        strides = {self.held[name].unit.stride != self.base.unit(name).stride for name in UNITS}
        return frozenset({"HR3104"} if True in strides else ())
