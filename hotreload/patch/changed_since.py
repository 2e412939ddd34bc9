# SPDX-License-Identifier: MIT
"""What one plan has that the one before it did not have: what a single save has changed. Pure.

Every plan is the difference to what the guest booted, so most of it may be of earlier saves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from hotreload.diff.correlate import base_name, parent_name
from hotreload.elf.constants import STT_FUNC
from hotreload.patch.model import PatchPlan, Piece, PieceRef
from hotreload.patch.symbols import SymbolPosition

Print = tuple[object, ...]  # equal for what does the same


def changed_since(before: PatchPlan | None, after: PatchPlan) -> frozenset[str]:
    """The functions and variables, as the source calls them, that are new in a plan or not as in the last."""
    had = _prints(before) if before else {}
    now = _prints(after)
    found = {parent_name(name) for (_, name), prints in now.items() if prints - had.get((_, name), set())}
    writes = set(before.writes) if before else set()
    return frozenset(found | {base_name(write.name) for write in after.writes if write not in writes})


def _prints(plan: PatchPlan) -> dict[tuple[str, str], set[Print]]:
    """Of each function, by object and name; namesakes have one entry."""
    entries: dict[int, list[Piece]] = defaultdict(list)
    for piece in plan.pieces:
        if piece.owner is not None:
            entries[piece.owner].append(piece)
    prints: dict[tuple[str, str], set[Print]] = defaultdict(set)
    for number, piece in enumerate(plan.pieces):
        if piece.kind == STT_FUNC:
            own = (_print(each, plan, ()) for each in (piece, *entries[number]))
            prints[piece.object, piece.name].add(tuple(own))
    return prints


def _print(piece: Piece, plan: PatchPlan, inside: tuple[Piece, ...]) -> Print:
    return (piece.content, *_targets(piece, plan, inside))


def _targets(piece: Piece, plan: PatchPlan, inside: tuple[Piece, ...]) -> Iterator[Print]:
    for each in piece.relocations:
        target: object = each.target
        if isinstance(target, SymbolPosition):  # what it points at may be a piece of the other plan
            target = target.name
        if isinstance(target, PieceRef):
            of = plan.pieces[target.number]
            # A function is one thing, whatever calls it; what has no name that lasts is what it holds.
            target = of.name if _is_named(of, (piece, *inside)) else _print(of, plan, (piece, *inside))
        yield each.offset, each.type, each.addend, target


def _is_named(piece: Piece, inside: Iterable[Piece]) -> bool:
    return piece.kind == STT_FUNC or piece.identity is not None or any(piece is each for each in inside)
