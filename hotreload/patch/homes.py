# SPDX-License-Identifier: MIT
"""Where what the reloads added lives: its *home*, the first patch module that brought it. Pure.

The problem: every patch replaces the one before, and a patch module has variables of its own. A variable that
an edit added would start anew with each save. A function that an edit added, and whose address the
kernel keeps (a timer's, a work item's, an entry of an ops table), would go on running as it was when its
address was stored, whatever is saved since.

The choice: a patch module whose variables or addresses are in use stays loaded, and later patches refer to
them there. A variable is not emitted again: old and new code share it, locks, lists and pointers to it
included. The address of a function is always that of its home, so that it compares equal, and livepatch
redirects the home's code to the newest version, as it does with a function of any module; as long as the two
mean the same, it does not. Rejected: copying values, which tears a list from its neighbours and loses what
is written meanwhile.

Who changes the type or the initial value of an added variable asks for another one: it starts anew, and
that is told.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from hotreload.elf.constants import STT_FUNC
from hotreload.patch.plan import Identity, Import, KlpFunc, KlpObject, PatchPlan, Piece, PieceRef


@dataclass(frozen=True, slots=True)
class Home:
    """The place of a function or variable: ``address`` in the patch module ``patch``, which stays loaded.

    ``symbol`` and ``sympos`` find it in that module's kallsyms. ``meaning``: a digest of what it is there.
    """

    patch: str
    address: int
    symbol: str
    sympos: int
    meaning: bytes


@dataclass(frozen=True, slots=True)
class Settlement:
    """What of a plan lives in earlier patch modules.

    ``elsewhere``   the addresses of pieces that have a home already, by number
    ``redirected``  functions of earlier patch modules whose newest version is in this patch
    ``settling``    pieces that will have their home in this patch, with their meaning
    ``anew``        variables that had a home, and are other ones now
    ``stranded``    functions that stay as they were where somebody has their address
    """

    elsewhere: Mapping[int, int] = field(default_factory=dict)
    redirected: tuple[KlpObject, ...] = ()
    settling: Mapping[int, bytes] = field(default_factory=dict)
    anew: tuple[str, ...] = ()
    stranded: tuple[str, ...] = ()


def settle(plan: PatchPlan, homes: Mapping[Identity, Home], patch: str) -> Settlement:
    """Which pieces of ``plan``, to be loaded as ``patch``, have a home, and which will have one there."""
    data = {n: p for n, p in enumerate(plan.pieces) if p.identity and p.kind != STT_FUNC}
    functions = {n: p for n, p in enumerate(plan.pieces) if p.identity and p.kind == STT_FUNC}
    meanings = _Meanings(plan)
    elsewhere: dict[int, int] = {}
    settling: dict[int, bytes] = {}
    for number, piece in data.items():
        home, meaning = homes.get(_identity(piece)), meanings.of_data(number)
        if home is not None and home.meaning == meaning:
            elsewhere[number] = home.address
            meanings.patch_of[number] = home.patch
        else:
            settling[number] = meaning
            meanings.patch_of[number] = patch
    redirected: dict[str, list[KlpFunc]] = defaultdict(list)
    stranded = []
    for number, piece in functions.items():
        home = homes.get(_identity(piece))
        if home is None:
            if piece.escapes:
                settling[number] = meanings.of_code(number)
            continue
        elsewhere[number] = home.address
        if meanings.of_code(number) == home.meaning:
            continue
        if _is_traceable(piece):
            redirected[home.patch].append(KlpFunc(home.symbol, home.sympos, number))
        else:
            stranded.append(piece.name)
    return Settlement(
        elsewhere,
        tuple(KlpObject(name, tuple(funcs)) for name, funcs in redirected.items()),
        settling,
        tuple(_identity(data[n]).name for n in settling if n in data and _identity(data[n]) in homes),
        tuple(stranded),
    )


def reasons_to_stay(plan: PatchPlan, settlement: Settlement) -> tuple[str, ...]:
    """Why the module of a plan must outlive its replacement, told for people; empty: it need not."""
    here = (p for n, p in enumerate(plan.pieces) if n not in settlement.elsewhere)
    reasons = [p.name for p in here if p.escapes or (p.identity and p.section in (".data", ".bss"))]
    return tuple(dict.fromkeys((*reasons, *plan.strings)))


def gone(before: PatchPlan | None, now: PatchPlan | None, homes: Mapping[Identity, Home]) -> tuple[str, ...]:
    """Added functions that a plan has no more, though somebody may have their address."""
    left = {p.identity for p in now.pieces} if now else set()
    pieces = before.pieces if before else ()
    return tuple(
        p.name
        for p in pieces
        if p.kind == STT_FUNC and p.identity and p.identity in homes and p.identity not in left
    )


def _identity(piece: Piece) -> Identity:
    assert piece.identity is not None
    return piece.identity


def _is_traceable(piece: Piece) -> bool:
    """Whether ftrace finds the beginning of a function: a call of __fentry__, behind ENDBR64 with IBT."""
    return any(
        isinstance(r.target, Import) and r.target.name == "__fentry__" and r.offset <= 5
        for r in piece.relocations[:1]
    )


class _Meanings:
    """Digests of what pieces are and do: equal ones can stand for each other, in whichever patch."""

    def __init__(self, plan: PatchPlan) -> None:
        self.pieces = plan.pieces
        self.patch_of: dict[int, str] = {}  # of variables, once settled
        self.entries: dict[int, list[int]] = defaultdict(list)
        for number, piece in enumerate(plan.pieces):
            if piece.owner is not None:
                self.entries[piece.owner].append(number)

    def of_data(self, number: int) -> bytes:
        """What a variable begins with. What it points at counts by its identity, where it has one."""
        return self._digest(number, lambda n: self.pieces[n].identity is not None)

    def of_code(self, number: int) -> bytes:
        """What a function does: its code, that of the functions it calls, and which variables it uses."""
        return self._digest(number, lambda n: n in self.patch_of)

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
            if not isinstance(r.target, PieceRef):
                yield f"{r.offset} {r.type} {r.addend} {r.target}"
                continue
            of = r.target.number
            identity = self.pieces[of].identity
            if identity is not None and (r.target.kept or is_leaf(of)):
                yield f"{r.offset} {r.type} {r.addend} {identity} {self.patch_of.get(of)}"
                continue
            if of not in order:
                order[of] = len(order)
                queue.append(of)
            yield f"{r.offset} {r.type} {r.addend} {order[of]}"
        for entry in self.entries[number]:
            if entry not in order:
                order[entry] = len(order)
                queue.append(entry)
