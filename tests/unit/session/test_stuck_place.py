# SPDX-License-Identifier: MIT
"""Where a processor is stuck, told for people."""

from __future__ import annotations

import asyncio
import struct

from hotreload.errors import EnvironmentFault
from hotreload.session.stuck_place import addresses_of, told
from hotreload.vm.processors import InKernel

SLOW_PATH, LOCK, SHOW, READ = 0xFFFFFFFF81100030, 0xFFFFFFFF81200017, 0xFFFFFFFFC020101C, 0xFFFFFFFF8130011F
NAMES = {SLOW_PATH: "native_queued_spin_lock_slowpath+0x30", LOCK - 1: "_raw_spin_lock_irqsave+0x16"}
AT = InKernel(SLOW_PATH, closed=True, stack=0xFFFFC90000123F00)


def test_what_may_be_calls_on_the_stack_is_told_from_what_is_data() -> None:
    async def read(address: int, size: int) -> bytes:
        assert (address, size) == (AT.stack, 256), "not beyond the page: behind it there may be nothing"
        return struct.pack("<6Q", 0x246, LOCK, 0xFFFF88801FF26F78, SHOW, READ, LOCK) + bytes(size - 48)

    assert asyncio.run(addresses_of(AT, read)) == (SLOW_PATH, LOCK - 1, SHOW - 1, READ - 1)


def test_a_stack_that_cannot_be_read_leaves_the_place_itself() -> None:
    async def read(_address: int, _size: int) -> bytes:
        raise EnvironmentFault("nothing is mapped there")

    assert asyncio.run(addresses_of(AT, read)) == (SLOW_PATH,)


def test_who_takes_a_lock_is_named_before_the_lock() -> None:
    addresses = (SLOW_PATH, LOCK - 1, SHOW - 1, READ - 1)
    places = {SHOW - 1: ("hotreload_2", "show", 0x1B)}
    names = NAMES | {READ - 1: "seq_read_iter+0x11e"}
    assert told(addresses, names, places) == (
        "show+0x1b, called by seq_read_iter+0x11e; it waits in native_queued_spin_lock_slowpath+0x30"
    )
    assert told(addresses[:2], NAMES, {}) == "native_queued_spin_lock_slowpath+0x30"


def test_who_loops_by_himself_is_all_there_is_to_name() -> None:
    places = {SHOW: ("hotreload_2", "show", 0x1C)}
    assert told((SHOW, READ - 1), {READ - 1: "seq_read_iter+0x11e"}, places) == "show+0x1c"
