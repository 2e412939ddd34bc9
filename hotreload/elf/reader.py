# SPDX-License-Identifier: MIT
"""Read a relocatable object into named sections and symbols (see model.py).

The tables of a large object have thousands of entries. They are read with struct, which takes 1 ms instead of
pyelftools' 100. Four peculiarities of the format are dealt with here:

1. A relocation against a section symbol becomes one against the function, object, string or constant at that
   place. A PC-relative relocation counts from the end of its instruction, so the instruction is decoded if
   there is more than one possible answer.
2. A branch between two functions of one section needs no relocation, because the assembler resolves it. It
   becomes the relocation that it would be between two sections, and its field becomes zero.
3. Several names of one stretch become one symbol with aliases.
4. Bytes that no symbol covers become anonymous symbols, so that no byte is overlooked.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from pathlib import Path

from hotreload.elf.constants import (
    PC_RELATIVE,
    R_X86_64_32,
    R_X86_64_PC8,
    R_X86_64_PC32,
    SHF_ALLOC,
    SHF_COMPRESSED,
    SHF_MERGE,
    SHF_STRINGS,
    SHN_ABS,
    SHN_COMMON,
    SHN_LIVEPATCH,
    SHN_LORESERVE,
    SHN_UNDEF,
    SHN_XINDEX,
    SHT_NOBITS,
    SHT_RELA,
    SHT_STRTAB,
    SHT_SYMTAB,
    SHT_SYMTAB_SHNDX,
    STB_GLOBAL,
    STB_LOCAL,
    STB_WEAK,
    STT_FILE,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    STT_SECTION,
    WRITES,
)
from hotreload.elf.garbage import uncollected
from hotreload.elf.input_check import DamagedError, check_header, check_sections, no_symbols, read_image
from hotreload.elf.instructions import Instruction, UndecodableError, instructions
from hotreload.elf.model import (
    ConstRef,
    DebugSections,
    ObjectFile,
    Relocation,
    Section,
    StringRef,
    Symbol,
    SymbolRef,
    Target,
)
from hotreload.errors import InputError

_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QIIq")
DEBUG = ".debug"
# A stretch with two names is known by the one with the higher rank.
_RANK = {STB_GLOBAL: 2, STB_WEAK: 1}
# The additional name that MODULE_DEVICE_TABLE() gives a table (include/linux/module.h).
_DEVICE_TABLE = re.compile(r"__mod_\w+__\w+_device_table|__mod_device_table__\w+")

_RawRelocation = tuple[int, int, int, int]  # offset, type, symbol, addend


def read_object(path: Path) -> ObjectFile:
    """Read an object file. Raises InputError (HR1009) if it is not a relocatable object for x86-64."""
    return parse_object(read_image(path), str(path))


@uncollected()
def parse_object(image: bytes, name: str) -> ObjectFile:
    """Parse the bytes of an object file; ``name`` is for messages. Raises InputError (HR1009)."""
    check_header(image[:64], len(image), name)
    try:
        return _Reader(image, name).read()
    except DamagedError as error:
        raise InputError(f"{name}: damaged: {error}", hint="compile it again") from error
    except (struct.error, IndexError, KeyError, ValueError, OverflowError) as error:
        text = "damaged: its tables contradict each other"
        raise InputError(f"{name}: {text}", hint="compile it again") from error


class _Reader:
    """The state while one object is read. A reader is used once."""

    def __init__(self, image: bytes, name: str) -> None:
        self.image = image
        self.name = name
        self.headers: list[tuple[int, ...]] = []
        self.sections: dict[int, Section] = {}  # by index in the file
        self.symbols: list[Symbol] = []
        self.files: list[str] = []
        self.by_index: dict[int, Symbol] = {}  # a symbol-table index -> its symbol
        self.section_of: dict[int, Section] = {}  # an STT_SECTION's index -> its section
        self.starts: dict[int, list[int]] = {}  # section index -> starts of its symbols
        self.streams: dict[int, list[Instruction] | None] = {}  # section index -> its decoded instructions
        self.debug: dict[int, str] = {}  # the index of a section with debugging information -> its name
        self.debug_relocations: dict[int, int] = {}  # the same index -> the index of its relocations
        self.debug_section_of: dict[int, int] = {}  # the symbol of such a section -> the section's index

    def read(self) -> ObjectFile:
        self.read_sections()
        self.read_symbols()
        raw = self.read_relocations()
        self.cover_gaps(raw)
        for index, entries in raw.items():
            self.name_relocations(self.sections[index], entries)
        for section in self.sections.values():
            if section.is_code and sum(symbol.is_function for symbol in section.symbols) > 1:
                self.name_branches(section)
        debug = self.debug_sections()
        return ObjectFile(self.name, list(self.sections.values()), self.symbols, self.files, debug)

    # --- tables ---

    def read_sections(self) -> None:
        (table,) = struct.unpack_from("<Q", self.image, 40)
        entry_size, count, names = struct.unpack_from("<HHH", self.image, 58)
        first = _SECTION_HEADER.unpack_from(self.image, table)
        # gABI: with more than 0xff00 sections, header 0 holds the count and the index of the names.
        count = count or first[5]
        names = first[6] if names == SHN_XINDEX else names
        self.headers = [_SECTION_HEADER.unpack_from(self.image, table + i * entry_size) for i in range(count)]
        name_table = self._bytes_of(names)
        texts = [_text(name_table, header[0]) for header in self.headers]
        check_sections(self.headers, texts, len(self.image), self.name)
        for index, header in enumerate(self.headers):
            _, kind, flags, _, _, size, _, _, align, entry = header
            if index and kind not in (SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_SYMTAB_SHNDX):
                if texts[index].startswith(DEBUG) and not flags & SHF_ALLOC:
                    self.debug[index] = texts[index]
                    continue
                data = b"" if kind == SHT_NOBITS else self._bytes_of(index)
                self.sections[index] = Section(
                    index, texts[index], kind, flags, align or 1, entry, size, data
                )

    def read_symbols(self) -> None:
        table = next((i for i, h in enumerate(self.headers) if h[1] == SHT_SYMTAB), None)
        if table is None:
            raise no_symbols(self.headers, self.name)
        names = self._bytes_of(self.headers[table][6])
        extended = self._extended_indices(table)
        stretches: dict[tuple[int, int, int, str | None], Symbol] = {}
        for index, entry in enumerate(_SYMBOL.iter_unpack(self._bytes_of(table))):
            name_at, info, _, where, value, size = entry
            kind, binding = info & 0xF, info >> 4
            in_section = where < SHN_LORESERVE or where == SHN_XINDEX
            if where == SHN_XINDEX:
                where = extended[index]
            if kind == STT_FILE:
                self.files.append(_text(names, name_at))
                continue
            if kind == STT_SECTION:
                if value:
                    raise DamagedError(f"symbol {index} is a section symbol, but has a value")
                if where in self.sections:
                    self.section_of[index] = self.sections[where]
                elif where in self.debug:
                    self.debug_section_of[index] = where
                continue
            if index == 0:
                continue
            if in_section and where in self.debug:
                self.debug_section_of[index] = where
                continue
            section = self.sections.get(where) if in_section else None
            if section is None and in_section and where != SHN_UNDEF:
                raise DamagedError(f"symbol {index} is in section {where}, which contains no code or data")
            if section is not None and value + size > section.size:
                raise DamagedError(f"symbol {index} reaches past the end of {section.name}")
            # An absolute or common symbol has a value, but no stretch that could be compared.
            kind = kind if section is not None or where in (SHN_UNDEF, SHN_LIVEPATCH) else STT_NOTYPE
            if not in_section and where not in (SHN_ABS, SHN_COMMON, SHN_LIVEPATCH):
                raise DamagedError(f"symbol {index} has the invalid section index {where:#x}")
            symbol = Symbol(_text(names, name_at), kind, binding, section, value, size)
            symbol.index = SHN_UNDEF if in_section else where
            self.by_index[index] = symbol
            if section is None or kind not in (STT_FUNC, STT_OBJECT):
                self.symbols.append(symbol)
                continue
            # An object of size 0 never becomes an alias: without lockdep, a lock_class_key has no size, and
            # shares its place with other keys and with the next variable.
            alone = symbol.name if kind == STT_OBJECT and not size else None
            known = stretches.setdefault((section.index, value, kind, alone), symbol)
            if known is symbol:
                self.symbols.append(symbol)
                section.symbols.append(symbol)
            else:
                self.by_index[index] = known
                _add_name(known, symbol)
        for section in self.sections.values():
            section.symbols.sort(key=lambda symbol: (symbol.value, symbol.size))
            _give_sizes(section)

    def _extended_indices(self, symtab: int) -> tuple[int, ...]:
        """Return the section indices of symbols from their own table (gABI), if there is one.

        It holds the indices that need more than 16 bits.
        """
        for index, header in enumerate(self.headers):
            if header[1] == SHT_SYMTAB_SHNDX and header[6] == symtab:
                data = self._bytes_of(index)
                return struct.unpack(f"<{len(data) // 4}I", data)
        return ()

    def read_relocations(self) -> dict[int, list[_RawRelocation]]:
        raw: dict[int, list[_RawRelocation]] = {}
        for index, header in enumerate(self.headers):
            if header[1] == SHT_RELA:
                if header[7] in self.debug:
                    self.debug_relocations[header[7]] = index
                    continue
                if header[7] not in self.sections:
                    raise DamagedError(
                        f"section {index} relocates section {header[7]}, which contains no code or data"
                    )
                entries = [
                    (offset, kind, symbol, addend)
                    for offset, kind, symbol, addend in self._entries(index)
                    # In code, R_X86_64_NONE marks a place: old versions of recordmcount left one where they
                    # made a call a nop.
                    if kind or self.sections[header[7]].is_code
                ]
                raw.setdefault(header[7], []).extend(entries)
        for target, entries in raw.items():
            entries.sort()
            if self.sections[target].is_allocated:
                _check_places(self.sections[target], entries)
        return raw

    def _entries(self, index: int) -> list[_RawRelocation]:
        entries: list[_RawRelocation] = list(_RELA.iter_unpack(self._bytes_of(index)))
        size = self.sections[self.headers[index][7]].size
        if any(entry[0] >= size for entry in entries):
            raise DamagedError(f"section {index} has a relocation past the end of its section")
        return entries

    # --- peculiarity 4: bytes without a symbol ---

    def cover_gaps(self, raw: dict[int, list[_RawRelocation]]) -> None:
        """Give an anonymous symbol to each stretch, except filling, that no function or object covers."""
        for section in self.sections.values():
            if not section.is_allocated or section.flags & SHF_MERGE:
                continue
            offsets = [entry[0] for entry in raw.get(section.index, ())]
            gaps = list(_gaps(section))
            for start, end in gaps:
                used = any(start <= offset < end for offset in offsets)
                if used or not section.symbols or not _is_filling(section, start, end):
                    place = f"{section.name}+{start:#x}" if start else section.name
                    symbol = Symbol(place, STT_NOTYPE, STB_LOCAL, section, start, end - start, anonymous=True)
                    section.symbols.append(symbol)
                    self.symbols.append(symbol)
            section.symbols.sort(key=lambda symbol: (symbol.value, symbol.size))
        self.starts = {
            index: [symbol.value for symbol in section.symbols] for index, section in self.sections.items()
        }

    # --- peculiarity 1: relocations against sections ---

    def name_relocations(self, section: Section, entries: list[_RawRelocation]) -> None:
        for offset, kind, index, addend in entries:
            symbol = self.by_index.get(index)
            target: Target
            if symbol is not None and not self._is_label(symbol):
                target = SymbolRef(symbol)
            elif symbol is not None and symbol.section is not None and symbol.section.flags & SHF_MERGE:
                # .LC0 - 1 is relative to this string, although that place lies in the previous string.
                target, inside = self._merged(symbol.section, symbol.value)
                addend += inside
            elif symbol is not None and symbol.section is not None:
                # A label of the assembler (in inline assembly): only its place counts.
                target, addend = self._at(symbol.section, section, offset, kind, symbol.value + addend)
            elif index in self.section_of:
                target, addend = self._at(self.section_of[index], section, offset, kind, addend)
            else:
                raise DamagedError(
                    f"a relocation in {section.name} refers to symbol {index}, which does not exist"
                )
            where = self.section_of[index] if symbol is None else symbol.section
            if section.is_allocated and where is not None and not where.is_allocated:
                raise DamagedError(f"{section.name} refers to {where.name}, which is not loaded")
            section.relocations.append(Relocation(offset, kind, target, addend))

    def _is_label(self, symbol: Symbol) -> bool:
        return symbol.section is not None and symbol.kind == STT_NOTYPE

    def _at(
        self, target: Section, section: Section, offset: int, kind: int, addend: int
    ) -> tuple[Target, int]:
        """Return what is at ``target + addend``, and the addend relative to its start.

        The relocation is in ``section`` at ``offset``.
        """
        after = self._bytes_to_end(target, section, offset) if kind in PC_RELATIVE and section.is_code else 0
        place = addend + after
        if target.flags & SHF_MERGE:
            found, inside = self._merged(target, place)
            return found, addend - place + inside
        symbol = self._owner(target, place)
        return SymbolRef(symbol), addend - symbol.value

    def _merged(self, section: Section, place: int) -> tuple[Target, int]:
        """Return the string or constant at a place of a mergeable section, and the place's offset in it."""
        if 0 <= place < section.size:
            if section.flags & SHF_STRINGS and _starts_string(section, place):
                end = section.data.index(b"\0", place)
                return StringRef(section.data[place:end], section.align), 0
            if not section.flags & SHF_STRINGS and section.entry_size:
                inside = place % section.entry_size
                start = place - inside
                return ConstRef(section.data[start : start + section.entry_size]), inside
        symbol = self._owner(section, place)
        return SymbolRef(symbol), place - symbol.value

    def _bytes_to_end(self, target: Section, section: Section, offset: int) -> int:
        """Return the distance from a 4-byte PC-relative field at ``offset`` to the instruction's end."""
        # If one symbol makes up the whole target section, the distance does not matter.
        if not target.flags & SHF_MERGE and len(target.symbols) < 2:
            return 4
        stream = self._instructions(section, offset)
        if stream is None:
            return 4
        found = bisect_right(stream, offset, key=lambda instruction: instruction.start) - 1
        if found < 0 or stream[found].end < offset + 4:
            return 4
        return stream[found].end - offset

    def _instructions(self, section: Section, offset: int) -> list[Instruction] | None:
        """Return the instructions around ``offset``, decoded from the start of the symbol that holds it.

        None if they cannot be decoded.
        """
        owner = self._owner_or_none(section, offset)
        start, end = (owner.value, owner.value + owner.size) if owner else (0, section.size)
        key = section.index << 32 | start
        if key not in self.streams:
            try:
                self.streams[key] = list(instructions(section.data, start, end))
            except UndecodableError:
                self.streams[key] = None
        return self.streams[key]

    def _owner(self, section: Section, place: int) -> Symbol:
        """Return the symbol that holds ``section[place]``.

        For a pointer past an end, it is the last symbol before it.
        """
        found = self._owner_or_none(section, place)
        if found is not None:
            return found
        if not section.symbols:
            # An empty section, or one that is not loaded, is represented by a symbol of its own.
            section.symbols.append(
                Symbol(section.name, STT_NOTYPE, STB_LOCAL, section, 0, section.size, anonymous=True)
            )
            self.symbols.append(section.symbols[0])
            self.starts[section.index] = [0]
        before = [symbol for symbol in section.symbols if symbol.value + symbol.size <= place]
        return before[-1] if before else section.symbols[0]

    def _owner_or_none(self, section: Section, place: int) -> Symbol | None:
        starts = self.starts.get(section.index, [])
        at = bisect_right(starts, place) - 1
        while at >= 0:
            symbol = section.symbols[at]
            if symbol.value == place or place < symbol.value + symbol.size:
                return symbol
            if symbol.size:
                return None
            at -= 1
        return None

    # --- peculiarity 2: branches that need no relocation ---

    def name_branches(self, section: Section) -> None:
        """Turn branches out of a function into relocations, in a section that holds several functions."""
        taken = {relocation.offset for relocation in section.relocations}
        data = bytearray(section.data)
        for symbol in section.symbols:
            if not symbol.is_function:
                continue
            for instruction in self._instructions(section, symbol.value) or ():
                field = instruction.end - instruction.immediate
                if not instruction.is_relative_branch or field in taken:
                    continue
                distance = int.from_bytes(data[field : instruction.end], "little", signed=True)
                place = instruction.end + distance
                if symbol.value <= place < symbol.value + symbol.size:
                    continue
                target = self._owner(section, place)
                kind = R_X86_64_PC32 if instruction.immediate == 4 else R_X86_64_PC8
                addend = place - target.value - instruction.immediate
                section.relocations.append(Relocation(field, kind, SymbolRef(target), addend))
                data[field : instruction.end] = bytes(instruction.immediate)
        section.relocations.sort(key=lambda relocation: relocation.offset)
        section.data = bytes(data)

    # --- debugging information, which dwarf.py parses on request ---

    def debug_sections(self) -> DebugSections | None:
        """Return the DWARF sections; None if there are none or they are compressed."""
        found = {name: index for index, name in self.debug.items()}
        if ".debug_info" not in found or any(self.headers[i][2] & SHF_COMPRESSED for i in found.values()):
            return None

        def content(name: str) -> bytes:
            return self._bytes_of(found[name]) if name in found else b""

        info, addresses = self._relocated_info(found[".debug_info"])
        return DebugSections(
            info, content(".debug_abbrev"), content(".debug_str"), content(".debug_line_str"), addresses
        )

    def _relocated_info(self, index: int) -> tuple[bytes, dict[int, tuple[Symbol, int]]]:
        """Return ``.debug_info`` with its string offsets filled in, and what its addresses mean.

        The second value maps an offset in ``.debug_info`` to a symbol and the place in it.
        """
        info = bytearray(self._bytes_of(index))
        addresses: dict[int, tuple[Symbol, int]] = {}
        relocations = self.debug_relocations.get(index)
        raw = () if relocations is None else _RELA.iter_unpack(self._bytes_of(relocations))
        put = struct.Struct("<I").pack_into
        for offset, kind, symbol, addend in raw:
            if symbol in self.debug_section_of:
                if kind == R_X86_64_32:
                    put(info, offset, addend & 0xFFFFFFFF)
            elif place := self._debug_address(symbol, addend):
                addresses[offset] = place
        return bytes(info), addresses

    def _debug_address(self, index: int, addend: int) -> tuple[Symbol, int] | None:
        section = self.section_of.get(index)
        if section is not None:
            symbol = self._owner_or_none(section, addend)
            return (symbol, addend - symbol.value) if symbol is not None else None
        symbol = self.by_index.get(index)
        return (symbol, addend) if symbol is not None else None

    # --- helpers ---

    def _bytes_of(self, index: int) -> bytes:
        _, _, _, _, offset, size, *_ = self.headers[index]
        if offset + size > len(self.image):
            raise DamagedError(f"section {index} is outside the file")
        return self.image[offset : offset + size]


def _add_name(known: Symbol, symbol: Symbol) -> None:
    """Add the name of ``symbol`` to a known symbol of the same stretch.

    A name that other files can use takes precedence over a local one, unless it is only for modpost.
    """
    known.size = max(known.size, symbol.size)
    if _DEVICE_TABLE.fullmatch(known.name):
        known.aliases += (known.name,)
        known.name, known.binding = symbol.name, symbol.binding
    elif _DEVICE_TABLE.fullmatch(symbol.name):
        known.aliases += (symbol.name,)
    elif _RANK.get(symbol.binding, 0) > _RANK.get(known.binding, 0):
        known.aliases += (known.name,)
        known.name, known.binding = symbol.name, symbol.binding
    else:
        known.aliases += (symbol.name,)


def _give_sizes(section: Section) -> None:
    """Give a size to functions whose size the assembly leaves out: they reach to the next symbol."""
    for number, symbol in enumerate(section.symbols):
        if symbol.is_function and not symbol.size:
            later = (s.value for s in section.symbols[number + 1 :] if s.value > symbol.value)
            symbol.size = next(later, section.size) - symbol.value


def _check_places(section: Section, entries: list[_RawRelocation]) -> None:
    """Raise DamagedError if two relocations write to one place. Relocations of type NONE write nothing."""
    end = 0
    for offset, kind, _, _ in entries:
        if kind:
            if offset < end:
                raise DamagedError(f"two relocations write to {section.name}+{offset:#x}")
            end = offset + WRITES.get(kind, 4)


def _starts_string(section: Section, place: int) -> bool:
    """Return whether a byte string begins at a place. Only there is it certain which string is meant."""
    if section.entry_size != 1 or place % section.align:
        return False
    return place == 0 or section.data[place - 1] == 0


def _gaps(section: Section) -> list[tuple[int, int]]:
    gaps, at = [], 0
    for symbol in section.symbols:
        if symbol.value > at:
            gaps.append((at, symbol.value))
        at = max(at, symbol.value + symbol.size)
    if at < section.size:
        gaps.append((at, section.size))
    return gaps


# The filling between functions: int3 (-mharden-sls, .skip 0xcc) and the assembler's multi-byte nops.
_NOPS = frozenset(b"\x90\xcc\x66\x2e\x0f\x1f\x84\x00\x80\x40\x44\x8d\x74\x26\x76\xb4\x27")


def _is_filling(section: Section, start: int, end: int) -> bool:
    """Return whether a stretch without a symbol is alignment padding of an assembler or linker."""
    if section.is_zero:
        return True
    return set(section.data[start:end]) <= (_NOPS if section.is_code else {0})


def _text(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    if end < 0:
        raise DamagedError("a name is outside the string table")
    return table[offset:end].decode()
