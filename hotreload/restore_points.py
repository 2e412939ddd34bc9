# SPDX-License-Identifier: MIT
"""Checkpoints of the guest, each with what was known of the guest then.

One is saved before each push. A crash brings the last of them back, and uses it up: a guest that crashes once
more before anything was pushed goes back one further. One may be of a guest that was dying already, or let
nobody in: only those after which a push arrived are known to be good, and such a one is not thrown away for
others. Those that a person asks for stay as long as the guest.
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
# Seconds. A guest that stands still for longer with each save is not what anybody wants: after the second of
# such saves some pushes go without, one after the first time, at most MOST_SKIPPED.
SLOW = 3.0
MOST_SKIPPED = 8
NO_MORE = "no checkpoints from now on: a crash boots the guest anew"
FURTHER = "a crash goes back further, or boots the guest anew"


@dataclass(frozen=True, slots=True)
class Kept:
    """Why a patch module must stay loaded when it is replaced, and the objects (``modules``) it stays for."""

    reasons: tuple[str, ...]
    modules: frozenset[str] = frozenset()

    def without(self, modules: Collection[str]) -> Kept | None:
        """The same when these modules are gone; None: it need not stay any more."""
        left = self.modules - frozenset(modules)
        return None if self.modules and not left else replace(self, modules=left)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a guest at one moment.

    ``base``        what it booted; of modules that were loaded anew, that
    ``plan``        what it runs beyond that; None: nothing
    ``live``        the patch that is the plan
    ``edited``      the units that it was made of, by object
    ``homes``       where what the reloads added lives
    ``written``     values that the live patch wrote into data
    ``kept``        patch modules that must stay loaded, and why
    ``live_types``  the types of a unit, by object, in each reload since the boot; undo takes none back
    ``handed``      what each of them gave somebody the address of, and the base has, likewise
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
    """The ``steps`` of the history, the ``place`` among them, and what was ``known`` of the guest then."""

    steps: tuple[Step, ...]
    place: int
    known: Known

    @property
    def runs(self) -> int | None:
        """The number of the reload whose code the guest ran; None: what it booted."""
        return self.steps[self.place].number or None


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that the guest can go back to; ``by_hand``: a person asked for it.

    ``answered``: the guest was seen to take a push after it.
    """

    checkpoint: Checkpoint
    moment: Moment
    by_hand: bool = False
    answered: bool = False


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Where the guest was brought back to.

    ``checkpoint``: its name; ``passed``: those after it, where the guest did not answer; ``number``: of the
    reload that was undone so, None: none was, for the guest crashed while a patch was brought to it, or
    after an undo (``before_undo``); ``runs``: the reload whose code it runs now. ``left_out``: sources that
    the guest does not run as they were compiled last. ``further``: it went back more than one reload.
    """

    checkpoint: str
    number: int | None
    before_undo: bool
    runs: int | None
    left_out: tuple[Path, ...]
    further: bool = False
    passed: tuple[str, ...] = ()


class RestorePoints:
    """The last KEPT of them; without ``checkpoints`` there are none."""

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self._checkpoints = checkpoints
        self._points: deque[Saved] = deque()
        self._latest: Saved | None = None  # nothing was pushed since
        self._by_hand: dict[str, Saved] = {}
        self._spent: list[Checkpoint] = []
        self.is_of_this_change = False  # the last of the points
        self._slow = 0  # saves that were, one after the other
        self._skip = 0  # so many saves from now on

    async def save(self, moment: Moment) -> str | None:
        """Save the guest as it is at this moment; what is to be told, if it cannot be saved.

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
            # A save that failed half-way keeps what it has written.
            self._give_up(self._checkpoints)
            return f"{fault.code} {fault.message}; {NO_MORE}"
        self._latest = Saved(checkpoint, moment)
        return self._judge(checkpoint.seconds)

    def _judge(self, seconds: float) -> str | None:
        """Go without for a while, if it takes too long; what is to be told then."""
        self._slow = self._slow + 1 if seconds > SLOW else 0
        if self._slow < 2:  # once may be this machine's fault
            return None
        self._skip = min(2 ** (self._slow - 2), MOST_SKIPPED)
        pushes = "push goes" if self._skip == 1 else f"{self._skip} pushes go"
        return f"HR5105 to save the guest took {seconds:.1f} s; the next {pushes} without: {FURTHER}"

    def _give_up(self, checkpoints: Checkpoints) -> None:
        checkpoints.give_up()
        self._checkpoints, self._latest = None, None
        self._points.clear()
        self._by_hand.clear()

    def use(self) -> bool:
        """From here on the guest is another one than the one that was saved last; False: it was already."""
        if self._latest is None:
            return False
        self._points.append(self._latest)
        self._latest = None
        self.is_of_this_change = True
        return True

    def note_answer(self) -> None:
        """The guest has taken what ``use`` was for."""
        if self.is_of_this_change and self._points:
            self._points[-1] = replace(self._points[-1], answered=True)

    def give_back(self) -> None:
        """The guest took nothing of what ``use`` was for: it is still the one that was saved last."""
        self._latest = self._points.pop()
        self.is_of_this_change = False

    @property
    def is_empty(self) -> bool:
        """Is there none that a crash could go back to?"""
        return self._checkpoints is None or not self._points

    async def wake(self) -> None:
        """Wake the guest, if it sleeps. Raises GuestUnreachableError."""
        if self._checkpoints is not None:
            await self._checkpoints.wake()

    async def restore(self) -> Saved | None:
        """Bring the guest back to before the last push; None: there was none. Raises as ``load``."""
        if self._checkpoints is None or not self._points:
            return None
        saved = self._points.pop()
        self.is_of_this_change = False
        self._spent.append(saved.checkpoint)
        await self._checkpoints.restore(saved.checkpoint)
        return saved

    def listed(self) -> tuple[Saved, ...]:
        """Those that the guest can go back to, the latest last."""
        every = (*self._by_hand.values(), *self._points, *((self._latest,) if self._latest else ()))
        return tuple(sorted(every, key=lambda saved: saved.checkpoint.saved_at))

    async def save_by_hand(self, name: str, moment: Moment) -> Saved:
        """Save one that stays; one of the same name goes. Raises InputError, and as Checkpoints.save."""
        checkpoints = self._usable()
        if not NAME.fullmatch(name) or name.startswith(TAG_PREFIX):
            raise InputError(
                f"{name!r} is no name for a checkpoint",
                hint=f"letters, digits, '.', '_' and '-', not {TAG_PREFIX} in front",
            )
        if before := self._by_hand.pop(name, None):
            await checkpoints.delete(before.checkpoint)
        self._by_hand[name] = Saved(await checkpoints.save(name), moment, by_hand=True)
        return self._by_hand[name]

    async def load(self, name: str | None) -> Saved:
        """Bring the guest back to one, None: the latest. Raises InputError, and as Checkpoints.restore."""
        checkpoints, listed = self._usable(), self.listed()
        found = [saved for saved in listed if name in (None, saved.checkpoint.tag)]
        if not found:
            names = ", ".join(saved.checkpoint.tag for saved in listed)
            raise InputError(
                f"there is no checkpoint {name}" if name else "there is no checkpoint yet",
                hint=f"there are {names}" if names else "hotreload guest save NAME makes one",
            )
        saved = found[-1]
        await checkpoints.restore(saved.checkpoint)
        # What was saved later is of a guest that there is no more.
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
                hint="hotreload guest start --checkpoints on boots one that has them; hotreload why HR5105",
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
