# SPDX-License-Identifier: MIT
"""Which names the running kernel knows, and how a patch refers to them: exports with CRCs, and sympos.

The livepatch core finds a symbol by object, name and ``sympos``: its rank, from 1 on, among all of that name
that kallsyms shows of that object, in the order of the module's symbol table (kernel/livepatch/core.c,
klp_find_object_symbol). A sympos of 0 asks that the name be unique; to see that, 6.1 walks all symbols of the
kernel, 27 ms each time in an emulated guest, so the rank is written also where it is 1.
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
    """A line of Module.symvers: who exports a symbol, the CRC of its prototype, and its namespace if any."""

    crc: int
    module: str
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class SymbolPosition:
    """A symbol of a loaded object, as ``.klp.sym.OBJECT.NAME,SYMPOS`` names it."""

    object: str
    name: str
    sympos: int


def read_symvers(path: Path) -> dict[str, Export]:
    """Parse a Module.symvers, ``CRC NAME MODULE EXPORT_TYPE [NAMESPACE]`` between tabs. Raises InputError."""
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
    """The name under which the kernel knows a module's file: ``drivers/net/e-1.ko`` -> ``e_1``."""
    return Path(path).name.removesuffix(".ko").removesuffix(".o").replace("-", "_")


class ObjectSymbols(Protocol):
    """What kallsyms shows of one object: ModuleSymbols, or vmlinux_symbols.VmlinuxSymbols."""

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
    """What kallsyms shows of one loaded module, from the symbol table of its .ko file."""

    def __init__(self, name: str, ko: Path) -> None:
        """Raises InputError (HR1009) when ``ko`` is not a module."""
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
        """The number of the ``nth`` unit (from 0) that was compiled from a file of that name."""
        blocks = [number for number, name in enumerate(self.files) if name == source]
        return blocks[nth] if nth < len(blocks) else None

    def position(self, name: str, block: int | None, size: int | None = None) -> SymbolPosition | None:
        """The local symbol of that name in the unit of that block; the global one where ``block`` is None.

        None when there is no such symbol, or when it has another ``size`` than the one that is meant.
        """
        entries = self._entries.get(name, [])
        wanted = [i for i, entry in enumerate(entries) if entry.block == (-1 if block is None else block)]
        if len(wanted) != 1 or size not in (None, entries[wanted[0]].size):
            return None
        return SymbolPosition(self.name, name, wanted[0] + 1)

    def place(self, name: str, block: int | None) -> tuple[int, int] | None:
        """The section of the same symbol, and where it is in that."""
        entries = [e for e in self._entries.get(name, ()) if e.block == (-1 if block is None else block)]
        return (entries[0].section, entries[0].value) if len(entries) == 1 else None

    def has_global(self, name: str) -> bool:
        return any(entry.block == -1 for entry in self._entries.get(name, ()))

    def exit_pointer(self) -> int | None:
        """Where in its struct module the address of the exit function is; None: it has none."""
        return self._exit_pointer

    def is_freed(self, _position: SymbolPosition) -> bool:
        """What a module frees after its start is not shown at all."""
        return False


def _exit_pointer(elf: Any, symbols: Any) -> int | None:
    """struct module has another layout in each configuration; that the linker fills it in tells the place."""
    section = elf.get_section_by_name(".rela.gnu.linkonce.this_module")
    for relocation in section.iter_relocations() if section is not None else ():
        if symbols.get_symbol(relocation["r_info_sym"]).name == "cleanup_module":
            return int(relocation["r_offset"])
    return None


def _is_shown(section: Any) -> bool:
    """is_core_symbol() of kernel/module/kallsyms.c with KALLSYMS_ALL: allocated, and not freed after init."""
    return bool(section["sh_flags"] & SHF_ALLOC) and not section.name.startswith(".init")
