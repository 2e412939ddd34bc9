# SPDX-License-Identifier: MIT
"""Write relocatable x86-64 objects (ET_REL), livepatch relocation sections included.

LIEF and pyelftools cannot add sections, symbols and relocations to a relocatable file, and ``ld`` keeps neither a
second relocation section for one target nor SHN_LIVEPATCH; so this is ours, for ET_REL alone.
"""

from __future__ import annotations

import struct
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
_RELA_FLAGS: Final = SHF_INFO_LINK


@dataclass(slots=True, eq=False)
class OutputSymbol:
    """A symbol to write. ``section``: where it stands; else ``index`` is its special section index."""

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
    """A section to write. ``livepatch`` holds further relocations, by the name of their section."""

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
        """Put ``content`` at the next place of that alignment (a power of two); returns its offset."""
        start = -(-self.size // align) * align
        self.align = max(self.align, align)
        if self.type == SHT_NOBITS:
            self.zeros = start + len(content)
        else:
            self.data += filling * (start - len(self.data)) + content
        return start


class _Strings:
    """A string table that is growing."""

    def __init__(self) -> None:
        self.data = bytearray(b"\0")
        self.known: dict[str, int] = {"": 0}

    def add(self, text: str) -> int:
        if text not in self.known:
            self.known[text] = len(self.data)
            self.data += text.encode() + b"\0"
        return self.known[text]


def write_object(sections: list[OutputSection], symbols: list[OutputSymbol]) -> bytes:
    """The bytes of an object file with these sections and symbols, in their order (gABI: local symbols first)."""
    names, section_names = _Strings(), _Strings()
    numbers = {id(section): number for number, section in enumerate(sections, start=1)}
    ordered = sorted(symbols, key=lambda symbol: symbol.binding != STB_LOCAL)
    places = {id(symbol): number for number, symbol in enumerate(ordered, start=1)}

    headers: list[tuple[int, ...]] = [(0,) * 10]
    image = bytearray(_HEADER.size)
    symtab_number = len(sections) + 1

    def put(name: str, kind: int, flags: int, data: bytes, link: int = 0, info: int = 0, align: int = 1, entry: int = 0, size: int | None = None) -> None:  # fmt: skip
        image.extend(bytes(-len(image) % max(align, 1)))
        length = len(data) if size is None else size
        headers.append(
            (section_names.add(name), kind, flags, 0, len(image), length, link, info, align, entry)
        )
        image.extend(data)

    for section in sections:
        put(
            section.name,
            section.type,
            section.flags,
            bytes(section.data),
            align=section.align,
            entry=section.entry_size,
            size=section.size,
        )
    table = bytearray(_SYMBOL.size)
    for symbol in ordered:
        where = numbers[id(symbol.section)] if symbol.section is not None else symbol.index
        name = 0 if symbol.kind == STT_SECTION else names.add(symbol.name)
        table += _SYMBOL.pack(name, symbol.binding << 4 | symbol.kind, 0, where, symbol.value, symbol.size)
    locals_end = 1 + sum(symbol.binding == STB_LOCAL for symbol in ordered)
    put(".symtab", SHT_SYMTAB, 0, bytes(table), symtab_number + 1, locals_end, 8, _SYMBOL.size)
    put(".strtab", SHT_STRTAB, 0, bytes(names.data))
    for section in sections:
        tables = [(f".rela{section.name}", _RELA_FLAGS, section.relocations)] if section.relocations else []
        tables += [(name, section.livepatch_flags, entries) for name, entries in section.livepatch.items()]
        for name, flags, entries in tables:
            data = b"".join(
                _RELA.pack(r.offset, r.type, places[id(r.symbol)], r.addend)
                for r in sorted(entries, key=lambda r: r.offset)
            )
            put(name, SHT_RELA, flags, data, symtab_number, numbers[id(section)], 8, _RELA.size)
    section_names.add(".shstrtab")
    put(".shstrtab", SHT_STRTAB, 0, bytes(section_names.data))

    image.extend(bytes(-len(image) % 8))
    start = len(image)
    for header in headers:
        image.extend(_SECTION_HEADER.pack(*header))
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    image[: _HEADER.size] = _HEADER.pack(
        identity, ET_REL, EM_X86_64, 1, 0, 0, start, 0, _HEADER.size, 0, 0,
        _SECTION_HEADER.size, len(headers), len(headers) - 1,
    )  # fmt: skip
    return bytes(image)
