# SPDX-License-Identifier: MIT
"""Where a processor is stuck, told for people."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import cast

from hotreload import process
from hotreload.deploy.guest import Guest
from hotreload.errors import EnvironmentFault
from hotreload.process import CommandResult
from hotreload.session.stuck_place import addresses_of, names_of, told
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
        "show+0x1b, called by seq_read_iter+0x11e; waiting in native_queued_spin_lock_slowpath+0x30"
    )
    assert told(addresses[:2], NAMES, {}) == "native_queued_spin_lock_slowpath+0x30"


def test_who_loops_by_himself_is_all_there_is_to_name() -> None:
    places = {SHOW: ("hotreload_2", "show", 0x1C)}
    assert told((SHOW, READ - 1), {READ - 1: "seq_read_iter+0x11e"}, places) == "show+0x1c"


def test_a_variable_is_no_function_and_what_has_gone_with_a_patch_is_not_what_lies_before_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "kallsyms").write_text(
        "ffffffff81300000 T seq_read_iter\n"
        "ffffffffc0200000 t show\t[drv]\n"
        "ffffffffc0202000 d lock\t[drv]\n"
        "ffffffffc0203000 r table\t[drv]\n"
    )

    class Local:
        async def run(self, command: str, *, timeout: float) -> CommandResult:
            assert timeout
            here = command.replace("/proc/kallsyms", f"{tmp_path}/kallsyms")
            return await process.run(["sh", "-c", here], timeout=timeout)

    there, gone = 0xFFFFFFFFC0200010, 0xFFFFFFFFC0206010
    found = asyncio.run(names_of((READ - 1, there, gone), cast("Guest", Local())))
    assert found == {
        READ - 1: "seq_read_iter+0x11e",
        there: "show+0x10",
        gone: "a module (0xffffffffc0206010)",
    }
