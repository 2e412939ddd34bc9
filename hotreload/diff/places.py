# SPDX-License-Identifier: MIT
"""Find out which function replaced which, by the places where their addresses are taken.

The problem: a timer, a work item or an ops table holds the address of a function, and the function is
renamed. Whoever holds the address would run the old code for ever, although no source contains it any more.

The choice: where ``INIT_WORK(&work, old)`` became ``INIT_WORK(&work, new)``, and every other place that took
the address of ``old`` now takes that of ``new``, it is one function under another name. This needs places
that are equal except for the function: with equal code around it, or in a table with equal contents. Anything
less proves nothing: ``timer_setup(&a, old)`` that became ``timer_setup(&b, new)`` must not let ``a`` run
``new``.

Two functions may have swapped names, or several may have rotated theirs. Then places alone prove nothing,
because a table whose rows were reordered looks the same. The code tells these cases apart: it moved with the
places, or it stayed with the names. One registration that changes while both functions stay is an edit like
any other. Functions for which nothing tells the cases apart are doubtful.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Alike = Callable[[K, K], bool]


@dataclass(frozen=True, slots=True)
class Reference(Generic[K]):
    """A reference of a symbol to another one.

    ``before``       the bytes between the previous reference and the instruction of this one
    ``instruction``  the bytes of that instruction before the reference
    ``function``     the function whose address is taken here, or None
    ``other``        whatever else distinguishes the reference
    """

    offset: int
    before: bytes
    instruction: bytes
    function: K | None
    other: Hashable


@dataclass(frozen=True, slots=True)
class Referrer(Generic[K]):
    """A symbol that takes the address of functions. ``rest`` are the bytes behind its last reference."""

    is_code: bool
    content: bytes
    references: tuple[Reference[K], ...]
    rest: bytes = b""


@dataclass(frozen=True, slots=True)
class Step(Generic[K]):
    """A place where ``old`` was before the edit, and ``new`` is after it. ``new`` is None if unknown.

    ``alike``: nothing else of the symbol that contains the place changed.
    """

    old: K
    new: K | None
    alike: bool


def steps_of(before: Referrer[K], after: Referrer[K]) -> Iterator[Step[K]]:
    """Yield what became of each place in a referrer."""
    ours, theirs = before.references, after.references
    if before.is_code != after.is_code or before.content != after.content:
        yield from _steps_of_changed_code(before, after) if before.is_code else _lost(ours)
    elif before.is_code:
        if len(ours) == len(theirs) and all(map(_is_same_place, ours, theirs)):
            yield from _steps_of_places(zip(ours, theirs, strict=True), alike=True)
        else:
            yield from _steps_of_changed_code(before, after)
    elif [r for r in map(_without_function, ours) if r] != [r for r in map(_without_function, theirs) if r]:
        yield from _lost(ours)
    else:
        there = {reference.offset: reference for reference in theirs}
        for reference in ours:
            if reference.function is not None:
                now = there.get(reference.offset)
                yield Step(reference.function, now.function if now else None, alike=len(ours) == len(theirs))


def _is_same_place(one: Reference[K], other: Reference[K]) -> bool:
    both = one.function is not None and other.function is not None
    return one.offset == other.offset and one.other == other.other and (both or one == other)


def _without_function(reference: Reference[K]) -> tuple[int, Hashable] | None:
    return (reference.offset, reference.other) if reference.function is None else None


def _lost(references: Iterable[Reference[K]]) -> Iterator[Step[K]]:
    for reference in references:
        if reference.function is not None:
            yield Step(reference.function, None, alike=False)


def _steps_of_places(
    places: Iterable[tuple[Reference[K], Reference[K]]], *, alike: bool
) -> Iterator[Step[K]]:
    for one, other in places:
        if one.function is not None:
            yield Step(one.function, other.function, alike)


def _steps_of_changed_code(before: Referrer[K], after: Referrer[K]) -> Iterator[Step[K]]:
    """Match the references of code that changed.

    A changed reference is at the same place if its neighbours, and the code between, are unchanged.
    """
    ours, theirs = ([(r.function, r.other) for r in side.references] for side in (before, after))
    matcher = SequenceMatcher(None, ours, theirs, autojunk=False)
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        places = list(
            zip(before.references[start:end], after.references[other_start:other_end], strict=False)
        )
        one_each = end - start == other_end - other_start == 1
        if kind == "equal" or (one_each and _is_same_place_in(before, after, start, other_start)):
            yield from _steps_of_places(places, alike=False)
        else:
            yield from _lost(before.references[start:end])


def _is_same_place_in(before: Referrer[K], after: Referrer[K], number: int, other_number: int) -> bool:
    one, other = before.references[number], after.references[other_number]
    both = one.function is not None and other.function is not None
    return both and one.other == other.other and _around(before, number) == _around(after, other_number)


def _around(referrer: Referrer[K], number: int) -> tuple[bytes, ...]:
    """Return the code of a reference, and the code between it and its neighbours."""
    references = referrer.references
    behind = references[number + 1].before if number + 1 < len(references) else referrer.rest
    return references[number].before, references[number].instruction, behind


@dataclass(frozen=True, slots=True)
class Answer(Generic[K]):
    """Which functions replaced which.

    ``successors``: old function -> the one that is now at all of its places, one to one. ``doubtful``:
    functions that may be the one with the same name, or one that has another name now.
    """

    successors: Mapping[K, K]
    doubtful: Set[K]


@dataclass(frozen=True, slots=True)
class Question(Generic[K]):
    """What is known of the functions. All that are neither ``gone`` nor ``new`` stay.

    ``gone``  functions whose name no longer exists
    ``new``   functions whose name did not exist before
    ``equal_prototypes``, ``same_code``  compare the first before the edit with the second after it
    """

    gone: Set[K]
    new: Set[K]
    equal_prototypes: Alike[K]
    same_code: Alike[K]

    def answer(self, steps: Iterable[Step[K]]) -> Answer[K]:
        found: dict[K, set[K | None]] = {}
        unlike: set[K] = set()
        for step in steps:
            found.setdefault(step.old, set()).add(step.new)
            if not step.alike:
                unlike.add(step.old)
        places = {old: next(iter(now)) for old, now in found.items() if len(now) == 1}
        moved = _one_to_one(places, self.gone)
        result: dict[K, K] = {}
        doubtful: set[K] = set()
        for old in moved:
            chain = _chain(old, moved)
            staying = self._staying(chain)
            if not self._is_closed(chain):
                # Its places have a function that did not exist before, and its name has other code.
                if chain[-1] in self.new and not self._keeps_its_code(staying):
                    doubtful.update(staying)
                continue
            pairs = list(pairwise(chain))
            if not all(self.equal_prototypes(*pair) for pair in pairs):
                continue
            if not staying:
                result.update(pairs)
            elif not self._keeps_its_code(staying):
                # A name that stays would mean another function. That needs more evidence than equal places.
                is_sure = any(self.same_code(*pair) for pair in pairs) and not unlike.intersection(chain)
                if is_sure:
                    result.update(pairs)
                else:
                    doubtful.update(staying)
        return Answer(result, doubtful)

    def _is_closed(self, chain: list[K]) -> bool:
        return chain[-1] in self.new if chain[0] in self.gone else chain[-1] == chain[0]

    def _staying(self, chain: list[K]) -> set[K]:
        """Return the functions of a chain whose names exist before and after the edit."""
        return {one for one in chain if one not in self.gone and one not in self.new}

    def _keeps_its_code(self, functions: Set[K]) -> bool:
        return any(self.same_code(one, one) for one in functions)


def _one_to_one(moved: Mapping[K, K | None], gone: Set[K]) -> dict[K, K]:
    """Return the functions with a successor that no other claims. A function that is gone has priority."""
    claims: dict[K, list[K]] = {}
    for old, now in moved.items():
        if now is not None and now != old and now not in gone:
            claims.setdefault(now, []).append(old)
    found = {}
    for now, all_of in claims.items():
        claimants = [old for old in all_of if old in gone] or all_of
        if len(claimants) == 1:
            found[claimants[0]] = now
    return found


def _chain(start: K, moved: Mapping[K, K]) -> list[K]:
    """Follow a function to its successor, the successor's successor, and so on."""
    chain = [start]
    while chain[-1] in moved and len(chain) <= len(moved):
        chain.append(moved[chain[-1]])
        if chain[-1] == start:
            break
    return chain
