# SPDX-License-Identifier: MIT
"""Find code of earlier patches that the sources no longer contain, and that somebody may run. Pure.

A function that an edit added has its home in a patch module (homes.py). A timer or an ops table that got its
address there keeps it. Later patches redirect the home to the newest version. Where they cannot, the old code
would keep running: the function was removed, cannot be traced, or takes other arguments. Then the module has
to be reloaded, which also removes the addresses that it handed out. The same applies to a table or variable
that starts over while the kernel has the address of the old one. A function that was only renamed keeps its
home.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from hotreload.diff.obstacles import Obstacle
from hotreload.diff.places import Question, Reference, Referrer, steps_of
from hotreload.elf.constants import STT_FUNC
from hotreload.elf.references import start_of_instruction
from hotreload.patch.homes import Home, Settlement
from hotreload.patch.model import Identity, PatchPlan, Piece, PieceRef

Homes = Mapping[Identity, Home]


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """What a plan leaves behind.

    ``obstacles``: why old code would keep running, each with its module. ``variables``: those whose address
    the kernel may have, and that no code uses any more.
    """

    obstacles: tuple[tuple[str, Obstacle], ...] = ()
    variables: tuple[Identity, ...] = ()

    def but_of(self, modules: frozenset[str]) -> LeftBehind:
        """Return this without what was added to these modules, which are unloaded."""
        return LeftBehind(
            tuple(each for each in self.obstacles if each[0] not in modules),
            tuple(each for each in self.variables if each.module not in modules),
        )

    @property
    def modules(self) -> frozenset[str]:
        """The modules to which the old code belongs."""
        return frozenset(module for module, _ in self.obstacles)


def left_behind(
    before: PatchPlan | None, known: Homes, now: PatchPlan | None, homes: Homes, settlement: Settlement
) -> LeftBehind:
    """Return what the plan ``before``, with its ``known`` homes, has that ``now`` drops or cannot redirect.

    ``homes``: the homes that ``now`` starts from; ``settlement``: the settlement of ``now``.
    """
    there = {_place(homes[identity]) for _, identity in _identified(now) if identity in homes}
    held = [
        (p, i)
        for p, i in _identified(before)
        if i in known and (p.kind != STT_FUNC or known[i].is_held) and _place(known[i]) not in there
    ]
    gone = "no longer exists, but something may still hold its address and run the old code"
    obstacles = [
        (identity.module, Obstacle("HR2207", identity.name, f"{identity.name} {gone}", where=identity.source))
        for piece, identity in held
        if piece.kind == STT_FUNC
    ]
    dormant = now.dormant if now else frozenset()
    variables = tuple(i for piece, i in held if piece.kind != STT_FUNC and piece.escapes and i not in dormant)
    # Code that has the address of a table or variable keeps using the old one.
    shown = {i for piece, i in _identified(before) if piece.is_held or (i in known and known[i].is_held)}
    obstacles += [(i.module, _another(i)) for i in settlement.moved if i in shown]
    obstacles += [(i.module, _stale(i, "cannot be traced")) for i in settlement.stranded]
    obstacles += [(i.module, _stale(i, "is declared differently")) for i in settlement.redeclared]
    return LeftBehind(tuple(obstacles), variables)


def _identified(plan: PatchPlan | None) -> Iterator[tuple[Piece, Identity]]:
    for piece in plan.pieces if plan is not None else ():
        if piece.identity is not None:
            yield piece, piece.identity


def _stale(identity: Identity, why: str) -> Obstacle:
    message = f"{identity.name} {why}, but something may still hold its address and run the old code"
    return Obstacle("HR2202", identity.name, message, where=identity.source)


def _another(identity: Identity) -> Obstacle:
    what = "has a different type or initial value than in the reload that added it"
    message = f"{identity.name} {what}, and something may still hold the address of the old one"
    return Obstacle("HR2103", identity.name, message, where=identity.source)


def _place(home: Home) -> tuple[str, int]:
    return home.patch, home.address


@dataclass(frozen=True, slots=True)
class Renamed:
    """Functions that have another name in a later plan: the new identity -> the old one."""

    of: Mapping[Identity, Identity] = field(default_factory=dict)

    def homes(self, homes: Homes) -> dict[Identity, Home]:
        """Return the same homes under the new names."""
        now = {old: new for new, old in self.of.items()}
        return {now.get(identity) or self._of_owners(identity): home for identity, home in homes.items()}

    def _of_owners(self, identity: Identity) -> Identity:
        """Return the identity of a static local with the new names of its functions."""
        names = {old.name: new.name for new, old in self.of.items() if old.key[:2] == identity.key[:2]}
        owners = tuple(sorted(names.get(name, name) for name in identity.owners))
        return replace(identity, owners=owners) if identity.owners else identity


def renamed(before: PatchPlan | None, now: PatchPlan | None) -> Renamed:
    """Return the added functions of one plan that continue under another name in the next one."""
    if before is None or now is None:
        return Renamed()
    ours, theirs = _functions(before), _functions(now)
    gone, new = ours.keys() - theirs.keys(), theirs.keys() - ours.keys()
    if not gone or not new:
        return Renamed()
    left, right = _Places(before, gone | new), _Places(now, gone | new)
    steps = [
        step
        for key in left.by_key.keys() & right.by_key.keys()
        for step in steps_of(left.referrer(key), right.referrer(key))
    ]

    def equal_prototypes(one: Identity, other: Identity) -> bool:
        return ours[one].type == theirs[other].type != ""

    # A function that keeps its name is the same: code that has its address calls the newest of that name.
    found = Question(gone, new, equal_prototypes, same_code=Identity.__eq__).answer(steps)
    return Renamed({now: then for then, now in found.successors.items() if then in gone and now in new})


def _functions(plan: PatchPlan) -> dict[Identity, Piece]:
    return {i: piece for piece, i in _identified(plan) if piece.kind == STT_FUNC and not i.shared}


class _Places:
    """The pieces of a plan and what they refer to, by keys that also hold in another plan."""

    def __init__(self, plan: PatchPlan, others: set[Identity]) -> None:
        """``others``: the functions that only one of the two plans has."""
        self.pieces = plan.pieces
        self.others = others
        keys = [_key(piece) for piece in plan.pieces]
        count = Counter(keys)
        self.by_key = {key: number for number, key in enumerate(keys) if key[-1] and count[key] == 1}

    def referrer(self, key: tuple[Hashable, ...]) -> Referrer[Identity]:
        piece = self.pieces[self.by_key[key]]
        is_code = piece.section == ".text"
        references, end = [], 0
        for relocation in piece.relocations:
            start = start_of_instruction(piece.content, relocation.offset) if is_code else relocation.offset
            start = max(end, start)
            bytes_of = piece.content[end:start], piece.content[start : relocation.offset]
            end = relocation.offset
            function = self._function(relocation.target)
            other = () if function is not None else (relocation.addend, self._text(relocation.target))
            references.append(Reference(relocation.offset, *bytes_of, function, (relocation.type, other)))
        return Referrer(is_code, piece.content, tuple(references), piece.content[end:])

    def _function(self, target: object) -> Identity | None:
        if isinstance(target, PieceRef) and target.kept:
            return self.pieces[target.number].identity
        return None

    def _text(self, target: object) -> Hashable:
        if not isinstance(target, PieceRef):
            return target
        piece = self.pieces[target.number]
        return ("function",) if piece.identity in self.others else _key(piece)


def _key(piece: Piece) -> tuple[Hashable, ...]:
    return (piece.identity, piece.identity.name) if piece.identity else (piece.object, piece.kind, piece.name)
