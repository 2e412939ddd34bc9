# SPDX-License-Identifier: MIT
"""Find how code uses the target of a relocation: it calls it, accesses it, or makes an address of it."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterator

from hotreload.elf.constants import PC_RELATIVE, R_X86_64_64
from hotreload.elf.instructions import Instruction, UndecodableError, instructions
from hotreload.elf.model import Relocation, Symbol, SymbolRef

_LEA = 0x8D


def names_elsewhere(holder: Symbol) -> Iterator[str]:
    """Yield the names of other objects' symbols that a symbol refers to."""
    for relocation in holder.relocations:
        if isinstance(relocation.target, SymbolRef) and not relocation.target.symbol.is_defined:
            yield relocation.target.symbol.name


def is_direct_branch(code: bytes, offset: int) -> bool:
    """Return whether the 4-byte field at ``offset`` is the operand of CALL, JMP or Jcc."""
    return offset > 0 and (
        code[offset - 1] in (0xE8, 0xE9)
        or (offset > 1 and code[offset - 2] == 0x0F and code[offset - 1] & 0xF0 == 0x80)
    )


def takes_address(holder: Symbol, relocation: Relocation) -> bool:
    """Return whether a relocation makes an address that may be stored, rather than one to call or access.

    True for code that cannot be decoded.
    """
    section = holder.section
    if section is None or not section.is_code or relocation.type == R_X86_64_64:
        return True
    code = holder.content
    if relocation.type in PC_RELATIVE and is_direct_branch(code, relocation.offset):
        return False
    instruction = _instruction_at(code, relocation.offset)
    if instruction is None:
        return True
    is_immediate = relocation.offset >= instruction.end - instruction.immediate
    return is_immediate or instruction.opcode == _LEA


def points_at_start(holder: Symbol, relocation: Relocation) -> bool:
    """Return whether a relocation means the first byte of its target: a function's address, not a label."""
    section = holder.section
    if section is None or not section.is_code or relocation.type not in PC_RELATIVE:
        return relocation.addend == 0
    # The CPU counts from the end of the instruction.
    instruction = _instruction_at(holder.content, relocation.offset)
    to_end = instruction.end - relocation.offset if instruction else 4
    return relocation.addend + to_end == 0


def start_of_instruction(code: bytes, offset: int) -> int:
    """Return where the instruction that holds a byte begins, or ``offset`` if the code cannot be decoded."""
    instruction = _instruction_at(code, offset)
    return instruction.start if instruction is not None else offset


def start_of(holder: Symbol, relocation: Relocation) -> int | None:
    """Return where the instruction with a relocation begins; None if the code cannot be decoded."""
    instruction = _instruction_at(holder.content, relocation.offset)
    return instruction.start if instruction is not None else None


def _instruction_at(code: bytes, offset: int) -> Instruction | None:
    """Return the instruction that holds a byte; None if the code cannot be decoded."""
    stream = _decoded(code)
    if stream is None:
        return None
    return stream[bisect_right(stream, offset, key=lambda instruction: instruction.start) - 1]


@functools.lru_cache(maxsize=64)
def _decoded(code: bytes) -> list[Instruction] | None:
    try:
        return list(instructions(code))
    except UndecodableError:
        return None
