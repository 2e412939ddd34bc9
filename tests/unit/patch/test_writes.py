# SPDX-License-Identifier: MIT
"""What a patch writes into live data, from patch to patch."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hotreload.diff.obstacles import NotPatchableError
from hotreload.elf.model import StringRef
from hotreload.errors import EnvironmentFault, PatchRejectedError
from hotreload.found_texts import NOWHERE, unknown_texts, with_texts
from hotreload.patch.model import Absolute, PatchPlan, Pointer, Text, Value, Write
from hotreload.patch.symbols import SymbolPosition
from hotreload.patch.writes import PendingWrite, Place, Written, pending_writes, written

PLACE = SymbolPosition("drv", "mac", 1)


def write(offset: int, before: Value, after: Value, group: int = 0) -> Write:
    return Write("drv", PLACE, offset, 4, before, after, f"mac+{offset}", group)


def live_after(pending: tuple[PendingWrite, ...]) -> dict[Place, Written]:
    return dict(written(pending, lambda _: 0xFFFF_FFFF_C000_0000))


def facts(pending: tuple[PendingWrite, ...]) -> list[tuple[Value, Value, bool, bool]]:
    return [(each.expected, each.value, each.check, each.lenient) for each in pending]


def test_all_words_of_a_value_that_changes_have_to_be_the_old_ones() -> None:
    mac = (write(0, 1, 1, group=1), write(4, 2, 3, group=1))
    assert facts(pending_writes((*mac, write(8, 5, 6)), {}, {})) == [
        (1, 1, True, False),
        (2, 3, True, False),
        (5, 6, False, False),
    ]


def test_what_an_earlier_patch_wrote_is_looked_at_again_only_if_it_changes_again() -> None:
    mac = (write(0, 1, 1, group=1), write(4, 2, 3, group=1))
    live = live_after(pending_writes(mac, {}, {}))
    assert facts(pending_writes(mac, live, {})) == [(1, 1, False, False), (3, 3, False, False)]
    again = (mac[0], replace(mac[1], after=4))
    assert facts(pending_writes(again, live, {})) == [(1, 1, True, False), (3, 4, True, False)]


def test_a_value_goes_back_as_a_whole_beside_others() -> None:
    live = live_after(pending_writes((write(0, 1, 1, group=1), write(4, 2, 3, group=1)), {}, {}))
    pending = pending_writes((write(8, 5, 6, group=1), write(12, 0, 6, group=1)), live, {})
    assert facts(pending[2:]) == [(1, 1, True, True), (3, 2, True, True)]
    assert [each.group for each in pending] == [1, 1, 2, 2]
    assert len(live_after(pending)) == 2


def test_a_parameter_that_was_set_by_hand_is_no_reason_to_refuse_and_goes_back_like_others() -> None:
    limit = replace(write(0, 10, 20), may_differ=True)
    pending = pending_writes((limit,), {}, {})
    assert facts(pending) == [(10, 20, False, True)]
    assert facts(pending_writes((), live_after(pending), {})) == [(20, 10, False, True)]


OLD, NEW = Text(b"eth"), Pointer(StringRef(b"wlan"), 0)


def test_a_string_nobody_looked_for_is_refused_and_one_of_an_earlier_patch_is_known() -> None:
    name = write(0, OLD, NEW)
    with pytest.raises(NotPatchableError):
        pending_writes((name,), {}, {})
    known = Pointer(Absolute(0xFFFF_FFFF_A000_0010), 0)
    live = live_after(pending_writes((replace(name, before=known),), {}, {}))
    assert unknown_texts(PatchPlan((), (), (), (name,)), live) == ()
    (pending,) = pending_writes((name,), live, {})
    assert (pending.base, pending.expected) == (known, pending.value)


MODULE = 0xFFFF_FFFF_C020_0000


@pytest.mark.parametrize(
    ("pointer", "text", "is_parameter", "found"),
    [
        (MODULE, b"eth\0", False, Pointer(Absolute(MODULE), 0)),
        (MODULE, b"ethernet", False, None),
        (0xFFFF_8880_0123_4567, b"eth\0", False, None),  # a copy that somebody allocated
        (0xFFFF_8880_0123_4567, b"eth\0", True, NOWHERE),
        (0, b"", True, NOWHERE),
        (MODULE + 0x10_0000, b"", False, None),
    ],
)
def test_a_pointer_is_the_old_one_while_it_points_at_the_old_text_in_a_module(
    pointer: int, text: bytes, is_parameter: bool, found: Pointer | None
) -> None:
    memory = {0x1000: pointer.to_bytes(8, "little"), MODULE: text, 0xFFFF_8880_0123_4567: text}

    async def read(address: int, size: int) -> bytes:
        if address not in memory:
            raise EnvironmentFault("nothing is mapped there", code="HR5111")
        return memory[address][:size]

    async def where() -> object:
        return lambda position: 0x0FF8 if position == PLACE else None

    name = Write("drv", PLACE, 8, 8, OLD, NEW, "name", may_differ=is_parameter)
    plan = PatchPlan((), (), (), (name,))
    finding = with_texts(plan, (name,), read, where)  # type: ignore[arg-type]
    if found is None:
        with pytest.raises(PatchRejectedError) as caught:
            asyncio.run(finding)
        assert caught.value.code == "HR2103"
    else:
        assert asyncio.run(finding).writes[0].before == found
