# SPDX-License-Identifier: MIT
"""The numbers of the ELF format that this package uses, by their names in <elf.h> and the x86-64 psABI."""

from __future__ import annotations

from typing import Final

ET_REL: Final = 1
EM_X86_64: Final = 62

SHT_PROGBITS: Final = 1
SHT_SYMTAB: Final = 2
SHT_STRTAB: Final = 3
SHT_RELA: Final = 4
SHT_NOTE: Final = 7
SHT_NOBITS: Final = 8
SHT_SYMTAB_SHNDX: Final = 18

SHF_WRITE: Final = 0x1
SHF_ALLOC: Final = 0x2
SHF_EXECINSTR: Final = 0x4
SHF_MERGE: Final = 0x10
SHF_STRINGS: Final = 0x20
SHF_COMPRESSED: Final = 0x800
SHF_INFO_LINK: Final = 0x40
# include/uapi/linux/elf.h; Linux commit 425595a7fc20 ("livepatch: reuse module loader code to write
# relocations") (in v4.7).
SHF_RELA_LIVEPATCH: Final = 0x00100000

SHN_UNDEF: Final = 0
SHN_LORESERVE: Final = 0xFF00
SHN_LIVEPATCH: Final = 0xFF20
SHN_ABS: Final = 0xFFF1
SHN_COMMON: Final = 0xFFF2


SHN_XINDEX: Final = 0xFFFF

STB_LOCAL: Final = 0
STB_GLOBAL: Final = 1
STB_WEAK: Final = 2

STT_NOTYPE: Final = 0
STT_OBJECT: Final = 1
STT_FUNC: Final = 2
STT_SECTION: Final = 3
STT_FILE: Final = 4

# psABI table 4.9. S: the symbol's value, A: the addend, P: the place of the relocation.
R_X86_64_NONE: Final = 0
R_X86_64_64: Final = 1  # S + A, 8 bytes
R_X86_64_PC32: Final = 2  # S + A - P, 4 bytes
R_X86_64_PLT32: Final = 4  # L + A - P, 4 bytes; the kernel has no PLT, so the same as PC32
R_X86_64_32: Final = 10  # S + A, 4 bytes, zero-extended
R_X86_64_32S: Final = 11  # S + A, 4 bytes, sign-extended
R_X86_64_16: Final = 12  # S + A, 2 bytes
R_X86_64_PC16: Final = 13  # S + A - P, 2 bytes
R_X86_64_8: Final = 14  # S + A, 1 byte
R_X86_64_PC8: Final = 15  # S + A - P, 1 byte
R_X86_64_PC64: Final = 24  # S + A - P, 8 bytes

# The number of bytes that a relocation writes, if it is not four.
WRITES: Final = {
    R_X86_64_64: 8,
    R_X86_64_PC64: 8,
    R_X86_64_16: 2,
    R_X86_64_PC16: 2,
    R_X86_64_8: 1,
    R_X86_64_PC8: 1,
}
PC_RELATIVE: Final = frozenset((R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_PC64, R_X86_64_PC8))

# The relocations that arch/x86/kernel/module.c applies; any other makes the load fail.
LOADER_RELOCATIONS: Final = frozenset(
    (R_X86_64_NONE, R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_32, R_X86_64_32S, R_X86_64_PC64)
)
