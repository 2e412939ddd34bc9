# SPDX-License-Identifier: MIT
"""Which symbols are twins, one to one, as far as the passes of correlate.py have found out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hotreload.diff.obstacles import Note, Obstacle
from hotreload.elf.model import Symbol


@dataclass(slots=True)
class Correlation:
    """``original_of``: patched symbol -> its twin; ``patched_of`` the other way.

    ``renamed``    functions that have another name now, each with its twin
    ``elsewhere``  names of what another unit defines, where the places that took the address of one now
                   take that of the other: whether it is the same function, that unit knows
    ``known``      those of which it is settled
    ``renamed_variables``  static variables that have another name: the function and the name now -> the name
                           in the original
    """

    original_of: dict[Symbol, Symbol] = field(default_factory=dict)
    patched_of: dict[Symbol, Symbol] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)
    renamed: dict[Symbol, Symbol] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    renamed_variables: dict[tuple[str, str], str] = field(default_factory=dict)

    def renamed_globals(self, *, by_hint: bool) -> dict[str, str]:
        """Those of the renamed functions that other units know: the old name -> the new one."""
        return {
            one.name: other.name
            for one, other in self.renamed.items()
            if not one.is_local and (self.known.get(one.name) == other.name) is by_hint
        }

    def pair(self, original: Symbol, patched: Symbol) -> None:
        self.original_of[patched] = original
        self.patched_of[original] = patched

    def unpair(self, original: Symbol) -> None:
        del self.original_of[self.patched_of.pop(original)]

    def is_free(self, original: Symbol, patched: Symbol) -> bool:
        """Whether neither of two symbols has a twin yet."""
        return original not in self.patched_of and patched not in self.original_of
