# SPDX-License-Identifier: MIT
"""Checkpoints of the guest, each with what was known about the guest at that moment.

One is saved before each push. A crash brings back the last one and uses it up, so a guest that crashes again
before anything was pushed goes back one further. A checkpoint may be of a guest that was already dying, or
that let nobody log in. Only those after which a push arrived are known to be good, and they are not thrown
away in favour of others. Checkpoints that the user asks for stay as long as the guest.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hotreload.build.guest_base import GuestBase
from hotreload.compared import Compared
from hotreload.diff.layouts import Layouts
from hotreload.errors import EnvironmentFault, InputError
from hotreload.history import Step
from hotreload.patch.homes import Home
from hotreload.patch.model import Identity, PatchPlan
from hotreload.patch.module import LivePatch
from hotreload.patch.writes import Place, Written
from hotreload.vm.checkpoints import TAG_PREFIX, Checkpoint, Checkpoints, NoSpaceError, TooSlowError

KEPT = 3
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Seconds. A guest must not stand still for longer than this with each save. After the second such save in a
# row, some pushes go without a checkpoint: one the first time, then twice as many each time, and at most
# MOST_SKIPPED.
SLOW = 3.0
MOST_SKIPPED = 8
NO_MORE = "no checkpoints from now on: after a crash, the guest is booted again"
FURTHER = "after a crash, the guest goes back further, or is booted again"


@dataclass(frozen=True, slots=True)
class Kept:
    """Why a patch module must stay loaded when it is replaced, and for which objects (``modules``)."""

    reasons: tuple[str, ...]
    modules: frozenset[str] = frozenset()

    def without(self, modules: Collection[str]) -> Kept | None:
        """Return the same without modules that are gone, or None if nothing is left to stay for."""
        left = self.modules - frozenset(modules)
        return None if self.modules and not left else replace(self, modules=left)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known about a guest at one moment.

    ``base``        what it booted or, for reloaded modules, what was loaded last
    ``plan``        what it runs beyond that, or None
    ``live``        the patch that was made of the plan
    ``edited``      the units that the plan was made of, by object
    ``homes``       where the additions of the reloads live
    ``written``     values that the live patch wrote into data
    ``kept``        patch modules that must stay loaded, and why
    ``live_types``  the types of a unit, by object, in each reload since the boot; undo removes none
    ``handed``      the base's symbols whose addresses reloads since the boot gave away, by object; undo
                    removes none
    """

    base: GuestBase
    plan: PatchPlan | None = None
    live: LivePatch | None = None
    edited: Mapping[Path, Compared] = field(default_factory=dict)
    homes: Mapping[Identity, Home] = field(default_factory=dict)
    written: Mapping[Place, Written] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)
    live_types: Mapping[Path, tuple[Layouts, ...]] = field(default_factory=dict)
    handed: Mapping[Path, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moment:
    """The ``steps`` of the history, the ``place`` among them, and what was ``known`` about the guest then."""

    steps: tuple[Step, ...]
    place: int
    known: Known

    @property
    def runs(self) -> int | None:
        """The number of the reload whose code the guest ran, or None for what it booted."""
        return self.steps[self.place].number or None


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that the guest can go back to.

    ``by_hand`` means that the user asked for it. ``answered`` means that the guest took a push after it.
    """

    checkpoint: Checkpoint
    moment: Moment
    by_hand: bool = False
    answered: bool = False


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Where the guest was brought back to.

    ``checkpoint``   the name of the checkpoint
    ``number``       of the reload that was undone by this; None if none was, because the guest crashed while
                     a patch was sent, or after an undo
    ``before_undo``  whether the guest crashed after an undo
    ``runs``         the reload whose code the guest runs after this
    ``left_out``     sources that the guest does not run as they were compiled last
    ``further``      whether it went back more than one reload
    ``passed``       later checkpoints, at which the guest did not answer
    """

    checkpoint: str
    number: int | None
    before_undo: bool
    runs: int | None
    left_out: tuple[Path, ...]
    further: bool = False
    passed: tuple[str, ...] = ()


class RestorePoints:
    """The last KEPT checkpoints, and those by hand. Without ``checkpoints`` there are none."""

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self._checkpoints = checkpoints
        self._points: deque[Saved] = deque()
        self._latest: Saved | None = None  # saved last; nothing was pushed since
        self._by_hand: dict[str, Saved] = {}
        self._spent: list[Checkpoint] = []
        self.is_of_this_change = False  # whether the last point was saved right before the current change
        self._slow = 0  # slow saves in a row
        self._skip = 0  # how many saves to skip from now on

    async def save(self, moment: Moment) -> str | None:
        """Save the guest as it is at this moment. Return what to tell the user if this fails.

        Raises GuestUnreachableError.
        """
        self.is_of_this_change = False
        if self._checkpoints is None:
            return None
        if self._skip:
            self._skip -= 1
            return None
        try:
            await self._make_room(self._checkpoints)
            checkpoint = await self._checkpoints.save()
        except (NoSpaceError, TooSlowError) as fault:
            return f"{fault.code} {fault.message}: {FURTHER}"
        except EnvironmentFault as fault:
            # The space of a save that failed half-way is not given back.
            self._give_up(self._checkpoints)
            return f"{fault.code} {fault.message}; {NO_MORE}"
        self._latest = Saved(checkpoint, moment)
        return self._judge(checkpoint.seconds)

    def _judge(self, seconds: float) -> str | None:
        """Skip some saves if they take too long. Return what to tell the user then."""
        self._slow = self._slow + 1 if seconds > SLOW else 0
        if self._slow < 2:  # a single slow save may be due to this machine
            return None
        self._skip = min(2 ** (self._slow - 2), MOST_SKIPPED)
        pushes = "push is" if self._skip == 1 else f"{self._skip} pushes are"
        return (
            f"HR5105 saving the guest took {seconds:.1f} s; the next {pushes} made without a checkpoint:"
            f" {FURTHER}"
        )

    def _give_up(self, checkpoints: Checkpoints) -> None:
        checkpoints.give_up()
        self._checkpoints, self._latest = None, None
        self._points.clear()
        self._by_hand.clear()

    def use(self) -> bool:
        """Note that the guest changes from here on, and so differs from the last save.

        Return False if it has changed since then already.
        """
        if self._latest is None:
            return False
        self._points.append(self._latest)
        self._latest = None
        self.is_of_this_change = True
        return True

    def note_answer(self) -> None:
        """Note that the guest has taken the change that ``use`` announced."""
        if self.is_of_this_change and self._points:
            self._points[-1] = replace(self._points[-1], answered=True)

    def give_back(self) -> None:
        """Note that the change that ``use`` announced did not happen. The guest is as it was saved last."""
        self._latest = self._points.pop()
        self.is_of_this_change = False

    @property
    def is_empty(self) -> bool:
        """Return whether there is no checkpoint to return to after a crash."""
        return self._checkpoints is None or not self._points

    async def wake(self) -> None:
        """Wake the guest if it sleeps. Raises GuestUnreachableError."""
        if self._checkpoints is not None:
            await self._checkpoints.wake()

    async def restore(self) -> Saved | None:
        """Bring the guest back to before the last push, or return None if there was none.

        Raises as ``load``.
        """
        if self._checkpoints is None or not self._points:
            return None
        saved = self._points.pop()
        self.is_of_this_change = False
        self._spent.append(saved.checkpoint)
        await self._checkpoints.restore(saved.checkpoint)
        return saved

    def listed(self) -> tuple[Saved, ...]:
        """Return the checkpoints that the guest can go back to, the latest last."""
        every = (*self._by_hand.values(), *self._points, *((self._latest,) if self._latest else ()))
        return tuple(sorted(every, key=lambda saved: saved.checkpoint.saved_at))

    async def save_by_hand(self, name: str, moment: Moment) -> Saved:
        """Save a checkpoint that stays. It replaces one of the same name.

        Raises InputError, and as Checkpoints.save.
        """
        checkpoints = self._usable()
        if not NAME.fullmatch(name) or name.startswith(TAG_PREFIX):
            raise InputError(
                f"{name!r} is not a valid name for a checkpoint",
                hint=f"use letters, digits, '.', '_' and '-', and do not begin with {TAG_PREFIX}",
            )
        if before := self._by_hand.pop(name, None):
            await checkpoints.delete(before.checkpoint)
        self._by_hand[name] = Saved(await checkpoints.save(name), moment, by_hand=True)
        return self._by_hand[name]

    async def load(self, name: str | None) -> Saved:
        """Bring the guest back to a checkpoint, or to the latest if ``name`` is None.

        Raises InputError, and as Checkpoints.restore.
        """
        checkpoints, listed = self._usable(), self.listed()
        found = [saved for saved in listed if name in (None, saved.checkpoint.tag)]
        if not found:
            names = ", ".join(saved.checkpoint.tag for saved in listed)
            raise InputError(
                f"there is no checkpoint {name}" if name else "there are no checkpoints yet",
                hint=f"the checkpoints are {names}" if names else "make one: hotreload guest save NAME",
            )
        saved = found[-1]
        await checkpoints.restore(saved.checkpoint)
        # Drop checkpoints that were saved later, because they are of a guest that no longer exists.
        later = [each for each in self._points if each.checkpoint.saved_at > saved.checkpoint.saved_at]
        self._spent += [each.checkpoint for each in later]
        self._points = deque(each for each in self._points if each not in later)
        if self._latest is not None and self._latest is not saved:
            self._spent.append(self._latest.checkpoint)
            self._latest = None
        return saved

    def _usable(self) -> Checkpoints:
        if self._checkpoints is None:
            raise EnvironmentFault(
                "this guest has no checkpoints",
                code="HR5105",
                hint="start it with checkpoints: hotreload guest start --checkpoints on; or see"
                " hotreload why HR5105",
            )
        return self._checkpoints

    async def _make_room(self, checkpoints: Checkpoints) -> None:
        if self._latest is not None:
            self._spent.append(self._latest.checkpoint)
            self._latest = None
        while len(self._points) >= KEPT:
            oldest = next((each for each in self._points if not each.answered), self._points[0])
            self._points.remove(oldest)
            self._spent.append(oldest.checkpoint)
        while self._spent:
            await checkpoints.delete(self._spent.pop())
