# SPDX-License-Identifier: MIT
"""Fetch the packaged Debian kernel into the cache, without root and without installing anything.

``apt-get download`` and ``dpkg -x`` of the image, headers and kbuild packages give what a driver developer
needs: a bootable kernel with its modules, and a folder for ``make -C``. The packages expect to live below
``/usr``, so the few absolute references in them are changed to point into the cache. A kernel that is already
cached needs neither a program nor the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.build.kernel_tree import KernelTree, find_kernel
from hotreload.config import packaged_flavour
from hotreload.errors import EnvironmentFault
from hotreload.paths import cache_folder, full_disk, writing_to

Progress = Callable[[str], None]
DOWNLOAD_SECONDS = 900
UNPACK_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Package:
    """A binary package as described by ``apt-cache show``. ``size`` in bytes."""

    name: str
    version: str
    depends: tuple[str, ...]
    size: int


async def open_kernel(where: str, progress: Progress | None = None) -> KernelTree:
    """Return the kernel that ``-K where`` names.

    ``debian`` or ``debian:6.12`` is fetched on first use, anything else is a folder.
    """
    flavour = packaged_flavour(where)
    return find_kernel(where) if flavour is None else await fetch_debian_kernel(progress, flavour)


async def fetch_debian_kernel(progress: Progress | None = None, flavour: str = "cloud-amd64") -> KernelTree:
    """Return the packaged kernel of ``flavour``, from the cache or else the newest one that apt knows.

    Raises EnvironmentFault: HR5106 no apt or no compiler, HR5107 no disk space, HR5108 cache not writable,
    HR5109 a package could not be fetched.
    """
    kernels = _kernels_folder()
    tree = _cached(kernels, flavour)
    if tree is None:
        async with locked(kernels / ".lock", progress or _silent):
            # The previous holder of the lock may have fetched it, or may have been killed halfway.
            for leftover in kernels.glob(".fetch-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            tree = _cached(kernels, flavour) or await _fetch(kernels, flavour, progress or _silent)
    _require_compiler(tree)
    return tree


def _silent(_line: str) -> None:
    return None


def _kernels_folder() -> Path:
    folder = cache_folder() / "kernels"
    # make splits M= and include paths at white space and colons.
    if re.search(r"[\s:]", str(folder)):
        raise EnvironmentFault(
            f"kernels cannot be kept in {folder}: make allows no space or colon in a path",
            code="HR5108",
            hint="name another place with XDG_CACHE_HOME",
        )
    with writing_to(folder):
        folder.mkdir(exist_ok=True)
    return folder


def _pointer(kernels: Path, flavour: str) -> Path:
    return kernels / f"newest-{flavour}"


def _cached(kernels: Path, flavour: str) -> KernelTree | None:
    """Return the kernel that the pointer file names: one line, the headers folder relative to the cache."""
    with contextlib.suppress(FileNotFoundError):
        headers = kernels / _pointer(kernels, flavour).read_text().strip()
        if (headers / "Module.symvers").is_file():
            return find_kernel(str(headers))
    return None


@contextlib.asynccontextmanager
async def locked(file: Path, progress: Progress, other: str = "fetches the kernel") -> AsyncIterator[None]:
    """Hold a lock, so that only one hotreload at a time makes what ``file`` stands for.

    ``other``: what the current holder is doing, for the message while waiting.
    """
    with writing_to(file):
        handle = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        waited = False
        while not _try_lock(handle):
            if not waited:
                progress(f"waiting for another hotreload that {other}")
            waited = True
            await asyncio.sleep(0.2)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _fetch(kernels: Path, flavour: str, progress: Progress) -> KernelTree:
    image, others = await _packages(flavour)
    release = image.name.removeprefix("linux-image-").removesuffix("-unsigned")
    final = kernels / f"{release}-{image.version}"
    headers = Path("usr/src") / f"linux-headers-{release}"
    if not final.is_dir():
        await _unpack_all((image, *others), final, release, progress)
    with writing_to(kernels):
        new = kernels / f".newest-{flavour}.{os.getpid()}"
        new.write_text(f"{final.name}/{headers}\n")
        new.replace(_pointer(kernels, flavour))
    return find_kernel(str(final / headers))


async def _packages(flavour: str) -> tuple[Package, tuple[Package, ...]]:
    """Return the image that the meta package depends on, and the headers and kbuild of the same version."""
    _require_programs()
    meta = await _show(f"linux-image-{flavour}")
    named = next((name for name in meta.depends if re.match(r"linux-image-\d", name)), None)
    if named is None:
        raise _not_found(f"{meta.name} {meta.version} does not depend on a kernel image")
    image = await _image(named)
    release = image.name.removeprefix("linux-image-").removesuffix("-unsigned")
    headers = await _show(f"linux-headers-{release}={image.version}")
    needed = [name for name in headers.depends if re.match(r"linux-(headers-.*-common|kbuild-)", name)]
    return image, (headers, *[await _show(name) for name in needed])


async def _image(name: str) -> Package:
    """Return the image package, signed or unsigned: an archive may have only one of them for a while."""
    try:
        return await _show(name)
    except EnvironmentFault:
        other = name.removesuffix("-unsigned") if name.endswith("-unsigned") else f"{name}-unsigned"
        return await _show(other)


async def _show(package: str) -> Package:
    done = await process.run(["apt-cache", "show", "--no-all-versions", package], timeout=60)
    fields = parse_package(done.text)
    if not done.ok or "Package" not in fields:
        raise _not_found(f"apt does not know the package {package.partition('=')[0]}")
    return Package(
        fields["Package"],
        fields["Version"],
        tuple(re.findall(r"(?:^|, )([\w.+-]+)", fields.get("Depends", ""))),
        int(fields.get("Size", "0")),
    )


def parse_package(text: str) -> Mapping[str, str]:
    """Return the one-line fields of the first paragraph of ``apt-cache show``."""
    first = text.strip().partition("\n\n")[0]
    return dict(re.findall(r"^([A-Z][\w-]*): (.*)$", first, re.MULTILINE))


def _not_found(fact: str) -> EnvironmentFault:
    return EnvironmentFault(
        fact, code="HR5109", hint="run apt-get update and try again; or name a kernel with -K"
    )


def _require_programs() -> None:
    for program in ("apt-cache", "apt-get", "dpkg"):
        if shutil.which(program) is None:
            raise EnvironmentFault(
                f"-K debian needs {program}, which is not installed",
                code="HR5106",
                hint="on other systems, name a kernel tree, an O= folder or a headers folder with -K",
            )


async def _unpack_all(packages: tuple[Package, ...], final: Path, release: str, progress: Progress) -> None:
    """Download and unpack below a temporary folder, so that ``final`` is complete when it appears."""
    with writing_to(final.parent):
        temporary = Path(tempfile.mkdtemp(prefix=".fetch-", dir=final.parent))
    try:
        downloads, root = temporary / "debs", temporary / "root"
        with writing_to(temporary):
            downloads.mkdir()
            root.mkdir()
        for package in packages:
            progress(f"fetching {package.name} {package.version} ({package.size / 1e6:.1f} MB)")
            await download(package, downloads)
        for file in sorted(downloads.glob("*.deb")):
            progress(f"unpacking {file.name.partition('_')[0]}")
            done = await process.run(["dpkg", "-x", file, root], timeout=UNPACK_SECONDS)
            _raise_if_failed(done)
        with writing_to(final.parent):
            relocate(root, final, release)
            root.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


async def download(package: Package, into: Path) -> None:
    """Fetch a package's file into a folder. Raises EnvironmentFault (HR5109)."""
    try:
        done = await process.run(
            [
                "apt-get",
                "-q",
                "-o",
                "APT::Sandbox::User=root",
                "download",
                f"{package.name}={package.version}",
            ],
            cwd=into,
            timeout=DOWNLOAD_SECONDS,
        )
    except TimeoutError as late:
        raise _not_found(f"{package.name} was not fetched within {DOWNLOAD_SECONDS} s") from late
    _raise_if_failed(done)


def _raise_if_failed(done: process.Completed) -> None:
    if done.ok:
        return
    errors = [line for line in done.complaint.splitlines() if not line.startswith(("W:", "N:"))]
    cache = cache_folder()
    if full := full_disk(done.complaint, f"below {cache}", f"free some space: du -sh {cache}"):
        raise full
    raise _not_found(f"{' '.join(done.argv[:1])}: {errors[-1] if errors else f'status {done.status}'}")


def relocate(root: Path, final: Path, release: str) -> None:
    """Change references to ``/usr/src`` and ``/lib`` to point into ``final``, the later place of ``root``.

    These are the include in the headers' Makefile, and the links ``build`` and ``source`` in the modules'
    folder. All other references are relative links (seen in 6.1.0-56).
    """
    makefile = root / "usr/src" / f"linux-headers-{release}" / "Makefile"
    makefile.write_text(re.sub(r"(?m)^(include\s+)/usr/", rf"\g<1>{final}/usr/", makefile.read_text()))
    for link in (*root.glob(f"lib/modules/{release}/*"), *root.glob(f"usr/lib/modules/{release}/*")):
        if link.is_symlink() and (target := os.readlink(link)).startswith("/usr/"):
            link.unlink()
            link.symlink_to(f"{final}{target}")


def _require_compiler(tree: KernelTree) -> None:
    program = (tree.option("CC_VERSION_TEXT") or "gcc").split()[0]
    if shutil.which(program) is None:
        raise EnvironmentFault(
            f"the kernel's compiler {program} is not installed",
            code="HR5106",
            hint=f"apt-get install {program}  (hotreload doctor --fix does it)",
        )
