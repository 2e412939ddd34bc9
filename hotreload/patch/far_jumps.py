# SPDX-License-Identifier: MIT
"""Extend short jumps between functions that shared a section, like exit code, and do not in a patch. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from hotreload.elf.constants import R_X86_64_PC8, R_X86_64_PC32
from hotreload.elf.model import Relocation, Symbol, SymbolRef

_JMP: Final = b"\xe9\0\0\0\0"
_REACH: Final = 127  # the largest displacement of one byte


def far_jumps(symbol: Symbol) -> tuple[bytes, tuple[Relocation, ...], tuple[Relocation, ...]]:
    """Return the code of a function in which short jumps to other functions go through long jumps after it.

    The other values are the relocations of the code itself and those of the long jumps. A short jump that is
    too far from there stays as it is, and nothing applies its relocation.
    """
    if all(relocation.type != R_X86_64_PC8 for relocation in symbol.relocations):
        return symbol.content, symbol.relocations, ()
    code, kept, added = bytearray(symbol.content), [], []
    for relocation in symbol.relocations:
        distance = len(code) - (relocation.offset + 1)
        if not _is_to_neighbour(symbol, relocation) or distance > _REACH:
            kept.append(relocation)
            continue
        code[relocation.offset] = distance
        # Each addend counts from the start of its field, at the end of the instruction. The field has 1 byte
        # in the short jump, and 4 in the long one.
        field = len(code) + 1
        added.append(replace(relocation, offset=field, type=R_X86_64_PC32, addend=relocation.addend - 3))
        code += _JMP
    return bytes(code), tuple(kept), tuple(added)


def _is_to_neighbour(symbol: Symbol, relocation: Relocation) -> bool:
    """Return whether a relocation is the field of a jump that the assembler had resolved."""
    return (
        relocation.type == R_X86_64_PC8
        and isinstance(relocation.target, SymbolRef)
        and relocation.target.symbol.section is symbol.section
    )
