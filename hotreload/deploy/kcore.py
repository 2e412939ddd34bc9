# SPDX-License-Identifier: MIT
"""Read the memory of a guest's kernel from /proc/kcore, as the guest's root sees it.

This is for a guest that somebody else started: its QEMU may run as another user, write its files elsewhere,
or have no monitor for us. The file is an ELF core whose segments are the regions of memory (fs/proc/kcore.c).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hotreload.deploy.guest import KALLSYMS_LIMIT, Guest, run_in_time
from hotreload.errors import EnvironmentFault, GuestUnreachableError

PAGE: Final = 0x1000
PT_LOAD: Final = 1
# Offsets in Elf64_Ehdr: e_phoff, e_phentsize, e_phnum; then the fields of a program header.
PLACE, COUNTS = struct.Struct("<32xQ"), struct.Struct("<54xHH")
HEADER = struct.Struct("<IIQQQQQQ")
# Seconds; the code of all modules is some 16 MiB.
LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A region of memory, and its offset in the file."""

    address: int
    size: int
    offset: int


class KernelMemory:
    """Reads the memory, with one command for each stretch."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._segments: tuple[Segment, ...] = ()

    async def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes at a virtual address; zeros for unmapped addresses within a region.

        Raises EnvironmentFault (HR5111) if no region contains it, or there is no such file;
        GuestUnreachableError.
        """
        if not self._segments:
            self._segments = parse_segments(await self._pages(0, 2))
        for segment in self._segments:
            within = address - segment.address
            if within >= 0 and within + size <= segment.size:
                first, skip = divmod(segment.offset + within, PAGE)
                data = await self._pages(first, -(-(skip + size) // PAGE))
                if len(data) >= skip + size:
                    return data[skip : skip + size]
                raise _unreadable(f"/proc/kcore ends at {address:#x}")
        raise _unreadable(f"/proc/kcore does not contain {address:#x}")

    async def idt_base(self) -> int:
        """Return the address of the interrupt descriptor table. Raises what ``read`` raises."""
        looking = run_in_time(self._guest, "grep ' idt_table$' /proc/kallsyms", timeout=KALLSYMS_LIMIT)
        told = (await looking).text.split()
        if not told or not int(told[0], 16):
            raise _unreadable("/proc/kallsyms does not have the address of idt_table")
        return int(told[0], 16)

    async def _pages(self, first: int, count: int) -> bytes:
        command = f"dd if=/proc/kcore bs={PAGE} skip={first} count={count}"
        try:
            done = await self._guest.run(command, timeout=LIMIT)
        except TimeoutError:
            raise GuestUnreachableError(f"the guest did not send its memory within {LIMIT:g} s") from None
        if not done.stdout:
            raise _unreadable(f"/proc/kcore: {done.complaint or 'it is empty'}")
        return done.stdout


def parse_segments(data: bytes) -> tuple[Segment, ...]:
    """Return the regions from the start of the file. Raises EnvironmentFault (HR5111) if it is malformed."""
    try:
        if data[:4] != b"\x7fELF":
            raise _unreadable("/proc/kcore is not an ELF file")
        return tuple(_segments(data))
    except struct.error as error:
        raise _unreadable(f"/proc/kcore is cut off: {error}") from error


def _segments(data: bytes) -> Iterable[Segment]:
    (place,), (size, count) = PLACE.unpack_from(data), COUNTS.unpack_from(data)
    for number in range(count):
        kind, _flags, offset, address, _physical, _in_file, length, _align = HEADER.unpack_from(
            data, place + number * size
        )
        if kind == PT_LOAD:
            yield Segment(address, length, offset)


def _unreadable(fact: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the guest's memory cannot be read: {fact}",
        code="HR5111",
        hint="its kernel needs CONFIG_PROC_KCORE and no lockdown; see hotreload why HR5111",
    )
