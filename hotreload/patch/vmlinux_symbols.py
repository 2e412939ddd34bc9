# SPDX-License-Identifier: MIT
"""The symbols of vmlinux that kallsyms shows, from the symbol table of the file that was linked last.

The ``sympos`` of a name is its rank by address among all symbols of that name (klp_find_object_symbol() walks
kallsyms, which scripts/kallsyms.c sorts by address). It is not the rank in the symbol table, because the
linker script puts .text.unlikely, .sched.text and the like in places of their own. A kernel has 100,000
symbols. To take only 0.1 s, the table is read as numbers, and a name is looked up by its bytes on demand.
"""

from __future__ import annotations

import mmap
import re
import struct
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hotreload.elf.constants import SHN_ABS, SHN_UNDEF, STB_LOCAL, STT_FILE, STT_FUNC, STT_NOTYPE, STT_SECTION
from hotreload.errors import InputError
from hotreload.patch.symbols import VMLINUX, SymbolPosition

_SYMBOL: Final = struct.Struct("<IBBHQQ")  # Elf64_Sym
# scripts/mksysmap and is_ignored_symbol() of scripts/kallsyms.c leave these out, and absolute symbols, too
# (x86-64).
_HIDDEN: Final = re.compile(
    rb"\$|\.L|L0$|__(?:crc|kstrtab|kstrtabns|efistub|kcfi_typeid)_|__pi_\.L|__kvm_nvhe_[$.]"
    rb"|kallsyms_(?:addresses|offsets|relative_base|num_syms|names|markers|token_table|token_index"
    rb"|seqs_of_names)$"
)


@dataclass(frozen=True, slots=True)
class VmlinuxSymbol:
    """A defined symbol. ``block``: the number of the unit's STT_FILE symbol; -1 for a global one."""

    name: str
    block: int
    address: int
    size: int
    kind: int


class VmlinuxSymbols:
    """The symbols of a linked vmlinux, with the interface of ModuleSymbols."""

    name = VMLINUX

    def __init__(self, vmlinux: Path) -> None:
        """Read the file. Raises InputError (HR1009) if ``vmlinux`` is not a linked kernel with symbols."""
        self.files: list[str] = []
        self._first_of_block: list[int] = []  # the number of the first symbol after each STT_FILE
        self._table, self._names = _read_tables(vmlinux)
        self._only: dict[bytes, int] = {}  # name -> the number of its first symbol
        # name -> the numbers of its other symbols
        self._others: dict[bytes, list[int]] = defaultdict(list)
        self._functions: dict[int, int] | None = None  # start address -> offset of its name
        self._take_stock()

    def _take_stock(self) -> None:
        names, only = self._names, self._only
        for number, (at, info, _other, where, _value, _size) in enumerate(_SYMBOL.iter_unpack(self._table)):
            kind = info & 0xF
            if kind == STT_FILE:
                self.files.append(_text(names, at).decode(errors="surrogateescape"))
                self._first_of_block.append(number)
            elif kind != STT_SECTION and where not in (SHN_UNDEF, SHN_ABS):
                name = _text(names, at)
                if only.setdefault(name, number) != number:
                    self._others[name].append(number)

    def block_of(self, source: str, nth: int) -> int | None:
        """Return the block of the ``nth`` unit (from 0, in link order) compiled from a file of that name."""
        blocks = [number for number, name in enumerate(self.files) if name == source]
        return blocks[nth] if nth < len(blocks) else None

    def named(self, name: str) -> list[VmlinuxSymbol]:
        """Return all symbols that kallsyms shows under a name, in the order of kallsyms."""
        return [] if _HIDDEN.match(_bytes(name)) else self._all(name)

    def hidden(self, name: str) -> int | None:
        """Return the address of a global symbol that kallsyms does not show, such as its own tables."""
        found = [symbol.address for symbol in self._all(name) if symbol.block == -1]
        return found[0] if len(found) == 1 and _HIDDEN.match(_bytes(name)) else None

    def _all(self, name: str) -> list[VmlinuxSymbol]:
        bare = _bytes(name)
        if bare not in self._only:
            return []
        numbers = (self._only[bare], *self._others.get(bare, ()))
        found = [self._symbol(name, number) for number in numbers]
        return sorted(found, key=lambda symbol: symbol.address)

    def find(self, name: str, block: int | None, size: int | None = None) -> VmlinuxSymbol | None:
        """Return the local symbol of that name in a unit's block, or the global one if ``block`` is None.

        None if there is no such symbol, or if its size is not ``size``.
        """
        wanted = -1 if block is None else block
        found = [symbol for symbol in self.named(name) if symbol.block == wanted]
        return found[0] if len(found) == 1 and size in (None, found[0].size) else None

    def position(self, name: str, block: int | None, size: int | None = None) -> SymbolPosition | None:
        """Return the same symbol in the form in which a livepatch names it."""
        symbol = self.find(name, block, size)
        if symbol is None:
            return None
        rank = [other.address for other in self.named(name)].index(symbol.address)
        return SymbolPosition(VMLINUX, name, rank + 1)

    def place(self, name: str, block: int | None) -> tuple[int, int] | None:
        """Return the section and address of the same symbol. All of vmlinux counts as section 0."""
        symbol = self.find(name, block)
        return (0, symbol.address) if symbol is not None else None

    def has_global(self, name: str) -> bool:
        return any(symbol.block == -1 for symbol in self.named(name))

    def is_freed(self, position: SymbolPosition) -> bool:
        """Return whether its memory was freed after boot (free_initmem()). kallsyms still shows it."""
        begin, end = (self.find(name, None) for name in ("__init_begin", "__init_end"))
        address = self.named(position.name)[position.sympos - 1].address
        return begin is not None and end is not None and begin.address <= address < end.address

    def exit_pointer(self) -> int | None:
        """Return None, because vmlinux is not a module."""
        return None

    def function_at(self, address: int) -> str | None:
        """Return the name of the function that starts at an address.

        If there are several, it is the first in the table.
        """
        if self._functions is None:
            self._functions = {}
            for at, info, _other, where, value, _size in _SYMBOL.iter_unpack(self._table):
                if info & 0xF in (STT_FUNC, STT_NOTYPE) and where not in (SHN_UNDEF, SHN_ABS):
                    self._functions.setdefault(value, at)
        at = self._functions.get(address, -1)
        return None if at < 0 else _text(self._names, at).decode(errors="surrogateescape")

    def _symbol(self, name: str, number: int) -> VmlinuxSymbol:
        _at, info, _other, _where, value, size = _SYMBOL.unpack_from(self._table, number * _SYMBOL.size)
        local = info >> 4 == STB_LOCAL
        block = bisect_right(self._first_of_block, number) - 1 if local else -1
        return VmlinuxSymbol(name, block, value, size, info & 0xF)


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _text(names: bytes, at: int) -> bytes:
    return names[at : names.index(b"\0", at)]


def _read_tables(vmlinux: Path) -> tuple[bytes, bytes]:
    """Return the raw .symtab and its .strtab."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        with vmlinux.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            elf = ELFFile(stream)
            table = elf.get_section_by_name(".symtab")
            if not isinstance(table, SymbolTableSection) or elf.header["e_type"] != "ET_EXEC":
                raise ELFError("it has no symbol table")
            return tuple(
                view[section["sh_offset"] : section["sh_offset"] + section["sh_size"]]
                for section in (table, table.stringtable)
            )  # type: ignore[return-value]
    except (OSError, ValueError, ELFError) as error:
        raise InputError(
            f"{vmlinux} is not a linked kernel: {error}", hint="run hotreload kernel build, or make"
        ) from error
