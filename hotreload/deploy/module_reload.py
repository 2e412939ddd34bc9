# SPDX-License-Identifier: MIT
"""Reload modules: unload the old ones, dependent modules first, and load the new ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotreload.deploy.guest import Guest
from hotreload.deploy.livepatch import (
    ModuleUse,
    ModuleUses,
    in_use,
    load_module,
    module_uses,
    rebind_devices,
    require_space,
    unload_module,
    used_by,
)
from hotreload.errors import PatchRejectedError
from hotreload.patch.module import NAME_PREFIX
from hotreload.vm.kernel_modules import canonical, modinfo

COMMAND_LIMIT = 600.0


@dataclass(frozen=True, slots=True)
class Load:
    """One module to load, with its parameters as insmod takes them."""

    name: str
    parameters: str = ""


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """A module to load, from a file of this machine."""

    load: Load
    ko: Path


@dataclass(frozen=True, slots=True)
class Commands:
    """The user's shell commands: ``setup`` runs after loading modules, ``teardown`` before unloading them."""

    setup: str | None = None
    teardown: str | None = None


def load_order(depends: Mapping[str, Iterable[str]], wanted: Sequence[str] = ()) -> tuple[Load, ...]:
    """Return what to load, in order: dependencies first, otherwise as ``wanted`` (default: all).

    ``depends``: our modules, each with its dependencies; other names are the kernel's modules. ``wanted``:
    lines ``"NAME PARAMETERS"``.
    """
    given = dict(_split(line) for line in wanted)
    order: dict[str, Load] = {}

    def visit(name: str) -> None:
        if name not in order:
            for other in depends.get(name, ()):
                visit(other)
            order[name] = Load(name, given.get(name, ""))

    for name in given or depends:
        visit(name)
    return tuple(order.values())


def _split(line: str) -> tuple[str, str]:
    name, _, parameters = line.strip().partition(" ")
    return canonical(name), parameters.strip()


def depends_of(ko: Path) -> tuple[str, ...]:
    """Return the modules that a module depends on, according to its file."""
    words = modinfo(ko.read_bytes(), str(ko)).get("depends", [""])[0].split(",")
    return tuple(canonical(word) for word in words if word)


class ModuleExchange:
    """One exchange of modules, ``old`` for ``new``, both in load order.

    Only those that the guest has loaded when it begins take part.
    """

    def __init__(
        self, guest: Guest, old: Sequence[ModuleFile], new: Sequence[ModuleFile], commands: Commands
    ) -> None:
        self.notes: list[str] = []  # what to report about it
        self._guest = guest
        self._old = old
        self._new = new
        self._commands = commands
        self._gone: list[ModuleFile] = []  # the last one first
        self._come: list[ModuleFile] = []
        self._bound: list[str] = []
        self._had: Mapping[str, ModuleUse] = {}

    async def begin(self) -> bool:
        """Run the teardown command, and check whether the modules can be unloaded.

        Return False if none is loaded. Raises PatchRejectedError, HR2301 in use, HR2304 other modules use it,
        HR3109 no space for the new modules, or for the old ones if they have to be loaded again. In these
        cases nothing has changed.
        """
        names = [each.load.name for each in self._old]
        if not (await module_uses(self._guest, names)).of:
            return False
        await self._require_space()
        if self._commands.teardown:
            await self._run("teardown", self._commands.teardown)
        modules = await module_uses(self._guest, names)
        try:
            _require_unused(modules)
        except PatchRejectedError:
            await self._set_up()
            raise
        self._had = modules.of
        self._old = [each for each in self._old if each.load.name in modules.of]
        self._new = [each for each in self._new if each.load.name in modules.of]
        return True

    async def _require_space(self) -> None:
        largest = max((*self._old, *self._new), key=lambda each: each.ko.stat().st_size)
        content = await asyncio.to_thread(largest.ko.read_bytes)
        await require_space(self._guest, largest.load.name, content)

    @property
    def has_begun(self) -> bool:
        """Return whether a module has been unloaded."""
        return bool(self._gone)

    async def abandon(self) -> None:
        """Cancel the exchange after ``begin``, as long as no module was unloaded."""
        await self._set_up()

    async def unload(self) -> None:
        """Unload the old modules. Raises what unload_module raises; then only some are unloaded."""
        for each in reversed(self._old):
            self._bound += await unload_module(self._guest, each.load.name)
            self._gone.append(each)

    async def load(self) -> None:
        """Load the new modules, bind their devices again, and run the setup command.

        Raises what load_module raises; then only some are loaded.
        """
        for each in self._new:
            await self._load(each)
        await self._note_parameters()
        await self._make_ready()

    async def _note_parameters(self) -> None:
        """Note which parameters have changed: a module may have been loaded by hand with other values."""
        uses = await module_uses(self._guest, [each.load.name for each in self._new])
        for name, use in uses.of.items():
            had = {key: self._had[name].parameters.get(key, now) for key, now in use.parameters.items()}
            if changed := [f"{key}={was}" for key, was in had.items() if was != use.parameters[key]]:
                self.notes.append(
                    f"{name} had {' '.join(changed)}, and was reloaded without;"
                    " set parameters with load in hotreload.toml"
                )

    async def put_back(self) -> str:
        """After a failure, load the old modules again. Return what to report about it."""
        old = self._gone[::-1]
        if not old:
            return ""
        try:
            for each in reversed(self._come):
                await unload_module(self._guest, each.load.name)
            for each in old:
                await self._load(each)
        except PatchRejectedError as error:
            return f"the previous build cannot be loaded again either: {error.message}"
        finally:
            await self._make_ready()
        return f"the previous build of {', '.join(each.load.name for each in old)} was loaded again"

    async def _load(self, module: ModuleFile) -> None:
        content = await asyncio.to_thread(module.ko.read_bytes)
        await load_module(self._guest, module.load.name, content, module.load.parameters)
        self._come.append(module)

    async def _make_ready(self) -> None:
        if self._bound and (left := await rebind_devices(self._guest, self._bound)):
            self.notes.append(f"no longer bound: {', '.join(left)}")
        await self._set_up()

    async def _set_up(self) -> None:
        if self._commands.setup:
            await self._run("setup", self._commands.setup)

    async def _run(self, which: str, command: str) -> None:
        """Run a command of the user's. A failure is only noted."""
        try:
            done = await self._guest.run(command, timeout=COMMAND_LIMIT)
        except TimeoutError:
            self.notes.append(f"the {which} command did not finish within {COMMAND_LIMIT:g} s")
            return
        if not done.ok:
            self.notes.append(f"the {which} command ended with status {done.status}: {done.complaint}")


def _require_unused(modules: ModuleUses) -> None:
    """Raise PatchRejectedError for a module that is held by something other than these modules.

    Our own patches do not count, because they are removed first.
    """
    for name, use in modules.of.items():
        others = [holder for holder in use.holders if holder not in modules.of]
        if foreign := [holder for holder in others if not holder.startswith(NAME_PREFIX)]:
            raise used_by(name, foreign)
        if (users := use.users - len(use.holders)) > 0:
            raise in_use(name, users, modules.open_files)
