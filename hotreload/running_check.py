# SPDX-License-Identifier: MIT
"""Check in the guest's memory that a kernel function is the one we mean, before it is replaced.

This proves three things at once: the guest runs what the base was built from, a symbol's position among its
namesakes was counted correctly, and nobody else has put a jump there. Each function is checked before its
first replacement. After that it begins with a call of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotreload.build.base import AnyBase
from hotreload.build.built import VMLINUX
from hotreload.build.cmd_files import TranslationUnit
from hotreload.compared import Compared
from hotreload.deploy.guest import KALLSYMS_LIMIT, Guest, run_in_time
from hotreload.deploy.verify import (
    Checked,
    ModuleTables,
    ReadMemory,
    addresses_in_module,
    addresses_in_vmlinux,
    check_functions,
    module_tables,
    offset_of_kernel,
)
from hotreload.diff.guest_addresses import AddressOf
from hotreload.diff.guest_code import GuestUnit
from hotreload.diff.obstacles import Obstacle
from hotreload.elf.model import Symbol
from hotreload.elf.reader import read_object
from hotreload.found_texts import Where, unknown_texts, with_texts
from hotreload.patch.kernel_symbols import KernelSymbols
from hotreload.patch.model import PatchPlan
from hotreload.patch.symbols import SymbolPosition
from hotreload.patch.vmlinux_symbols import VmlinuxSymbols
from hotreload.patch.writes import Place, Written
from hotreload.plan_units import block_of

# The first gate of the interrupt descriptor table points there, which tells how far the kernel was moved.
FIRST_GATE = "asm_exc_divide_error"
_Key = tuple[str, Path, str]  # a module, a unit's object, and a function of it
_Unit = tuple[GuestUnit, dict[str, Symbol]]
RESTART = "run hotreload guest restart to boot what was built; see hotreload why HR3101"


class RunningCheck:
    """Checks functions in the memory of one guest, from its boot to its end.

    To check modules, it needs the vmlinux of their kernel, too.
    """

    def __init__(
        self, base: AnyBase, guest: Guest, read_memory: ReadMemory, idt_base: Callable[[], Awaitable[int]]
    ) -> None:
        self._base = base
        self._guest = guest
        self._read_memory = read_memory
        self._idt_base = idt_base
        self._offset: int | None = None
        self._units: dict[Path, _Unit] = {}
        self._passed: set[_Key] = set()

    def forget(self, base: AnyBase, modules: Collection[str]) -> None:
        """Take over another ``base`` of the guest, because these modules were reloaded."""
        self._base = base
        self._passed = {key for key in self._passed if key[0] not in modules}

    async def obstacles(self, compared: Iterable[Compared], symbols: KernelSymbols) -> tuple[Obstacle, ...]:
        """Return HR3101 for each function to be replaced that differs from what kbuild made.

        Raises GuestUnreachableError.
        """
        if VMLINUX not in symbols.modules:
            return ()
        wanted = {key: one for key, one in _replaced(compared) if key not in self._passed}
        if not wanted:
            return ()
        places = await self._places({unit.module for unit, _ in wanted.values()}, symbols)
        checked = {key: await self._checked(*wanted[key], places, symbols) for key in wanted}
        known = {key: one for key, one in checked.items() if one is not None}
        verdict = await check_functions(self._read_memory, list(known.values()))
        wrong = {mismatch.function: mismatch for mismatch in verdict.mismatches}
        self._passed |= {key for key in known if key[2] not in wrong}
        return tuple(
            Obstacle(
                "HR3101", name, f"the guest runs different code: {wrong[name]}", RESTART, str(unit.source)
            )
            for (_, _, name), (unit, _function) in wanted.items()
            if name in wrong
        )

    async def with_texts(
        self, plan: PatchPlan, written: Mapping[Place, Written], symbols: KernelSymbols
    ) -> PatchPlan:
        """Return the plan with the addresses of the old strings that its writes replace (found_texts.py).

        Raises GuestUnreachableError, PatchRejectedError (HR2103).
        """
        unknown = unknown_texts(plan, written)
        objects = {write.object for write in unknown}

        async def where() -> Where:
            if VMLINUX in symbols.modules:
                return (await self._places(objects, symbols)).address_of
            tables = await self._tables(objects)
            return lambda position: _address_in_module(tables, position)

        return await with_texts(plan, unknown, self._read_memory, where)

    async def _places(self, modules: set[str], symbols: KernelSymbols) -> _Places:
        vmlinux = symbols.modules[VMLINUX]
        assert isinstance(vmlinux, VmlinuxSymbols)
        if self._offset is None:
            linked = vmlinux.find(FIRST_GATE, None)
            assert linked is not None, "every x86-64 kernel has it"
            gate = await self._read_memory(await self._idt_base(), 16)
            self._offset = offset_of_kernel(gate, linked.address)
        return _Places(vmlinux, self._offset, await self._tables(modules))

    async def _tables(self, modules: set[str]) -> ModuleTables:
        """Return where the modules are. Only the guest knows this."""
        asked = modules - {VMLINUX}
        return module_tables(await self._shown() if asked else "")

    async def _shown(self) -> str:
        """Return the symbols of modules that the guest's kernel shows."""
        command = "grep -F ']' /proc/kallsyms"
        return (await run_in_time(self._guest, command, timeout=KALLSYMS_LIMIT)).text

    async def _checked(
        self, unit: TranslationUnit, running: Symbol, places: _Places, symbols: KernelSymbols
    ) -> Checked | None:
        """Return what to check for a function, or None if its module is not loaded."""
        block = block_of(self._base, unit.module, unit, symbols)
        position = symbols.modules[unit.module].position(
            running.name, block if running.is_local else None, running.size
        )
        address = None if position is None else places.address_of(position)
        if address is None:
            return None  # the plan has already refused a symbol that is missing
        if unit.object not in self._units or unit.module != VMLINUX:  # a module may have been reloaded
            addresses = places.addresses(unit.module, block)
            self._units[unit.object] = await asyncio.to_thread(self._read, unit, addresses, places)
        guest_unit, functions = self._units[unit.object]
        return Checked(guest_unit, functions[running.name], address)

    def _read(self, unit: TranslationUnit, addresses: AddressOf, places: _Places) -> _Unit:
        plain = read_object(self._base.of(unit).plain_object(unit))
        made = GuestUnit(plain, addresses, places.name_at)
        return made, {symbol.name: symbol for symbol in plain.symbols if symbol.is_function}


@dataclass(frozen=True, slots=True)
class _Places:
    """The addresses of symbols in the guest.

    ``offset`` is how far vmlinux was moved from its linked address.
    """

    vmlinux: VmlinuxSymbols
    offset: int
    tables: ModuleTables

    def address_of(self, position: SymbolPosition) -> int | None:
        """Return the address of the symbol that livepatch would find, or None if its module is not loaded."""
        if position.object == VMLINUX:
            return self.vmlinux.named(position.name)[position.sympos - 1].address + self.offset
        return _address_in_module(self.tables, position)

    def addresses(self, module: str, block: int | None) -> AddressOf:
        if module == VMLINUX:
            return addresses_in_vmlinux(self.vmlinux, block, self.offset)
        in_vmlinux = addresses_in_vmlinux(self.vmlinux, None, self.offset)
        return addresses_in_module(self.tables, module, in_vmlinux)

    def name_at(self, address: int) -> str | None:
        return self.vmlinux.function_at(address - self.offset)


def _address_in_module(tables: ModuleTables, position: SymbolPosition) -> int | None:
    found = tables[position.object].get(position.name, [])
    return found[position.sympos - 1] if position.sympos <= len(found) else None


def _replaced(compared: Iterable[Compared]) -> Iterator[tuple[_Key, tuple[TranslationUnit, Symbol]]]:
    """Yield the functions to be replaced, as in kbuild's object."""
    for each in compared:
        unit = each.pair.unit
        for twins in each.diff.changed:
            running = each.original.running.symbol_of.get(twins.original)
            if running is not None:
                yield (unit.module, unit.object, running.name), (unit, running)
