# SPDX-License-Identifier: MIT
"""No function of vmlinux is replaced before the guest's memory has shown that it is the one we mean.

This proves three things at once: that the guest runs what the base was built from, that a symbol's position
among its namesakes was counted right, and that nobody else has put a jump there. Each function is looked at
before its first replacement; from then on it begins with a call of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from hotreload.build.base import Base
from hotreload.build.built import VMLINUX
from hotreload.build.cmd_files import TranslationUnit
from hotreload.cycle import Compared
from hotreload.deploy.verify import (
    Checked,
    ReadMemory,
    addresses_in_vmlinux,
    check_functions,
    offset_of_kernel,
)
from hotreload.diff.guest_code import GuestUnit
from hotreload.diff.obstacles import Obstacle
from hotreload.elf.model import Symbol
from hotreload.elf.reader import read_object
from hotreload.patch.kernel_symbols import KernelSymbols
from hotreload.patch.vmlinux_symbols import VmlinuxSymbols
from hotreload.plan_units import block_of

# The first gate of the interrupt descriptor table leads there: it tells how far the kernel was moved.
FIRST_GATE = "asm_exc_divide_error"
RESTART = "hotreload guest restart boots what was built; hotreload why HR3101"


class RunningCheck:
    """See the module; one for each life of a guest."""

    def __init__(self, base: Base, read_memory: ReadMemory, idt_base: Callable[[], Awaitable[int]]) -> None:
        self._base = base
        self._read_memory = read_memory
        self._idt_base = idt_base
        self._offset: int | None = None
        self._units: dict[Path, tuple[GuestUnit, dict[str, Symbol]]] = {}
        self._passed: set[tuple[Path, str]] = set()

    async def obstacles(self, compared: Iterable[Compared], symbols: KernelSymbols) -> tuple[Obstacle, ...]:
        """HR3101 for each function to be replaced that is not what kbuild made.

        Raises GuestUnreachableError.
        """
        wanted: dict[tuple[Path, str], tuple[TranslationUnit, Checked]] = {}
        for each in compared:
            unit = each.pair.unit
            if unit.module != VMLINUX:
                continue
            for twins in each.diff.changed:
                running = each.original.running.symbol_of.get(twins.original)
                if running is not None and (unit.object, running.name) not in self._passed:
                    key = unit.object, running.name
                    wanted[key] = unit, await self._checked(unit, running, symbols)
        if not wanted:
            return ()
        verdict = await check_functions(self._read_memory, [checked for _, checked in wanted.values()])
        wrong = {mismatch.function: mismatch for mismatch in verdict.mismatches}
        self._passed |= {key for key in wanted if key[1] not in wrong}
        return tuple(
            Obstacle("HR3101", name, f"the guest runs other code: {wrong[name]}", RESTART, str(unit.source))
            for (_, name), (unit, _checked) in wanted.items()
            if name in wrong
        )

    async def _checked(self, unit: TranslationUnit, running: Symbol, symbols: KernelSymbols) -> Checked:
        vmlinux = symbols.modules[VMLINUX]
        assert isinstance(vmlinux, VmlinuxSymbols)
        if self._offset is None:
            linked = vmlinux.find(FIRST_GATE, None)
            assert linked is not None, "every x86-64 kernel has it"
            gate = await self._read_memory(await self._idt_base(), 16)
            self._offset = offset_of_kernel(gate, linked.address)
        offset = self._offset
        block = block_of(self._base, VMLINUX, unit, symbols)
        if unit.object not in self._units:
            self._units[unit.object] = await asyncio.to_thread(self._read, unit, vmlinux, block, offset)
        guest_unit, functions = self._units[unit.object]
        found = vmlinux.find(running.name, block if running.is_local else None, running.size)
        # What is not there at all the plan has refused already.
        address = found.address + offset if found else 0
        return Checked(guest_unit, functions[running.name], address)

    def _read(
        self, unit: TranslationUnit, vmlinux: VmlinuxSymbols, block: int | None, offset: int
    ) -> tuple[GuestUnit, dict[str, Symbol]]:
        plain = read_object(self._base.plain_object(unit))
        addresses = addresses_in_vmlinux(vmlinux, block, offset)
        made = GuestUnit(plain, addresses, lambda address: vmlinux.function_at(address - offset))
        return made, {symbol.name: symbol for symbol in plain.symbols if symbol.is_function}
