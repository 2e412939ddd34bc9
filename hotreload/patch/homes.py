# SPDX-License-Identifier: MIT
"""Find the *home* of each function or variable that an edit added: the first patch module that had it. Pure.

The problem: every patch replaces the previous one, and each patch module has variables of its own. A variable
that an edit added would start over with each save. A function that an edit added, and whose address the
kernel keeps (in a timer, a work item or an ops table), would keep running the version whose address was
stored.

The choice: a patch module whose variables or addresses are in use stays loaded, and later patches refer to
them there. A variable is not emitted again: old and new code share it, including its locks, lists and
pointers to it. The address of a function is always the one in its home, so it compares equal. livepatch
redirects the code in the home to the newest version, as it does for a function of any module, unless both
mean the same. Rejected: copying values, which cuts a list off from its neighbours and loses what is written
in the meantime.

If an edit changes the type or the initial value of an added variable, that is another variable: it starts
over, and hotreload says so. The same goes for a variable that was absent from the sources for a while.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TypeVar

from hotreload.diff.correlate import base_name
from hotreload.elf.constants import STT_FUNC
from hotreload.patch.model import (
    Identity,
    Import,
    KlpFunc,
    KlpObject,
    PatchPlan,
    Piece,
    PieceRef,
    PlannedTarget,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Home:
    """The place of a function or variable: ``address`` in the patch module ``patch``, which stays loaded.

    ``symbol`` and ``sympos`` find it in that module's kallsyms. ``meaning``: a digest of what it is there.
    ``type``: its C type, if the object has it. ``is_held``: whether any plan since then gave somebody the
    address, other than through tables in which the kernel looks at each call.
    """

    patch: str
    address: int
    symbol: str
    sympos: int
    meaning: bytes
    type: str
    is_held: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a plan has in earlier patch modules, and what it settles in its own.

    ``elsewhere``   the addresses of pieces that already have a home, by number
    ``redirected``  functions of earlier patch modules whose newest version is in this patch
    ``settling``    pieces that will have their home in this patch, with their meaning
    ``at_home``     the homes of the pieces elsewhere, by the identity that they have in this plan
    ``anew``        variables that had a home, and are different variables in this plan
    ``moved``       those of them that are certain to have the same name and place in the source
    ``stranded``    functions that changed and cannot be traced: holders of their address run the old version
    ``redeclared``  functions that have another prototype, with the same consequence
    """

    elsewhere: Mapping[int, int] = field(default_factory=dict)
    redirected: tuple[KlpObject, ...] = ()
    settling: Mapping[int, bytes] = field(default_factory=dict)
    at_home: Mapping[Identity, Home] = field(default_factory=dict)
    anew: tuple[str, ...] = ()
    moved: tuple[Identity, ...] = ()
    stranded: tuple[Identity, ...] = ()
    redeclared: tuple[Identity, ...] = ()


def settle(plan: PatchPlan, homes: Mapping[Identity, Home], patch: str) -> Settlement:
    """Return which pieces of ``plan``, to be loaded as ``patch``, have a home, and which get one there.

    ``homes``: the homes of what the live patch has.
    """
    meanings = _Meanings(plan, patch)
    told = {n: p for n, p in enumerate(plan.pieces) if _is_told_apart(p)}
    functions = {n: p for n, p in told.items() if p.kind == STT_FUNC}
    data = {n: p for n, p in told.items() if p.kind != STT_FUNC and _is_kept(p)}
    known = _known(told, homes)
    # Code that has the address of a function calls it as it was declared then.
    redeclared = {n for n in functions if n in known and known[n].type != functions[n].type}
    known = {n: home for n, home in known.items() if n not in redeclared}
    meanings.name_of = {n: base_name(home.symbol) for n, home in known.items() if n in functions}
    settling = _new_or_anew(data, {n: meanings.of_data(n) for n in data}, known, redeclared)
    meanings.patch_of = {
        n: known[n].patch if n in known and n not in settling else patch for n in (*data, *functions)
    }
    elsewhere = {n: known[n].address for n in (*data, *functions) if n in known and n not in settling}
    redirected: dict[str, list[KlpFunc]] = defaultdict(list)
    stranded = []
    for number, piece in functions.items():
        home = known.get(number)
        if home is None and piece.escapes:
            settling[number] = meanings.of_code(number)
        if home is None or meanings.of_code(number) == home.meaning:
            continue
        if _is_traceable(piece):
            redirected[home.patch].append(KlpFunc(home.symbol, home.sympos, number))
        else:
            stranded.append(_identity(piece))
    return Settlement(
        elsewhere,
        tuple(KlpObject(name, tuple(funcs)) for name, funcs in redirected.items()),
        settling,
        {_identity(told[n]): _also_held(known[n], told[n]) for n in elsewhere},
        tuple(_told(_identity(data[n])) for n in settling if n in data and _has_namesake(data[n], homes)),
        tuple(_identity(data[n]) for n in settling if n in data and n in known),
        tuple(stranded),
        tuple(_identity(functions[n]) for n in sorted(redeclared)),
    )


def _also_held(home: Home, piece: Piece) -> Home:
    return replace(home, is_held=True) if piece.is_held else home


def _known(told: Mapping[int, Piece], homes: Mapping[Identity, Home]) -> dict[int, Home]:
    """Return the homes of pieces, by number.

    Most are found by their identity. In an object without declarations, the owners of a static local are only
    the functions that use it, and these depend on inlining. So of what is left over, a piece and a home are
    the same if they have a user in common, and neither has one in common with any other of that name. A
    variable that moved between a function and the file is the same if it is the only one of its name and has
    the same type.
    """
    found = {n: homes[_identity(p)] for n, p in told.items() if _identity(p) in homes}

    def share_users(number: int, other: Identity) -> bool:
        return bool(set(_identity(told[number]).owners) & set(other.owners))

    def moved(number: int, other: Identity) -> bool:
        piece = told[number]
        is_data = piece.kind != STT_FUNC and piece.type == homes[other].type
        return is_data and bool(_identity(piece).owners) != bool(other.owners)

    for related in (share_users, moved):
        taken = {_identity(told[n]) for n in found}
        open_homes = _by_name((i, i) for i in homes if i not in taken)
        open_pieces = _by_name((_identity(p), n) for n, p in told.items() if n not in found)
        for name, numbers in open_pieces.items():
            pairs = _one_to_one(numbers, open_homes.get(name, []), related)
            found |= {number: homes[identity] for number, identity in pairs.items()}
    return found


def _one_to_one(
    numbers: Sequence[int], homes: Sequence[Identity], related: Callable[[int, Identity], object]
) -> dict[int, Identity]:
    """Return the pairs of a piece and a home that are related to each other and to no other."""
    found = {}
    for number in numbers:
        mine = [identity for identity in homes if related(number, identity)]
        if len(mine) == 1 and sum(bool(related(n, mine[0])) for n in numbers) == 1:
            found[number] = mine[0]
    return found


def _by_name(items: Iterable[tuple[Identity, T]]) -> dict[tuple[str, str, str], list[T]]:
    found: dict[tuple[str, str, str], list[T]] = defaultdict(list)
    for identity, item in items:
        found[identity.key].append(item)
    return found


def _new_or_anew(
    data: Mapping[int, Piece], meanings: Mapping[int, bytes], known: Mapping[int, Home], others: Set[int]
) -> dict[int, bytes]:
    """Return the variables that start in this patch, with their meanings.

    A variable whose initial value points at such a variable, or at one of ``others``, starts over, too.
    Otherwise it would keep pointing at the old one.
    """
    new = {n for n in data if n not in known or known[n].meaning != meanings[n]}
    while more := {n for n in data.keys() - new if _targets(data[n]) & (new | others)}:
        new |= more
    return {n: meanings[n] for n in data if n in new}


def _targets(piece: Piece) -> set[int]:
    return {r.target.number for r in piece.relocations if isinstance(r.target, PieceRef)}


def _has_namesake(piece: Piece, homes: Mapping[Identity, Home]) -> bool:
    mine = _identity(piece)
    return any(each.key == mine.key and (not mine.place or each.owners == mine.owners) for each in homes)


def _told(identity: Identity) -> str:
    return f"{identity.name} of {' and '.join(identity.owners)}" if identity.place else identity.name


def _is_kept(piece: Piece) -> bool:
    """Return whether a piece makes its module outlive its replacement.

    A constant that does not escape does not, because only its content matters.
    """
    return piece.escapes or (piece.identity is not None and piece.section in (".data", ".bss"))


def _is_told_apart(piece: Piece) -> bool:
    """Return whether later patches can tell which one this piece is."""
    return piece.identity is not None and not piece.identity.shared


def reasons_to_stay(plan: PatchPlan, settlement: Settlement) -> tuple[str, ...]:
    """Return why the module of a plan must outlive its replacement, as text for the user.

    Empty if it need not.
    """
    names = [piece.name for piece in _staying(plan, settlement)]
    return tuple(dict.fromkeys((*names, *plan.strings)))


def objects_to_stay_for(plan: PatchPlan, settlement: Settlement) -> frozenset[str]:
    """Return the objects whose code and data may have an address in the module of a plan.

    vmlinux may be one of them.
    """
    pieces = plan.pieces if plan.strings else _staying(plan, settlement)
    return frozenset(piece.object for piece in pieces)


def _staying(plan: PatchPlan, settlement: Settlement) -> list[Piece]:
    return [p for n, p in enumerate(plan.pieces) if n not in settlement.elsewhere and _is_kept(p)]


def continued(homes: Mapping[Identity, Home], live: PatchPlan | None) -> dict[Identity, Home]:
    """Return the homes that the next save starts from: those of what is live.

    What the sources dropped, or an undo took back, is new when it returns. A variable's old value may have
    another type, and code that has the address of a function also has data of that time.
    """
    there = {piece.identity for piece in live.pieces} | live.dormant if live else set()
    return {identity: home for identity, home in homes.items() if identity in there}


def reset(before: PatchPlan | None, now: PatchPlan) -> tuple[str, ...]:
    """Return the variables of both plans that nothing tells apart. They start over with each patch."""
    shared = _shared(before) & _shared(now) if before else set()
    return tuple(sorted({identity.name for identity in shared}))


def dropped(
    before: PatchPlan | None, now: PatchPlan | None, homes: Mapping[Identity, Home]
) -> tuple[str, ...]:
    """Return the variables that earlier reloads added and the sources dropped: their values are lost."""
    if before is None or now is None:
        return ()
    left = {p.identity.key for p in now.pieces if p.identity} | {each.key for each in now.dormant}
    lost = [
        p.identity.name
        for p in before.pieces
        if p.identity in homes
        and p.identity
        and p.kind != STT_FUNC
        and p.identity.key not in left
        and not p.identity.place
    ]
    return tuple(dict.fromkeys(lost))


def _shared(plan: PatchPlan) -> set[Identity]:
    return {
        p.identity
        for p in plan.pieces
        if p.identity and p.identity.shared and p.kind != STT_FUNC and _is_kept(p)
    }


def _identity(piece: Piece) -> Identity:
    assert piece.identity is not None
    return piece.identity


def _is_traceable(piece: Piece) -> bool:
    """Return whether ftrace finds the start of a function: a call of __fentry__, after ENDBR64 with IBT."""
    return any(
        isinstance(r.target, Import) and r.target.name == "__fentry__" and r.offset <= 5
        for r in piece.relocations[:1]
    )


class _Meanings:
    """Digests of what pieces are and do. Pieces with equal digests can replace each other, in any patch."""

    def __init__(self, plan: PatchPlan, patch: str) -> None:
        self.pieces = plan.pieces
        self.patch = patch
        self.patch_of: dict[int, str] = {}  # for functions and variables, once they are settled
        self.name_of: dict[int, str] = {}  # for functions that have another name at home
        self.entries: dict[int, list[int]] = defaultdict(list)
        for number, piece in enumerate(plan.pieces):
            if piece.owner is not None:
                self.entries[piece.owner].append(number)

    def of_data(self, number: int) -> bytes:
        """Return a digest of a variable's initial value. What has a name of its own counts by its name."""
        return self._digest(number, lambda n: _is_told_apart(self.pieces[n]) and _is_kept(self.pieces[n]))

    def of_code(self, number: int) -> bytes:
        """Return a digest of what a function does.

        It covers its code, the code of the functions that it calls, and which variables they use.
        """
        return self._digest(number, lambda n: self.pieces[n].kind != STT_FUNC and _is_kept(self.pieces[n]))

    def _digest(self, root: int, is_leaf: Callable[[int], bool]) -> bytes:
        order = {root: 0}
        digest = hashlib.sha256()
        queue = [root]
        for number in queue:
            for text in self._texts(number, order, queue, is_leaf):
                digest.update(text.encode() + b"\0")
        return digest.digest()

    def _texts(
        self, number: int, order: dict[int, int], queue: list[int], is_leaf: Callable[[int], bool]
    ) -> Iterator[str]:
        piece = self.pieces[number]
        yield f"{piece.kind} {piece.section} {piece.align} {piece.type} {piece.content.hex()}"
        for r in piece.relocations:
            yield f"{r.offset} {r.type} {r.addend} {self._target_text(r.target, order, queue, is_leaf)}"
        for entry in self.entries[number]:
            if entry not in order:
                order[entry] = len(order)
                queue.append(entry)

    def _target_text(
        self, target: PlannedTarget, order: dict[int, int], queue: list[int], is_leaf: Callable[[int], bool]
    ) -> str:
        if not isinstance(target, PieceRef):
            return str(target)
        of = target.number
        piece = self.pieces[of]
        if _is_told_apart(piece) and (target.kept or is_leaf(of)):
            identity = replace(_identity(piece), name=self.name_of.get(of, _identity(piece).name))
            return f"{identity} {self.patch_of.get(of)}"
        if is_leaf(of):
            return f"{piece.name} of {self.patch} alone"
        if of not in order:
            order[of] = len(order)
            queue.append(of)
        return str(order[of])
