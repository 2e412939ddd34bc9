# SPDX-License-Identifier: MIT
"""What is in a guest that somebody else started, of the modules that are meant and of an earlier session."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hotreload.build.built import VMLINUX
from hotreload.build.guest_base import GuestBase
from hotreload.deploy.guest import ShellGuest
from hotreload.deploy.livepatch import build_id, disable_patch, patch_status, unload_module
from hotreload.elf.build_id import read_build_id
from hotreload.errors import KernelUnfitError

# Seconds in which what we brought has to be gone.
LEAVE_LIMIT = 40.0


class _OtherBuildError(KernelUnfitError):
    """Of the module ``name`` the guest has another build than is meant."""

    def __init__(self, name: str, running: str | None, here: str | None) -> None:
        super().__init__(
            f"the guest has another build of {name} than the one that is built here:"
            f" build-id {running}, not {here}",
            code="HR3101",
            hint=f"rmmod {name} in the guest, then attach loads it; or bring back the sources"
            " that it was built from",
        )
        self.name = name


@dataclass(frozen=True, slots=True)
class Found:
    """What was in the guest: our ``loaded`` modules, what had to be done, patch modules that stay loaded.

    ``base``: the one whose builds of them they are.
    """

    base: GuestBase
    loaded: tuple[str, ...]
    notes: tuple[str, ...]
    stale: tuple[str, ...]

    @classmethod
    async def clean(cls, guest: ShellGuest, bases: Sequence[GuestBase], brought: Collection[str]) -> Found:
        """Look, and take off what a session that was killed has left live.

        ``bases``: those that the guest may have; its owner may have brought it back to an earlier one.
        ``brought``: modules that we may exchange. Raises KernelUnfitError (HR3101) for another build of one
        that we may not, and what disable_patch and unload_module raise.
        """
        stale, notes = await take_off_live(guest)
        for base in bases:
            loaded, others = await _loaded_of(guest, base)
            if not others:
                return cls(base, loaded, notes, stale)
        base = bases[0]
        loaded, others = await _loaded_of(guest, base)
        if foreign := [other for other in others if other.name not in brought]:
            raise foreign[0]
        for other in others:
            await unload_module(guest, other.name)
            notes = (*notes, f"{other.name}, whose exchange was cut off, is loaded anew")
        return cls(base, loaded, notes, stale)


async def take_off_live(guest: ShellGuest) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Take off what a session has left live; the patch modules that stay, and what is to be told.

    They stay, for what of them is still pointed at, only that session knew. Raises as disable_patch.
    """
    before = await patch_status(guest)
    live = [patch.name for patch in before.patches if patch.enabled and not patch.foreign]
    for name in live:
        await disable_patch(guest, name, timeout=LEAVE_LIMIT)
    left = (await patch_status(guest)).replaced
    if not live:
        return left, ()
    what = f"{', '.join(live)}, of a session that did not end by itself, was live, and is taken off"
    return left, (what,)


async def _loaded_of(
    guest: ShellGuest, base: GuestBase
) -> tuple[tuple[str, ...], tuple[_OtherBuildError, ...]]:
    """Those of our modules that the guest has, and those of which it has another build."""
    ours = [] if base.is_kernel else [built for built in base.modules if built.name != VMLINUX]
    listing = (await guest.run("cut -d' ' -f1 /proc/modules")).text.split()
    loaded, others = [], []
    for built in ours:
        if built.name not in listing:
            continue
        running, here = await build_id(guest, built.name), await asyncio.to_thread(read_build_id, built.ko)
        if running is not None and running == here:
            loaded.append(built.name)
        else:
            others.append(_OtherBuildError(built.name, running, here))
    return tuple(loaded), tuple(others)
