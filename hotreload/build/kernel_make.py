# SPDX-License-Identifier: MIT
"""Make a kernel that hotreload can work with: configure it, run kbuild, and report the progress.

The release string of a kernel and of the modules that are built later must be the same, or the kernel refuses
the modules. kbuild determines it in every build: ``scripts/setlocalversion`` appends a ``+`` if git's HEAD is
not a tagged commit, or the commit itself with CONFIG_LOCALVERSION_AUTO. Therefore our kernels never ask git:
the option is off (see vmimages/fragment.config), and LOCALVERSION is set, to nothing if need be, which
suppresses the ``+``. ``make -C OUTPUT M=..`` uses the release that the kernel's build left.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hotreload import process
from hotreload.build.debian_kernel import locked
from hotreload.build.kernel_config import (
    FRAGMENT,
    Setting,
    check_taken,
    config_file,
    configuration,
    merged,
    options_of,
    read_settings,
    read_text,
    unmet,
)
from hotreload.build.kernel_progress import Meter, Step, Tell, list_units
from hotreload.build.kernel_tree import KernelTree, check_fit, find_kernel
from hotreload.build.make_says import first_error, without_make
from hotreload.build.unfinished import remembered
from hotreload.errors import CompileError, EnvironmentFault, InputError, KernelUnfitError
from hotreload.paths import full_disk, runtime_folder, writing_to

SHOWN_LINES = 40  # of the compiler's output; an error is at the end, with -j after a few others
KEPT_BYTES = 1 << 18

# What make runs, with its Debian package. The first column is the option that needs it; empty if all kernels
# do.
PROGRAMS = (
    ("", "make", "make"),
    ("", "gcc", "gcc"),
    ("", "flex", "flex"),
    ("", "bison", "bison"),
    ("", "bc", "bc"),
    ("", "/usr/include/libelf.h", "libelf-dev"),
    ("KERNEL_BZIP2", "bzip2", "bzip2"),
    ("KERNEL_LZMA", "lzma", "xz-utils"),
    ("KERNEL_XZ", "xz", "xz-utils"),
    ("KERNEL_LZO", "lzop", "lzop"),
    ("KERNEL_LZ4", "lz4", "lz4"),
    ("KERNEL_ZSTD", "zstd", "zstd"),
    ("IKHEADERS", "cpio", "cpio"),
    ("SYSTEM_TRUSTED_KEYRING", "/usr/include/openssl/opensslv.h", "libssl-dev"),
    ("MODULE_SIG_FORMAT", "/usr/include/openssl/opensslv.h", "libssl-dev"),
    ("MODULE_SIG", "openssl", "openssl"),
    ("DEBUG_INFO_BTF", "pahole", "pahole"),
    ("RUST", "rustc", "rustc"),
    ("RUST", "bindgen", "bindgen"),
)


@dataclass(frozen=True, slots=True)
class MadeKernel:
    """A built kernel, what had to be changed in its existing .config, and how many units were compiled."""

    tree: KernelTree
    changed: tuple[Setting, ...]
    compiled: int

    def facts(self) -> dict[str, object]:
        """Return the facts for programs (JSON)."""
        return {
            "release": self.tree.release,
            "source": str(self.tree.source),
            "output": str(self.tree.output),
            "image": str(self.tree.image),
            "compiled": self.compiled,
            "changed": {setting.name: setting.value for setting in self.changed},
        }

    def told(self) -> str:
        """Return the text for people: what was made, what had to be set, and what to do next."""
        lines = [f"{self.tree.release} is in {self.tree.output}, {self.compiled} units compiled"]
        if self.changed:
            lines.append("set in .config: " + ", ".join(f"{one.name}={one.value}" for one in self.changed))
        lines.append(f"next: hotreload watch -K {shlex.quote(str(self.tree.output))}")
        return "\n".join(lines)


def find_source(folder: Path, output: Path | None = None) -> tuple[Path, Path]:
    """Return the kernel sources for ``folder``, and the folder to build in (``output``, or else ``folder``).

    The sources are ``folder`` itself, or those that it, as an O= folder, was configured from. Raises
    InputError (HR1009) if there are none, or if kbuild could not build them there.
    """
    folder = folder.resolve()
    source = (folder / "source").resolve() if (folder / "source").is_dir() else folder
    output = (output or folder).resolve()
    if not all((source / name).is_file() for name in ("Kconfig", "Makefile", "init/main.c")):
        raise InputError(
            f"{folder} does not contain kernel sources",
            hint="go to a kernel tree (apt-get install linux-source has one), or name its folder",
        )
    for path in (source, output):
        if re.search(r"[\s:]", str(path)):
            raise InputError(
                f"a kernel cannot be built in {path}: make allows no space or colon in a path",
                hint="move it, or build elsewhere: -O DIR",
            )
    if output != source and (source / ".config").is_file():
        raise InputError(
            f"{source} was built in place, so kbuild cannot build it in another folder",
            hint=f"leave out -O; or run make -C {source} mrproper, which deletes what was built, and .config",
        )
    return source, output


async def make_kernel(source: Path, output: Path, config: Path | None, jobs: int, tell: Tell) -> MadeKernel:
    """Configure ``source`` into ``output`` (the same folder: in place), then build the image and modules.

    If ``config`` is given, or there is no .config yet, that file (default: minimal) is the configuration,
    options that it does not name are off, and an earlier .config becomes .config.old. Otherwise the existing
    .config gets what hotreload and the guest need, and nothing else.

    Raises InputError (HR1009), EnvironmentFault (HR5106, HR5107, HR5108), KernelUnfitError (HR3102) when the
    configuration does not allow what is needed, CompileError with gcc's own lines.
    """
    _require_programs({})
    with writing_to(output):
        output.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(output).encode()).hexdigest()[:16]
    lock = runtime_folder() / f"kernel-{name}.lock"
    async with locked(lock, lambda line: tell(Step(line)), "builds this kernel"):
        changed = await _configure(source, output, config, tell)
        _require_programs(options_of(read_text(output / ".config")))
        meter = Meter(await list_units(source, output, jobs), output)
        with remembered(output):
            await _make(source, output, [f"-j{jobs}", "bzImage", "modules"], meter, tell)
        tree = find_kernel(str(output))
        check_fit(tree)
    return MadeKernel(tree, changed, len(meter.done))


async def _configure(source: Path, output: Path, config: Path | None, tell: Tell) -> tuple[Setting, ...]:
    """Write .config, and return what had to be changed in an existing one.

    An existing .config is restored if kconfig does not accept the settings.
    """
    tell(Step("configuring"))
    file = output / ".config"
    fragment = read_settings(read_text(config_file(FRAGMENT)))
    before = read_text(file) if file.is_file() else None
    if config is None and before is not None:
        changed = unmet(before, fragment)
        with writing_to(file):
            _write_whole(file, merged(before, fragment))
        await _make(source, output, ["olddefconfig"])
    else:
        changed = ()
        with tempfile.TemporaryDirectory(prefix="hotreload-") as scratch:
            wanted = Path(scratch, "wanted.config")
            # Options that such a file does not name are off, even if this kernel offers them.
            asked = [replace(setting, optional=False) for setting in fragment]
            wanted.write_text(merged(configuration(config or config_file("minimal")), asked))
            await _make(source, output, [f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"])
    try:
        check_taken(read_text(file), fragment, source)
    except KernelUnfitError:
        _write_whole(file, before) if before is not None else file.unlink()
        raise
    return changed


def _write_whole(file: Path, text: str) -> None:
    if file.is_file() and file.read_text(errors="replace") == text:
        return  # keep the mtime, which kbuild compares
    target = Path(os.path.realpath(file))
    temporary = target.with_name(".config.hotreload")
    temporary.write_text(text)
    temporary.replace(target)


async def _make(
    source: Path, output: Path, words: list[str], meter: Meter | None = None, tell: Tell | None = None
) -> None:
    """Run make on the kernel. Raises CompileError, EnvironmentFault (HR5107)."""
    child = await process.spawn(
        ["make", "-C", source, f"O={output}", "V=0", *release_words(os.environ), *words],
        # The flags and settings of a make that started us are not meant for this one.
        env={"MAKEFLAGS": "", "GNUMAKEFLAGS": "", "KBUILD_OUTPUT": ""},
        tidies=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    complaint = asyncio.create_task(_last_of(child.stderr))
    try:
        async for line in process.lines_of(child.stdout):
            if meter and tell and (step := meter.read(line, time.monotonic())):
                tell(step)
        said, status = await complaint, await child.wait()
    finally:
        # make and gcc delete unfinished files; half an object would count as up to date.
        await process.end(child, grace=10)
        complaint.cancel()
    if status:
        goals = " ".join(word for word in words if not re.match(r"-|\w+=", word))
        first = first_error(said)
        raise _failure(said, f"make {goals} failed in {output}" + (f": {first}" if first else ""), output)


def release_words(environment: Mapping[str, str]) -> list[str]:
    """Return make's argument for LOCALVERSION.

    Without a setting by the user it is empty, so that no ``+`` is appended.
    """
    return [] if "LOCALVERSION" in environment else ["LOCALVERSION="]


async def _last_of(stream: asyncio.StreamReader) -> str:
    kept = b""
    while data := await stream.read(1 << 16):
        kept = (kept + data)[-KEPT_BYTES:]
    return kept.decode(errors="replace")


def _failure(said: str, message: str, output: Path) -> CompileError | EnvironmentFault:
    full = full_disk(said, f"below {output}", f"free some space: df -h {output}")
    return full or CompileError(message, diagnostics(said))


def diagnostics(said: str) -> str:
    """Return the last lines that the compiler wrote, without make's lines unless there are no others."""
    lines = (without_make(said) or said).splitlines(keepends=True)
    return "".join(lines[-SHOWN_LINES:])


def _require_programs(options: Mapping[str, str]) -> None:
    if missing := list(missing_packages(options)):
        raise EnvironmentFault(
            f"building a kernel needs {', '.join(missing)}", hint=f"apt-get install {' '.join(missing)}"
        )


def missing_packages(options: Mapping[str, str]) -> Iterator[str]:
    """Yield the packages that a kernel with these options needs for its build, and that are missing here."""
    for option, wanted, package in PROGRAMS:
        needed = not option or options.get(option) == "y"
        there = Path(wanted).is_file() if wanted.startswith("/") else shutil.which(wanted) is not None
        if needed and not there:
            yield package
