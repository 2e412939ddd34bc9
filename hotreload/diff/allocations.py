# SPDX-License-Identifier: MIT
"""Refuse code that no longer fits memory allocated before the edit, by its size or its allocator. Pure.

Suppose ``#define SLOTS 4`` becomes 8. A probe or open function allocates that many slots, and another
function walks all of them, but objects allocated before the edit have 4. No type shows this. Only the numbers
in the code do: one that is passed to an allocator has changed, and others have changed in proportion to it. A
short loop has no such number because the compiler unrolls it; it shows as a different number of loops.

Where ``kmalloc()`` and ``kfree()`` become ``vmalloc()`` and ``vfree()``, memory allocated before the edit
would be passed to the wrong free function.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hotreload.diff.correlate import parent_name
from hotreload.diff.obstacles import RELOAD_MODULE, Obstacle
from hotreload.diff.pair import Pair
from hotreload.elf.allocators import NO_WRAPPERS, Wrappers, allocated_sizes, frees, loops_in, numbers_in
from hotreload.elf.frees import allocators_of, frees_of, takes, usual_kind
from hotreload.elf.model import Symbol


@dataclass(frozen=True, slots=True)
class Resized:
    """``function`` allocates ``after`` instead of ``before``, in the unit of its allocator."""

    function: Symbol
    before: int
    after: int


def refuse_other_sizes(pair: Pair) -> None:
    """Refuse code that relies on another size or allocator of memory that was allocated before the edit."""
    changed = [(original, patched) for patched, original in pair.changed.items()]
    for resized, user in users_of_other_sizes(changed, changed):
        pair.refuse("HR2101", parent_name(resized.function.name), message_of(resized, user))
    changed += [(original, patched) for patched, original in pair.exit_changed.items()]
    pair.obstacles += refuse_other_frees(changed, pair.new_functions)


def refuse_other_frees(
    pairs: Iterable[tuple[Symbol, Symbol]],
    new: Iterable[Symbol],
    beside: Iterable[tuple[Symbol, Symbol]] = (),
    through: Wrappers = NO_WRAPPERS,
) -> Iterator[Obstacle]:
    """Refuse functions that free memory with a function that does not fit the allocator it came from.

    ``pairs``   changed functions as (original, patched)
    ``new``     new functions
    ``beside``  changed functions whose allocations count, but whose frees are not checked
    ``through`` wrappers that other units define
    """
    twins = list(pairs)
    freed = [
        (patched, frees_of(original, through), frees_of(patched, through)) for original, patched in twins
    ]
    freed = [(patched, before - after, after - before) for patched, before, after in freed]
    if not any(come for _, _, come in freed):
        return
    own = [patched for _, patched in twins]
    twins += beside
    functions = [*twins, *((None, function) for function in new)]
    made = {
        now: (allocators_of(was, through) if was else Counter(), allocators_of(now, through))
        for was, now in functions
    }
    before: Counter[int] = sum((was for was, _ in made.values()), Counter())
    after: Counter[int] = sum((now for _, now in made.values()), Counter())
    yield from _refuse_newly_freed(own, functions, made, after - before, through)
    for patched, gone, come in freed:
        for old, now in itertools.product(gone, come):
            if takes(now, usual_kind(old)) or not any(takes(now, kind) for kind in after - before):
                continue
            name = parent_name(patched.name)
            message = f"{name} now frees with {now}(), but existing memory must be freed with {old}()"
            yield Obstacle("HR2101", name, message, RELOAD_MODULE)
            break


def _refuse_newly_freed(
    own: Iterable[Symbol],
    functions: Iterable[tuple[Symbol | None, Symbol]],
    made: Mapping[Symbol, tuple[Counter[int], Counter[int]]],
    newly_made: Counter[int],
    through: Wrappers,
) -> Iterator[Obstacle]:
    """Refuse those of the ``own`` functions that newly free what they find in an object.

    That is, if another one of all ``functions`` newly allocates it.
    """
    freed = {
        now: (frees_of(was, through) if was else Counter[str](), frees_of(now, through))
        for was, now in functions
    }
    originals = {now: was for was, now in functions}
    total: Counter[str] = Counter()
    for then, there in freed.values():
        total.update(there)
        total.subtract(then)
    for patched in own:
        original, (then, there) = originals[patched], freed[patched]
        if original is None or then - there:
            continue
        was, now = (frees_of(each, through, only_of_objects=True) for each in (original, patched))
        for free in (free for free in now - was if total[free] > 0):
            makers = [
                maker
                for maker, (before, after) in made.items()
                if maker is not patched and any(takes(free, kind) for kind in newly_made & (after - before))
            ]
            if makers:
                name, maker = parent_name(patched.name), parent_name(makers[0].name)
                message = f"{maker} now allocates what {name} now frees with {free}()"
                message += ": objects that exist have something else there"
                yield Obstacle("HR2211", name, message, RELOAD_MODULE)
                break


def message_of(resized: Resized, user: Symbol) -> str:
    """Return why the edit is refused."""
    name, relying = parent_name(resized.function.name), parent_name(user.name)
    return (
        f"the size that {name} allocates changed from {resized.before} to {resized.after}, and {relying}"
        " relies on it: existing objects keep the old size"
    )


def users_of_other_sizes(
    allocating: Iterable[tuple[Symbol, Symbol]],
    using: Iterable[tuple[Symbol, Symbol]],
    through: Wrappers = NO_WRAPPERS,
) -> Iterator[tuple[Resized, Symbol]]:
    """Yield each changed size with a function that relies on it.

    ``allocating`` and ``using``: functions as (original, patched). ``through``: wrappers of allocators that
    other units define.
    """
    found = [each for twins in allocating for each in _resized(*twins, through)]
    for original, patched in using if found else ():
        before, after = numbers_in(original), numbers_in(patched)
        before -= allocated_sizes(original, through)
        after -= allocated_sizes(patched, through)
        for each in found:
            # Code that also frees memory may free this buffer in the same call, where its size is consistent.
            if each.function is patched and frees(patched):
                continue
            moved = _moves_with(each, before - after, after - before)
            if moved or loops_in(original) != loops_in(patched):
                yield each, patched


def _resized(original: Symbol, patched: Symbol, through: Wrappers) -> list[Resized]:
    before, after = allocated_sizes(original, through), allocated_sizes(patched, through)
    return [Resized(patched, old, new) for old in before - after for new in after - before]


def _moves_with(size: Resized, gone: Counter[int], come: Counter[int]) -> bool:
    """Return whether another number changed along with the size.

    It did if it lies between the old and the new size, if its change divides the change of the size, or if it
    is the logarithm of the factor by which the size changed.
    """
    grown = size.after - size.before
    low, high = sorted((size.before, size.after))
    if any(low <= number <= high for number in (come if grown > 0 else gone)):
        return True
    for old, new in itertools.product(gone, come):
        by = new - old
        if by and grown % by == 0 and (by > 0) == (grown > 0):
            return True
        if 0 <= old < 64 and 0 <= new < 64 and size.before << new == size.after << old:
            return True
    return False
