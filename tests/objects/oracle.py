# SPDX-License-Identifier: MIT
"""What two objects differ in, as pyelftools reads them: no code of the reader or the differ is used here."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from elftools.elf.elffile import ELFFile

WRITE, ALLOC, EXEC, MERGE, STRINGS = 0x1, 0x2, 0x4, 0x10, 0x20
PC_RELATIVE: Final = frozenset((2, 4, 24))
# What an assembler may put between functions.
FILLING: Final = frozenset(b"\x90\xcc\x66\x2e\x0f\x1f\x84\x00\x80\x40\x44\x8d\x74\x26\x76\xb4\x27")
# Bytes of a section that are compared.
MOST: Final = 1 << 16
# The kernel's arrays of entries that say something about places in code.
ENTRIES: Final = frozenset(
    """.altinstructions .altinstr_replacement .altinstr_aux __bug_table __ex_table __jump_table __mcount_loc
    .static_call_sites .parainstructions .smp_locks .retpoline_sites .return_sites .call_sites
    .ibt_endbr_seal""".split()
)
# Unwind data follows from the code, exports are settled at load; the others are for people and tools.
UNSEEN: Final = tuple(
    """.orc_ .note .discard. .modinfo .comment .debug .BTF .llvm ___ksymtab ___kcrctab __ksymtab __kcrctab
    .export_symbol""".split()
)


@dataclass
class Part:
    """A section: its bytes, and what each of its relocations means."""

    index: int
    name: str
    flags: int
    size: int
    data: bytes
    entry_size: int
    relocations: dict[int, list[tuple[Any, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Name:
    """A defined function or object."""

    name: str
    kind: str
    binding: str
    section: int
    value: int
    size: int

    def covers(self, section: int, offset: int) -> bool:
        return self.section == section and self.value <= offset < self.value + self.size


@dataclass
class Read:
    parts: dict[int, Part]
    names: list[Name]

    def covering(self, section: int, offset: int) -> list[Name]:
        return [name for name in self.names if name.covers(section, offset)]


@lru_cache(maxsize=64)
def read(image: bytes) -> Read:
    """Read an object. Raises whatever pyelftools raises for one that it cannot read."""
    elf = ELFFile(io.BytesIO(image))
    sections = list(elf.iter_sections())
    parts: dict[int, Part] = {}
    for index, section in enumerate(sections):
        header = section.header
        loaded = header["sh_flags"] & ALLOC or section.name in ENTRIES
        if loaded and header["sh_type"] not in ("SHT_RELA", "SHT_SYMTAB", "SHT_STRTAB"):
            zeros = header["sh_type"] == "SHT_NOBITS"
            data = bytes(min(header["sh_size"], MOST)) if zeros else section.data()
            parts[index] = Part(
                index, section.name, header["sh_flags"], header["sh_size"], data, header["sh_entsize"]
            )
    table = next(s for s in sections if s.header["sh_type"] == "SHT_SYMTAB")
    symbols = list(table.iter_symbols())
    names = [
        Name(s.name, s["st_info"]["type"], s["st_info"]["bind"], s["st_shndx"], s["st_value"], s["st_size"])
        for s in symbols
        if s["st_info"]["type"] in ("STT_FUNC", "STT_OBJECT") and isinstance(s["st_shndx"], int)
    ]
    for section in sections:
        header = section.header
        if header["sh_type"] == "SHT_RELA" and header["sh_info"] in parts:
            part = parts[header["sh_info"]]
            for r in section.iter_relocations():
                kind, at = r["r_info_type"], r["r_info_sym"]
                meaning = _meaning(parts, symbols[at], kind, r["r_addend"])
                if kind or part.flags & EXEC:
                    part.relocations.setdefault(r["r_offset"], []).append((kind, *meaning))
    return Read(parts, names)


def _meaning(parts: dict[int, Part], symbol: Any, kind: int, addend: int) -> tuple[Any, ...]:
    where = symbol["st_shndx"]
    if not isinstance(where, int):
        return where, symbol.name, symbol["st_value"] if where != "SHN_UNDEF" else 0, addend
    part = parts.get(where)
    place = symbol["st_value"] + addend
    named = symbol["st_info"]["type"] in ("STT_FUNC", "STT_OBJECT")
    if part is not None and part.flags & MERGE and not named:
        at = place + (4 if kind in PC_RELATIVE else 0)
        if part.flags & STRINGS and 0 <= at < len(part.data):
            end = part.data.find(bytes(part.entry_size if part.entry_size in (2, 4) else 1), at)
            return "text", part.data[at:end]
        if not part.flags & STRINGS and part.entry_size and 0 <= at < len(part.data):
            start = at - at % part.entry_size
            return "constant", part.data[start : start + part.entry_size], at - start
    return "place", where, place


def differences(ours: Read, theirs: Read) -> Iterator[tuple[int, int]]:
    """The places (section, offset) of allocated sections where two objects of one layout differ."""
    for index in sorted(ours.parts.keys() | theirs.parts.keys()):
        one, other = ours.parts.get(index), theirs.parts.get(index)
        if one is None or other is None:
            yield from _alone(one, other)
            continue
        if other.flags & MERGE:
            continue  # what it holds counts with those who refer to it
        end = other.size if one.flags & MERGE else max(one.size, other.size)
        if one.data != other.data or one.size != other.size:
            for offset in range(min(end, MOST)):
                both = offset < min(one.size, other.size)
                if not both or one.data[offset : offset + 1] != other.data[offset : offset + 1]:
                    yield index, offset
        for offset in one.relocations.keys() | other.relocations.keys():
            if one.relocations.get(offset, []) != other.relocations.get(offset, []):
                yield index, offset


def _alone(one: Part | None, other: Part | None) -> Iterator[tuple[int, int]]:
    """The places of a section that one object has not; what is gone from those for loading has run."""
    part = one or other
    assert part is not None
    if part.flags & MERGE or (other is None and part.name.startswith((".init", ".exit", ".con_init"))):
        return
    yield from ((part.index, offset) for offset in range(min(part.size, MOST)))
