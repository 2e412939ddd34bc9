# SPDX-License-Identifier: MIT
"""What stands in a patch's way, and what is worth telling about one that works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
