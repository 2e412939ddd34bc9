# SPDX-License-Identifier: MIT
"""The base of a kernel that somebody works on: recorded once for each vmlinux, found again by its build-id.

A record is made of the sources that the kernel was built from, so it has to be made before one of them is
edited: by `hotreload kernel build` when it has built, by `hotreload kernel record`, or when a guest first
boots that kernel. Whether sources and objects belong together is judged as make does, by their times.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from hotreload.build.base import AnyBase, Base, open_base, record_base
from hotreload.build.built import VMLINUX, Build, saved_ns
from hotreload.build.kernel_sources import AUTOCONF, module_files, read_kernel_build
from hotreload.build.kernel_tree import KernelTree
from hotreload.elf.build_id import read_build_id
from hotreload.errors import InputError, KernelUnfitError
from hotreload.paths import cache_folder, writing_to

Progress = Callable[[str], None]

SHOWN = 5


async def kernel_base(tree: KernelTree, progress: Progress | None = None) -> Base:
    """The base of the kernel built in ``tree``: as recorded, or recorded now.

    Raises InputError (HR1006: sources were edited since it was built; HR1009: it is not built).
    """
    record = await asyncio.to_thread(_record, tree)
    if record.is_symlink():
        try:
            return await asyncio.to_thread(open_base, record.resolve(), tree)
        except InputError:
            record.unlink(missing_ok=True)  # its base was swept: as if never recorded
    return await record_kernel(tree, progress)


async def record_kernel(tree: KernelTree, progress: Progress | None = None) -> Base:
    """Keep what the kernel was built from. Raises as kernel_base, and KernelUnfitError (HR3102)."""
    require_objects_as_run(tree)
    record = await asyncio.to_thread(_record, tree)
    if progress:
        progress(f"recording the sources of {tree.release}")
    build = await asyncio.to_thread(read_kernel_build, tree)
    require_fresh(build)
    base = await record_base(build)
    with writing_to(record):
        new = record.with_name(f".{record.name}-{os.getpid()}")
        new.unlink(missing_ok=True)
        new.symlink_to(base.folder.name)
        new.replace(record)
    return base


def require_objects_as_run(tree: KernelTree) -> None:
    """Raise KernelUnfitError (HR3102) where objtool works on vmlinux as a whole, and on no object of it.

    What it adds to an object (unwind tables, the places of returns and static calls) would be missing in a
    patch: delay-objtool in scripts/Makefile.lib, Linux commit 753da4179d08 (in v5.19). Modules get theirs.
    """
    if tree.option("X86_KERNEL_IBT") == "y":
        raise KernelUnfitError(
            "X86_KERNEL_IBT is set: objtool then finishes vmlinux as a whole, and no patch of it",
            hint="scripts/config --disable X86_KERNEL_IBT; make olddefconfig all",
        )


def require_same_kernel(base: AnyBase) -> None:
    """Raise InputError (HR1009) when the tree's vmlinux is not the base's any more: somebody has built."""
    booted = next((built.ko for built in base.modules if built.name == VMLINUX), None)
    if booted is not None and read_build_id(booted) != _build_id(base.tree):
        raise InputError(
            f"{base.tree.output / VMLINUX} is another one than the guest booted",
            hint="hotreload guest restart boots it; so does --max-rung reboot",
        )


def require_fresh(build: Build) -> None:
    """Raise InputError (HR1006) when a file was saved after what it goes into was made."""
    # What the configuration says is not a question of this file's time: it is newer than most objects.
    saved = [0 if file.match(str(AUTOCONF)) else saved_ns(file) for file in build.inputs.files]
    stale = set()
    for target in build.inputs:
        made = saved_ns(target)
        stale |= {number for number in build.inputs.numbers(target) if saved[number] > made}
    linked = {built.ko: max(map(saved_ns, (unit.object for unit in built.units)), default=0)
              for built in build.modules}  # fmt: skip
    if stale:
        files = [build.inputs.files[number] for number in sorted(stale)]
        raise _not_the_base(f"edited since the kernel was built: {_told(files, build.folder)}")
    if late := [ko for ko, made in linked.items() if made > saved_ns(ko)]:
        raise _not_the_base(f"not linked since its objects were made: {_told(late, build.tree.output)}")


def _not_the_base(fact: str) -> InputError:
    hint = "hotreload kernel build (or make) makes the kernel of what the sources are now"
    return InputError(fact, code="HR1006", hint=hint)


def _told(files: list[Path], root: Path) -> str:
    names = [os.path.relpath(os.path.normpath(file), root) for file in files]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _record(tree: KernelTree) -> Path:
    """The link to the base of this vmlinux and of the modules that are beside it now, in this place.

    A copy elsewhere has its sources elsewhere, and a module may be built anew without vmlinux.
    """
    digest = hashlib.sha256(f"{tree.source}\0{tree.output}\0".encode())
    for ko in module_files(tree):
        digest.update(f"{ko}\0{saved_ns(ko)}\0".encode())
    return cache_folder() / "base" / f"{VMLINUX}-{_build_id(tree)}-{digest.hexdigest()[:8]}"


def _build_id(tree: KernelTree) -> str:
    vmlinux = tree.output / VMLINUX
    hint = "hotreload kernel build, or make"
    try:
        found = read_build_id(vmlinux)
    except OSError as error:
        raise InputError(f"the kernel in {tree.output} is not built: it has no vmlinux", hint=hint) from error
    if found is None:
        raise InputError(f"{vmlinux} has no build-id", hint=hint)
    return found
