# SPDX-License-Identifier: MIT
"""What stands in a patch's way, and what is worth telling about one that works."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hotreload.errors import EditError

RELOAD_MODULE: Final = "the module has to be loaded anew, and loses its state: hotreload guest restart"


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
    """The edit cannot become a live patch; ``obstacles`` are all the reasons."""

    exit_status = 4
    default_code = "HR2208"

    def __init__(self, obstacles: Iterable[Obstacle]) -> None:
        self.obstacles = tuple(dict.fromkeys(obstacles))
        super().__init__(self.obstacles[0].message, code=self.obstacles[0].code)
