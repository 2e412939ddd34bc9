# SPDX-License-Identifier: MIT
"""An object or module as pyelftools and objdump see it: no code of the package is used."""

from __future__ import annotations

import io
import re
import subprocess
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from elftools.elf.elffile import ELFFile

WRITE, ALLOC, EXEC, MERGE, STRINGS, LIVEPATCH = 0x1, 0x2, 0x4, 0x10, 0x20, 0x100000
SHN_LIVEPATCH: Final = 0xFF20
PC_RELATIVE: Final = frozenset((2, 4, 24))


@dataclass(frozen=True)
class Sym:
    name: str
    kind: str
    binding: str
    section: int | str
    value: int
    size: int
    file: int  # the number of its STT_FILE, -1 for a global one


@dataclass(frozen=True)
class Rel:
    offset: int
    type: int
    symbol: Sym
    addend: int
    table: str


class File:
    """An object or module: sections, symbols, relocations."""

    def __init__(self, image: bytes, path: Path | None = None) -> None:
        self.path = path
        elf = ELFFile(io.BytesIO(image))
        self.sections = [s.header for s in elf.iter_sections()]
        self.names = [s.name for s in elf.iter_sections()]
        self.data = [
            bytes(s["sh_size"]) if s["sh_type"] == "SHT_NOBITS" else s.data() for s in elf.iter_sections()
        ]
        table = elf.get_section_by_name(".symtab")
        self.first_global = table["sh_info"]
        self.files: list[str] = []
        self.symbols = [self._symbol(s) for s in table.iter_symbols()]
        self.relocations: dict[int, list[Rel]] = {}
        for section in elf.iter_sections():
            if section["sh_type"] == "SHT_RELA":
                into = self.relocations.setdefault(section["sh_info"], [])
                for r in section.iter_relocations():
                    symbol = self.symbols[r["r_info_sym"]]
                    into.append(Rel(r["r_offset"], r["r_info_type"], symbol, r["r_addend"], section.name))
        for found in self.relocations.values():
            found.sort(key=lambda r: r.offset)

    def _symbol(self, s: Any) -> Sym:
        kind = s["st_info"]["type"]
        if kind == "STT_FILE":
            self.files.append(s.name)
        where = s["st_shndx"]
        if where == SHN_LIVEPATCH:
            where = "SHN_LIVEPATCH"  # pyelftools has names for others
        block = len(self.files) - 1 if s["st_info"]["bind"] == "STB_LOCAL" else -1
        return Sym(s.name, kind, s["st_info"]["bind"], where, s["st_value"], s["st_size"], block)

    @cached_property
    def named(self) -> list[Sym]:
        """Functions and objects defined here."""
        return [
            s for s in self.symbols if s.kind in ("STT_FUNC", "STT_OBJECT") and isinstance(s.section, int)
        ]

    @cached_property
    def functions(self) -> list[Sym]:
        return [s for s in self.named if s.kind == "STT_FUNC" and s.size]

    def within(self, section: int, start: int, end: int) -> list[Rel]:
        return [r for r in self.relocations.get(section, ()) if start <= r.offset < end]

    def holder(self, section: int, place: int) -> Sym | None:
        """The function or object that has a place in it."""
        found = [s for s in self.named if s.section == section and s.value <= place < s.value + s.size]
        return min(found, key=lambda s: (s.value != place, s.kind != "STT_FUNC", s.size), default=None)

    def stretch(self, section: int, place: int) -> tuple[int, int]:
        """Where the bytes without a symbol around a place begin and end."""
        ends = [s.value + s.size for s in self.named if s.section == section and s.value + s.size <= place]
        starts = [s.value for s in self.named if s.section == section and s.value > place]
        return max(ends, default=0), min(starts, default=len(self.data[section]))

    def last(self, section: int, place: int) -> Sym | None:
        """The function or object whose end, and whose section's end, a place is."""
        if place != len(self.data[section]):
            return None
        return next((s for s in self.named if s.section == section and s.value + s.size == place), None)

    def text(self, section: int, place: int) -> bytes:
        return self.data[section][place : self.data[section].find(b"\0", place)]

    @cached_property
    def instructions(self) -> dict[str, list[int]]:
        """Where instructions begin, by the name of their section; objdump's answer."""
        assert self.path is not None
        command = ["objdump", "-dzw", "--no-show-raw-insn", str(self.path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found: dict[str, list[int]] = {}
        starts: list[int] = []
        for line in said.splitlines():
            if heading := re.match(r"Disassembly of section (.*):$", line):
                starts = found.setdefault(heading[1], [])
            elif place := re.match(r"\s*([0-9a-f]+):\t", line):
                starts.append(int(place[1], 16))
        return found

    def to_end(self, section: int, relocation: Rel) -> int:
        """From a PC-relative field to the end of its instruction, where the processor counts from."""
        if relocation.type not in PC_RELATIVE or not self.sections[section]["sh_flags"] & EXEC:
            return 0
        starts = self.instructions.get(self.names[section], [])
        at = bisect_right(starts, relocation.offset)
        end = starts[at] if at < len(starts) else len(self.data[section])
        return end - relocation.offset

    def is_branch(self, section: int, relocation: Rel) -> bool:
        code, at = self.data[section], relocation.offset
        near = at > 0 and code[at - 1] in (0xE8, 0xE9)
        return near or (at > 1 and code[at - 2] == 0x0F and code[at - 1] & 0xF0 == 0x80)
