# SPDX-License-Identifier: MIT
"""How code uses what a relocation points at: it calls it, accesses it, or makes an address of it."""

from __future__ import annotations

import functools
from bisect import bisect_right

from hotreload.elf.constants import PC_RELATIVE, R_X86_64_64
from hotreload.elf.instructions import Instruction, UndecodableError, instructions
from hotreload.elf.model import Relocation, Symbol, SymbolRef

_LEA, _CALL, _JMP = 0x8D, 0xE8, 0xE9
# RET, and what branches to where a register or memory says (group 5 has INC and DEC, too).
_LEAVES = frozenset((0xC2, 0xC3, 0xFF))


def is_direct_branch(code: bytes, offset: int) -> bool:
    """Whether the 4-byte field at ``offset`` is the operand of CALL, JMP or Jcc."""
    return offset > 0 and (
        code[offset - 1] in (0xE8, 0xE9)
        or (offset > 1 and code[offset - 2] == 0x0F and code[offset - 1] & 0xF0 == 0x80)
    )


def takes_address(holder: Symbol, relocation: Relocation) -> bool:
    """Whether a relocation makes an address that may be stored, rather than one that is called or accessed.

    Code that cannot be decoded is taken to do so.
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
    """Whether a relocation means its target's first byte: a function's address, not a label in it."""
    section = holder.section
    if section is None or not section.is_code or relocation.type not in PC_RELATIVE:
        return relocation.addend == 0
    # The CPU counts from the end of the instruction.
    instruction = _instruction_at(holder.content, relocation.offset)
    to_end = instruction.end - relocation.offset if instruction else 4
    return relocation.addend + to_end == 0


def handed_to(holder: Symbol, relocation: Relocation) -> str | None:
    """The function that an address is handed to: it is put into a register, and the next branch is that call.

    None when it is stored, returned, or goes any other way.
    """
    stream = _decoded(holder.content)
    if stream is None:
        return None
    at = bisect_right(stream, relocation.offset, key=lambda instruction: instruction.start) - 1
    register = _loaded_register(holder.content, stream[at])
    calls = {
        other.offset: other.target.symbol.name
        for other in holder.relocations
        if isinstance(other.target, SymbolRef)
    }
    for instruction in stream[at + 1 :] if register is not None else ():
        if instruction.is_relative_branch:
            is_call = instruction.opcode in (_CALL, _JMP)
            return calls.get(instruction.end - instruction.immediate) if is_call else None
        if instruction.opcode in _LEAVES or _stored_register(holder.content, instruction) == register:
            return None
    return None


def _loaded_register(code: bytes, instruction: Instruction) -> int | None:
    """The number of the register that ``mov $imm32, %reg`` loads; None for any other instruction."""
    at = instruction.end - instruction.immediate - 1
    if instruction.opcode == 0xC7 and code[at] >> 6 == 3:
        rex = code[at - 2]
        return code[at] & 7 | (8 if rex & 0xF1 == 0x41 else 0)
    if 0xB8 <= instruction.opcode <= 0xBF:
        rex = code[at - 1] if at > instruction.start else 0
        return code[at] & 7 | (8 if rex & 0xF1 == 0x41 else 0)
    return None


def _stored_register(code: bytes, instruction: Instruction) -> int | None:
    """The number of the register that a MOV copies, to memory or to another register; or a PUSH."""
    if 0x50 <= instruction.opcode <= 0x57:
        return instruction.opcode & 7 | (8 if code[instruction.end - 2] == 0x41 else 0)
    if instruction.opcode != 0x89:
        return None
    opcode_at = next(at for at in range(instruction.start, instruction.end) if code[at] == 0x89)
    rex = code[opcode_at - 1] if opcode_at > instruction.start else 0
    return code[opcode_at + 1] >> 3 & 7 | (8 if rex & 0xF4 == 0x44 else 0)


def _instruction_at(code: bytes, offset: int) -> Instruction | None:
    """The instruction that holds a byte; None when the code cannot be decoded."""
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
