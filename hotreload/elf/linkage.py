# SPDX-License-Identifier: MIT
"""The names that an object defines for other objects, and those that it needs from them."""

from __future__ import annotations

from dataclasses import dataclass

from hotreload.elf.constants import STB_WEAK
from hotreload.elf.model import ObjectFile


@dataclass(frozen=True, slots=True)
class Linkage:
    """The names that a unit defines for the other units, and those that it needs from them.

    ``weak``: the names that it defines unless another unit does.
    """

    defines: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    weak: frozenset[str] = frozenset()


def linkage_of(obj: ObjectFile) -> Linkage:
    """Return the linkage of an object. A weak name is neither missing nor defined twice."""
    named = [s for s in obj.symbols if not s.is_local and not s.anonymous]
    strong = [s for s in named if s.binding != STB_WEAK]
    return Linkage(
        frozenset(name for s in strong if s.is_defined for name in (s.name, *s.aliases)),
        frozenset(s.name for s in strong if not s.is_defined),
        frozenset(s.name for s in named if s.binding == STB_WEAK and s.is_defined),
    )
