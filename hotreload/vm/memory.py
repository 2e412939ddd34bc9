# SPDX-License-Identifier: MIT
"""Read the memory of a running guest through QEMU's monitor, without the guest's help.

memsave sees what the processor sees at that moment. While a process runs under page-table isolation, that is
a page table without the kernel's code. The kernel's own table is next to it (the two are the halves of an 8
KiB block, arch/x86/entry/calling.h), and is walked here (Intel SDM volume 3, 4.5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

from hotreload.errors import EnvironmentFault, InputError
from hotreload.paths import writing_to
from hotreload.vm.monitor import Monitor, QmpError

PAGE: Final = 0x1000
# The bit of CR3 that selects one of the two tables under page-table isolation: PTI_USER_PGTABLE_BIT.
USER_TABLE: Final = 0x1000
PRESENT, LARGE, FIVE_LEVELS = 1 << 0, 1 << 7, 1 << 12
FRAME: Final = 0x000F_FFFF_FFFF_F000

# (physical address, size) -> bytes
ReadPhysical = Callable[[int, int], Coroutine[Any, Any, bytes]]


async def read_memory(monitor: Monitor, file: Path, address: int, size: int) -> bytes:
    """Return ``size`` bytes at a virtual address. They pass through ``file``, which is deleted afterwards.

    Raises EnvironmentFault (HR5111) if nothing is mapped there, GuestUnreachableError if QEMU is gone.
    """
    try:
        # QEMU takes the address as a signed number.
        return await _save(monitor, "memsave", file, (address + 2**63) % 2**64 - 2**63, size)
    except QmpError as error:
        fault = EnvironmentFault(
            f"the guest's memory at {address:#x} cannot be read: {error}",
            code="HR5111",
            hint="the guest may run a different kernel: boot it again with hotreload guest restart",
        )
        data = await _read_behind_isolation(monitor, file, address, size)
        if data is None:
            raise fault from error
        return data


async def idt_base(monitor: Monitor) -> int:
    """Return the address of the first processor's interrupt descriptor table.

    Every page table of Linux maps it.
    """
    return (await _registers(monitor))["IDT"]


async def _save(monitor: Monitor, command: str, file: Path, address: int, size: int) -> bytes:
    try:
        await monitor.execute(command, {"val": address, "size": size, "filename": str(file)})
        with writing_to(file.parent):
            return file.read_bytes()
    finally:
        file.unlink(missing_ok=True)


async def _registers(monitor: Monitor) -> dict[str, int]:
    text = str(await monitor.execute("human-monitor-command", {"command-line": "info registers"}))
    found = {name: int(value, 16) for name, value in re.findall(r"\b(CR[34])=\s*([0-9a-f]+)", text)}
    table = re.search(r"\bIDT=\s*([0-9a-f]+)", text)
    found["IDT"] = int(table[1], 16) if table else 0
    return found


async def _read_behind_isolation(monitor: Monitor, file: Path, address: int, size: int) -> bytes | None:
    """Read with the kernel's page table, which is next to the process's, or in use by now.

    Return None if the address is not mapped there.
    """

    async def physical(place: int, count: int) -> bytes:
        return await _save(monitor, "pmemsave", file, place, count)

    registers = await _registers(monitor)
    levels = 5 if registers.get("CR4", 0) & FIVE_LEVELS else 4
    used = _Tables(physical, registers.get("CR3", 0) & FRAME, levels)
    tables = used
    if used.root & USER_TABLE and await used.translate(address) is None:
        tables = _Tables(physical, used.root & ~USER_TABLE, levels)
        # Without isolation that could be any page. Two tables of one process both map the IDT to the same
        # page.
        shared = await used.translate(registers["IDT"])
        if shared is None or await tables.translate(registers["IDT"]) != shared:
            return None
    parts: list[tuple[int, int]] = []
    for start, count in _pieces(address, size):
        place = await tables.translate(start)
        if place is None:
            return None
        if parts and sum(parts[-1]) == place:
            parts[-1] = (parts[-1][0], parts[-1][1] + count)
        else:
            parts.append((place, count))
    return b"".join([await physical(place, count) for place, count in parts])


def _pieces(address: int, size: int) -> Iterator[tuple[int, int]]:
    """Split a stretch of memory at page boundaries."""
    end = address + size
    while address < end:
        stop = min(end, (address | (PAGE - 1)) + 1)
        yield address, stop - address
        address = stop


class _Tables:
    """One set of page tables; each table is read once."""

    def __init__(self, physical: ReadPhysical, root: int, levels: int) -> None:
        self._physical = physical
        self.root = root
        self._levels = levels
        self._read: dict[int, bytes] = {}

    async def translate(self, address: int) -> int | None:
        """Return the physical address, or None if the page is not present."""
        table = self.root
        for level in range(self._levels, 0, -1):
            shift = 12 + 9 * (level - 1)
            if table not in self._read:
                self._read[table] = await self._physical(table, PAGE)
            at = (address >> shift & 0x1FF) * 8
            entry = int.from_bytes(self._read[table][at : at + 8], "little")
            if not entry & PRESENT:
                return None
            table = entry & FRAME
            if level == 1 or (level in (2, 3) and entry & LARGE):
                mask = (1 << shift) - 1
                return table & ~mask | address & mask
        return None


async def dump_memory(monitor: Monitor, file: Path) -> None:
    """Write the guest's memory to a new file for drgn and crash. The guest is stopped meanwhile.

    ``file`` is absolute. Raises InputError if it exists already, EnvironmentFault if it cannot be written,
    GuestUnreachableError.
    """
    try:
        # Create it for its owner only, because it contains all of the guest's data.
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError as error:
        raise InputError(f"{file} already exists", hint="name another file") from error
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}", hint="name another file") from error
    try:
        arguments = {"paging": False, "protocol": f"file:{file}", "format": "kdump-zlib"}
        await monitor.execute("dump-guest-memory", arguments)
    except QmpError as error:
        file.unlink(missing_ok=True)
        raise EnvironmentFault(
            f"QEMU cannot write the guest's memory: {error}",
            code="HR5107",
            hint="check that there is enough space",
        ) from error
