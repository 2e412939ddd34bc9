# SPDX-License-Identifier: MIT
"""Write relocatable x86-64 objects (ET_REL), including livepatch relocation sections.

LIEF and pyelftools cannot add sections, symbols and relocations to a relocatable file. ``ld`` keeps neither a
second relocation section for one target nor SHN_LIVEPATCH. So hotreload has its own writer, for ET_REL alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from hotreload.elf.constants import (
    EM_X86_64,
    ET_REL,
    SHF_INFO_LINK,
    SHN_UNDEF,
    SHT_NOBITS,
    SHT_RELA,
    SHT_STRTAB,
    SHT_SYMTAB,
    STB_LOCAL,
    STT_SECTION,
)

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION_HEADER: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_RELA: Final = struct.Struct("<QIIq")


@dataclass(slots=True, eq=False)
class OutputSymbol:
    """A symbol to write.

    ``section`` is where it is defined. Without a section, ``index`` is its special section index.
    """

    name: str
    kind: int
    binding: int
    section: OutputSection | None = None
    value: int = 0
    size: int = 0
    index: int = SHN_UNDEF


@dataclass(slots=True, eq=False)
class OutputRelocation:
    offset: int
    type: int
    symbol: OutputSymbol
    addend: int


@dataclass(slots=True, eq=False)
class OutputSection:
    """A section to write. ``livepatch`` holds further relocations, keyed by the name of their section."""

    name: str
    type: int
    flags: int
    align: int = 1
    entry_size: int = 0
    data: bytearray = field(default_factory=bytearray)
    zeros: int = 0  # the size of an SHT_NOBITS section
    relocations: list[OutputRelocation] = field(default_factory=list)
    livepatch: dict[str, list[OutputRelocation]] = field(default_factory=dict)
    livepatch_flags: int = 0

    @property
    def size(self) -> int:
        return self.zeros if self.type == SHT_NOBITS else len(self.data)

    def append(self, content: bytes, align: int = 1, filling: bytes = b"\0") -> int:
        """Append ``content`` at the next multiple of ``align``, a power of two, and return its offset."""
        start = -(-self.size // align) * align
        self.align = max(self.align, align)
        if self.type == SHT_NOBITS:
            self.zeros = start + len(content)
        else:
            self.data += filling * (start - len(self.data)) + content
        return start


class _Strings:
    """A string table under construction."""

    def __init__(self) -> None:
        self.data = bytearray(b"\0")
        self.known: dict[str, int] = {"": 0}

    def add(self, text: str) -> int:
        if text not in self.known:
            self.known[text] = len(self.data)
            self.data += text.encode() + b"\0"
        return self.known[text]


class _Image:
    """A file under construction: contents with their section headers."""

    def __init__(self) -> None:
        self.data = bytearray(_HEADER.size)
        self.headers: list[tuple[int, ...]] = [(0,) * 10]
        self.names = _Strings()

    def put(self, section: OutputSection, link: int = 0, info: int = 0) -> None:
        """Append a section's content and header. Its relocations are put as sections of their own."""
        self.data += bytes(-len(self.data) % section.align)
        self.headers.append(
            (
                self.names.add(section.name),
                section.type,
                section.flags,
                0,
                len(self.data),
                section.size,
                link,
                info,
                section.align,
                section.entry_size,
            )
        )
        self.data += section.data

    def finish(self) -> bytes:
        """Append the section names and headers, fill in the file header, and return the file."""
        self.names.add(".shstrtab")
        self.put(OutputSection(".shstrtab", SHT_STRTAB, 0, data=self.names.data))
        self.data += bytes(-len(self.data) % 8)
        start = len(self.data)
        for header in self.headers:
            self.data += _SECTION_HEADER.pack(*header)
        count, size = len(self.headers), _SECTION_HEADER.size
        identity = b"\x7fELF\x02\x01\x01" + bytes(9)
        header = (ET_REL, EM_X86_64, 1, 0, 0, start, 0, _HEADER.size, 0, 0, size, count, count - 1)
        self.data[: _HEADER.size] = _HEADER.pack(identity, *header)
        return bytes(self.data)


def write_object(sections: list[OutputSection], symbols: list[OutputSymbol]) -> bytes:
    """Return an object file with these sections, in their order, and symbols, local ones first (gABI)."""
    numbers = {id(section): number for number, section in enumerate(sections, start=1)}
    ordered = sorted(symbols, key=lambda symbol: symbol.binding != STB_LOCAL)
    places = {id(symbol): number for number, symbol in enumerate(ordered, start=1)}
    image = _Image()
    for section in sections:
        image.put(section)

    symtab_number = len(sections) + 1
    names = _Strings()
    symtab = OutputSection(".symtab", SHT_SYMTAB, 0, 8, _SYMBOL.size, bytearray(_SYMBOL.size))
    for symbol in ordered:
        where = numbers[id(symbol.section)] if symbol.section is not None else symbol.index
        name = 0 if symbol.kind == STT_SECTION else names.add(symbol.name)
        info = symbol.binding << 4 | symbol.kind
        symtab.data += _SYMBOL.pack(name, info, 0, where, symbol.value, symbol.size)
    first_global = 1 + sum(symbol.binding == STB_LOCAL for symbol in ordered)
    image.put(symtab, link=symtab_number + 1, info=first_global)
    image.put(OutputSection(".strtab", SHT_STRTAB, 0, data=names.data))

    for section in sections:
        for table, entries in _relocation_tables(section):
            for r in sorted(entries, key=lambda r: r.offset):
                table.data += _RELA.pack(r.offset, r.type, places[id(r.symbol)], r.addend)
            image.put(table, link=symtab_number, info=numbers[id(section)])
    return image.finish()


def _relocation_tables(
    section: OutputSection,
) -> Iterator[tuple[OutputSection, list[OutputRelocation]]]:
    if section.relocations:
        name = f".rela{section.name}"
        yield OutputSection(name, SHT_RELA, SHF_INFO_LINK, 8, _RELA.size), section.relocations
    for name, entries in section.livepatch.items():
        yield OutputSection(name, SHT_RELA, section.livepatch_flags, 8, _RELA.size), entries
