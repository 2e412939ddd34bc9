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

from hotreload.build.base import Base, open_base, record_base
from hotreload.build.built import VMLINUX, Build
from hotreload.build.kernel_sources import AUTOCONF, read_kernel_build
from hotreload.build.kernel_tree import KernelTree
from hotreload.elf.build_id import read_build_id
from hotreload.errors import InputError
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
    """Keep what the kernel was built from. Raises as kernel_base."""
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


def require_fresh(build: Build) -> None:
    """Raise InputError (HR1006) when a file was saved after what it goes into was made."""
    # What the configuration says is not a question of this file's time: it is newer than most objects.
    saved = [0 if file.match(str(AUTOCONF)) else _saved_ns(file) for file in build.inputs.files]
    stale = set()
    for target in build.inputs:
        made = _saved_ns(target)
        stale |= {number for number in build.inputs.numbers(target) if saved[number] > made}
    linked = {built.ko: max(map(_saved_ns, (unit.object for unit in built.units)), default=0)
              for built in build.modules}  # fmt: skip
    if stale:
        files = [build.inputs.files[number] for number in sorted(stale)]
        raise _not_the_base(f"edited since the kernel was built: {_told(files, build.folder)}")
    if late := [ko for ko, made in linked.items() if made > _saved_ns(ko)]:
        raise _not_the_base(f"not linked since its objects were made: {_told(late, build.tree.output)}")


def _not_the_base(fact: str) -> InputError:
    hint = "hotreload kernel build (or make) makes the kernel of what the sources are now"
    return InputError(fact, code="HR1006", hint=hint)


def _told(files: list[Path], root: Path) -> str:
    names = [os.path.relpath(os.path.normpath(file), root) for file in files]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _saved_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _record(tree: KernelTree) -> Path:
    """The link to the base of this vmlinux in this place: a copy elsewhere has its sources elsewhere."""
    place = hashlib.sha256(f"{tree.source}\0{tree.output}".encode()).hexdigest()[:8]
    return cache_folder() / "base" / f"{VMLINUX}-{_build_id(tree)}-{place}"


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
