# SPDX-License-Identifier: MIT
"""Load modules when a guest starts: those built elsewhere, the kernel's that ours depend on, and ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from hotreload.build.built import BuiltModule
from hotreload.build.kernel_tree import KernelTree
from hotreload.build.make_words import read_dkms
from hotreload.config import Config
from hotreload.deploy.guest import ShellGuest, run_in_time
from hotreload.deploy.livepatch import load_module
from hotreload.deploy.module_reload import Load, depends_of, load_order
from hotreload.errors import InputError, KernelUnfitError, PatchRejectedError
from hotreload.vm.kernel_modules import ModuleFolder, canonical


async def load_all(
    guest: ShellGuest,
    kernel: KernelTree,
    built: Sequence[BuiltModule],
    config: Config,
    folder: Path,
    there: Collection[str] = (),
    came: Callable[[str], None] = lambda _name: None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Load all modules. Return the names of our loaded modules, and notes on those that could not be loaded.

    ``there``: our modules that the guest has already. ``came`` is called with the name of each module that
    was loaded, in order. Raises PatchRejectedError if none of ours can be loaded.
    """
    kernels = _KernelModules(guest, kernel, came)
    await _load_extra(guest, kernels, config.extra_modules, came)
    wanted = config.load
    if not wanted and {built.name for built in built}.issuperset(names := read_dkms(folder).modules):
        wanted = names
    return await load_modules(guest, kernels, built, wanted, there, came)


async def _load_extra(
    guest: ShellGuest, kernels: _KernelModules, lines: Sequence[str], came: Callable[[str], None]
) -> None:
    """Load modules that were built elsewhere and are not loaded, and the kernel's modules that they use."""
    files = [line.partition(" ") for line in lines]
    names = [canonical(Path(file).name.removesuffix(".ko")) for file, _, _ in files]
    for name, (file, _, parameters) in zip(names, files, strict=True):
        try:
            content = await asyncio.to_thread(Path(file).read_bytes)
        except OSError as error:
            raise InputError(
                f"{file}: {error.strerror}", code="HR1008", hint="check extra_modules"
            ) from error
        if await kernels.has(name):
            continue
        for used in await asyncio.to_thread(depends_of, Path(file)):
            if used not in names:
                await kernels.load(Load(used), names)
        await load_module(guest, name, content, parameters.strip())
        kernels.note(name)
        came(name)


async def load_modules(
    guest: ShellGuest,
    kernels: _KernelModules,
    built: Sequence[BuiltModule],
    wanted: Sequence[str],
    there: Collection[str],
    came: Callable[[str], None],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Load our modules, and the kernel's modules that they use. Return and raise what load_all does."""
    files = {module.name: module.ko for module in built}
    depends = {name: await asyncio.to_thread(depends_of, ko) for name, ko in files.items()}
    loads = load_order(depends, wanted)
    failed: dict[str, PatchRejectedError] = {}
    for load in loads:
        if load.name in there:
            continue
        if missing := [name for name in depends.get(load.name, ()) if name in failed]:
            failed[load.name] = PatchRejectedError(f"it needs {', '.join(missing)}")
        elif load.name not in files:
            await kernels.load(load, tuple(files))
        else:
            content = await asyncio.to_thread(files[load.name].read_bytes)
            try:
                await load_module(guest, load.name, content, load.parameters)
            except PatchRejectedError as error:
                failed[load.name] = error
            else:
                came(load.name)
    ours = tuple(load.name for load in loads if load.name in files or not files)
    if failed and len(failed) == len(ours):
        raise next(iter(failed.values()))
    notes = (f"{error.code} {name} is not loaded: {error.message}" for name, error in failed.items())
    return tuple(name for name in ours if name not in failed), tuple(notes)


class _KernelModules:
    """The kernel's own modules, loaded into the guest when our modules or the user need them."""

    def __init__(self, guest: ShellGuest, kernel: KernelTree, came: Callable[[str], None]) -> None:
        self._guest = guest
        self._kernel = kernel
        self._came = came
        self._folder: ModuleFolder | None = None
        self._there: set[str] = set()

    async def has(self, name: str) -> bool:
        """Return whether the module is loaded in the guest."""
        await self._opened()
        return name in self._there

    def note(self, name: str) -> None:
        """Note that a module was loaded by other means."""
        self._there.add(name)

    async def _opened(self) -> ModuleFolder:
        if self._folder is None:
            self._folder = await asyncio.to_thread(ModuleFolder, self._kernel.release, self._kernel.modules)
            listing = await run_in_time(self._guest, "cut -d' ' -f1 /proc/modules")
            self._there = set(listing.text.split())
        return self._folder

    async def load(self, load: Load, ours: Sequence[str]) -> None:
        folder = await self._opened()
        if load.name in self._there:
            return
        try:
            closure = await folder.closure([load.name])
        except KernelUnfitError as error:
            raise InputError(
                f"there is no module {load.name}: it is not built here, and kernel {self._kernel.release}"
                " does not have it",
                code="HR1008",
                hint=f"built here: {', '.join(ours)}; use extra_modules for modules built elsewhere",
            ) from error
        for module in closure.modules:
            if module.name not in self._there:
                parameters = load.parameters if module.name == load.name else ""
                await load_module(self._guest, module.name, module.content, parameters)
                self._came(module.name)
                self._there.add(module.name)
