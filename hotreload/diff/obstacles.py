# SPDX-License-Identifier: MIT
"""The reasons to refuse an edit, and the notes about one that can be patched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Self

from hotreload.errors import EditError

RELOAD_MODULE: Final = "reload the module, which loses its state: hotreload watch --max-rung module does that"
BUILD_MODULE: Final = (
    "rebuild and reload the module, which loses its state: hotreload watch --max-rung module does that"
)
# A kernel is built only on request, so booting it again would not bring the change.
BUILD_KERNEL: Final = (
    "end hotreload, run hotreload kernel build (or make), and start hotreload again:"
    " the guest then has the change"
)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A reason to refuse an edit. ``where``: ``file:line`` if known; ``hint``: the way out."""

    code: str
    symbol: str
    message: str
    hint: str = RELOAD_MODULE
    where: str | None = None

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


@dataclass(frozen=True, slots=True)
class Note:
    """A fact about an accepted edit that its author should know."""

    code: str
    symbol: str
    message: str


class NotPatchableError(EditError):
    """The edit cannot become a live patch. ``obstacles`` are all the reasons.

    ``modules``: the modules that have to be reloaded, if the edited units do not tell.
    """

    exit_status = 4
    default_code = "HR2208"

    def __init__(self, obstacles: Iterable[Obstacle], modules: Iterable[str] = ()) -> None:
        self.obstacles = tuple(dict.fromkeys(obstacles))
        self.modules = frozenset(modules)
        super().__init__(self.obstacles[0].message, code=self.obstacles[0].code)

    def of_kernel(self) -> Self:
        """Return the same error with hints for somebody who works on a kernel instead of a module."""
        anew = (RELOAD_MODULE, BUILD_MODULE)
        of_kernel = (
            replace(each, hint=BUILD_KERNEL) if each.hint in anew else each for each in self.obstacles
        )
        return type(self)(of_kernel, self.modules)
