# SPDX-License-Identifier: MIT
"""Find our modules, and the remains of an earlier session, in a guest that somebody else started."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hotreload.build.built import VMLINUX, BuiltModule
from hotreload.build.guest_base import GuestBase
from hotreload.deploy.guest import ShellGuest, run_in_time
from hotreload.deploy.livepatch import build_id, disable_patch, patch_status, unload_module
from hotreload.elf.build_id import read_build_id
from hotreload.errors import KernelUnfitError

# Seconds for removing what a session brought to the guest.
LEAVE_LIMIT = 40.0


class _OtherBuildError(KernelUnfitError):
    """The guest has another build of the module ``name`` than the one that was built here."""

    def __init__(self, name: str, running: str | None, here: str | None) -> None:
        super().__init__(
            f"the guest has a different build of {name} than this folder: build-id {running}, not {here}",
            code="HR3101",
            hint=f"run rmmod {name} in the guest and attach again; or restore"
            " the sources that it was built from",
        )
        self.name = name


@dataclass(frozen=True, slots=True)
class Found:
    """What was in the guest.

    ``base``    the base whose builds of our modules it has
    ``loaded``  our modules that it has
    ``notes``   messages about what had to be changed
    ``stale``   patch modules of an earlier session that stay loaded
    """

    base: GuestBase
    loaded: tuple[str, ...]
    notes: tuple[str, ...]
    stale: tuple[str, ...]

    @classmethod
    async def clean(cls, guest: ShellGuest, bases: Sequence[GuestBase], brought: Collection[str]) -> Found:
        """Inspect the guest, and disable patches that a killed session left live.

        ``bases``: those that the guest may have, because its owner may have restored an earlier state.
        ``brought``: modules that may be replaced. Raises KernelUnfitError (HR3101) for another build of any
        other module, and what disable_patch and unload_module raise.
        """
        stale, notes = await take_off_live(guest)
        names = {built.name for built in _exchangeable(bases[0])}
        running = await _builds_in(guest, names)
        found = [(base, *await asyncio.to_thread(_loaded_of, base, running)) for base in bases]
        # If no base matches all that the guest has, bring it to the first one.
        base, loaded, others = next((each for each in found if not each[2]), found[0])
        if foreign := [other for other in others if other.name not in brought]:
            raise foreign[0]
        for other in others:
            await unload_module(guest, other.name)
            notes = (*notes, f"{other.name} is reloaded, because its last reload was interrupted")
        return cls(base, loaded, notes, stale)


async def take_off_live(guest: ShellGuest) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Disable the patches that a session left live. Return the patch modules that stay loaded, and notes.

    They stay loaded because only that session knew which of their code and data is still pointed at. Raises
    what disable_patch raises.
    """
    before = await patch_status(guest)
    live = [patch.name for patch in before.patches if patch.enabled and not patch.foreign]
    for name in live:
        await disable_patch(guest, name, timeout=LEAVE_LIMIT)
    left = (await patch_status(guest)).replaced
    if not live:
        return left, ()
    what = f"{', '.join(live)} was still live from a session that was killed, and was disabled"
    return left, (what,)


def _exchangeable(base: GuestBase) -> list[BuiltModule]:
    """Return the modules that can be unloaded and loaded again: a folder's, but none of a kernel tree."""
    return [] if base.is_kernel else [built for built in base.modules if built.name != VMLINUX]


async def _builds_in(guest: ShellGuest, names: Collection[str]) -> dict[str, str | None]:
    """Return the build-id of each of these modules that is loaded in the guest."""
    listing = (await run_in_time(guest, "cut -d' ' -f1 /proc/modules")).text.split()
    return {name: await build_id(guest, name) for name in names if name in listing}


def _loaded_of(
    base: GuestBase, running: Mapping[str, str | None]
) -> tuple[tuple[str, ...], tuple[_OtherBuildError, ...]]:
    """Return our modules that the guest has, and an error for each of which it has another build."""
    loaded, others = [], []
    for built in _exchangeable(base):
        if built.name not in running:
            continue
        there, here = running[built.name], read_build_id(built.ko)
        if there is not None and there == here:
            loaded.append(built.name)
        else:
            others.append(_OtherBuildError(built.name, there, here))
    return tuple(loaded), tuple(others)
