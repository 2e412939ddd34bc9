# SPDX-License-Identifier: MIT
"""Reading a guest's memory where the processor's own page table does not show it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hotreload.errors import EnvironmentFault
from hotreload.vm.memory import read_memory
from hotreload.vm.monitor import QmpError

IDT, TEXT = 0xFFFFFE0000000000, 0xFFFFFFFF81000000
PRESENT, LARGE = 1, 1 << 7
REGISTERS = """
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00007f0000000000 CR3={:016x} CR4=0000{}6f0
"""


class PagedGuest:
    """The monitor of a machine whose processor runs a process: memsave fails."""

    def __init__(self, root: int, memory: dict[int, bytes], five_levels: bool = False) -> None:
        self.root = root
        self.memory = memory
        self.five_levels = five_levels
        self.commands: list[str] = []

    async def execute(self, command: str, arguments: Mapping[str, Any]) -> object:
        self.commands.append(command)
        if command == "human-monitor-command":
            return REGISTERS.format(self.root, int(self.five_levels))
        if command == "memsave":
            raise QmpError("Invalid addr specified")
        place, size = arguments["val"], arguments["size"]
        pages = range(place & ~0xFFF, place + size, 0x1000)
        data = b"".join(self.memory.get(page, bytes(0x1000)) for page in pages)
        Path(arguments["filename"]).write_bytes(data[place & 0xFFF :][:size])
        return {}


def table(*entries: tuple[int, int]) -> bytes:
    """A page of eight-byte entries: (number, entry)."""
    page = bytearray(0x1000)
    for number, entry in entries:
        struct.pack_into("<Q", page, number * 8, entry)
    return bytes(page)


def slots(address: int) -> list[int]:
    """An address' place in each table, the highest level first."""
    return [address >> shift & 0x1FF for shift in (39, 30, 21, 12)]


def isolated() -> dict[int, bytes]:
    """The kernel's table at 0x2000, that of the process at 0x3000; both map the descriptor table."""
    idt, text = slots(IDT), slots(TEXT)
    return {
        0x2000: table((idt[0], 0x4000 | PRESENT), (text[0], 0x7000 | PRESENT)),
        0x3000: table((idt[0], 0x4000 | PRESENT)),
        0x4000: table((idt[1], 0x5000 | PRESENT)),
        0x5000: table((idt[2], 0x6000 | PRESENT)),
        0x6000: table((idt[3], 0x9000 | PRESENT | 1 << 63)),
        0x7000: table((text[1], 0x8000 | PRESENT)),
        0x8000: table((text[2], 0x1000000 | PRESENT | LARGE)),
        0x1000000: b"first page".ljust(0x1000, b"-"),
        0x1001000: b"second page".ljust(0x1000, b"-"),
    }


def read(guest: PagedGuest, tmp_path: Path, address: int, size: int) -> bytes:
    try:
        return asyncio.run(read_memory(guest, tmp_path / "bytes", address, size))  # type: ignore[arg-type]
    finally:
        assert list(tmp_path.iterdir()) == []


def test_the_kernels_table_is_found_beside_that_of_the_process(tmp_path: Path) -> None:
    guest = PagedGuest(0x3000 | 0x80, isolated())  # 0x80: a process context identifier
    assert read(guest, tmp_path, TEXT, 10) == b"first page"
    assert read(guest, tmp_path, TEXT + 0xFFE, 8) == b"--second"


def test_the_kernels_own_table_is_used_if_it_is_in_place_by_then(tmp_path: Path) -> None:
    assert read(PagedGuest(0x2000, isolated()), tmp_path, TEXT + 0x1000, 11) == b"second page"


def test_an_address_that_no_table_has_is_refused(tmp_path: Path) -> None:
    for root in (0x2000, 0x3000):
        with pytest.raises(EnvironmentFault) as caught:
            read(PagedGuest(root, isolated()), tmp_path, TEXT + (1 << 30), 4)
        assert caught.value.code == "HR5111"
        assert "0xffffffffc1000000 cannot be read" in caught.value.message


def test_the_page_before_a_table_is_not_taken_for_one_without_isolation(tmp_path: Path) -> None:
    memory = isolated()
    memory[0x2000] = table((slots(TEXT)[0], 0x7000 | PRESENT))  # some page that looks like a table
    with pytest.raises(EnvironmentFault):
        read(PagedGuest(0x3000, memory), tmp_path, TEXT, 4)


def test_five_levels_are_walked_where_the_processor_has_them(tmp_path: Path) -> None:
    memory = isolated() | {0xA000: table((0x1FF, 0x2000 | PRESENT))}
    assert read(PagedGuest(0xA000, memory, five_levels=True), tmp_path, TEXT, 5) == b"first"
