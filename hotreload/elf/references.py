# SPDX-License-Identifier: MIT
"""How code uses what a relocation points at: it calls it, accesses it, or makes an address of it."""

from __future__ import annotations

import functools
from bisect import bisect_right

from hotreload.elf.constants import PC_RELATIVE, R_X86_64_64
from hotreload.elf.instructions import Instruction, UndecodableError, instructions
from hotreload.elf.model import Relocation, Symbol, SymbolRef

_LEA, _CALL, _JMP = 0x8D, 0xE8, 0xE9
# rdi rsi rdx rcx r8 r9: what is in one of these is gone after the call; rbx, say, would survive it.
_ARGUMENTS = frozenset((7, 6, 2, 1, 8, 9))
# Instructions that copy no register: MOV of an immediate, XOR, TEST, CMP, ADD and SUB of an immediate, CDQE,
# CDQ.
_HARMLESS = frozenset(
    (
        0xC6,
        0xC7,
        *range(0xB8, 0xC0),
        0x31,
        0x33,
        0x85,
        0x38,
        0x39,
        0x3A,
        0x3B,
        0x3C,
        0x3D,
        0x81,
        0x83,
        0x98,
        0x99,
    )
)
# MOV, MOVZX, MOVSX and MOVSXD: harmless when they load from memory.
_LOADS = frozenset((0x8A, 0x8B, 0x63, 0x0FB6, 0x0FB7, 0x0FBE, 0x0FBF))


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
    """The function that an address is handed to, as an argument in a register that the call uses up.

    None when it is stored, returned, copied, or goes any other way that is not known to be harmless.
    """
    stream = _decoded(holder.content)
    if stream is None:
        return None
    at = bisect_right(stream, relocation.offset, key=lambda instruction: instruction.start) - 1
    register = _loaded_register(holder.content, stream[at])
    if register not in _ARGUMENTS:
        return None
    for instruction in stream[at + 1 :]:
        if instruction.opcode in (_CALL, _JMP):
            return _destination(holder, instruction)
        if not _leaves_alone(holder.content, instruction, register):
            return None
    return None


def is_put_away(holder: Symbol, relocation: Relocation) -> bool:
    """Whether an instruction stores an address in memory or compares something with it: somebody has it.

    Where it goes through a register, this does not say.
    """
    instruction = _instruction_at(holder.content, relocation.offset)
    if instruction is None or relocation.offset < instruction.end - instruction.immediate:
        return False
    if instruction.opcode == 0xC7:
        return _loaded_register(holder.content, instruction) is None
    operand = holder.content[_opcode_at(holder.content, instruction) + 1]
    return instruction.opcode == 0x3D or (instruction.opcode == 0x81 and operand >> 3 & 7 == 7)


def _destination(holder: Symbol, branch: Instruction) -> str | None:
    """The name of what a CALL or JMP with a relocation goes to."""
    for relocation in holder.relocations:
        if relocation.offset == branch.end - branch.immediate and isinstance(relocation.target, SymbolRef):
            return relocation.target.symbol.name
    return None


def _loaded_register(code: bytes, instruction: Instruction) -> int | None:
    """The number of the register that an address comes into; None for any other instruction.

    By ``mov $imm32, %reg``, or with an index by ``lea disp32(..), %reg`` and ``add $imm32, %reg``.
    """
    opcode = instruction.opcode
    at = _opcode_at(code, instruction)
    rex = _rex(code, instruction, at)
    if 0xB8 <= opcode <= 0xBF:
        return code[at] & 7 | rex << 3 & 8
    operand = code[at + 1] if at + 1 < instruction.end else 0
    if (opcode == 0xC7 and operand >> 6 == 3) or (opcode == 0x81 and operand >> 3 == 0b11000):
        return operand & 7 | rex << 3 & 8
    return operand >> 3 & 7 | rex << 1 & 8 if opcode == _LEA else None


def _opcode_at(code: bytes, instruction: Instruction) -> int:
    """Where an instruction's opcode is; no prefix has the value of one that is asked for here."""
    return code.index(instruction.opcode & 0xFF, instruction.start)


def _leaves_alone(code: bytes, instruction: Instruction, register: int) -> bool:
    """Whether an instruction surely copies nothing out of a register."""
    opcode = instruction.opcode
    if opcode in _HARMLESS:
        return True
    if opcode in _LOADS:
        at = code.index(opcode & 0xFF, instruction.start) + 1
        return code[at] >> 6 != 3
    if opcode in (0x88, 0x89):
        at = code.index(opcode, instruction.start)
        return (code[at + 1] >> 3 & 7 | _rex(code, instruction, at) << 1 & 8) != register
    if opcode == _LEA:
        return register not in _address_registers(code, instruction)
    return False


def _address_registers(code: bytes, instruction: Instruction) -> set[int]:
    """The base and index of a memory operand (Intel SDM volume 2, 2.1.5)."""
    opcode_at = _opcode_at(code, instruction)
    mod, rm = code[opcode_at + 1] >> 6, code[opcode_at + 1] & 7
    rex = _rex(code, instruction, opcode_at)
    if rm != 4:
        return set() if mod == 0 and rm == 5 else {rm | rex << 3 & 8}
    sib = code[opcode_at + 2]
    base, index = sib & 7 | rex << 3 & 8, sib >> 3 & 7 | rex << 2 & 8
    found = set() if mod == 0 and sib & 7 == 5 else {base}
    return found if index == 4 else found | {index}


def _rex(code: bytes, instruction: Instruction, opcode_at: int) -> int:
    """The REX prefix before an opcode: W 8, R 4, X 2, B 1; 0 when there is none."""
    before = code[opcode_at - 1] if opcode_at > instruction.start else 0
    return before & 0xF if before & 0xF0 == 0x40 else 0


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
