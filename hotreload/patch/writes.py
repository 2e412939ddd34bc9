# SPDX-License-Identifier: MIT
"""Settle the new initial values of data that the running kernel has, from patch to patch. Pure.

Each patch is the difference to what the guest booted, and replaces the previous one. So an earlier patch may
already have written a value. Then it is left alone, even if the kernel has changed it since. A value that the
earlier patch wrote, and that this one does not have, goes back to what the guest booted with, unless the
kernel has changed it in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hotreload.diff.obstacles import NotPatchableError, Obstacle
from hotreload.elf.model import StringRef
from hotreload.patch.model import Absolute, PieceRef, Pointer, Text, Value, Write

# The place of a value in the guest's memory: object, symbol, sympos, offset, size.
Place = tuple[str, str, int, int, int]


@dataclass(frozen=True, slots=True)
class Written:
    """A value that the live patch wrote. ``value`` stays valid after that patch is replaced."""

    write: Write
    value: Value


@dataclass(frozen=True, slots=True)
class PendingWrite:
    """A value that a patch has to write or to check.

    ``base``: the value that the guest booted with. ``expected``: the value before this patch. ``value``: the
    value of this patch. ``lenient``: if the value is not as expected, leave it alone instead of refusing the
    patch. ``group``: the number of a value of several parts, which is checked and written as a whole.
    ``check``: the part must be as expected even if it does not change. ``goes_back``: an earlier patch wrote
    the value, and this one does not.
    """

    write: Write
    base: Value
    expected: Value
    value: Value
    lenient: bool = False
    group: int = 0
    check: bool = False
    goes_back: bool = False


def place_of(write: Write) -> Place:
    return write.place.object, write.place.name, write.place.sympos, write.offset, write.size


def pending_writes(
    writes: Sequence[Write], live: Mapping[Place, Written], elsewhere: Mapping[int, int]
) -> tuple[PendingWrite, ...]:
    """Return what a patch has to write.

    ``live``: the values that the live patch wrote. ``elsewhere``: the addresses of pieces that already have a
    home.

    Raises NotPatchableError (HR2103) if a value overlaps one that an earlier patch wrote with another extent,
    and for a pointer to a string whose address was not found out.
    """
    writes = [_with_known_text(write, live.get(place_of(write))) for write in writes]
    _refuse_overlaps(writes, live)
    _refuse_texts(writes)
    kept = {place_of(write) for write in writes}
    pending = [_pending(write, live.get(place_of(write)), elsewhere) for write in writes]
    changed = {each.group for each in pending if each.expected != each.value}
    first = max((write.group for write in writes), default=0)
    return (
        *(replace(each, check=each.group != 0 and each.group in changed) for each in pending),
        *(_going_back(written, first) for place, written in live.items() if place not in kept),
    )


def _with_known_text(write: Write, live: Written | None) -> Write:
    if isinstance(write.before, Text) and live is not None:
        return replace(write, before=live.write.before)
    return write


def _refuse_texts(writes: Sequence[Write]) -> None:
    obstacles = [
        Obstacle(
            "HR2103",
            write.name,
            f"the initial value of {write.name} changed; only a guest shows whether it still"
            " points at the old string",
        )
        for write in writes
        if isinstance(write.before, Text)
    ]
    if obstacles:
        raise NotPatchableError(obstacles)


def _pending(write: Write, live: Written | None, elsewhere: Mapping[int, int]) -> PendingWrite:
    value = _at_home(write.after, elsewhere)
    expected = write.before if live is None else live.value
    if live is not None and _is_string(value) and live.write.after == write.after:
        value = live.value
    return PendingWrite(write, write.before, expected, value, write.may_differ, write.group)


def _going_back(written: Written, first: int) -> PendingWrite:
    write = written.write
    group = write.group + first if write.group else 0
    return PendingWrite(
        write, write.before, written.value, write.before, True, group, check=group != 0, goes_back=True
    )


def _is_string(value: Value) -> bool:
    return isinstance(value, Pointer) and isinstance(value.target, StringRef)


def _at_home(value: Value, elsewhere: Mapping[int, int]) -> Value:
    if isinstance(value, Pointer) and isinstance(value.target, PieceRef):
        address = elsewhere.get(value.target.number)
        if address is not None:
            return Pointer(Absolute(address), value.addend)
    return value


def _refuse_overlaps(writes: Sequence[Write], live: Mapping[Place, Written]) -> None:
    obstacles = [
        Obstacle(
            "HR2103",
            write.name,
            f"the initial value of {write.name} changed, and overlaps a value that an earlier reload wrote",
            "undo that reload first: hotreload undo",
        )
        for write in writes
        for place in live
        if place != place_of(write)
        and place[:3] == place_of(write)[:3]
        and place[3] < write.offset + write.size
        and write.offset < place[3] + place[4]
    ]
    if obstacles:
        raise NotPatchableError(obstacles)


def written(
    pending: Sequence[PendingWrite], address_of: Callable[[Value], int | None]
) -> Iterator[tuple[Place, Written]]:
    """Yield what a loaded patch has written.

    ``address_of`` returns the address of a piece or string in the module.
    """
    for each in pending:
        if each.goes_back:
            continue
        value: Value = each.value
        if isinstance(value, Pointer) and isinstance(value.target, PieceRef | StringRef):
            address = address_of(value)
            if address is None:
                # The guest hides its addresses; the next patch will find an unexpected value.
                continue
            value = Pointer(Absolute(address), 0)
        yield place_of(each.write), Written(each.write, value)
