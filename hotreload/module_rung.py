# SPDX-License-Identifier: MIT
"""The rung above a patch: build modules, unload the old ones, load the new ones.

It is only taken if the user allows it, and only past obstacles that a reloaded module does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hotreload.build.base import Base, build_base, work_folder
from hotreload.build.built import VMLINUX, Build, BuiltModule, saved_ns, sha256
from hotreload.build.guest_base import GuestBase
from hotreload.build.in_tree_modules import build_in_tree
from hotreload.deploy.guest import Guest
from hotreload.deploy.kernel_identity import RESTART, require_layouts
from hotreload.deploy.livepatch import module_uses
from hotreload.deploy.module_reload import (
    Commands,
    Load,
    ModuleExchange,
    ModuleFile,
    depends_of,
    load_order,
)
from hotreload.diff.obstacles import BUILD_KERNEL, NotPatchableError, Obstacle
from hotreload.elf.linkage import linkage_of
from hotreload.elf.reader import read_object
from hotreload.errors import InputError, KernelUnfitError
from hotreload.ladder import can_be_loaded, is_allowed, with_dependents
from hotreload.vm.kernel_modules import canonical

RECIPE_CHANGED = "HR1004"
KSYMTAB = "__ksymtab_"
NEW_MODULE = "end hotreload and start it again: the guest then boots with the current modules"


@dataclass(frozen=True, slots=True)
class ModuleRung:
    """``load`` and ``commands`` are the user's settings: what to load, and which other commands to run."""

    max_rung: str
    load: tuple[str, ...]
    commands: Commands

    def leads_past(self, refusal: NotPatchableError, base: GuestBase) -> bool:
        """Return whether this rung is allowed, and gets past the refusal."""
        if base.is_kernel and _is_of_recipes(refusal):
            return False  # Makefiles and configuration of a kernel apply to vmlinux, too
        return is_allowed("module", self.max_rung) and can_be_loaded(refusal.obstacles)

    async def build(
        self,
        guest: Guest,
        base: GuestBase,
        refusal: NotPatchableError,
        names: frozenset[str],
        unknown: frozenset[str] = frozenset(),
    ) -> tuple[GuestBase, frozenset[str]]:
        """Build the modules from the current sources. Return the new base, and which modules to reload.

        ``names`` are those that stand in the way, ``unknown`` those that the recorded commands cannot
        compile. If a Makefile was refused, but makes nothing in another way, no module is returned: what
        stands in the way then has another reason. Raises what build_base and build_in_tree raise, and the
        refusal if reloading modules is not enough.
        """
        if base.is_kernel:
            return await self._build_in_tree(guest, base, refusal, names | unknown)
        return await self._build_folder(guest, base, refusal, names, unknown)

    def wanted(self, base: GuestBase, names: Collection[str]) -> frozenset[str]:
        """Return the modules that the user asks for. Without names, return all of the folder's.

        Raises InputError.
        """
        known = {built.name for built in base.modules} - {VMLINUX}
        if base.is_kernel and not names:
            raise InputError(
                "a kernel has many modules", hint="name those to reload: hotreload reload MODULE"
            )
        found = frozenset(map(canonical, names))
        if unknown := sorted(found - known):
            there = "lsmod lists them" if base.is_kernel else f"the modules are {', '.join(sorted(known))}"
            raise InputError(f"no module {', '.join(unknown)} was built here", hint=there)
        return found or frozenset(known)

    async def build_these(
        self, guest: Guest, base: GuestBase, names: frozenset[str]
    ) -> tuple[GuestBase, frozenset[str]]:
        """Do the same for modules that the user asks for, whichever rungs are allowed."""
        told = Obstacle("HR2201", ", ".join(sorted(names)), f"{', '.join(sorted(names))} cannot be reloaded")
        if base.is_kernel:
            return await self._build_in_tree(guest, base, NotPatchableError([told]), names)
        return await self._build_folder(guest, base, NotPatchableError([told]), names, frozenset())

    async def with_dependents(self, guest: Guest, base: GuestBase, names: Collection[str]) -> frozenset[str]:
        """Return these modules of the base, and those that have to be reloaded with them."""
        if base.is_kernel:
            uses: Mapping[str, Collection[str]] = await _users_of(guest, names)
        else:
            uses = await asyncio.to_thread(_depends, base.modules)
        return with_dependents(names, base.modules, uses)

    async def _build_in_tree(
        self, guest: Guest, base: GuestBase, refusal: NotPatchableError, names: frozenset[str]
    ) -> tuple[GuestBase, frozenset[str]]:
        if VMLINUX in names or names & _shared_with_vmlinux(base):
            raise refusal
        if unloaded := names - (await module_uses(guest, sorted(names))).of.keys():
            # If it is loaded later, the tree's file is used, and that is still the old one.
            hint = f"{', '.join(sorted(unloaded))} is not loaded: {BUILD_KERNEL}"
            raise _with_hint(refusal, hint)
        # Only consider the modules that are loaded, not all thousands of a kernel.
        names = with_dependents(names, base.modules, await _users_of(guest, names))
        with work_folder() as work:
            try:
                built = await build_in_tree(base, names, work)
            except (InputError, OSError) as error:
                hint = f"the module cannot be built outside the tree: {error}; {BUILD_KERNEL}"
                raise _with_hint(refusal, hint) from error
            # The units and commands are the recorded ones: changes of the Makefiles are not part of them.
            built = replace(built, makefiles=base.makefiles)
            return base.with_anew(base.build, built, names), names

    async def _build_folder(
        self,
        guest: Guest,
        base: GuestBase,
        refusal: NotPatchableError,
        names: frozenset[str],
        unknown: frozenset[str],
    ) -> tuple[GuestBase, frozenset[str]]:
        unknown |= frozenset().union(*base.carried_otherwise().values())
        await asyncio.to_thread(forget_stale, base)
        build, built = await build_base(base.tree, base.build.folder, variables=base.build.variables)
        try:
            # If the kernel was rebuilt while its guest runs, modules may have other layouts from then on.
            await require_layouts(guest, base, build.kernel_files, RESTART)
        except KernelUnfitError as error:
            hint = f"the module cannot be reloaded: {error}; {error.hint}"
            raise _with_hint(refusal, hint) from error
        if {each.name for each in built.modules} != {each.name for each in base.modules}:
            raise _with_hint(refusal, NEW_MODULE)
        if _is_of_recipes(refusal):
            unknown |= _made_otherwise(base, build)
            if not unknown:
                return base.with_anew(build, built, frozenset()), frozenset()
        names |= unknown
        names |= await asyncio.to_thread(newly_exporting, base, built, names)
        depends = await asyncio.to_thread(_depends, (*base.modules, *built.modules))
        names = with_dependents(names, built.modules, depends)
        return base.with_anew(build, built, names), names

    async def exchange(
        self, guest: Guest, old: GuestBase, new: GuestBase, names: Collection[str]
    ) -> ModuleExchange:
        """Return the steps that exchange the modules of these names between the two bases."""
        gone, come = await asyncio.to_thread(lambda: (self._files(old, names), self._files(new, names)))
        return ModuleExchange(guest, gone, come, self.commands)

    def _files(self, base: GuestBase, names: Collection[str]) -> tuple[ModuleFile, ...]:
        kos = {built.name: built.ko for built in base.modules if built.name in names}
        given = {load.name: load.parameters for load in load_order({}, self.load)}
        # Include modules that were not to be loaded, because somebody may have loaded them by hand.
        order = load_order(_depends([built for built in base.modules if built.name in names]))
        return tuple(
            ModuleFile(Load(load.name, given.get(load.name, "")), kos[load.name])
            for load in order
            if load.name in names
        )


def forget_stale(base: GuestBase) -> None:
    """Remove objects that make would consider fresh although they do not match their sources.

    A file may be older than its object and still differ from what was compiled: it may have been moved here
    with its folder, or be what the guest runs again, after an edit that was compiled and then undone or not
    loaded.
    """
    for part in base.parts:
        edited = {file for file, digest in part.digests.items() if sha256(file) != digest}
        for target, digest in part.objects.items():
            made, others = saved_ns(target), edited.intersection(part.inputs[target])
            if any(saved_ns(file) <= made for file in others) or (not others and sha256(target) != digest):
                target.unlink(missing_ok=True)


def newly_exporting(base: GuestBase, built: Base, names: Collection[str]) -> frozenset[str]:
    """Return further modules to reload, because they export something new to these modules.

    Their new exports are at most in a live patch, and the loader only finds exports of loaded modules.
    """
    then, now = ({module.name: module.ko for module in each.modules} for each in (base, built))
    found: set[str] = set()
    due = set(names)
    while due:
        name = due.pop()
        for used in depends_of(now[name]):
            if used in then and used not in found and used not in names:
                new = _exports(now[used]) - _exports(then[used])
                if new & linkage_of(read_object(now[name])).needs:
                    found.add(used)
                    due.add(used)
    return frozenset(found)


def _exports(ko: Path) -> frozenset[str]:
    names = (symbol.name for symbol in read_object(ko).symbols)
    return frozenset(name.removeprefix(KSYMTAB) for name in names if name.startswith(KSYMTAB))


def _shared_with_vmlinux(base: GuestBase) -> frozenset[str]:
    """Return the modules that share an object with vmlinux."""
    objects = {built.name: {unit.object for unit in built.units} for built in base.modules}
    return frozenset(name for name, held in objects.items() if name != VMLINUX and held & objects[VMLINUX])


def _with_hint(refusal: NotPatchableError, hint: str) -> NotPatchableError:
    """Return the same refusal with another hint."""
    return NotPatchableError((replace(each, hint=hint) for each in refusal.obstacles), refusal.modules)


def _is_of_recipes(refusal: NotPatchableError) -> bool:
    return any(each.code == RECIPE_CHANGED for each in refusal.obstacles)


async def _users_of(guest: Guest, names: Collection[str]) -> dict[str, set[str]]:
    """Return the modules in the guest that use one of these, directly or through others.

    Each comes with the modules of them that it uses.
    """
    uses: dict[str, set[str]] = {}
    asked, due = set(names), set(names)
    while due:
        found = (await module_uses(guest, sorted(due))).of
        for name, use in found.items():
            for holder in use.holders:
                uses.setdefault(holder, set()).add(name)
        due = uses.keys() - asked
        asked |= due
    return uses


def _depends(modules: Collection[BuiltModule]) -> dict[str, set[str]]:
    """Return each module with those that it uses. Modules of the same name are combined."""
    uses: dict[str, set[str]] = {}
    for built in modules:
        uses.setdefault(built.name, set()).update(depends_of(built.ko))
    return uses


def _made_otherwise(base: GuestBase, build: Build) -> frozenset[str]:
    """Return the modules that kbuild builds from other units or by other commands than before."""
    before = {built.name: built.units for built in base.modules}
    return frozenset(built.name for built in build.modules if built.units != before[built.name])
