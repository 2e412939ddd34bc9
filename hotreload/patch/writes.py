# SPDX-License-Identifier: MIT
"""New initial values of data that the running kernel holds, from patch to patch. Pure.

Each patch says what differs from what the guest booted, and replaces the one before. So a value may have
been written by an earlier patch already: then it is left alone, whatever the kernel has made of it
since. One that the earlier patch wrote and this one has no more goes back to what the guest booted with,
unless the kernel has changed it meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hotreload.diff.obstacles import NotPatchableError, Obstacle
from hotreload.elf.model import StringRef
from hotreload.patch.model import Absolute, PieceRef, Pointer, Text, Value, Write

# Where in the guest's memory a value is: object, symbol, sympos, offset, size.
Place = tuple[str, str, int, int, int]


@dataclass(frozen=True, slots=True)
class Written:
    """A value that the live patch wrote; ``value`` holds beyond that patch."""

    write: Write
    value: Value


@dataclass(frozen=True, slots=True)
class PendingWrite:
    """``base``: the value the guest booted with; ``expected``: the one before this patch; ``value``: its own.

    ``lenient``: another one than expected is left alone, and no reason to refuse the patch. ``group``: of one
    value that is looked at and written as a whole; ``check``: it has to be as expected, though it stays so.
    ``goes_back``: an earlier patch wrote it, and this one has it no more.
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
    """What a patch has to write. ``elsewhere``: addresses of its pieces that have a home already.

    Raises NotPatchableError (HR2103) when values overlap that were written at once before, and for a pointer
    to a string whose address nobody has found out.
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
            f"the initial value of {write.name} changed; if it still points at the old string, a guest tells",
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
            f"the initial value of {write.name} changed, beside one that an earlier reload wrote",
            "take that one back first: hotreload undo",
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
    """What a loaded patch has written; ``address_of`` tells where the module has a piece or string."""
    for each in pending:
        if each.goes_back:
            continue
        value: Value = each.value
        if isinstance(value, Pointer) and isinstance(value.target, PieceRef | StringRef):
            address = address_of(value)
            if address is None:
                continue  # a guest that hides its addresses: the next patch will find another value
            value = Pointer(Absolute(address), 0)
        yield place_of(each.write), Written(each.write, value)
