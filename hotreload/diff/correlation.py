# SPDX-License-Identifier: MIT
"""Which symbols are twins, one to one, as far as the passes of correlate.py have found out."""

from __future__ import annotations

from dataclasses import dataclass, field

from hotreload.diff.obstacles import Note, Obstacle
from hotreload.elf.model import Symbol


@dataclass(slots=True)
class Correlation:
    """``original_of``: patched symbol -> its twin; ``patched_of`` the other way."""

    original_of: dict[Symbol, Symbol] = field(default_factory=dict)
    patched_of: dict[Symbol, Symbol] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)

    def pair(self, original: Symbol, patched: Symbol) -> None:
        self.original_of[patched] = original
        self.patched_of[original] = patched

    def unpair(self, original: Symbol) -> None:
        del self.original_of[self.patched_of.pop(original)]

    def is_free(self, original: Symbol, patched: Symbol) -> bool:
        """Whether neither of two symbols has a twin yet."""
        return original not in self.patched_of and patched not in self.original_of
