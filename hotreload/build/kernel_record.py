# SPDX-License-Identifier: MIT
"""The base of a kernel that is being worked on: recorded once per vmlinux, identified by its build-id.

A record consists of the sources that the kernel was built from, so it must be made before one of them is
edited: by `hotreload kernel build` after the build, by `hotreload kernel record`, or when a guest first boots
that kernel. Whether sources and objects belong together is judged by their mtimes, as in make.
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
    """Return the base of the kernel built in ``tree``. Record it if that has not been done.

    Raises InputError (HR1006: sources were edited since it was built; HR1009: it is not built).
    """
    record = await asyncio.to_thread(_record, tree)
    if record.is_symlink():
        try:
            return await asyncio.to_thread(open_base, record.resolve(), tree)
        except InputError:
            record.unlink(missing_ok=True)  # its base was swept, so record it again
    return await record_kernel(tree, progress)


async def record_kernel(tree: KernelTree, progress: Progress | None = None) -> Base:
    """Record what the kernel was built from.

    Raises what kernel_base raises, and KernelUnfitError (HR3102).
    """
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
    """Raise KernelUnfitError (HR3102) if objtool runs on the linked vmlinux instead of on each object.

    A patch would lack what objtool adds to an object (unwind tables, the places of returns and static calls):
    delay-objtool in scripts/Makefile.lib, Linux commit 753da4179d08 (in v5.19). Modules are not affected,
    because the step is replayed on their objects.
    """
    if tree.option("X86_KERNEL_IBT") == "y":
        raise KernelUnfitError(
            "X86_KERNEL_IBT is set, so objtool processes only the linked vmlinux, not the objects of a patch",
            hint="scripts/config --disable X86_KERNEL_IBT; make olddefconfig all",
        )


def require_same_kernel(base: AnyBase) -> None:
    """Raise InputError (HR1009) if the tree's vmlinux is not the base's, because the kernel was rebuilt."""
    booted = next((built.ko for built in base.modules if built.name == VMLINUX), None)
    if booted is not None and read_build_id(booted) != _build_id(base.tree):
        raise InputError(
            f"{base.tree.output / VMLINUX} is not the one that the guest booted",
            hint="run hotreload guest restart to boot it, or use --max-rung reboot",
        )


def require_fresh(build: Build) -> None:
    """Raise InputError (HR1006) if a file was saved after an object that is made from it."""
    # Ignore the time of autoconf.h: it is newer than most objects. kernel_sources.py checks each option.
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
        raise _not_the_base(f"not linked since its objects were compiled: {_told(late, build.tree.output)}")


def _not_the_base(fact: str) -> InputError:
    hint = "run hotreload kernel build (or make), which builds the kernel from the current sources"
    return InputError(fact, code="HR1006", hint=hint)


def _told(files: list[Path], root: Path) -> str:
    names = [os.path.relpath(os.path.normpath(file), root) for file in files]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _record(tree: KernelTree) -> Path:
    """Return the link to the base of this vmlinux and of the modules that are next to it at present.

    It depends on the path, because a copy has its sources elsewhere, and on the modules' times, because a
    module may be rebuilt without vmlinux.
    """
    digest = hashlib.sha256(f"{tree.source}\0{tree.output}\0".encode())
    for ko in module_files(tree):
        digest.update(f"{ko}\0{saved_ns(ko)}\0".encode())
    return cache_folder() / "base" / f"{VMLINUX}-{_build_id(tree)}-{digest.hexdigest()[:8]}"


def _build_id(tree: KernelTree) -> str:
    vmlinux = tree.output / VMLINUX
    hint = "run hotreload kernel build, or make"
    try:
        found = read_build_id(vmlinux)
    except OSError as error:
        raise InputError(f"the kernel in {tree.output} is not built: it has no vmlinux", hint=hint) from error
    if found is None:
        raise InputError(f"{vmlinux} has no build-id", hint=hint)
    return found
