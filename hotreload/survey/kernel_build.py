# SPDX-License-Identifier: MIT
"""Kernels to measure and to test on: packaged sources, made into a folder of ours, and their units.

The sources are only read (``make O=``). A second run finds the build and starts nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.build.cmd_files import TranslationUnit, is_compile, parse_cmd_file
from hotreload.build.debian_kernel import Package, download, locked
from hotreload.build.kernel_config import FRAGMENT, config_file, configuration, read_text
from hotreload.build.kernel_make import find_source, make_kernel
from hotreload.build.kernel_progress import now_and_then
from hotreload.build.kernel_tree import KernelTree, find_kernel
from hotreload.errors import EnvironmentFault
from hotreload.paths import cache_folder, writing_to

Progress = Callable[[str], None]

# What Debian 12 offers side by side: the stable release and the update behind it.
PACKAGE = "linux-source-6.1"
OLD_VERSION, NEW_VERSION = "6.1.170-3", "6.1.176-1"
BUILT_FROM = ".hotreload-built-from"
TOLD_EVERY = 15.0  # seconds


@dataclass(frozen=True, slots=True)
class BuiltKernel:
    """``units``: every C source that is linked into vmlinux, in the order of their objects' names."""

    source: Path
    output: Path
    units: tuple[TranslationUnit, ...]

    def name_of(self, unit: TranslationUnit) -> str:
        """``net/ipv4/tcp.c``: the source as seen from the kernel's own folder."""
        root = self.source if unit.source.is_relative_to(self.source) else self.output
        return str(unit.source.relative_to(root))


async def cached_kernel(
    package: str, config: str, progress: Progress, version: str | None = None, jobs: int | None = None
) -> KernelTree:
    """A packaged source (``linux-source-6.12``), built with a configuration, once, below the cache.

    ``config``: a name or a file, as ``--config`` takes it; ``version``: default, the newest. Another version,
    configuration or compiler is another kernel. Raises what fetch_source and make_kernel raise.
    """
    source = await fetch_source(package, version, progress)
    wanted = config_file(config)
    stamp = await _stamp(source, wanted)
    output = _place(source, wanted, stamp)
    folder = output.parent
    with writing_to(folder):
        folder.mkdir(exist_ok=True)
    # kbuild writes its folder's path into what it makes, so it cannot be renamed: a stamp says it is whole.
    async with locked(folder / f".{output.name}.lock", progress, "builds this kernel"):
        await _make_once(source, output, wanted, jobs, progress, stamp)
    return find_kernel(str(output))


async def find_cached_kernel(package: str, config: str) -> KernelTree | None:
    """What cached_kernel would find built, of the newest sources in the cache; nothing is fetched."""
    wanted = config_file(config)
    for source in _unpacked(package, cache_folder() / "sources"):
        stamp = await _stamp(source, wanted)
        output = _place(source, wanted, stamp)
        if _is_made(output, stamp):
            return find_kernel(str(output))
    return None


def _place(source: Path, config: Path, stamp: str) -> Path:
    digest = hashlib.sha256(stamp.encode()).hexdigest()[:12]
    return cache_folder() / "kernels" / f"{source.name}-{config.stem}-{digest}"


async def build_kernel(
    source: Path, output: Path, config: Path, jobs: int, progress: Progress
) -> BuiltKernel:
    """Configure and build ``source`` into ``output``, unless that is done; then read what was built.

    Raises what find_source and make_kernel raise.
    """
    source, output = find_source(source, output)
    await _make_once(source, output, config, jobs, progress, await _stamp(source, config))
    return BuiltKernel(source, output, tuple(await _units(output)))


async def _make_once(
    source: Path, output: Path, config: Path, jobs: int | None, progress: Progress, stamp: str
) -> None:
    if _is_made(output, stamp):
        return
    noted = output / BUILT_FROM
    with writing_to(output):
        noted.unlink(missing_ok=True)
    tell = now_and_then(progress, TOLD_EVERY)
    await make_kernel(source, output, config, jobs or len(os.sched_getaffinity(0)), tell)
    with writing_to(output):
        noted.write_text(stamp)


def _is_made(output: Path, stamp: str) -> bool:
    noted = output / BUILT_FROM
    return noted.is_file() and noted.read_text() == stamp and (output / "vmlinux").is_file()


async def _stamp(source: Path, config: Path) -> str:
    """All that makes a kernel what it is: the sources' place, the configuration, the compiler."""
    text = configuration(config) + read_text(config_file(FRAGMENT))
    compiler = (await _must(["gcc", "--version"])).partition("\n")[0]
    return f"{source}\n{hashlib.sha256(text.encode()).hexdigest()}\n{compiler}\n"


async def fetch_source(package: str, version: str | None, progress: Progress) -> Path:
    """The unpacked sources of a package, from the cache or by apt. Raises EnvironmentFault (HR5109).

    ``version``: None for the newest that apt knows, or, where apt knows none, that the cache has.
    """
    folder = cache_folder() / "sources"
    with writing_to(folder):
        folder.mkdir(exist_ok=True)
    version = version or await _newest(package, folder)
    final = folder / f"{package}-{version}"
    async with locked(folder / ".lock", progress, "fetches sources"):
        # Whoever held the lock may have fetched it, or was killed in the middle.
        for leftover in folder.glob(".fetch-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if not final.is_dir():
            await _fetch(package, version, final, progress)
    return final


async def _newest(package: str, folder: Path) -> str:
    with contextlib.suppress(EnvironmentFault):
        if versions := listed_versions(await _must(["apt-cache", "madison", package])):
            return versions[0]
    cached = _unpacked(package, folder)
    if not cached:
        raise EnvironmentFault(
            f"apt knows no package {package}", code="HR5109", hint="apt-get update, then again"
        )
    return cached[0].name.removeprefix(f"{package}-")


def _unpacked(package: str, folder: Path) -> list[Path]:
    """The sources of a package that are in the cache, what was unpacked last first."""
    found = folder.glob(f"{package}-*")
    return sorted(found, key=lambda source: source.stat().st_ctime, reverse=True)


def listed_versions(text: str) -> list[str]:
    """The versions that ``apt-cache madison`` lists, the newest first, as it does."""
    return re.findall(r"^ *\S+ \| +(\S+) \|", text, re.MULTILINE)


async def _fetch(package: str, version: str, final: Path, progress: Progress) -> None:
    with writing_to(final):
        temporary = Path(tempfile.mkdtemp(prefix=".fetch-", dir=final.parent))
    try:
        progress(f"fetching {package} {version} (140 MB)")
        await download(Package(package, version, (), 0), temporary)
        (file,) = temporary.glob("*.deb")
        progress(f"unpacking {package} {version}")
        await _must(["dpkg", "-x", file, temporary / "root"])
        (archive,) = (temporary / "root/usr/src").glob("*.tar.*")
        await _must(["tar", "-C", temporary, "-xf", archive])
        with writing_to(final):
            (temporary / package).rename(final)
    except EnvironmentFault as fault:
        if fault.code != "HR5109":
            raise
        hint = "apt-get update, then again; or name unpacked sources: --old DIR --new DIR"
        raise EnvironmentFault(fault.message, code=fault.code, hint=hint) from fault
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


async def _units(output: Path) -> list[TranslationUnit]:
    """Every compiled C source that vmlinux is linked from, by the notes that kbuild left."""
    # vmlinux.a is a thin archive: it names what goes into vmlinux, and so leaves out the vdso, the boot code
    # and host programs.
    listed = await _must(["ar", "t", "vmlinux.a"], output)
    found = (read_unit(output, output / name) for name in dict.fromkeys(listed.split()))
    return sorted((unit for unit in found if unit), key=lambda unit: unit.object)


def read_unit(output: Path, target: Path) -> TranslationUnit | None:
    """The unit of an object by kbuild's notes; None for what is not compiled from C."""
    notes = target.with_name(f".{target.name}.cmd")
    if not notes.is_file():
        return None
    noted = parse_cmd_file(notes.read_text(errors="replace"))
    if noted.source is None or not noted.source.endswith(".c") or not is_compile(noted.command):
        return None
    source = Path(os.path.normpath(output / noted.source))
    return TranslationUnit(source, target, noted.command, output, "vmlinux")


async def _must(argv: list[process.Argument], cwd: Path | None = None) -> str:
    done = await process.run(argv, cwd=cwd)
    if not done.ok:
        raise EnvironmentFault(f"{argv[0]} failed: {done.complaint[-200:]}", hint="see the message before it")
    return done.text
