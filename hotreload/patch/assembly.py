# SPDX-License-Identifier: MIT
"""A module file under construction: the template, followed by what a plan adds.

Pieces are appended to the template's section of the same name, because the module loader takes only one
section of each special name. Their relocations are ordinary ones, or ``.klp.rela.OBJECT.SECTION`` with
symbols ``.klp.sym.OBJECT.NAME,SYMPOS`` for what only the patched object knows
(Documentation/livepatch/module-elf-format.rst).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hotreload.diff.special_sections import LOADED
from hotreload.elf.constants import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_INFO_LINK,
    SHF_RELA_LIVEPATCH,
    SHF_WRITE,
    SHN_ABS,
    SHN_LIVEPATCH,
    SHN_UNDEF,
    SHT_NOBITS,
    SHT_PROGBITS,
    STB_GLOBAL,
    STB_LOCAL,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    STT_SECTION,
)
from hotreload.elf.model import ConstRef, StringRef
from hotreload.elf.writer import OutputRelocation, OutputSection, OutputSymbol
from hotreload.errors import InputError
from hotreload.patch.glue import TEMPLATE_NAME
from hotreload.patch.model import Absolute, Import, Piece, PieceRef, PlannedRelocation, PlannedTarget
from hotreload.patch.symbols import SymbolPosition

# MODULE_NAME_LEN of include/linux/moduleparam.h: 64 - sizeof(unsigned long) since v2.6.
NAME_LENGTH: Final = 56
# struct modversion_info { unsigned long crc; char name[MODULE_NAME_LEN]; } (include/linux/module.h)
_VERSION: Final = struct.Struct("<Q56s")
# Sections that the kernel writes to, and sections of code. All others are read-only.
_WRITABLE: Final = frozenset((".data", ".bss", "__bug_table", "__jump_table", ".static_call_sites", *LOADED))
_CODE: Final = frozenset((".text", ".altinstr_replacement"))
_KLP_FLAGS: Final = SHF_ALLOC | SHF_INFO_LINK | SHF_RELA_LIVEPATCH
_INT3: Final = b"\xcc"


@dataclass(slots=True)
class PlacedAt:
    """A place in a section of the file."""

    section: OutputSection
    offset: int


@dataclass(slots=True)
class ModuleFile:
    """A module file under construction."""

    template: bytes
    elsewhere: Mapping[int, int]  # addresses of pieces with a home in an earlier patch, by number
    sections: dict[str, OutputSection] = field(default_factory=dict)
    symbols: list[OutputSymbol] = field(default_factory=list)
    places: dict[int, PlacedAt] = field(default_factory=dict)  # by piece number
    piece_symbols: dict[int, OutputSymbol] = field(default_factory=dict)
    section_symbols: dict[str, OutputSymbol] = field(default_factory=dict)
    named: dict[str, OutputSymbol] = field(default_factory=dict)  # imports and .klp.sym symbols
    constants: dict[tuple[bytes, int], int] = field(
        default_factory=dict
    )  # (content, align) -> place in .rodata
    imports: dict[str, int] = field(default_factory=dict)
    namespaces: dict[str, None] = field(default_factory=dict)  # in order of first use
    absolutes: dict[int, OutputSymbol] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _read_template(self)

    # --- pieces ---

    def add_pieces(self, pieces: tuple[Piece, ...]) -> None:
        for number, piece in enumerate(pieces):
            if number in self.elsewhere and piece.kind != STT_FUNC:
                continue
            section = self.section(piece.section)
            filling = _INT3 if piece.section == ".text" else b"\0"
            offset = section.append(piece.content, piece.align, filling)
            self.places[number] = PlacedAt(section, offset)
            if piece.name and piece.kind in (STT_FUNC, STT_OBJECT):
                symbol = OutputSymbol(piece.name, piece.kind, STB_LOCAL, section, offset, len(piece.content))
                self.symbols.append(symbol)
                self.piece_symbols[number] = symbol

    def section(self, name: str) -> OutputSection:
        if name not in self.sections:
            flags = SHF_ALLOC
            flags |= SHF_WRITE if name in _WRITABLE else 0
            flags |= SHF_EXECINSTR if name in _CODE else 0
            kind = SHT_NOBITS if name == ".bss" else SHT_PROGBITS
            self.sections[name] = OutputSection(name, kind, flags)
        return self.sections[name]

    # --- relocations ---

    def add_relocations(self, pieces: tuple[Piece, ...]) -> None:
        for number, place in self.places.items():
            for relocation in pieces[number].relocations:
                self.relocate(place, pieces[number].object, relocation)

    def relocate(self, place: PlacedAt, obj: str, relocation: PlannedRelocation) -> None:
        symbol, addend = self.resolve(relocation.target)
        entry = OutputRelocation(
            place.offset + relocation.offset, relocation.type, symbol, relocation.addend + addend
        )
        if isinstance(relocation.target, SymbolPosition):
            # A livepatch relocation for a module is applied when that module is loaded, one for vmlinux at
            # once.
            self.livepatch(place.section, obj, entry)
        else:
            place.section.relocations.append(entry)

    def resolve(self, target: PlannedTarget) -> tuple[OutputSymbol, int]:
        """Return the symbol for a target, and the number to add to the addend."""
        match target:
            case PieceRef(number, kept):
                if number in self.elsewhere and (kept or number not in self.places):
                    return self.absolute(self.elsewhere[number]), 0
                if number in self.piece_symbols:
                    return self.piece_symbols[number], 0
                place = self.places[number]
                return self.section_symbol(place.section), place.offset
            case SymbolPosition(obj, name, sympos):
                return self.livepatch_symbol(obj, name, sympos), 0
            case Import(name, crc, namespace):
                self.imports[name] = crc
                self.namespaces |= {namespace: None} if namespace else {}
                return self.global_symbol(name, SHN_UNDEF), 0
            case StringRef(text, align):
                return self.constant(text + b"\0", align)
            case ConstRef(content):
                return self.constant(content, len(content))
            case Absolute(address):
                return self.absolute(address), 0

    def livepatch(self, section: OutputSection, obj: str, entry: OutputRelocation) -> None:
        section.livepatch_flags = _KLP_FLAGS
        section.livepatch.setdefault(f".klp.rela.{obj}.{section.name}", []).append(entry)

    def livepatch_symbol(self, obj: str, name: str, sympos: int) -> OutputSymbol:
        return self.global_symbol(f".klp.sym.{obj}.{name},{sympos}", SHN_LIVEPATCH)

    def global_symbol(self, name: str, index: int) -> OutputSymbol:
        if name not in self.named:
            self.named[name] = OutputSymbol(name, STT_NOTYPE, STB_GLOBAL, index=index)
            self.symbols.append(self.named[name])
        return self.named[name]

    def absolute(self, address: int) -> OutputSymbol:
        """Return a nameless symbol for an address of the running kernel. kallsyms does not show it."""
        if address not in self.absolutes:
            self.absolutes[address] = OutputSymbol("", STT_NOTYPE, STB_LOCAL, value=address, index=SHN_ABS)
            self.symbols.append(self.absolutes[address])
        return self.absolutes[address]

    def section_symbol(self, section: OutputSection) -> OutputSymbol:
        if section.name not in self.section_symbols:
            self.section_symbols[section.name] = OutputSymbol("", STT_SECTION, STB_LOCAL, section)
            self.symbols.append(self.section_symbols[section.name])
        return self.section_symbols[section.name]

    def constant(self, content: bytes, align: int) -> tuple[OutputSymbol, int]:
        section = self.section(".rodata")
        key = content, align
        if key not in self.constants:
            self.constants[key] = section.append(content, align)
        return self.section_symbol(section), self.constants[key]

    # --- what identifies the module ---

    def add_versions(self) -> None:
        """Add the CRCs of the pieces' imports if the kernel checks them (CONFIG_MODVERSIONS)."""
        versions = self.sections.get("__versions")
        if versions is None:
            return
        known = {name.rstrip(b"\0") for _, name in _VERSION.iter_unpack(bytes(versions.data))}
        for name, crc in self.imports.items():
            if name.encode() not in known:
                versions.append(_VERSION.pack(crc, name.encode()))

    def set_name(self, name: str) -> None:
        """Set the module's name in both of its places, and add the namespaces that it imports."""
        module = self.sections[".gnu.linkonce.this_module"]
        old = TEMPLATE_NAME.encode().ljust(NAME_LENGTH, b"\0")
        at = module.data.find(old)
        info = self.sections[".modinfo"]
        mine = b"name=" + TEMPLATE_NAME.encode() + b"\0"
        # The other texts stay where symbols refer to them. The kernel skips runs of zeros.
        named = bytes(info.data).find(mine)
        if at < 0 or named < 0:
            raise InputError(
                "the patch template has no name to replace", hint="remove the cache folder 'glue'"
            )
        module.data[at : at + NAME_LENGTH] = name.encode().ljust(NAME_LENGTH, b"\0")
        info.data[named : named + len(mine)] = bytes(len(mine))
        info.data += b"name=" + name.encode() + b"\0"
        for namespace in self.namespaces:
            info.data += b"import_ns=" + namespace.encode() + b"\0"

    def set_build_id(self) -> None:
        """Set a build-id computed from the content, so that /sys/module/NAME/notes tells patches apart."""
        note = self.sections.get(".note.gnu.build-id")
        if note is not None:
            digest = hashlib.sha1(usedforsecurity=False)
            for section in self.sections.values():
                digest.update(section.name.encode() + b"\0" + bytes(section.data))
            note.data[-20:] = digest.digest()


def _read_template(module: ModuleFile) -> None:
    """Take over the sections, symbols and relocations of the template, except debugging data."""
    import io

    from elftools.elf.elffile import ELFFile
    from elftools.elf.relocation import RelocationSection
    from elftools.elf.sections import SymbolTableSection

    elf = ELFFile(io.BytesIO(module.template))
    numbers: dict[int, OutputSection] = {}
    for number, section in enumerate(elf.iter_sections()):
        header = section.header
        if header["sh_flags"] & SHF_ALLOC and section.name not in (".BTF", ".BTF_ids"):
            zero = header["sh_type"] == "SHT_NOBITS"
            kind = {"SHT_NOBITS": SHT_NOBITS, "SHT_NOTE": 7}.get(header["sh_type"], SHT_PROGBITS)
            copy = OutputSection(
                section.name, kind, header["sh_flags"], header["sh_addralign"] or 1, header["sh_entsize"]
            )
            copy.data = bytearray() if zero else bytearray(section.data())
            copy.zeros = header["sh_size"] if zero else 0
            numbers[number] = module.sections[section.name] = copy
    places: dict[int, OutputSymbol] = {}
    table = elf.get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection), "kbuild made the template"
    for number, symbol in enumerate(table.iter_symbols()):
        copied = _copied_symbol(module, symbol, numbers)
        if copied is not None:
            places[number] = copied
    for section in elf.iter_sections():
        if isinstance(section, RelocationSection) and section.header["sh_info"] in numbers:
            target = numbers[section.header["sh_info"]]
            target.relocations = [
                OutputRelocation(r["r_offset"], r["r_info_type"], places[r["r_info_sym"]], r["r_addend"])
                for r in section.iter_relocations()
            ]


def _copied_symbol(module: ModuleFile, symbol: Any, numbers: dict[int, OutputSection]) -> OutputSymbol | None:
    kinds = {"STT_NOTYPE": STT_NOTYPE, "STT_OBJECT": STT_OBJECT, "STT_FUNC": STT_FUNC}
    kind, binding = symbol["st_info"]["type"], symbol["st_info"]["bind"]
    where = symbol["st_shndx"]
    if kind == "STT_SECTION":
        section = numbers.get(where)
        return module.section_symbol(section) if section is not None else None
    if where == "SHN_UNDEF" and symbol.name:
        return module.global_symbol(symbol.name, SHN_UNDEF)
    if kind not in kinds or where not in numbers:
        return None
    copied = OutputSymbol(
        symbol.name,
        kinds[kind],
        STB_LOCAL if binding == "STB_LOCAL" else STB_GLOBAL,
        numbers[where],
        symbol["st_value"],
        symbol["st_size"],
    )
    module.symbols.append(copied)
    return copied
