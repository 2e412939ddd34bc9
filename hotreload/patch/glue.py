# SPDX-License-Identifier: MIT
"""The part of a patch module that is the same in every patch: compiled once per kernel, and cached.

Only the kernel's headers and configuration know the layouts of ``struct module`` and ``struct klp_patch``,
and the checks at load time need kbuild's own notes. So kbuild builds a small module (csource/) as a
*template*. A patch is this file with the patch's sections merged in, which needs neither kbuild nor ld.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from hotreload.build.base import Base
from hotreload.build.built import sha256
from hotreload.build.external_module import build_modules
from hotreload.build.kernel_tree import KernelTree
from hotreload.errors import CompileError, InputError, KernelUnfitError
from hotreload.paths import cache_folder, writing_to

Progress = Callable[[str], None]

SOURCES = Path(__file__).with_name("csource")
TEMPLATE_NAME = "hotreload_template"
"""The template's own name: in ``.gnu.linkonce.this_module``, and behind ``name=`` in ``.modinfo``."""

TABLE_SECTION = ".hotreload.table"
TABLE_SIZE = 64
# Offsets of the 8-byte fields of the table, which are all zero in the template. Relocations fill in the
# pointers; numbers and counts are written directly.
TABLE_FUNCS, TABLE_COUNT, TABLE_TRANSITION_WORK, TABLE_TRANSITION_PATCH = 0, 8, 16, 24
TABLE_WRITES, TABLE_WRITE_COUNT, TABLE_CALLBACKS, TABLE_CALLBACK_COUNT = 32, 40, 48, 56
# One entry of the array that TABLE_FUNCS points to. The entries for one object are adjacent.
FUNC_SIZE = 32
FUNC_OBJECT, FUNC_OLD_NAME, FUNC_NEW_FUNC, FUNC_OLD_SYMPOS = 0, 8, 16, 24
# One entry of the array that TABLE_WRITES points to.
WRITE_ENTRY_SIZE = 80
WRITE_OBJECT, WRITE_NAME, WRITE_PLACE, WRITE_SIZE = 0, 8, 16, 24
WRITE_BASE, WRITE_EXPECTED, WRITE_VALUE, WRITE_LENIENT = 32, 40, 48, 56
WRITE_GROUP, WRITE_CHECK = 64, 72
# One entry of the array that TABLE_CALLBACKS points to. A kind is an index into CALLBACK_KINDS.
CALLBACK_ENTRY_SIZE = 24
CALLBACK_OBJECT, CALLBACK_KIND, CALLBACK_FUNC = 0, 8, 16

# No debugging information and no BTF, because they would be dropped from every patch. Without the former,
# pahole would fail to make the latter.
VARIABLES = ("KCFLAGS=-g0", "CONFIG_DEBUG_INFO_BTF_MODULES=")


async def build_glue(kernel: KernelTree, progress: Progress | None = None, base: Base | None = None) -> Path:
    """Return the template module (``.ko``) for this kernel, from the cache or built now (2 s).

    ``base``: the base of the kernel, if its own sources are worked on. The template then has to match it.

    Raises KernelUnfitError (HR3102) if this kernel cannot build it, InputError (HR1006) if a header differs
    from that of ``base``, EnvironmentFault (HR5106 no compiler, HR5107 no space, HR5108 cache not writable).
    """
    folder = cache_folder() / "glue"
    with writing_to(folder):
        folder.mkdir(exist_ok=True)
    place = folder / f"{kernel.release}-{await asyncio.to_thread(_digest, kernel, base)}"
    if not _is_current(place, base):
        async with _lock(folder / ".lock"):
            # The previous holder of the lock may have built it, or have been killed in the middle.
            for leftover in folder.glob(".new-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if not _is_current(place, base):
                await _build(kernel, place, progress, base)
    return place / f"{TEMPLATE_NAME}.ko"


def _digest(kernel: KernelTree, base: Base | None) -> str:
    """Return a digest of all that tells the templates of kernels apart, except headers (see _is_current)."""
    digest = hashlib.sha256(str(kernel.output).encode())
    own: tuple[Path, ...] = (kernel.config, kernel.output / "Module.symvers")
    if base is not None:
        own = ()  # a rebuild may change these, but not the kernel that was booted
        digest.update(base.id.encode())
    for file in (*own, *sorted(SOURCES.iterdir())):
        digest.update(b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:24]


def _is_current(place: Path, base: Base | None) -> bool:
    """Return whether there is a template made from the current headers, or for ``base`` if it is given."""
    if base is not None:
        return place.is_dir()
    try:
        headers: dict[str, list[int]] = json.loads((place / "headers.json").read_text())
        return all(_stamp(Path(name)) == stamp for name, stamp in headers.items())
    except (OSError, ValueError, AttributeError):
        return False


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


async def _build(kernel: KernelTree, place: Path, progress: Progress | None, base: Base | None) -> None:
    with writing_to(place.parent), tempfile.TemporaryDirectory(prefix=".new-", dir=place.parent) as scratch:
        work, new = Path(scratch, "work"), Path(scratch, "new")
        shutil.copytree(SOURCES, work)
        new.mkdir()
        # build_modules() takes a file saved just now for one that is being edited, and compiles twice.
        await asyncio.sleep(0.05)
        try:
            built = await build_modules(kernel, work, progress, VARIABLES)
        except CompileError as error:
            raise KernelUnfitError(
                f"the patch template does not compile for kernel {kernel.release}: {error.message}",
                hint=f"build the whole kernel: make -C {kernel.output} all",
            ) from error
        if base is not None:
            _require_same_headers(built.kernel_files, base)
        shutil.copyfile(built.modules[0].ko, new / f"{TEMPLATE_NAME}.ko")
        (new / "headers.json").write_text(json.dumps(_stamps(built.kernel_files)))
        shutil.rmtree(place, ignore_errors=True)
        new.rename(place)


def _require_same_headers(headers: Iterable[Path], base: Base) -> None:
    """Raise InputError (HR1006) if a header is not the one that the kernel was built with.

    A template with other headers may have other layouts than the kernel.
    """
    recorded = {os.path.normpath(file): digest for file, digest in base.digests.items()}
    for header in headers:
        held = recorded.get(os.path.normpath(header))
        if held is not None and sha256(header) != held:
            raise InputError(
                f"{header} changed after the kernel was built, and the first patch needs it",
                code="HR1006",
                hint="run hotreload kernel build (or make); or undo the edit until the first patch is made",
            )


def _stamps(files: Iterable[Path]) -> dict[str, list[int]]:
    return {str(file): _stamp(file) for file in files}


@contextlib.asynccontextmanager
async def _lock(file: Path) -> AsyncIterator[None]:
    with writing_to(file):
        handle = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        await _locked(handle)
        yield
    finally:
        os.close(handle)


async def _locked(handle: int) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(0.1)
        else:
            return
