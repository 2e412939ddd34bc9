# SPDX-License-Identifier: MIT
"""What has to be known about a kernel to patch it. A session reads it once, while the first edit compiles."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from pathlib import Path

from hotreload.build.base import AnyBase, Base
from hotreload.build.built import Build
from hotreload.build.guest_base import GuestBase
from hotreload.deploy.guest import KALLSYMS_LIMIT, Guest, run_in_time
from hotreload.patch.kernel_symbols import KernelSymbols, read_symbols
from hotreload.patch.model import PatchPlan
from hotreload.patch.module import TRANSITION_SYMBOLS, ModuleGlue, read_glue
from hotreload.patch.symbols import VMLINUX, SymbolPosition

# The function that clears relocation targets when a module goes.
CLEARING = "clear_relocate_add"


@dataclass(frozen=True, slots=True)
class KernelKnowledge:
    """The names and CRCs that a patch may refer to, and the constant part of every patch module."""

    symbols: KernelSymbols
    glue: ModuleGlue

    def of(self, base: GuestBase) -> KernelKnowledge:
        """Return the same for the modules that the guest has now."""
        return replace(self, symbols=_symbols(base.build, base))

    def cannot_load_again(self, plan: PatchPlan) -> tuple[str, ...]:
        """Return the modules that this kernel cannot load again under the patch once they were unloaded.

        Before Linux commit 0c05e7bd2d01 ("livepatch,x86: Clear relocation targets on a module removal") (in
        v6.3), the targets of the patch's own relocations stay filled in when a module goes, and the module is
        refused when it comes back. Return nothing for a kernel whose vmlinux is not available.
        """
        if VMLINUX not in self.symbols.modules or self.symbols.modules[VMLINUX].has_global(CLEARING):
            return ()
        filled = {
            piece.object
            for piece in plan.pieces
            if any(isinstance(relocation.target, SymbolPosition) for relocation in piece.relocations)
        } | {write.object for write in plan.writes}
        modules = (obj.name for obj in plan.objects if obj.name)
        return tuple(name for name in modules if name in self.symbols.modules and name in filled)


async def learn(module: Build, base: AnyBase, glue: Path, guest: Guest) -> KernelKnowledge:
    """Read exports and module symbols, and ask the guest's kallsyms.

    Raises GuestUnreachableError, InputError.
    """
    asking = asyncio.create_task(_unique_in_guest(guest))
    try:
        symbols = await asyncio.to_thread(_symbols, module, base)
        return KernelKnowledge(symbols, read_glue(glue, await asking))
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


def learn_offline(module: Build, base: Base, glue: Path) -> KernelKnowledge:
    """Do the same without a guest, from the kernel's System.map if there is a real one. Raises InputError."""
    return KernelKnowledge(_symbols(module, base), read_glue(glue, _unique_in_map(base.tree.system_map)))


def _symbols(module: Build, base: AnyBase) -> KernelSymbols:
    kernels = base.tree.output / "Module.symvers"
    places = (kernels, *extra_symvers(module), module.folder / "Module.symvers")
    symvers = [file for file in places if file.is_file()]
    return read_symbols(symvers, {built.name: built.ko for built in base.modules})


def extra_symvers(module: Build) -> tuple[Path, ...]:
    """Return the files with exports of modules of other folders.

    KBUILD_EXTRA_SYMBOLS has named them to kbuild's modpost.
    """
    notes = module.folder / ".Module.symvers.cmd"
    if module.is_kernel or not notes.is_file():
        return ()
    files = re.findall(r"\s-i\s+(\S+)", notes.read_text(errors="replace"))
    # The kernel's own file is among them, with a path relative to where modpost ran (see external_module.py).
    places = (place / file for file in files for place in (module.folder, module.tree.output))
    return tuple(file for file in dict.fromkeys(places) if file.is_file())


def _unique_in_map(system_map: Path) -> frozenset[str]:
    """Return which of TRANSITION_SYMBOLS occur exactly once in a System.map.

    The map that Debian packages is a stub, which has none of them.
    """
    try:
        names = [line.split()[-1] for line in system_map.read_text(errors="replace").splitlines() if line]
    except OSError:
        return frozenset()
    return frozenset(name for name in TRANSITION_SYMBOLS if names.count(name) == 1)


async def _unique_in_guest(guest: Guest) -> frozenset[str]:
    """Return which of TRANSITION_SYMBOLS the kernel has exactly once, outside of modules."""
    # Use fixed strings: for 100,000 symbols an emulated guest needs 0.3 s, and 1.1 s with a regular
    # expression.
    patterns = " ".join(f"-e ' {name}'" for name in TRANSITION_SYMBOLS)
    answer = await run_in_time(guest, f"grep -F {patterns} /proc/kallsyms", timeout=KALLSYMS_LIMIT)
    names = [line.split()[2] for line in answer.text.splitlines()]
    return frozenset(name for name in TRANSITION_SYMBOLS if names.count(name) == 1)
