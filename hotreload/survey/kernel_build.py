# SPDX-License-Identifier: MIT
"""A kernel to measure on: packaged sources, configured and built into a folder of ours, and its units.

The sources are only read (``make O=``). A second run finds the build and starts nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.build.cmd_files import TranslationUnit, is_compile, parse_cmd_file
from hotreload.build.debian_kernel import Package, download, locked
from hotreload.errors import CompileError, EnvironmentFault, InputError
from hotreload.paths import cache_folder, writing_to

Progress = Callable[[str], None]

# What Debian 12 offers side by side: the stable release and the update behind it.
PACKAGE = "linux-source-6.1"
OLD_VERSION, NEW_VERSION = "6.1.170-3", "6.1.176-1"
# A checkout's; the scripts that measure are not part of what is installed.
CONFIG = Path(__file__).parents[2] / "vmimages" / "small.config"
BUILT_FROM = ".hotreload-built-from"


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


async def fetch_source(version: str, progress: Progress) -> Path:
    """The unpacked sources of a version of PACKAGE, from the cache or by apt. Raises EnvironmentFault."""
    folder = cache_folder() / "sources"
    final = folder / f"{PACKAGE}-{version}"
    with writing_to(folder):
        folder.mkdir(exist_ok=True)
    async with locked(folder / ".lock", progress):
        # Whoever held the lock may have fetched it, or was killed in the middle.
        for leftover in folder.glob(".fetch-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if not final.is_dir():
            await _fetch(version, final, progress)
    return final


async def _fetch(version: str, final: Path, progress: Progress) -> None:
    with writing_to(final):
        temporary = Path(tempfile.mkdtemp(prefix=".fetch-", dir=final.parent))
    try:
        progress(f"fetching {PACKAGE} {version} (140 MB)")
        await download(Package(PACKAGE, version, (), 0), temporary)
        (package,) = temporary.glob("*.deb")
        progress(f"unpacking {PACKAGE} {version}")
        await _must(["dpkg", "-x", package, temporary / "root"])
        (archive,) = (temporary / "root/usr/src").glob("*.tar.*")
        await _must(["tar", "-C", temporary, "-xf", archive])
        with writing_to(final):
            (temporary / PACKAGE).rename(final)
    except EnvironmentFault as fault:
        if fault.code != "HR5109":
            raise
        hint = "apt-get update, then again; or name unpacked sources: --old DIR --new DIR"
        raise EnvironmentFault(fault.message, code=fault.code, hint=hint) from fault
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


async def build_kernel(
    source: Path, output: Path, config: Path, jobs: int, progress: Progress
) -> BuiltKernel:
    """Configure and build ``source`` into ``output``, unless that is done; then read what was built.

    Raises CompileError with the last lines of make, InputError (HR1009) where ``source`` is no kernel.
    """
    if not (source / "Kconfig").is_file():
        raise InputError(f"{source} is no kernel source", hint="name an unpacked linux-source")
    _require_programs()
    source, output = source.resolve(), output.resolve()
    stamp = f"{source}\n{hashlib.sha256(config.read_bytes()).hexdigest()}\n"
    noted = output / BUILT_FROM
    if not (noted.is_file() and noted.read_text() == stamp and (output / "vmlinux").is_file()):
        with writing_to(output):
            output.mkdir(parents=True, exist_ok=True)
        await _make(source, output, [f"KCONFIG_ALLCONFIG={config.resolve()}", "allnoconfig"], progress)
        await _make(source, output, [f"-j{jobs}", "bzImage"], progress)
        noted.write_text(stamp)
    return BuiltKernel(source, output, tuple(await _units(output)))


def _require_programs() -> None:
    missing = [name for name in ("make", "flex", "bison", "bc") if shutil.which(name) is None]
    if not Path("/usr/include/libelf.h").is_file():
        missing.append("libelf-dev")
    if missing:
        raise EnvironmentFault(
            f"to build a kernel needs {', '.join(missing)}", hint=f"apt-get install {' '.join(missing)}"
        )


async def _make(source: Path, output: Path, words: list[str], progress: Progress) -> None:
    """Run make, and say now and then how many objects it has made."""
    log = output / "make.log"
    running = asyncio.create_task(
        process.run(["sh", "-c", 'exec make "$@" >make.log 2>&1', "sh", "-C", source, f"O={output}", *words],
                    cwd=output)
    )  # fmt: skip
    while not (await asyncio.wait([running], timeout=15))[0]:
        progress(f"make {words[-1]}: {log.read_text(errors='replace').count('  CC  ')} objects")
    if not running.result().ok:
        said = log.read_text(errors="replace").splitlines(keepends=True)
        raise CompileError(f"make {words[-1]} failed in {output}", "".join(said[-20:]))


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
