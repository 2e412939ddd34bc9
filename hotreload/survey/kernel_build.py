# SPDX-License-Identifier: MIT
"""Build kernels for surveys and tests from packaged sources, and find their translation units.

The kernel is built in a separate folder (``make O=``), so the sources are only read. A finished build is
reused.
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

# The versions that Debian 12 offers side by side: the stable release and the update after it.
PACKAGE = "linux-source-6.1"
OLD_VERSION, NEW_VERSION = "6.1.170-3", "6.1.176-1"
BUILT_FROM = ".hotreload-built-from"
TOLD_EVERY = 15.0  # seconds


@dataclass(frozen=True, slots=True)
class BuiltKernel:
    """A built kernel. ``units``: every C source that is linked into vmlinux, sorted by object name."""

    source: Path
    output: Path
    units: tuple[TranslationUnit, ...]

    def name_of(self, unit: TranslationUnit) -> str:
        """Return the path of a unit's source in the kernel, such as ``net/ipv4/tcp.c``."""
        root = self.source if unit.source.is_relative_to(self.source) else self.output
        return str(unit.source.relative_to(root))


async def cached_kernel(
    package: str, config: str, progress: Progress, version: str | None = None, jobs: int | None = None
) -> KernelTree:
    """Return a kernel built from a source package such as ``linux-source-6.12``, building it if necessary.

    It is kept in the cache. Each version, configuration and compiler has a kernel of its own. ``config``: a
    name or a file, as for ``--config``. ``version``: None for the newest. Raises what fetch_source and
    make_kernel raise.
    """
    source = await fetch_source(package, version, progress)
    wanted = config_file(config)
    stamp = await _stamp(source, wanted)
    output = _place(source, wanted, stamp)
    folder = output.parent
    with writing_to(folder):
        folder.mkdir(exist_ok=True)
    # kbuild writes the path of its folder into its output, so the folder cannot be renamed when the build is
    # complete. A stamp file marks it as complete instead.
    async with locked(folder / f".{output.name}.lock", progress, "builds this kernel"):
        await _make_once(source, output, wanted, jobs, progress, stamp)
    return find_kernel(str(output))


async def find_cached_kernel(package: str, config: str) -> KernelTree | None:
    """Return the kernel that cached_kernel has built from the newest sources in the cache. Fetch nothing.

    Older sources are used if the newest have no build.
    """
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
    """Configure and build ``source`` in ``output``, unless that was done before. Return what was built.

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
    """Return what identifies a build: the path of the sources, the configuration and the compiler."""
    text = configuration(config) + read_text(config_file(FRAGMENT))
    compiler = (await _must(["gcc", "--version"])).partition("\n")[0]
    return f"{source}\n{hashlib.sha256(text.encode()).hexdigest()}\n{compiler}\n"


async def fetch_source(package: str, version: str | None, progress: Progress) -> Path:
    """Return the unpacked sources of a package from the cache, or fetch them with apt.

    ``version``: None for the newest that apt knows, or if apt knows none, for the newest in the cache. Raises
    EnvironmentFault (HR5109).
    """
    folder = cache_folder() / "sources"
    with writing_to(folder):
        folder.mkdir(exist_ok=True)
    version = version or await _newest(package, folder)
    final = folder / f"{package}-{version}"
    async with locked(folder / ".lock", progress, "fetches sources"):
        # The previous holder of the lock may have fetched it, or may have been killed while fetching.
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
            f"apt does not know the package {package}",
            code="HR5109",
            hint="run apt-get update, and try again",
        )
    return cached[0].name.removeprefix(f"{package}-")


def _unpacked(package: str, folder: Path) -> list[Path]:
    """Return the sources of a package in the cache, those that were unpacked last first."""
    found = folder.glob(f"{package}-*")
    return sorted(found, key=lambda source: source.stat().st_ctime, reverse=True)


def listed_versions(text: str) -> list[str]:
    """Return the versions in the output of ``apt-cache madison``, which lists the newest first."""
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
        hint = "run apt-get update, and try again; or name unpacked sources with --old DIR --new DIR"
        raise EnvironmentFault(fault.message, code=fault.code, hint=hint) from fault
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


async def _units(output: Path) -> list[TranslationUnit]:
    """Return all C sources that vmlinux is linked from, according to kbuild's .cmd files."""
    # vmlinux.a is a thin archive that lists the objects of vmlinux. It does not list the vdso, the boot code
    # and host programs.
    listed = await _must(["ar", "t", "vmlinux.a"], output)
    found = (read_unit(output, output / name) for name in dict.fromkeys(listed.split()))
    return sorted((unit for unit in found if unit), key=lambda unit: unit.object)


def read_unit(output: Path, target: Path) -> TranslationUnit | None:
    """Return the unit of an object according to its .cmd file, or None if it is not compiled from C."""
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
        raise EnvironmentFault(f"{argv[0]} failed: {done.complaint[-200:]}", hint="see the message above")
    return done.text
