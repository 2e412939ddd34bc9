# SPDX-License-Identifier: MIT
"""The types of two objects, whether bytes of one can be used as the other, and what the passes found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from hotreload.diff.layouts import BOOL, VOID, Layout, Layouts, Shape
from hotreload.diff.obstacles import Note, Obstacle


@dataclass(frozen=True, slots=True)
class LayoutDiff:
    """What the types of two objects say about a patch.

    ``members``  symbol of an obstacle -> member
    ``recast``   (old struct, new struct) -> the functions that take their objects for the new one

    ``compared`` is False if one of the objects has no types; then there is a note instead of obstacles.
    """

    obstacles: tuple[Obstacle, ...] = ()
    notes: tuple[Note, ...] = ()
    members: Mapping[str, str] = field(default_factory=dict)
    compared: bool = True
    recast: Mapping[tuple[Shape, Shape], frozenset[str]] = field(default_factory=dict)


class Kinship(IntEnum):
    """How two shapes relate. RETYPED: the bytes mean the same, but the source gives them another type."""

    SAME = 0
    RETYPED = 1
    DIFFERENT = 2


@dataclass(slots=True)
class TypePair:
    """The types of a unit before and after an edit, and what the passes found.

    ``consequences`` are obstacles that another one explains: a struct grew because one in it did. ``renamed``
    are structs with another name, old -> new; they are compared on their own.
    """

    original: Layouts
    patched: Layouts
    obstacles: list[Obstacle] = field(default_factory=list)
    consequences: list[Obstacle] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    members: dict[str, str] = field(default_factory=dict)
    renamed: Mapping[Shape, Shape] = field(default_factory=dict)
    recast: dict[tuple[Shape, Shape], frozenset[str]] = field(default_factory=dict)

    def refuse(self, code: str, name: str, message: str) -> None:
        self.obstacles.append(Obstacle(code, name, message))

    def kinship(self, was: Shape, now: Shape, depth: int = 0) -> Kinship:
        """Return whether bytes of one shape can be used as the other."""
        if was == now:
            return Kinship.SAME
        if self.renamed.get(was) == now:
            return Kinship.RETYPED
        kinds = was[0], now[0]
        if depth > 16:
            return Kinship.DIFFERENT
        if kinds == ("*", "*"):
            ours, theirs = was[1], now[1]
            if VOID in (ours, theirs) and "()" not in (ours[0], theirs[0]):
                return Kinship.RETYPED
            return self.kinship(ours, theirs, depth + 1)
        if kinds == ("[]", "[]") and was[1] == now[1]:
            return self.kinship(was[2], now[2], depth + 1)
        if kinds == ("()", "()") and len(was[2]) == len(now[2]):
            pairs = [(was[1], now[1]), *zip(was[2], now[2], strict=True)]
            return max(self.kinship(a, b, depth + 1) for a, b in pairs)
        if set(kinds) <= {"int", "enum"} and kinds != ("enum", "enum"):
            # The bytes are the same as after C's conversion between the two, for example to unsigned.
            is_bool = [shape[0] == "int" and shape[2] == BOOL for shape in (was, now)]
            same_size = self.original.size(was) == self.patched.size(now)
            return Kinship.RETYPED if same_size and is_bool[0] == is_bool[1] else Kinship.DIFFERENT
        if kinds == ("enum", "enum"):
            # An enum got or lost its name. Its constants are compared by their own names.
            nameless = "" in (was[1], now[1])
            same_size = self.original.size(was) == self.patched.size(now)
            return Kinship.RETYPED if nameless and same_size else Kinship.DIFFERENT
        ours, theirs = _layout(self.original, was), _layout(self.patched, now)
        if ours is None or theirs is None or ours != theirs:
            return Kinship.DIFFERENT
        return Kinship.RETYPED

    def result(self) -> LayoutDiff:
        obstacles = (*self.obstacles, *self.consequences)
        return LayoutDiff(obstacles, tuple(self.notes), self.members, recast=self.recast)


def _layout(side: Layouts, shape: Shape) -> Layout | None:
    if shape[0] == "{}":
        return Layout(*shape[1:])
    found = side.aggregates.get(shape, ())
    return found[0] if len(found) == 1 else None
