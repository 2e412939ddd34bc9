# SPDX-License-Identifier: MIT
"""Checkpoints of the guest before each push, each with what was known of the guest then.

A crash brings the last of them back, and uses it up: a guest that crashes once more before anything was
pushed goes back one further.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hotreload.build.guest_base import GuestBase
from hotreload.cycle import Compared
from hotreload.errors import EnvironmentFault
from hotreload.history import Step
from hotreload.patch.homes import Home
from hotreload.patch.model import Identity, PatchPlan
from hotreload.patch.module import LivePatch
from hotreload.patch.writes import Place, Written
from hotreload.vm.checkpoints import Checkpoint, Checkpoints

KEPT = 3
# Seconds. A guest that stands still for longer with each save is not what anybody wants.
SLOW = 3.0
NO_MORE = "no checkpoints from now on: a crash ends the session"


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
    ``live_types``  each .BTF of a unit, by object, that ran since the boot or since the last undo
    """

    base: GuestBase
    plan: PatchPlan | None = None
    live: LivePatch | None = None
    edited: Mapping[Path, Compared] = field(default_factory=dict)
    homes: Mapping[Identity, Home] = field(default_factory=dict)
    written: Mapping[Place, Written] = field(default_factory=dict)
    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    live_types: Mapping[Path, tuple[bytes, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moment:
    """``step`` is of the history, at that ``place``, and ``known`` of the guest then."""

    step: Step
    place: int
    known: Known


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Where the guest was brought back to.

    ``checkpoint``: its name; ``number``: the reload that was undone so, None: none was, for the guest crashed
    while a patch was brought to it, or after an undo (``before_undo``); ``runs``: the reload whose code it
    runs now. ``left_out``: sources that the guest does not run as they were compiled last.
    """

    checkpoint: str
    number: int | None
    before_undo: bool
    runs: int | None
    left_out: tuple[Path, ...]


class RestorePoints:
    """The last KEPT of them; without ``checkpoints`` there are none."""

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self._checkpoints = checkpoints
        self._points: deque[tuple[Checkpoint, Moment]] = deque()
        self._latest: tuple[Checkpoint, Moment] | None = None  # nothing was pushed since
        self._spent: list[Checkpoint] = []
        self._slow = 0  # saves that were, one after the other

    async def save(self, moment: Moment) -> str | None:
        """Save the guest as it is at this moment; what is to be told, if it cannot be saved.

        Raises GuestUnreachableError.
        """
        if self._checkpoints is None:
            return None
        try:
            await self._make_room(self._checkpoints)
            checkpoint = await self._checkpoints.save()
        except EnvironmentFault as fault:
            self._checkpoints = None
            return f"{fault.code} {fault.message}; {NO_MORE}"
        self._latest = checkpoint, moment
        self._slow = self._slow + 1 if checkpoint.seconds > SLOW else 0
        if self._slow > 1:  # once may be this machine's fault
            self._checkpoints = None
            return f"HR5105 to save the guest took {checkpoint.seconds:.1f} s; {NO_MORE}"
        return None

    def use(self) -> None:
        """From here on the guest is another one than the one that was saved last."""
        if self._latest is not None:
            self._points.append(self._latest)
            self._latest = None

    def give_back(self) -> None:
        """The guest took nothing: it is still the one that was saved last."""
        if self._points:
            self._latest = self._points.pop()

    async def restore(self) -> tuple[Checkpoint, Moment] | None:
        """Bring the guest back to the last one, and the moment of it. Raises as Checkpoints.restore."""
        if self._checkpoints is None or not self._points:
            return None
        checkpoint, moment = self._points.pop()
        self._spent.append(checkpoint)
        await self._checkpoints.restore(checkpoint)
        return checkpoint, moment

    async def _make_room(self, checkpoints: Checkpoints) -> None:
        if self._latest is not None:
            self._spent.append(self._latest[0])
            self._latest = None
        while len(self._points) >= KEPT:
            self._spent.append(self._points.popleft()[0])
        while self._spent:
            await checkpoints.delete(self._spent.pop())
