# SPDX-License-Identifier: MIT
"""Generate edits of the soak's driver and other actions of a user, from a seed. Pure.

``RandomEdits.next`` looks at the current state (a Model) and returns a Save or another action. It only
returns actions with a known outcome: an edit that calls a function that the guest would lack is discarded.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from hotreload.report.outcome import Outcome
from hotreload.survey.random_changes import Change, Changes, dies, mended
from hotreload.survey.soak_driver import UNITS, Driver
from hotreload.survey.soak_model import Model
from hotreload.survey.soak_program import Program, program_of, reading
from hotreload.survey.soak_statements import GuestDiesError

MOST_CALLS = 500  # in one read of /proc/soak, because the guest is emulated
REMEMBERED = 12
TRIES = 200


@dataclass(frozen=True, slots=True)
class Save:
    """Save the files of ``driver``. ``quickly``: drivers that are saved one after the other just before."""

    kind: str
    driver: Driver
    quickly: tuple[Driver, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """Run a command of hotreload: undo, redo or push, with its arguments."""

    kind: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Touch:
    """Save a file unchanged."""

    file: str
    kind: str = "touched"


@dataclass(frozen=True, slots=True)
class Panic:
    """Crash the guest for a reason that has nothing to do with an edit."""

    kind: str = "panic"


Deed = Save | Command | Touch | Panic
Table = list[tuple[int, Callable[[], Deed | None]]]


class RandomEdits:
    """The generator. The same seed and the same models give the same actions."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._changes = Changes(self._random)
        self._past: list[Driver] = []  # drivers that compiled and can be patched and run

    def next(self, model: Model) -> Deed:
        """Return the next action."""
        if self._is_good(model) and model.disk not in self._past[-1:]:
            self._past = [*self._past, model.disk][-REMEMBERED:]
        for _ in range(TRIES):
            deed = self._proposed(model)
            if deed is not None and _is_sound(deed, model):
                return deed
        if model.disk == model.base:
            return Touch("main.c")
        return Save("back to the booted code", model.base)

    @staticmethod
    def _is_good(model: Model) -> bool:
        return not (model.does_not_compile or model.is_held_up or dies(model.disk))

    def _proposed(self, model: Model) -> Deed | None:
        if dies(model.disk):
            table = self._after_a_crash(model)
        elif model.does_not_compile or model.is_held_up or not _is_as_booted(model):
            table = self._while_held_up(model)
        else:
            table = self._in_good_order(model)
        rows = [(weight, make) for weight, make in table if weight]
        weights = [weight for weight, _ in rows]
        return self._random.choices([make for _, make in rows], weights)[0]()

    # --- actions and their weights ---

    def _in_good_order(self, model: Model) -> Table:
        disk, to = model.disk, self._changes
        several = [to.good] * self._random.randint(2, 4)
        return [
            (30, lambda: self._save("good", disk, to.good)),
            (10, lambda: self._save("good in several files", disk, *several)),
            (7, lambda: self._save("header", disk, to.header)),
            (4, lambda: self._save("initial value", disk, to.limit)),
            (4, lambda: self._save("table of functions", disk, to.second)),
            (6, lambda: self._save("comment", disk, to.comment)),
            (6, lambda: self._save("does not compile", disk, to.maybe_good, to.error)),
            (8, lambda: self._save("refused", disk, to.refused)),
            (4, lambda: self._save("refused and good", disk, to.refused, to.good)),
            (7, lambda: self._save("crashing", disk, to.maybe_good, to.crash)),
            (6, self._back),
            (4, lambda: self._save("switch", self._earlier(model), *several)),
            (2, lambda: Save("back to the booted code", model.base)),
            (9, lambda: self._quickly(model)),
            (3, lambda: Touch(self._random.choice(("alpha.c", "main.c", "soak.h")))),
            *self._commands(model),
        ]

    def _commands(self, model: Model) -> Table:
        return [
            (7 * model.can_undo, lambda: Command("undo", ("undo",))),
            (2 * model.can_undo, lambda: Command("undo by number", ("undo", self._number(model)))),
            (1, lambda: Command("undo all", ("undo", "--all"))),
            (9 * model.can_redo, lambda: Command("redo", ("redo",))),
            (3 * model.is_behind, lambda: Command("push", ("push",))),
            (2 * model.is_restorable, Panic),
        ]

    def _while_held_up(self, model: Model) -> Table:
        disk, to = model.disk, self._changes
        return [
            (12, lambda: self._save("fixed", disk, mended)),
            (4, lambda: self._save("fixed and good", disk, mended, to.good)),
            (4, lambda: self._save("good while held up", disk, to.good)),
            (1, lambda: self._save("comment while held up", disk, to.comment)),
            (3, self._back),
            (1 * model.can_undo, lambda: Command("undo while held up", ("undo",))),
            (1 * model.is_restorable, Panic),
        ]

    def _after_a_crash(self, model: Model) -> Table:
        disk, to = model.disk, self._changes
        return [
            (10, lambda: self._save("fixed after a crash", disk, mended)),
            (4, lambda: self._save("fixed after a crash and good", disk, mended, to.good)),
            (4, lambda: self._save("good after a crash", disk, to.good)),
            (1, lambda: self._save("crashing again", disk, to.good_where_it_crashes)),
            (3, self._back),
        ]

    # --- deeds ---

    def _save(self, kind: str, driver: Driver | None, *changes: Change) -> Deed | None:
        before = driver
        for change in changes:
            driver = change(driver) if driver else None
        return Save(kind, driver) if driver and driver != before else None

    def _earlier(self, model: Model) -> Driver:
        return self._random.choice([*self._past, model.base])

    def _back(self) -> Deed | None:
        """Save an earlier text again, as by an undo in the editor."""
        return Save("back to an earlier text", self._random.choice(self._past)) if self._past else None

    def _number(self, model: Model) -> str:
        return str(self._random.choice(model.undoable))

    def _quickly(self, model: Model) -> Deed | None:
        """Save one file several times in quick succession. Each version that compiles could go live."""
        name = self._random.choice(UNITS)
        drivers = [model.disk]
        for _ in range(self._random.randint(2, 4)):
            driver = self._changes.constant_in(drivers[-1], name)
            if driver is None:
                return None
            drivers.append(driver)
        *before, last = drivers
        # It must be possible to see that the guest runs the last version.
        if reading(program_of(last)).lines in [reading(program_of(driver)).lines for driver in before]:
            return None
        quickly = before[1:]
        if self._random.random() < 0.4:
            quickly.insert(self._random.randint(0, len(quickly)), self._changes.error_in(last, name))
        return Save("quickly", last, tuple(quickly))


def _is_as_booted(model: Model) -> bool:
    """Return whether nothing on disk needs a boot of the guest."""
    return mended(model.disk) == model.disk


def _is_sound(deed: Deed, model: Model) -> bool:
    """Return whether the outcome of an action is known, and the guest answers soon afterwards."""
    try:
        return _is_foretold(deed, model.copy(), model.left_out or model.is_behind)
    except KeyError:
        # A unit from before a crash may call functions that another unit does not have after it.
        return False


def _is_foretold(deed: Deed, after: Model, is_unsettled: object) -> bool:
    drivers: tuple[Driver, ...] = ()
    if isinstance(deed, Save):
        expected = after.save(deed.driver)
        drivers = (deed.driver, *deed.quickly)
        if expected is None or (deed.kind == "crashing" and not expected.dies):
            return False
        if deed.quickly and (expected.outcome is not Outcome.LIVE or is_unsettled):
            return False
    elif isinstance(deed, Command) and deed.words == ("push",):
        after.push()
    return all(map(_answers_soon, (after.held, *map(program_of, drivers))))


def _answers_soon(program: Program) -> bool:
    try:
        return reading(program).calls <= MOST_CALLS
    except GuestDiesError:
        return True
