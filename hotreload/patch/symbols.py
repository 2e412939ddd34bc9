# SPDX-License-Identifier: MIT
"""The names that the running kernel knows, and how a patch refers to them: exports with CRCs, and sympos.

The livepatch core finds a symbol by object, name and ``sympos``: its rank, counted from 1, among all symbols
of that name that kallsyms shows for that object, in the order of the module's symbol table
(kernel/livepatch/core.c, klp_find_object_symbol). A sympos of 0 requires the name to be unique. To check
that, 6.1 walks all symbols of the kernel, which takes 27 ms each time in an emulated guest, so the rank is
written even if it is 1.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hotreload.elf.constants import SHF_ALLOC
from hotreload.errors import InputError

VMLINUX = "vmlinux"


@dataclass(frozen=True, slots=True)
class Export:
    """A line of Module.symvers: the exporting module, the CRC of the prototype, and the namespace if any."""

    crc: int
    module: str
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class SymbolPosition:
    """A symbol of a loaded object, as in ``.klp.sym.OBJECT.NAME,SYMPOS``."""

    object: str
    name: str
    sympos: int


def read_symvers(path: Path) -> dict[str, Export]:
    """Parse a Module.symvers: ``CRC NAME MODULE EXPORT_TYPE [NAMESPACE]``, separated by tabs.

    Returns the exports by name. Raises InputError.
    """
    exports = {}
    try:
        for line in path.read_text().splitlines():
            crc, name, module, _type, *namespace = line.split("\t")
            exports[name] = Export(int(crc, 16), module_name(module), "".join(namespace[:1]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", hint="build the kernel or module again"
        ) from error
    return exports


def module_name(path: str) -> str:
    """Return the kernel's name for a module's file: ``drivers/net/e-1.ko`` -> ``e_1``."""
    return Path(path).name.removesuffix(".ko").removesuffix(".o").replace("-", "_")


class ObjectSymbols(Protocol):
    """The symbols of one object that kallsyms shows: ModuleSymbols, or vmlinux_symbols.VmlinuxSymbols."""

    def block_of(self, source: str, nth: int) -> int | None: ...
    def position(self, name: str, block: int | None, size: int | None = None) -> SymbolPosition | None: ...
    def place(self, name: str, block: int | None) -> tuple[int, int] | None: ...
    def has_global(self, name: str) -> bool: ...
    def is_freed(self, position: SymbolPosition) -> bool: ...
    def exit_pointer(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    block: int  # the number of the STT_FILE symbol before a local symbol; -1 for a global one
    size: int
    section: int
    value: int


class ModuleSymbols:
    """The symbols of one loaded module that kallsyms shows, from the symbol table of its .ko file."""

    def __init__(self, name: str, ko: Path) -> None:
        """Read the file. Raises InputError (HR1009) if ``ko`` is not a module."""
        self.name = name
        self.files: list[str] = []
        self._exit_pointer: int | None = None
        self._entries: dict[str, list[_Entry]] = defaultdict(list)
        self._read(ko)

    def _read(self, ko: Path) -> None:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile
        from elftools.elf.sections import SymbolTableSection

        try:
            with ko.open("rb") as stream:
                elf = ELFFile(stream)
                table = elf.get_section_by_name(".symtab")
                if not isinstance(table, SymbolTableSection):
                    raise ELFError("no symbol table")
                shown = [_is_shown(section) for section in elf.iter_sections()]
                for symbol in table.iter_symbols():
                    self._note(symbol, shown)
                self._exit_pointer = _exit_pointer(elf, table)
        except (OSError, ELFError) as error:
            raise InputError(
                f"{ko} is not a kernel module: {error}", hint="build the module again"
            ) from error

    def _note(self, symbol: Any, shown: list[bool]) -> None:
        if symbol["st_info"]["type"] == "STT_FILE":
            self.files.append(symbol.name)
            return
        where = symbol["st_shndx"]
        if not symbol.name or not isinstance(where, int) or not shown[where]:
            return
        local = symbol["st_info"]["bind"] == "STB_LOCAL"
        block = len(self.files) - 1 if local else -1
        entry = _Entry(block, symbol["st_size"], where, symbol["st_value"])
        self._entries[symbol.name].append(entry)

    def block_of(self, source: str, nth: int) -> int | None:
        """Return the block of the ``nth`` unit (from 0) that was compiled from a file of that name.

        None if there is no such unit.
        """
        blocks = [number for number, name in enumerate(self.files) if name == source]
        return blocks[nth] if nth < len(blocks) else None

    def position(self, name: str, block: int | None, size: int | None = None) -> SymbolPosition | None:
        """Return the local symbol of that name in a unit's block, or the global one if ``block`` is None.

        None if there is no such symbol, or if its size is not ``size``.
        """
        entries = self._entries.get(name, [])
        wanted = [i for i, entry in enumerate(entries) if entry.block == (-1 if block is None else block)]
        if len(wanted) != 1 or size not in (None, entries[wanted[0]].size):
            return None
        return SymbolPosition(self.name, name, wanted[0] + 1)

    def place(self, name: str, block: int | None) -> tuple[int, int] | None:
        """Return the section number of the symbol that ``position`` finds, and its offset in that section."""
        entries = [e for e in self._entries.get(name, ()) if e.block == (-1 if block is None else block)]
        return (entries[0].section, entries[0].value) if len(entries) == 1 else None

    def has_global(self, name: str) -> bool:
        return any(entry.block == -1 for entry in self._entries.get(name, ()))

    def exit_pointer(self) -> int | None:
        """Return the offset of the exit function's address in struct module; None if there is none."""
        return self._exit_pointer

    def is_freed(self, _position: SymbolPosition) -> bool:
        """Return False: kallsyms does not show what a module frees after its init."""
        return False


def _exit_pointer(elf: Any, symbols: Any) -> int | None:
    """Return the offset of the exit pointer in struct module.

    The layout depends on the configuration, but the relocation for the pointer tells the place.
    """
    section = elf.get_section_by_name(".rela.gnu.linkonce.this_module")
    for relocation in section.iter_relocations() if section is not None else ():
        if symbols.get_symbol(relocation["r_info_sym"]).name == "cleanup_module":
            return int(relocation["r_offset"])
    return None


def _is_shown(section: Any) -> bool:
    """Return what is_core_symbol() of kernel/module/kallsyms.c says with KALLSYMS_ALL.

    That is: allocated, and not freed after init.
    """
    return bool(section["sh_flags"] & SHF_ALLOC) and not section.name.startswith(".init")
