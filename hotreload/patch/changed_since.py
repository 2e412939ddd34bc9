# SPDX-License-Identifier: MIT
"""Find what a plan has that the previous one did not have: the changes of a single save. Pure.

Every plan is the difference to what the guest booted, so most of it may come from earlier saves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from hotreload.diff.correlate import base_name, parent_name
from hotreload.elf.constants import STT_FUNC
from hotreload.patch.model import PatchPlan, Piece, PieceRef
from hotreload.patch.symbols import SymbolPosition

Print = tuple[object, ...]  # a fingerprint, equal for functions that do the same


def changed_since(before: PatchPlan | None, after: PatchPlan) -> frozenset[str]:
    """Return the functions and variables, by source name, that are new or changed since the previous plan."""
    had = _prints(before) if before else {}
    now = _prints(after)
    found = {parent_name(name) for (_, name), prints in now.items() if prints - had.get((_, name), set())}
    writes = set(before.writes) if before else set()
    return frozenset(found | {base_name(write.name) for write in after.writes if write not in writes})


def _prints(plan: PatchPlan) -> dict[tuple[str, str], set[Print]]:
    """Return the fingerprints of each function, by object and name. Namesakes share one entry."""
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
        if isinstance(target, SymbolPosition):  # the other plan may have a piece instead
            target = target.name
        if isinstance(target, PieceRef):
            of = plan.pieces[target.number]
            # A function counts as the same no matter what calls it. What has no lasting name counts by its
            # content.
            target = of.name if _is_named(of, (piece, *inside)) else _print(of, plan, (piece, *inside))
        yield each.offset, each.type, each.addend, target


def _is_named(piece: Piece, inside: Iterable[Piece]) -> bool:
    return piece.kind == STT_FUNC or piece.identity is not None or any(piece is each for each in inside)
