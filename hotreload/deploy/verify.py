# SPDX-License-Identifier: MIT
"""Before a function is replaced, check whether the guest runs the code that the patch was made for.

The memory is read here, and compared in diff/guest_code.py. It takes a few milliseconds per patch.
"""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hotreload.diff.guest_addresses import AddressOf
from hotreload.diff.guest_code import GuestUnit, Matched, Mismatch
from hotreload.elf.constants import STB_WEAK
from hotreload.elf.model import Symbol
from hotreload.errors import EnvironmentFault
from hotreload.patch.vmlinux_symbols import VmlinuxSymbols

# (virtual address, size) -> bytes; vm.machine.Machine.read_memory is one.
ReadMemory = Callable[[int, int], Awaitable[bytes]]

# Module -> name -> addresses.
ModuleTables = dict[str, dict[str, list[int]]]

PAGE: Final = 0x1000
# __START_KERNEL_map. Lower values, such as offsets of per-CPU variables, do not move with the kernel.
KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
# The kernel rewrites an instruction in three steps, with an INT3 in its place meanwhile (text_poke_bp()).
# Therefore code that differs is read this many times, at this interval in seconds, before it counts.
READS: Final = 3
PAUSE: Final = 0.02


def functions_of(listing: str) -> dict[int, str]:
    """Return the start addresses of functions, from a System.map or /proc/kallsyms."""
    rows = (line.split(maxsplit=3) for line in listing.splitlines())
    functions: dict[int, str] = {}
    for row in rows:
        if row[1] in "tTwW":
            functions.setdefault(int(row[0], 16), row[2])
    return functions


def addresses_in_vmlinux(symbols: VmlinuxSymbols, block: int | None, offset: int = 0) -> AddressOf:
    """Return a function that finds the addresses of a vmlinux unit's symbols.

    ``block``: the unit's block (VmlinuxSymbols.block_of). ``offset``: how far the kernel was moved
    (offset_of_kernel).
    """

    def find(name: str, block: int | None) -> int | None:
        found = symbols.find(name, block)
        return None if found is None else moved(found.address)

    def moved(address: int) -> int:
        return address + offset if address >= KERNEL_MAP else address

    def address_of(symbol: Symbol) -> int | None:
        if symbol.is_local:
            return None if block is None else find(symbol.name, block)
        for name in (symbol.name, *symbol.aliases):
            if (address := find(name, None)) is not None:
                return address
        if symbol.section is not None or symbol.binding != STB_WEAK:
            return None
        # An undefined weak symbol has the address 0, unless kallsyms only hides it.
        hidden = symbols.hidden(symbol.name)
        return 0 if hidden is None else moved(hidden)

    return address_of


def module_tables(listing: str) -> ModuleTables:
    """Return the symbols of each module in /proc/kallsyms: addresses by name, in its order."""
    tables: ModuleTables = defaultdict(lambda: defaultdict(list))
    for line in listing.splitlines():
        if line.endswith("]"):
            address, _, name, module = line.split()
            tables[module.strip("[]")][name].append(int(address, 16))
    return tables


def addresses_in_module(tables: ModuleTables, module: str, in_vmlinux: AddressOf) -> AddressOf:
    """Return a function that finds the addresses of a module unit's symbols.

    These are its own, vmlinux's and other modules'. If several symbols have the same name, the address is
    unknown, and is derived from the code that refers to it.
    """

    def address_of(symbol: Symbol) -> int | None:
        if symbol.section is None and (found := in_vmlinux(symbol)):
            return found
        own = tables[module].get(symbol.name, [])
        others = [table[symbol.name] for table in tables.values() if symbol.name in table]
        places = own if own or symbol.section is not None else [each for other in others for each in other]
        return places[0] if len(places) == 1 else None

    return address_of


def offset_of_kernel(descriptor: bytes, linked: int) -> int:
    """Return how far the running kernel is from its link address: 0 without KASLR.

    ``descriptor``: the first 16 bytes of the interrupt descriptor table, whose first gate leads to
    asm_exc_divide_error; ``linked``: the address of that symbol in vmlinux (Intel SDM volume 3, figure 6-8).
    """
    low, _selector, _kind, middle, high = struct.unpack_from("<HHHHI", descriptor)
    return int(low | middle << 16 | high << 32) - linked


@dataclass(frozen=True, slots=True)
class Checked:
    """A function of the object that kbuild made, and its expected address in the guest."""

    unit: GuestUnit
    function: Symbol
    address: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check.

    ``traced``: functions that already have an ftrace hook, for example by a live patch of ours.
    """

    mismatches: tuple[Mismatch, ...]
    traced: tuple[str, ...]


async def check_functions(read_memory: ReadMemory, wanted: Sequence[Checked]) -> Verdict:
    """Compare functions with what the guest runs, using the known addresses of each unit.

    Raises GuestUnreachableError when the guest is gone.
    """
    matched: list[Matched] = []
    for attempt in range(READS):
        if attempt:
            await asyncio.sleep(PAUSE)
        results = await _check(read_memory, wanted)
        matched += [result for _, result in results if isinstance(result, Matched)]
        wrong = [(checked, result) for checked, result in results if isinstance(result, Mismatch)]
        if not wrong:
            break
        wanted = [checked for checked, _ in wrong]
    return Verdict(
        tuple(mismatch for _, mismatch in wrong),
        tuple(result.function for result in matched if result.traced),
    )


async def _check(
    read_memory: ReadMemory, wanted: Sequence[Checked]
) -> list[tuple[Checked, Matched | Mismatch]]:
    code = await _read(read_memory, ((checked.address, checked.function.size) for checked in wanted))
    results: list[tuple[Checked, Matched | Mismatch]] = []
    for checked in wanted:
        found = code[checked.address, checked.function.size]
        if isinstance(found, EnvironmentFault):
            results.append((checked, Mismatch(checked.function.name, 0, found.message)))
        else:
            results.append((checked, checked.unit.check(checked.function, checked.address, found)))
    constants = await _read(
        read_memory,
        (
            (pointed.address, len(pointed.content))
            for _, result in results
            if isinstance(result, Matched)
            for pointed in result.pointed
        ),
    )
    return [(checked, _with_constants(result, constants)) for checked, result in results]


_Stretch = tuple[int, int]  # address, size
_Read = dict[_Stretch, bytes | EnvironmentFault]


def _with_constants(result: Matched | Mismatch, constants: _Read) -> Matched | Mismatch:
    """Return a mismatch instead of a match if its strings and constants differ from the object's."""
    if isinstance(result, Matched):
        for pointed in result.pointed:
            found = constants[pointed.address, len(pointed.content)]
            if found != pointed.content:
                return pointed.mismatch(result.function, found if isinstance(found, bytes) else b"")
    return result


async def _read(read_memory: ReadMemory, stretches: Iterable[_Stretch]) -> _Read:
    """Read stretches of memory, neighbouring pages at once.

    The result is the error where nothing is mapped.
    """
    found: _Read = {}
    for group in _neighbours(sorted({stretch for stretch in stretches if stretch[1]})):
        start = group[0][0]
        end = max(address + size for address, size in group)
        try:
            data = await read_memory(start, end - start)
        except EnvironmentFault as fault:
            found |= dict.fromkeys(group, fault)
        else:
            found |= {(at, size): data[at - start : at - start + size] for at, size in group}
    return found


def _neighbours(stretches: Sequence[_Stretch]) -> list[list[_Stretch]]:
    """Group sorted stretches so that no group spans an untouched page, which may not be mapped."""
    groups: list[list[_Stretch]] = []
    last = -2
    for address, size in stretches:
        if address // PAGE > last + 1:
            groups.append([])
        groups[-1].append((address, size))
        last = max(last, (address + size - 1) // PAGE)
    return groups
