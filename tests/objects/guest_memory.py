# SPDX-License-Identifier: MIT
"""A linked image as the memory of a guest: what runs there, and what was changed in it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from hotreload.diff.guest_code import GuestUnit, Matched, Mismatch
from hotreload.elf.model import Symbol
from hotreload.elf.reader import read_object
from hotreload.errors import EnvironmentFault
from tests.objects.compiling import assembled, compiled, run

TEXT = 0xFFFF_FFFF_8100_0000

# What units of these tests call; each function is called for its name.
OTHERS = "\n".join(
    f".globl {name}\n.type {name}, @function\n.balign 16\n{name}: ret\n.size {name}, . - {name}"
    for name in (
        "__fentry__ __x86_return_thunk srso_return_thunk __x86_indirect_thunk_rax __x86_indirect_thunk_r11 "
        "__x86_indirect_its_thunk_r11 __SCT__hook printk helper another tracer BUG_func"
    ).split()
)
OTHERS += "\n.data\n.globl pv_ops\npv_ops: .zero 64\n.globl __SCK__hook\n__SCK__hook: .zero 16\n"


class GuestMemory:
    """``unit`` linked at TEXT with OTHERS. ``unknown``: symbols whose addresses nobody tells."""

    def __init__(self, folder: Path, unit: Path, unknown: frozenset[str] = frozenset()) -> None:
        others = assembled(OTHERS, folder, "others.s")
        run(["ld", "-static", f"-Ttext={TEXT:#x}", "-e0", "-o", "image", str(unit), str(others)], folder)
        self.unknown = unknown
        self.obj = read_object(unit)
        self.memory = bytearray(0x10000)
        for address, data in _segments((folder / "image").read_bytes()):
            self.memory[address - TEXT : address - TEXT + len(data)] = data
        listing = run(["nm", "image"], folder).splitlines()
        self.addresses = {name: int(value, 16) for value, _, name in map(str.split, listing)}
        self.unit = GuestUnit(self.obj, self.address_of, self.name_at)
        self.reads: list[tuple[int, int]] = []

    def address_of(self, symbol: Symbol) -> int | None:
        if symbol.anonymous or symbol.name in self.unknown:
            return None
        return self.addresses.get(symbol.name)

    def name_at(self, address: int) -> str | None:
        names = [name for name, place in self.addresses.items() if place == address]
        return names[0] if names else None

    def poke(self, name: str, offset: int, text: str) -> None:
        """Write bytes, in hexadecimal, into a function or variable."""
        at = self.addresses[name] - TEXT + offset
        data = bytes.fromhex(text)
        self.memory[at : at + len(data)] = data

    def branch(self, name: str, offset: int, opcode: str, target: str, inside: int = 0) -> None:
        """Write a branch with a four-byte operand to a symbol."""
        code = bytes.fromhex(opcode)
        end = self.addresses[name] + offset + len(code) + 4
        self.poke(name, offset, (code + struct.pack("<i", self.addresses[target] + inside - end)).hex())

    def function(self, name: str) -> Symbol:
        symbol = self.obj.symbol(name)
        assert symbol is not None
        assert symbol.is_function
        return symbol

    def check(self, name: str, shift: int = 0) -> Matched | Mismatch:
        """Check a function, ``shift`` bytes from where it is."""
        function = self.function(name)
        at = self.addresses[name] - TEXT + shift
        return self.unit.check(
            function, self.addresses[name] + shift, bytes(self.memory[at : at + function.size])
        )

    def why(self, name: str) -> str:
        """The mismatch as it is told; empty for a match."""
        result = self.check(name)
        return str(result) if isinstance(result, Mismatch) else ""

    async def read(self, address: int, size: int) -> bytes:
        self.reads.append((address, size))
        if not TEXT <= address < TEXT + len(self.memory):
            raise EnvironmentFault("nothing is mapped there", code="HR5111")
        return bytes(self.memory[address - TEXT : address - TEXT + size])


def of_c(folder: Path, source: str, *flags: str, unknown: frozenset[str] = frozenset()) -> GuestMemory:
    """A unit of C, compiled as kbuild compiles one of vmlinux."""
    plain = ("-fno-function-sections", "-fno-data-sections")
    return GuestMemory(folder, compiled(source, folder, *plain, *flags), unknown)


def of_assembly(folder: Path, body: str, tables: str = "") -> GuestMemory:
    """A unit with one function ``f`` of this body; ``tables``: further sections."""
    source = f".text\n.globl f\n.type f, @function\nf:\n{body}\n.size f, . - f\n{tables}\n"
    return GuestMemory(folder, assembled(source, folder))


def _segments(image: bytes) -> Iterator[tuple[int, bytes]]:
    (table,) = struct.unpack_from("<Q", image, 32)
    (count,) = struct.unpack_from("<H", image, 56)
    for number in range(count):
        kind, _, offset, address, _, size, _, _ = struct.unpack_from("<IIQQQQQQ", image, table + 56 * number)
        if kind == 1 and address >= TEXT:
            yield address, image[offset : offset + size]
