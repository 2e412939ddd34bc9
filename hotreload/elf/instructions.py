# SPDX-License-Identifier: MIT
"""Find where x86-64 instructions begin and end, and how long their immediates are.

The problem: a relocation against ``section + addend`` names a symbol only once the end of the instruction is
known, because a PC-relative addend counts from there (``movb $1, x(%rip)`` has -5, not -4). And a branch
between two functions of one section has no relocation at all. Both need lengths, not meanings, so this is a
length decoder: prefixes, opcode maps, ModRM, SIB, immediates (Intel SDM volume 2, chapter 2 and the opcode
maps of appendix A). A disassembler library was rejected, because it costs at least ten times as much per
instruction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple


class UndecodableError(ValueError):
    """The bytes are not an instruction of 64-bit mode, or end in the middle of one."""


class Instruction(NamedTuple):
    """One instruction: ``code[start:end]``; ``immediate``: the number of bytes after the displacement.

    ``opcode`` is the last opcode byte, with 0x0F00, 0x0F3800 or 0x0F3A00 added for the longer maps.
    """

    start: int
    end: int
    opcode: int
    immediate: int

    @property
    def is_relative_branch(self) -> bool:
        """Whether this is a jump or call relative to ``end``; its operand is then the immediate."""
        op = self.opcode
        return op in (0xE8, 0xE9, 0xEB) or 0x70 <= op <= 0x7F or 0xE0 <= op <= 0xE3 or 0x0F80 <= op <= 0x0F8F


# What follows an opcode, one character each:
#   . nothing          m ModRM              x not in 64-bit mode
#   b imm8             z imm16/imm32        v imm16/32/64 (B8+r)      w imm16     e imm16 + imm8
#   B ModRM + imm8     Z ModRM + imm16/32   f ModRM + imm8 if /0 /1   F the same with imm16/32
#   o moffs (address)  j rel32
_ONE_BYTE: Final = (
    "mmmmbzxxmmmmbzxx"  # 00; 0F is the escape, handled before
    "mmmmbzxxmmmmbzxx"
    "mmmmbzxxmmmmbzxx"
    "mmmmbzxxmmmmbzxx"
    "xxxxxxxxxxxxxxxx"  # 40: REX, handled as prefixes
    "................"
    "xxxmxxxxzZbB...."  # 60
    "bbbbbbbbbbbbbbbb"
    "BZxBmmmmmmmmmmmm"  # 80
    "..........x....."
    "oooo....bz......"  # A0
    "bbbbbbbbvvvvvvvv"
    "BBw.xxBZe.w..bx."  # C0
    "mmmmxxx.mmmmmmmm"
    "bbbbbbbbjjxb...."  # E0
    "x.xx..fF......mm"
)
_TWO_BYTE: Final = (
    "mmmmx.....x.xm.B"  # 0F 00
    "mmmmmmmmmmmmmmmm"
    "mmmmxxxxmmmmmmmm"
    "......x.xxxxxxxx"  # 0F 38 and 0F 3A are escapes
    "mmmmmmmmmmmmmmmm"
    "mmmmmmmmmmmmmmmm"
    "mmmmmmmmmmmmmmmm"
    "BBBBmmm.mmmmmmmm"  # 0F 70
    "jjjjjjjjjjjjjjjj"
    "mmmmmmmmmmmmmmmm"
    "...mBmxx...mBmmm"  # 0F A0
    "mmmmmmmmmmBmmmmm"
    "mmBmBBBm........"  # 0F C0
    "mmmmmmmmmmmmmmmm"
    "mmmmmmmmmmmmmmmm"
    "mmmmmmmmmmmmmmmm"
)
_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_MAPS: Final = {1: 0x0F00, 2: 0x0F3800, 3: 0x0F3A00}


def instructions(code: bytes, start: int = 0, end: int | None = None) -> Iterator[Instruction]:
    """Yield the instructions of ``code[start:end]``. Raises UndecodableError."""
    stop = len(code) if end is None else end
    while start < stop:
        instruction = decode(code, start)
        if instruction.end > stop:
            raise UndecodableError(f"an instruction at {start:#x} runs past {stop:#x}")
        yield instruction
        start = instruction.end


def decode(code: bytes, start: int) -> Instruction:
    """Decode the instruction at ``start``. Raises UndecodableError."""
    try:
        return _decode(code, start)
    except IndexError:
        raise UndecodableError(f"the code ends in the instruction at {start:#x}") from None


def _decode(code: bytes, start: int) -> Instruction:
    at = start
    operand16 = address32 = False
    byte = code[at]
    while byte in _PREFIXES:
        operand16 |= byte == 0x66
        address32 |= byte == 0x67
        at += 1
        byte = code[at]
    wide = False
    if byte & 0xF0 == 0x40:
        wide = byte & 8 != 0
        at += 1
        byte = code[at]

    if byte in (0xC4, 0xC5, 0x62):
        opcode, form, at = _vector(code, at)
    elif byte != 0x0F:
        opcode, form, at = byte, _ONE_BYTE[byte], at + 1
    elif code[at + 1] in (0x38, 0x3A):
        three = code[at + 1] == 0x3A
        opcode, form, at = (0x0F3A00 if three else 0x0F3800) + code[at + 2], "B" if three else "m", at + 3
    else:
        opcode, form, at = 0x0F00 + code[at + 1], _TWO_BYTE[code[at + 1]], at + 2

    if form == "x":
        raise UndecodableError(f"opcode {opcode:#x} at {start:#x} does not exist in 64-bit mode")
    size = 2 if operand16 and not wide else 4
    immediate = 0
    if form in "mBZfF":
        modrm = code[at]
        at = _after_modrm(code, at)
        if form == "B" or (form == "f" and modrm & 0x30 == 0):
            immediate = 1
        elif form == "Z" or (form == "F" and modrm & 0x30 == 0):
            immediate = size
    elif form == "b":
        immediate = 1
    elif form == "z":
        immediate = size
    elif form == "v":
        immediate = 8 if wide else size
    elif form == "j":
        immediate = 4
    elif form == "w":
        immediate = 2
    elif form == "e":
        immediate = 3
    elif form == "o":
        immediate = 4 if address32 else 8
    end = at + immediate
    if end > len(code):
        raise IndexError
    return Instruction(start, end, opcode, immediate)


def _vector(code: bytes, at: int) -> tuple[int, str, int]:
    """Return opcode, form and the place of ModRM of a VEX (C4, C5) or EVEX (62) instruction."""
    if code[at] == 0xC5:
        number, at = 1, at + 2
    elif code[at] == 0xC4:
        number, at = code[at + 1] & 0x1F, at + 3
    else:
        number, at = code[at + 1] & 0x07, at + 4
    if number not in _MAPS:
        raise UndecodableError(f"a vector instruction of opcode map {number}")
    opcode = code[at]
    form = "B" if number == 3 else "m" if number == 2 else _TWO_BYTE[opcode]
    return _MAPS[number] + opcode, form, at + 1


def _after_modrm(code: bytes, at: int) -> int:
    """Return the place after ModRM, SIB and displacement."""
    modrm = code[at]
    at += 1
    mode, memory = modrm >> 6, modrm & 7
    if mode == 3:
        return at
    base = memory
    if memory == 4:
        base = code[at] & 7
        at += 1
    if mode == 1:
        return at + 1
    # Mode 0 with base 5 is disp32: RIP-relative without a SIB byte, absolute with one.
    return at + 4 if mode == 2 or base == 5 else at
