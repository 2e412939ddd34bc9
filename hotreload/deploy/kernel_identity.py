# SPDX-License-Identifier: MIT
"""Check whether the guest runs the kernel that is in its tree at present."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from hotreload.build.built import VMLINUX, saved_ns
from hotreload.build.guest_base import GuestBase, configuration_of
from hotreload.build.kernel_tree import KernelTree, image_version
from hotreload.deploy.guest import Guest, run_in_time
from hotreload.elf.build_id import build_id_in, read_build_id
from hotreload.errors import KernelUnfitError
from hotreload.vm.console import printable

RESTART = "boot the guest with the current kernel: hotreload guest restart, or by hand if you attached to it"
# kbuild leaves it next to a vmlinux that it links (scripts/Makefile.vmlinux); packages do not have it.
LINKED_HERE = f".{VMLINUX}.cmd"


async def require_kernel(guest: Guest, kernel: KernelTree, hint: str) -> None:
    """Raise KernelUnfitError (HR3101) with ``hint`` if the guest runs another kernel than the tree's.

    Raises GuestUnreachableError.
    """
    try:
        other = await _other(guest, kernel)
    except OSError as error:
        other = f"the kernel in {kernel.output} is no longer built: {error.filename}: {error.strerror}"
    if other is not None:
        raise KernelUnfitError(other, code="HR3101", hint=hint)


async def require_layouts(guest: Guest, base: GuestBase, headers: Iterable[Path], hint: str) -> None:
    """Raise KernelUnfitError (HR3101) if code compiled now would not be for the kernel that the guest booted.

    It raises what ``require_kernel`` raises. ``headers``: the kernel's files that a module was made from. If
    one was saved after the kernel's image was made, it differs from what that kernel was built with. A
    changed configuration is detected by content, because its mtime proves nothing.
    """
    if later := await asyncio.to_thread(_later, base, headers):
        raise KernelUnfitError(later, code="HR3101", hint=hint)
    await require_kernel(guest, base.tree, hint)


def _later(base: GuestBase, headers: Iterable[Path]) -> str | None:
    kernel = base.tree
    if configuration_of(kernel) != base.configuration:
        return f"the kernel in {kernel.output} was reconfigured"
    built = saved_ns(kernel.image)
    if not built or not (kernel.output / LINKED_HERE).exists():
        return None  # no image any more, or a package, where the order of mtimes says nothing
    later = next((file for file in headers if saved_ns(file) > built), None)
    return f"{later} was saved after {kernel.image} was built" if later else None


async def _other(guest: Guest, kernel: KernelTree) -> str | None:
    """Return how the two kernels differ, or None if they are the same.

    Raises OSError, GuestUnreachableError.
    """
    vmlinux = kernel.output / VMLINUX
    expected = await asyncio.to_thread(read_build_id, vmlinux) if vmlinux.is_file() else None
    if expected is not None:
        running = build_id_in((await run_in_time(guest, "cat /sys/kernel/notes")).stdout)
        same, what = running == expected, f"build-id {running}, but {vmlinux} has {expected}"
    elif (kernel.output / LINKED_HERE).exists():
        return f"{vmlinux} is incomplete: the kernel is being built"
    else:
        # A packaged kernel comes without vmlinux, or with its types only. Its image says which build it is.
        told = printable((await run_in_time(guest, "uname -r; uname -v")).text).splitlines()
        release, version = told[:2] if len(told) > 1 else ("", "")
        text = await asyncio.to_thread(image_version, kernel.image) or ""
        same = text.startswith(f"{release} ") and text.endswith(f" {version}")
        what = f"{release} {version}, but {kernel.image} is {text}"
    return None if same else f"the guest runs a different kernel: {what}"
