# SPDX-License-Identifier: MIT
"""Is the kernel that the guest runs the one that its tree has now?"""

from __future__ import annotations

import asyncio

from hotreload.build.built import VMLINUX
from hotreload.build.kernel_tree import KernelTree, image_version
from hotreload.deploy.guest import Guest, run_in_time
from hotreload.elf.build_id import build_id_in, read_build_id
from hotreload.errors import KernelUnfitError
from hotreload.vm.console import printable

RESTART = "hotreload guest restart boots the one that the tree has now"


async def require_kernel(guest: Guest, kernel: KernelTree, hint: str) -> None:
    """Raise KernelUnfitError (HR3101) with ``hint`` when the guest runs another kernel than the tree's.

    Raises GuestUnreachableError.
    """
    vmlinux = kernel.output / VMLINUX
    expected = await asyncio.to_thread(read_build_id, vmlinux) if vmlinux.is_file() else None
    if expected is not None:
        running = build_id_in((await run_in_time(guest, "cat /sys/kernel/notes")).stdout)
        same, what = running == expected, f"build-id {running}, and {vmlinux} has {expected}"
    else:
        # A packaged kernel comes without vmlinux, or with its types only; its image says which build it is.
        told = printable((await run_in_time(guest, "uname -r; uname -v")).text).splitlines()
        release, version = told[:2] if len(told) > 1 else ("", "")
        text = await asyncio.to_thread(image_version, kernel.image) or ""
        same = text.startswith(f"{release} ") and text.endswith(f" {version}")
        what = f"{release} {version}, and {kernel.image} is {text}"
    if not same:
        raise KernelUnfitError(f"the guest runs another kernel: {what}", code="HR3101", hint=hint)
