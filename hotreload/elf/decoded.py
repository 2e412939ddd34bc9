# SPDX-License-Identifier: MIT
"""Functions as instructions with operands, for code that follows values through them.

instructions.py finds only the lengths of instructions. That is all that most of the differ needs, at a
twentieth of the cost. This module decodes with capstone, which is imported when the first function is asked
for.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

from hotreload.elf.model import Relocation, Symbol, SymbolRef

# The 16 registers by their numbers in the instruction set, whichever part of one an operand names.
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 = range(9)
_FAMILIES: Final = (
    "rax eax ax al ah", "rcx ecx cx cl ch", "rdx edx dx dl dh", "rbx ebx bx bl bh",
    "rsp esp sp spl", "rbp ebp bp bpl", "rsi esi si sil", "rdi edi di dil",
    *(f"r{n} r{n}d r{n}w r{n}b" for n in range(8, 16)),
)  # fmt: skip

REGISTER_NAMES: Final = tuple(names.split()[0] for names in _FAMILIES)
# With retpolines, a call through a register goes to one of these, followed by the name of the register.
_THUNKS: Final = ("__x86_indirect_thunk_", "__x86_indirect_call_thunk_", "__x86_indirect_jump_thunk_")

# The greatest length of an instruction, in bytes.
_LONGEST: Final = 15


@dataclass(frozen=True, slots=True)
class Register:
    """A register operand of ``size`` bytes.

    Writing less than four bytes leaves the rest of the register unchanged.
    """

    number: int
    size: int


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory operand.

    ``base`` and ``index`` are register numbers or None. ``plain``: no segment base is added (``%gs:``).
    """

    base: int | None
    index: int | None
    displacement: int
    size: int
    plain: bool


@dataclass(frozen=True, slots=True)
class Number:
    value: int


Operand = Register | Memory | Number


@dataclass(frozen=True, slots=True)
class Decoded:
    """One instruction. ``reads`` and ``writes`` are all registers that it uses, explicitly or implicitly.

    ``displacement`` and ``immediate``: the relocation in that field.
    """

    start: int
    end: int
    mnemonic: str
    operands: tuple[Operand, ...]
    reads: frozenset[int]
    writes: frozenset[int]
    displacement: Relocation | None
    immediate: Relocation | None

    @property
    def destination(self) -> Symbol | None:
        """The symbol that the immediate refers to; for a direct call or jump, its destination."""
        target = self.immediate.target if self.immediate is not None else None
        return target.symbol if isinstance(target, SymbolRef) else None


@dataclass(frozen=True, eq=False)
class Body:
    """The instructions of a function, each decoded on demand."""

    symbol: Symbol
    known: dict[int, Decoded | None] = field(default_factory=dict)

    def at(self, place: int) -> Decoded | None:
        """Return the instruction that begins at ``place``; None if no instruction can be decoded there."""
        if place not in self.known:
            self.known[place] = self._decode(place) if 0 <= place < self.symbol.size else None
        return self.known[place]

    def _decode(self, place: int) -> Decoded | None:
        decoder, names = _decoder()
        found = next(decoder.disasm(self.symbol.content[place : place + _LONGEST], place, 1), None)
        if found is None:
            return None
        relocations = self.symbol.relocations
        at = bisect_left(relocations, place, key=lambda relocation: relocation.offset)
        fields: dict[int, Relocation] = {}
        while at < len(relocations) and relocations[at].offset < place + found.size:
            fields[relocations[at].offset - place] = relocations[at]
            at += 1
        return _decoded(found, fields, names)

    @functools.cached_property
    def instructions(self) -> dict[int, Decoded]:
        """All instructions by their place, up to the first that cannot be decoded."""
        found: dict[int, Decoded] = {}
        place = 0
        while (at := self.at(place)) is not None:
            found[place] = at
            place = at.end
        return found

    @property
    def is_whole(self) -> bool:
        """Whether the whole function could be decoded."""
        return sum(at.end - at.start for at in self.instructions.values()) == self.symbol.size

    @functools.cached_property
    def exposes_stack(self) -> bool:
        """Whether the function makes an address of its own stack, which others may look through."""
        if not self.is_whole:
            return True  # code that cannot be decoded may do anything
        return any(_makes_address(at, self.frame) for at in self.instructions.values())

    @functools.cached_property
    def frame(self) -> frozenset[int]:
        """The registers that point into the stack frame: RSP, and RBP if the function has a frame pointer."""
        has_pointer = any(at.mnemonic == "mov" and at.operands == _FRAME for at in self.instructions.values())
        return frozenset((RSP, RBP)) if has_pointer else frozenset((RSP,))


_FRAME: Final = (Register(RBP, 8), Register(RSP, 8))


def _makes_address(at: Decoded, pointers: Collection[int]) -> bool:
    """Return whether an instruction copies a pointer into the stack.

    Setting up or leaving a frame does not count.
    """
    if at.mnemonic not in ("lea", "mov") or at.operands == _FRAME or at.operands[0] == _FRAME[1]:
        return False
    source = at.operands[1]
    if at.mnemonic == "mov":
        return source == _FRAME[1]
    return isinstance(source, Memory) and source.base in pointers


def register_of_thunk(name: str | None) -> int | None:
    """Return the register that holds the address to which a retpoline jumps; None for another function."""
    if name is None or not name.startswith(_THUNKS):
        return None
    register = name.rpartition("_")[2]
    return REGISTER_NAMES.index(register) if register in REGISTER_NAMES else None


@functools.lru_cache(maxsize=64)
def body_of(symbol: Symbol) -> Body:
    """Return the instructions of a defined function."""
    return Body(symbol)


def _decoded(found: Any, fields: dict[int, Relocation], names: dict[int, int]) -> Decoded:
    reads, writes = found.regs_access()
    displacement = fields.get(found.disp_offset) if found.disp_offset else None
    immediate = fields.get(found.imm_offset) if found.imm_offset else None
    if immediate is None and displacement is None and fields:
        immediate = next(iter(fields.values()))  # for example that of a branch
    return Decoded(
        found.address,
        found.address + found.size,
        found.mnemonic.removeprefix("notrack ").removeprefix("bnd "),
        tuple(_operand(each, names) for each in found.operands),
        frozenset(names[r] for r in reads if r in names),
        frozenset(names[r] for r in writes if r in names),
        displacement,
        immediate,
    )


def _operand(operand: Any, names: dict[int, int]) -> Operand:
    from capstone.x86 import X86_OP_MEM, X86_OP_REG, X86_REG_FS, X86_REG_GS

    if operand.type == X86_OP_REG:
        return Register(names.get(operand.reg, -1), operand.size)
    if operand.type == X86_OP_MEM:
        memory = operand.mem
        return Memory(
            names.get(memory.base),
            names.get(memory.index),
            memory.disp,
            operand.size,
            memory.segment not in (X86_REG_FS, X86_REG_GS),
        )
    return Number(operand.imm)


@functools.cache
def _decoder() -> tuple[Any, dict[int, int]]:
    """Return the decoder, and a map from capstone's register numbers to ours."""
    import capstone

    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    numbers = {name: number for number, names in enumerate(_FAMILIES) for name in names.split()}
    known = {i: numbers[name] for i in range(1, 300) if (name := decoder.reg_name(i)) in numbers}
    return decoder, known
