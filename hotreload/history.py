# SPDX-License-Identifier: MIT
"""What the guest has run since it booted, and which step of that runs now. Pure.

Step 0 is the code that the guest booted. Each reload that went live adds a step. Undo and redo walk along the
steps. A reload after an undo drops the steps that were undone, as in an editor.
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
    """One state of the guest.

    ``number``   of the reload; 0 for the boot
    ``plan``     the difference to ``base``, or None if the guest runs just that
    ``symbols``  the names of everything that the edits change
    ``homes``    where the additions of the reloads up to this one live
    ``base``     what the plan is the difference to; the same for all steps until a module is reloaded
    ``edited``   the units that the plan was made of, by object; None for steps long ago
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
    """The steps, the current place among them, and every report worth keeping."""

    steps: list[Step] = field(default_factory=lambda: [BOOT])
    place: int = 0
    reports: list[ReloadReport] = field(default_factory=list)
    last_number: int = 0

    @property
    def current(self) -> Step:
        return self.steps[self.place]

    @property
    def running(self) -> int | None:
        """The number of the reload whose code the guest runs, or None for what it booted."""
        return self.current.number or None

    def add(
        self,
        plan: PatchPlan | None,
        symbols: tuple[str, ...],
        homes: Mapping[Identity, Home] | None = None,
        base: GuestBase | None = None,
        edited: Mapping[Path, Compared] | None = None,
    ) -> Step:
        """Add a step for a reload that went live, and return it. It gets the next number."""
        self.last_number += 1
        del self.steps[self.place + 1 :]
        self.steps.append(Step(self.last_number, plan, symbols, homes or {}, base, edited))
        self.place += 1
        if self.place > EDITED_KEPT:  # do not keep the objects of every version
            old = self.place - EDITED_KEPT
            self.steps[old] = replace(self.steps[old], edited=None)
        return self.current

    def return_to(self, steps: Iterable[Step], place: int) -> None:
        """Go back to these steps and this place, because the guest was brought back to that state."""
        self.steps, self.place = list(steps), place

    def drop_homes(self, modules: Collection[str]) -> None:
        """Forget what earlier reloads added to these modules, because they are reloaded."""
        self.steps = [
            replace(step, homes={key: home for key, home in step.homes.items() if key.module not in modules})
            for step in self.steps
        ]

    def before(self, number: int | None) -> int | None:
        """Return the place to go back to, to undo reload ``number`` and all later ones.

        ``number`` None means the last reload. Return None if there is no such place.
        """
        if number is None:
            return self.place - 1 if self.place else None
        places = [i for i, step in enumerate(self.steps[: self.place + 1]) if step.number == number and i]
        return places[0] - 1 if places else None

    def after(self) -> int | None:
        """Return the place of the step that was undone last, or None."""
        return self.place + 1 if self.place + 1 < len(self.steps) else None
