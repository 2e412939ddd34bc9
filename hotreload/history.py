# SPDX-License-Identifier: MIT
"""What the guest has run since it booted, and which step of it runs now. Pure.

Step 0 is the code the guest booted; each reload that went live adds a step. Undo and redo walk along the
steps; a reload after an undo drops the steps that were undone, as an editor does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hotreload.build.guest_base import GuestBase
from hotreload.compared import Compared
from hotreload.patch.homes import Home
from hotreload.patch.model import Identity, PatchPlan
from hotreload.report.outcome import ReloadReport


@dataclass(frozen=True, slots=True)
class Step:
    """``plan`` is None where the guest runs what it booted; ``number`` of the reload, 0 for the boot.

    ``symbols``: the functions that run anew. ``homes``: where what the reloads up to here added lives.
    ``base``: what the plan is the difference to; the same for all steps until a module is loaded anew.
    ``edited``: the units that the plan was made of, by object; None: it was long ago.
    """

    number: int
    plan: PatchPlan | None
    symbols: tuple[str, ...] = ()
    homes: Mapping[Identity, Home] = field(default_factory=dict)
    base: GuestBase | None = None
    edited: Mapping[Path, Compared] | None = None


BOOT = Step(0, None)
EDITED_KEPT = 20


@dataclass(slots=True)
class History:
    """The steps, the place among them, and every report worth keeping."""

    steps: list[Step] = field(default_factory=lambda: [BOOT])
    place: int = 0
    reports: list[ReloadReport] = field(default_factory=list)
    last_number: int = 0

    @property
    def current(self) -> Step:
        return self.steps[self.place]

    @property
    def running(self) -> int | None:
        """The number of the reload whose code the guest runs; None: what it booted."""
        return self.current.number or None

    def add(
        self,
        plan: PatchPlan | None,
        symbols: tuple[str, ...],
        homes: Mapping[Identity, Home] | None = None,
        base: GuestBase | None = None,
        edited: Mapping[Path, Compared] | None = None,
    ) -> Step:
        """A reload went live; returns its step, with the next number."""
        self.last_number += 1
        del self.steps[self.place + 1 :]
        self.steps.append(Step(self.last_number, plan, symbols, homes or {}, base, edited))
        self.place += 1
        if self.place > EDITED_KEPT:  # the objects of each version are not kept for ever
            old = self.place - EDITED_KEPT
            self.steps[old] = replace(self.steps[old], edited=None)
        return self.current

    def return_to(self, steps: Iterable[Step], place: int) -> None:
        """The guest is as it was when these were the steps, and this the place among them."""
        self.steps, self.place = list(steps), place

    def drop_homes(self, modules: Collection[str]) -> None:
        """These modules are loaded anew: what earlier reloads added to them has nothing to do with them."""
        self.steps = [
            replace(step, homes={key: home for key, home in step.homes.items() if key.module not in modules})
            for step in self.steps
        ]

    def before(self, number: int | None) -> int | None:
        """Where to go back to, to undo reload ``number`` (None: the last) and all after it."""
        if number is None:
            return self.place - 1 if self.place else None
        places = [i for i, step in enumerate(self.steps[: self.place + 1]) if step.number == number and i]
        return places[0] - 1 if places else None

    def after(self) -> int | None:
        """The place of the step that was undone last; None: there is none."""
        return self.place + 1 if self.place + 1 < len(self.steps) else None
