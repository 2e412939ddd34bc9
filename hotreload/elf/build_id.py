# SPDX-License-Identifier: MIT
"""The GNU build-id: a digest that ld puts into a linked file. The kernel shows it in /sys/kernel/notes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

NT_GNU_BUILD_ID: Final = 3
_HEADER: Final = struct.Struct("<III")  # Elf64_Nhdr: the sizes of name and content, and the type


def build_id_in(notes: bytes) -> str | None:
    """Return the build-id from a sequence of notes as hexadecimal digits; None if there is none.

    Each note is padded to 4 bytes (gABI, "Note Section").
    """
    place = 0
    while place + _HEADER.size <= len(notes):
        name_size, size, kind = _HEADER.unpack_from(notes, place)
        name = place + _HEADER.size
        content = name + -(-name_size // 4) * 4
        if kind == NT_GNU_BUILD_ID and notes[name : name + name_size] == b"GNU\0":
            return notes[content : content + size].hex()
        place = content + -(-size // 4) * 4
    return None


def read_build_id(file: Path) -> str | None:
    """Return the build-id of a file; None if it has none or is not an ELF file. Raises OSError."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    with file.open("rb") as stream:
        try:
            notes = [s.data() for s in ELFFile(stream).iter_sections() if s["sh_type"] == "SHT_NOTE"]
        except ELFError:
            return None
    return next((found for each in notes if (found := build_id_in(each))), None)
