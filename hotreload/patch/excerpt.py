# SPDX-License-Identifier: MIT
"""Write what a patch of one pair of objects carries as a relocatable object of its own. Pure.

This is for ``objdump -dr`` and for people who build the patch module themselves. The object contains the
changed functions, new symbols that they reach, the author's callbacks, the entries of special sections about
them, and the strings and constants that they use. Each is in the section that it has in the patched object.
The symbols:

    what is carried        under its name. What has a twin in the original object is local, so that the
                           twin's name can be undefined beside it; what is new keeps its binding
    everything else        undefined, under its name. What the original object defines, including its static
                           functions and variables, has the name it has *there*: ``count.3``, even if the
                           patched object says ``count.7``. If several of these share a name, or one has
                           none, its place stands for it: ``name:.bss+0x10``, ``.rodata+0x40``
    strings, constants     ``.LC0``, ``.LC1`` and so on, local, in mergeable sections

Where code takes the address of a changed function instead of calling it, the address is the original's, as in
plan.py. So it is undefined, too. Which relocations have to be livepatch ones depends on the kernel's exports
and the loaded module's symbols, so that is up to the person who builds the module. So are values that are
written into data of the running kernel (``rewrites``), because an object cannot express them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import gcd
from typing import Final

from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.special_sections import CALLBACKS, REPLACEMENTS, Entry
from hotreload.elf.constants import (
    R_X86_64_64,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_MERGE,
    SHF_STRINGS,
    SHF_WRITE,
    SHT_PROGBITS,
    STB_GLOBAL,
    STB_LOCAL,
    STB_WEAK,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    STT_SECTION,
)
from hotreload.elf.model import ConstRef, ObjectFile, Relocation, Section, StringRef, Symbol, SymbolRef
from hotreload.elf.references import points_at_start, takes_address
from hotreload.elf.writer import OutputRelocation, OutputSection, OutputSymbol, write_object

_FLAGS: Final = SHF_ALLOC | SHF_WRITE | SHF_EXECINSTR
_INT3: Final = b"\xcc"


def write_excerpt(diff: ObjectDiff, patched: ObjectFile) -> bytes:
    """Return the object file of what ``diff`` carries. ``patched`` is the patched object of ``diff``."""
    excerpt = _Excerpt(diff, patched)
    for symbol in diff.carried:
        excerpt.place(symbol)
    for symbol in diff.carried:
        excerpt.relocate(symbol)
        for entry in diff.entries.get(symbol, ()):
            excerpt.add_entry(entry)
    for kind, function in diff.callbacks:
        excerpt.add_callback(kind, function)
    return write_object(list(excerpt.sections.values()), excerpt.symbols)


@dataclass(slots=True)
class _Excerpt:
    diff: ObjectDiff
    patched: ObjectFile
    sections: dict[str, OutputSection] = field(default_factory=dict)
    symbols: list[OutputSymbol] = field(default_factory=list)
    places: dict[Symbol, tuple[OutputSection, int]] = field(default_factory=dict)
    carried: dict[Symbol, OutputSymbol] = field(default_factory=dict)  # carried symbols that have a name
    section_symbols: dict[str, OutputSymbol] = field(default_factory=dict)
    undefined: dict[str, OutputSymbol] = field(default_factory=dict)
    constants: dict[StringRef | ConstRef, OutputSymbol] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)  # of the twins in the original object

    def __post_init__(self) -> None:
        self.names.update(symbol.name for symbol in set(self.diff.original_of.values()))

    # --- what is carried ---

    def place(self, symbol: Symbol) -> None:
        assert symbol.section is not None, "an undefined symbol does not travel"
        section = self.like(symbol.section)
        align = gcd(symbol.section.align, symbol.value) if symbol.value else symbol.section.align
        filling = _INT3 if symbol.section.is_code else b"\0"
        offset = section.append(symbol.content, align, filling)
        self.places[symbol] = section, offset
        if not symbol.anonymous and symbol.kind in (STT_FUNC, STT_OBJECT):
            binding = STB_LOCAL if symbol in self.diff.original_of else symbol.binding
            written = OutputSymbol(symbol.name, symbol.kind, binding, section, offset, symbol.size)
            self.carried[symbol] = written
            self.symbols.append(written)

    def like(self, section: Section) -> OutputSection:
        """Return the output section of the same name.

        A piece of a mergeable section goes into .rodata instead, so that it is not merged.
        """
        name = ".rodata" if section.flags & SHF_MERGE else section.name
        if name not in self.sections:
            self.sections[name] = OutputSection(name, section.type, section.flags & _FLAGS)
        return self.sections[name]

    def relocate(self, symbol: Symbol) -> None:
        section, start = self.places[symbol]
        self.add_relocations(section, start, symbol.relocations, symbol)

    # --- entries of special sections ---

    def add_entry(self, entry: Entry) -> None:
        section = self.special(entry.row.name)
        start = section.append(entry.content, entry.align)
        relocations = list(entry.relocations)
        if entry.replacement is not None:
            self.add_replacement(section, start, relocations.pop(1), *entry.replacement)
        self.add_relocations(section, start, relocations)
        if entry.row.companion:
            self.special(entry.row.companion).append(entry.companion)

    def add_replacement(
        self,
        section: OutputSection,
        start: int,
        pointer: Relocation,
        code: bytes,
        relocations: Iterable[Relocation],
    ) -> None:
        """Add the code that an alternative may put in place, and the entry's relocation that points at it."""
        replacements = self.special(REPLACEMENTS)
        at = replacements.append(code)
        self.add_relocations(replacements, at, relocations)
        symbol = self.section_symbol(replacements)
        section.relocations.append(OutputRelocation(start + pointer.offset, pointer.type, symbol, at))

    def special(self, name: str) -> OutputSection:
        section = self.patched.section(name)
        assert section is not None, "an entry was read from it"
        return self.like(section)

    def add_callback(self, kind: str, function: Symbol) -> None:
        """Add a pointer to a function that the livepatch core is to call.

        It goes into the section that the author's macro made.
        """
        name = f"{CALLBACKS}{kind}"
        section = self.sections.setdefault(name, OutputSection(name, SHT_PROGBITS, SHF_ALLOC | SHF_WRITE))
        start = section.append(bytes(8), 8)
        section.relocations.append(OutputRelocation(start, R_X86_64_64, self.carried[function], 0))

    # --- relocations ---

    def add_relocations(
        self,
        section: OutputSection,
        start: int,
        relocations: Iterable[Relocation],
        holder: Symbol | None = None,
    ) -> None:
        for r in relocations:
            symbol, addend = self.resolve(r, holder)
            section.relocations.append(OutputRelocation(start + r.offset, r.type, symbol, r.addend + addend))

    def resolve(self, relocation: Relocation, holder: Symbol | None) -> tuple[OutputSymbol, int]:
        """Return the symbol that a relocation is against, and the number to add to the addend."""
        if not isinstance(relocation.target, SymbolRef):
            return self.constant(relocation.target), 0
        symbol = relocation.target.symbol
        original = self.diff.original_of.get(symbol)
        if symbol in self.places and not (original and _is_kept(symbol, relocation, holder)):
            if symbol in self.carried:
                return self.carried[symbol], 0
            section, offset = self.places[symbol]
            return self.section_symbol(section), offset
        if original is not None:
            return self.outside(self.name_of(original), STB_GLOBAL), 0
        return self.outside(symbol.name, STB_WEAK if symbol.binding == STB_WEAK else STB_GLOBAL), 0

    def name_of(self, original: Symbol) -> str:
        if original.section is None or self.names[original.name] == 1:
            return original.name
        return f"{original.name}:{original.section.name}+{original.value:#x}"

    def outside(self, name: str, binding: int) -> OutputSymbol:
        if name not in self.undefined:
            self.undefined[name] = OutputSymbol(name, STT_NOTYPE, binding)
            self.symbols.append(self.undefined[name])
        return self.undefined[name]

    def section_symbol(self, section: OutputSection) -> OutputSymbol:
        if section.name not in self.section_symbols:
            self.section_symbols[section.name] = OutputSymbol("", STT_SECTION, STB_LOCAL, section)
            self.symbols.append(self.section_symbols[section.name])
        return self.section_symbols[section.name]

    def constant(self, target: StringRef | ConstRef) -> OutputSymbol:
        """Return a symbol for a string or constant.

        It cannot be the section and an offset: linkers merge these sections, and look the offset up there
        before they take the -4 of a PC-relative relocation into account.
        """
        if target not in self.constants:
            section, content, align = self.pool(target)
            offset = section.append(content, align)
            symbol = OutputSymbol(f".LC{len(self.constants)}", STT_NOTYPE, STB_LOCAL, section, offset)
            self.constants[target] = symbol
            self.symbols.append(symbol)
        return self.constants[target]

    def pool(self, target: StringRef | ConstRef) -> tuple[OutputSection, bytes, int]:
        """Return the mergeable section for a string or constant, and its bytes and alignment."""
        if isinstance(target, StringRef):
            name, flags, size = f".rodata.str1.{target.align}", SHF_MERGE | SHF_STRINGS, 1
            content, align = target.text + b"\0", target.align
        else:
            size = align = len(target.content)
            name, flags, content = f".rodata.cst{size}", SHF_MERGE, target.content
        if name not in self.sections:
            self.sections[name] = OutputSection(name, SHT_PROGBITS, SHF_ALLOC | flags, entry_size=size)
        return self.sections[name], content, align


def _is_kept(symbol: Symbol, relocation: Relocation, holder: Symbol | None) -> bool:
    """Return whether somebody may keep the address. Then it has to be that of the original function."""
    if holder is None or not symbol.is_function:
        return False
    return takes_address(holder, relocation) and points_at_start(holder, relocation)
