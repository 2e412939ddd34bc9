# SPDX-License-Identifier: MIT
"""The content of an object file by name: sections, symbols, and relocations that point at them.

The peculiarities of the ELF format are dealt with in reader.py. Here the target of a relocation is one of

    SymbolRef(symbol)   a function or object of this file, an undefined symbol, or a stretch of a
                        section that has no symbol (an *anonymous* symbol)
    StringRef(text)     a string in a section of mergeable strings, by its contents
    ConstRef(content)   an entry of a section of mergeable constants, by its contents

and its addend counts from the start of that target, with the psABI's meaning (S + A or S + A - P).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from hotreload.elf.constants import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHN_UNDEF,
    SHT_NOBITS,
    STB_LOCAL,
    STT_FUNC,
    STT_OBJECT,
)


@dataclass(slots=True, eq=False)
class Section:
    """A section with content, which is any section except symbol, string and relocation tables.

    ``data`` is empty for SHT_NOBITS, whose ``size`` counts bytes of zeros. ``symbols`` are the symbols
    defined here in address order, anonymous ones included.
    """

    index: int
    name: str
    type: int
    flags: int
    align: int
    entry_size: int
    size: int
    data: bytes
    symbols: list[Symbol] = field(default_factory=list)
    relocations: list[Relocation] = field(default_factory=list)

    @property
    def is_allocated(self) -> bool:
        return self.flags & SHF_ALLOC != 0

    @property
    def is_code(self) -> bool:
        return self.flags & SHF_EXECINSTR != 0

    @property
    def is_writable(self) -> bool:
        return self.flags & SHF_WRITE != 0

    @property
    def is_zero(self) -> bool:
        return self.type == SHT_NOBITS


@dataclass(eq=False)
class Symbol:
    """A named stretch ``section[value:value + size]``; ``section`` is None for an undefined symbol.

    ``aliases`` are the other names of the same stretch. An anonymous symbol is named after its place
    (``.rodata+0x40``) and stands for bytes that no symbol of the file covers. ``index`` is SHN_ABS,
    SHN_COMMON or SHN_LIVEPATCH for a symbol of that kind; such a symbol has no section either.
    """

    name: str
    kind: int
    binding: int
    section: Section | None
    value: int
    size: int
    aliases: tuple[str, ...] = ()
    anonymous: bool = False
    index: int = SHN_UNDEF

    @property
    def is_function(self) -> bool:
        return self.kind == STT_FUNC

    @property
    def is_object(self) -> bool:
        return self.kind == STT_OBJECT

    @property
    def is_local(self) -> bool:
        return self.binding == STB_LOCAL

    @property
    def is_defined(self) -> bool:
        return self.section is not None

    @cached_property
    def content(self) -> bytes:
        """The ``size`` bytes of a defined symbol, with zeros where relocations will write."""
        section = self.section
        assert section is not None, f"{self.name} is undefined"
        if section.is_zero:
            return bytes(self.size)
        return section.data[self.value : self.value + self.size]

    @cached_property
    def relocations(self) -> tuple[Relocation, ...]:
        """The relocations inside this symbol, in order, with offsets that count from its start."""
        section = self.section
        assert section is not None, f"{self.name} is undefined"
        return relocations_between(section, self.value, self.value + self.size)

    def __repr__(self) -> str:
        return f"<Symbol {self.name}>"


@dataclass(frozen=True, slots=True)
class SymbolRef:
    symbol: Symbol


@dataclass(frozen=True, slots=True)
class StringRef:
    """A NUL-terminated string. ``text`` excludes the NUL; ``align`` is the alignment of its section."""

    text: bytes
    align: int = 1


@dataclass(frozen=True, slots=True)
class ConstRef:
    """A mergeable constant of ``len(content)`` bytes."""

    content: bytes


Target = SymbolRef | StringRef | ConstRef


@dataclass(frozen=True, slots=True)
class Relocation:
    """A relocation.

    ``type`` is R_X86_64_*, ``addend`` a signed 64-bit number that counts from the start of the target.
    """

    offset: int
    type: int
    target: Target
    addend: int


@dataclass(frozen=True, slots=True, eq=False)
class DebugSections:
    """The DWARF sections of an object, with their references to strings resolved. dwarf.py reads them.

    ``addresses`` gives the meaning of each relocated address in ``info``: offset in ``info`` -> the symbol,
    and the place in that symbol.
    """

    info: bytes
    abbreviations: bytes
    strings: bytes
    line_strings: bytes
    addresses: Mapping[int, tuple[Symbol, int]]


@dataclass(slots=True, eq=False)
class ObjectFile:
    """An ET_REL file for x86-64.

    ``sections`` are the sections with content. ``symbols`` are all symbols except STT_SECTION and STT_FILE,
    in the order of the file's table, with anonymous ones last. ``files`` are the names of the STT_FILE
    symbols. ``debug`` is None if the object was compiled without debugging information.
    """

    name: str
    sections: list[Section]
    symbols: list[Symbol]
    files: list[str] = field(default_factory=list)
    debug: DebugSections | None = None

    def section(self, name: str) -> Section | None:
        """Return the first section with that name."""
        return next((section for section in self.sections if section.name == name), None)

    def symbol(self, name: str) -> Symbol | None:
        """Return the first symbol that has that name or alias."""
        return next((s for s in self.symbols if s.name == name or name in s.aliases), None)

    @property
    def functions(self) -> list[Symbol]:
        """The functions defined here."""
        return [symbol for symbol in self.symbols if symbol.is_function and symbol.is_defined]


def relocations_between(section: Section, start: int, end: int) -> tuple[Relocation, ...]:
    """Return the relocations of ``section[start:end]``, with offsets that count from ``start``."""
    return tuple(
        Relocation(r.offset - start, r.type, r.target, r.addend)
        for r in _slice_by_offset(section.relocations, start, end)
    )


def _slice_by_offset(relocations: list[Relocation], start: int, end: int) -> list[Relocation]:
    first = bisect_left(relocations, start, key=lambda r: r.offset)
    last = bisect_left(relocations, end, lo=first, key=lambda r: r.offset)
    return relocations[first:last]
