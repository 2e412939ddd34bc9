# SPDX-License-Identifier: MIT
"""The one-to-one pairs of twins that the passes of correlate.py have found so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hotreload.diff.obstacles import Note, Obstacle
from hotreload.elf.model import Symbol


@dataclass(slots=True)
class Correlation:
    """The twins, and what else was found out about symbols that were renamed.

    ``original_of``  patched symbol -> its twin
    ``patched_of``   original symbol -> its twin
    ``renamed``      functions that were renamed: the original one -> its twin
    ``elsewhere``    name -> name of functions that another unit defines: the places that took the address of
                     the first take that of the second; only that unit knows whether it is the same function
    ``known``        old name -> new name of renamed global functions, as all units of the module tell
    ``renamed_variables``  static variables that were renamed, or whose function was: the function and the
                           name in the patched object -> those in the original
    """

    original_of: dict[Symbol, Symbol] = field(default_factory=dict)
    patched_of: dict[Symbol, Symbol] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)
    renamed: dict[Symbol, Symbol] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    renamed_variables: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    def renamed_globals(self, *, by_hint: bool) -> dict[str, str]:
        """Return the renamed functions that other units can see: old name -> new name.

        With ``by_hint``, return those that were known from other units, otherwise all others.
        """
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
        """Return whether neither of two symbols has a twin yet."""
        return original not in self.patched_of and patched not in self.original_of
