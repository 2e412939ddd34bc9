# SPDX-License-Identifier: MIT
"""`scripts/check-running-kernel`: check that a guest runs the code of the objects that its kernel is made of.

It boots a built kernel, loads its modules, and compares every function of every C unit with the guest's
memory. Functions that cannot be compared are counted by reason. Any other difference makes the script fail.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from hotreload.build.built import VMLINUX, BuiltModule
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.kernel_sources import read_kernel_build
from hotreload.build.kernel_tree import KernelTree, find_kernel
from hotreload.deploy.guest import SshGuest
from hotreload.deploy.module_reload import load_order
from hotreload.deploy.verify import (
    Checked,
    ReadMemory,
    addresses_in_module,
    addresses_in_vmlinux,
    check_functions,
    functions_of,
    module_tables,
    offset_of_kernel,
)
from hotreload.diff.guest_addresses import AddressOf
from hotreload.diff.guest_code import GuestUnit
from hotreload.elf.constants import STB_WEAK
from hotreload.elf.model import Symbol
from hotreload.elf.reader import read_object
from hotreload.errors import HotReloadError
from hotreload.patch.vmlinux_symbols import VmlinuxSymbols
from hotreload.vm.image import build_image
from hotreload.vm.kernel_modules import modinfo
from hotreload.vm.machine import Machine
from hotreload.vm.memory import idt_base
from hotreload.vm.probe import choose_accel
from hotreload.vm.spec import MachineSpec

# Seconds in which a module must load.
LOADING = 10.0


@dataclass(slots=True)
class Count:
    """The results. ``seconds``: the time for comparing, without reading the objects."""

    matched: int = 0
    traced: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Running:
    """A booted kernel.

    ``offset``: the difference between its addresses and those that it was linked to. ``functions``: the name
    of each function by its address.
    """

    kernel: KernelTree
    machine: Machine
    guest: SshGuest
    symbols: VmlinuxSymbols
    offset: int
    functions: dict[int, str]

    def place(self, symbol: str) -> int:
        """Return the address of a global symbol of vmlinux in the guest."""
        return _linked(self.symbols, symbol) + self.offset

    @property
    def freed(self) -> range:
        """The addresses of init code and data, which are freed after boot."""
        return range(self.place("__init_begin"), self.place("__init_end"))


def _linked(symbols: VmlinuxSymbols, name: str) -> int:
    found = symbols.find(name, None)
    assert found is not None, name
    return found.address


async def check(where: str, only: str, arguments: Sequence[str]) -> int:
    """Check a kernel. Return 0 if every function matches or has a reason not to, else 1."""
    kernel = find_kernel(where)
    build = await asyncio.to_thread(read_kernel_build, kernel)
    count = Count()
    async with AsyncExitStack() as owned:
        running = await _boot(owned, kernel, arguments)
        vmlinux = next(module for module in build.modules if module.name == VMLINUX)
        started = time.perf_counter()
        read = await _read_once(running)
        print(f"{kernel.release}: its memory was read in {time.perf_counter() - started:.3f} s", flush=True)
        for unit, block in _blocks(vmlinux.units, running.symbols):
            if only in str(unit.object):
                await _check_unit(
                    running, read, unit, addresses_in_vmlinux(running.symbols, block, running.offset), count
                )
        await _check_modules(
            running, [module for module in build.modules if module is not vmlinux], only, count
        )
    _print(count)
    return int(bool(count.wrong))


async def _boot(owned: AsyncExitStack, kernel: KernelTree, arguments: Sequence[str]) -> Running:
    symbols = await asyncio.to_thread(VmlinuxSymbols, kernel.output / "vmlinux")
    image = await build_image(kernel)
    spec = MachineSpec(
        kernel.image,
        image.initramfs,
        (await choose_accel()).name,
        name="check",
        kernel_arguments=tuple(arguments),
    )
    folder = Path(owned.enter_context(tempfile.TemporaryDirectory()))
    machine = await owned.enter_async_context(Machine(spec, folder / "console.log"))
    guest = await owned.enter_async_context(SshGuest(machine.ssh_port, image.client_key, image.host_key))
    table = await idt_base(machine.monitor)
    gate = await machine.read_memory(table, 16)
    offset = offset_of_kernel(gate, _linked(symbols, "asm_exc_divide_error"))
    listing = (await guest.run("cat /proc/kallsyms", timeout=120)).text
    return Running(kernel, machine, guest, symbols, offset, functions_of(listing))


async def _read_once(running: Running) -> ReadMemory:
    """Read all of the kernel's code, constants and data at once. Other memory is read when it is needed."""
    whole = {}
    # With page-table isolation, the space between them is not mapped (free_kernel_image_pages()).
    for first, last in (("_text", "_etext"), ("__start_rodata", "__end_rodata"), ("_sdata", "_edata")):
        start = running.place(first)
        whole[start] = await running.machine.read_memory(start, running.place(last) - start)

    async def read(address: int, size: int) -> bytes:
        for start, data in whole.items():
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        return await running.machine.read_memory(address, size)

    return read


# --- one unit ---


def _blocks(
    units: Sequence[TranslationUnit], symbols: VmlinuxSymbols
) -> Iterator[tuple[TranslationUnit, int | None]]:
    """Yield each C unit with its block of symbols in vmlinux. Units of one file name are in link order."""
    seen: Counter[str] = Counter()
    for unit in units:
        if unit.source.suffix == ".c":
            yield unit, symbols.block_of(unit.source.name, seen[unit.source.name])
            seen[unit.source.name] += 1


async def _check_unit(
    running: Running, read: ReadMemory, unit: TranslationUnit, address_of: AddressOf, count: Count
) -> None:
    """Compare every function of a unit, and count the results."""
    obj = read_object(unit.object)
    label = os.path.relpath(unit.object, running.kernel.output)
    started = time.perf_counter()
    guest_unit = GuestUnit(obj, address_of, running.functions.get)
    wanted = []
    freed = running.freed
    for function in obj.functions:
        address = guest_unit.address_of_function(function)
        if reason := _reason(function, address, freed):
            count.reasons[reason] += 1
        elif address is None:
            count.wrong.append(f"{label}: {function.name}: its address is not known")
        else:
            wanted.append(Checked(guest_unit, function, address))
    verdict = await check_functions(read, wanted)
    count.matched += len(wanted) - len(verdict.mismatches)
    count.traced += len(verdict.traced)
    count.wrong += [f"{label}: {mismatch}" for mismatch in verdict.mismatches]
    count.seconds += time.perf_counter() - started


def _reason(function: Symbol, address: int | None, freed: range) -> str | None:
    """Return why a function cannot be compared, or None if it can."""
    assert function.section is not None
    section = function.section.name
    if address is None:
        if section.startswith((".init.", ".exit.", ".discard")):
            return f"freed or never loaded: {section}"
        return "weak, and overridden by another unit" if function.binding == STB_WEAK else None
    return f"freed after boot: {section}" if address in freed else None


# --- modules ---


async def _check_modules(running: Running, modules: Sequence[BuiltModule], only: str, count: Count) -> None:
    """Load all modules that can be loaded, and compare them at the addresses in /proc/kallsyms."""
    by_name = {module.name: module for module in modules if only in str(module.ko)}
    depends = {
        name: modinfo(module.ko.read_bytes(), name).get("depends", [""])[0].replace("-", "_").split(",")
        for name, module in by_name.items()
    }
    for load in load_order(depends):
        if load.name in by_name and not await _insert(running.guest, by_name[load.name]):
            count.reasons["modules that do not load here"] += 1
            print(f"not loaded: {load.name}", flush=True)
    listing = (await running.guest.run("cat /proc/kallsyms", timeout=120)).text
    running.functions.update(functions_of(listing))
    tables = module_tables(listing)
    in_vmlinux = addresses_in_vmlinux(running.symbols, None, running.offset)
    for module in modules:
        for unit in module.units if module.name in tables else ():
            if unit.source.suffix == ".c":
                names = addresses_in_module(tables, module.name, in_vmlinux)
                await _check_unit(running, running.machine.read_memory, unit, names, count)


async def _insert(guest: SshGuest, module: BuiltModule) -> bool:
    content = await asyncio.to_thread(module.ko.read_bytes)
    try:
        done = await guest.run("cat >/tmp/m.ko && insmod /tmp/m.ko", stdin=content, timeout=LOADING)
    except TimeoutError:
        # A module of the livepatch selftests waits in its init function until another one reverts its patch.
        return False
    return done.ok


# --- the end ---


def _print(count: Count) -> None:
    for line in count.wrong:
        print(line)
    print(f"{count.matched:6} functions match, {count.traced} of them traced")
    for reason, times in count.reasons.most_common():
        print(f"{times:6} {reason}")
    print(f"{len(count.wrong):6} differ without a reason")
    print(f"{count.seconds * 1000 / max(count.matched, 1):.3f} ms for each function")


def run(main: Callable[[], Awaitable[int]]) -> int:
    """Run ``main``, and return the exit status. Print a HotReloadError and its hint in two lines."""
    try:
        return asyncio.run(_awaited(main))
    except HotReloadError as error:
        print(f"{error.code} {error.message}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


async def _awaited(main: Callable[[], Awaitable[int]]) -> int:
    return await main()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="check-running-kernel",
        description="Compare a booted kernel with the objects that it was linked from.",
    )
    parser.add_argument("kernel", help="a kernel tree that was built in place, or an O= folder")
    parser.add_argument("--only", default="", metavar="TEXT", help="only objects whose path contains TEXT")
    parser.add_argument(
        "--append", action="append", default=[], metavar="WORD", help="add a word to the kernel command line"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    given = parse()
    sys.exit(run(lambda: check(given.kernel, given.only, given.append)))
