# SPDX-License-Identifier: MIT
"""Everything that this machine must have. ``CHECKS`` is the table, with one check per row.

A check only looks and changes nothing. Its finding may have a ``Mend``, which `hotreload doctor --fix` runs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hotreload import process
from hotreload.config import Config, packaged_flavour
from hotreload.errors import EnvironmentFault, HotReloadError
from hotreload.paths import cache_folder, state_folder

if TYPE_CHECKING:
    from hotreload.build.kernel_tree import KernelTree

MB = 1_000_000
CACHE_BYTES = 500 * MB  # packages, unpacked kernel and image: about 350 MB
STATE_BYTES = 50 * MB
QEMU = "qemu-system-x86_64"
QEMU_NEEDED = (7, 2)
SYSTEM_FOLDERS = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))
APT_LISTS = Path("/var/lib/apt/lists")
LISTS_DAYS = 14  # older lists name packages that the archive has replaced
INOTIFY = Path("/proc/sys/fs/inotify")
INOTIFY_NEEDED = {"max_user_watches": 65_536, "max_user_instances": 64}


@dataclass(frozen=True, slots=True)
class Mend:
    """A fix for a finding: packages to install, or a command to run as root."""

    packages: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        return self.command or ("apt-get", "install", "-y", "--no-install-recommends", *self.packages)

    def __str__(self) -> str:
        return shlex.join(self.argv if os.geteuid() == 0 else ("sudo", *self.argv))


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check. ``state`` is ok, warn (it works, but less well) or fail (it does not work)."""

    state: str
    fact: str
    mend: Mend | None = None
    code: str | None = None


UPDATE = Mend(command=("apt-get", "update"))
Look = Callable[[Config], Awaitable[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """A row of CHECKS. ``why`` is one line that says what needs it."""

    name: str
    why: str
    look: Look


async def look(check: Check, config: Config) -> Finding:
    """Run one check. A HotReloadError becomes a finding, too."""
    try:
        return await check.look(config)
    except HotReloadError as error:
        hint = f"; {error.hint}" if error.hint else ""
        return Finding("fail", f"{error.message}{hint}", code=error.code)


def ok(fact: str) -> Finding:
    return Finding("ok", fact)


def fail(fact: str, code: str, *packages: str) -> Finding:
    return Finding("fail", fact, Mend(packages) if packages else None, code)


async def _python(_config: Config) -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return ok(version) if sys.version_info >= (3, 11) else fail(f"{version}, needs 3.11", "HR5106", "python3")


def program(name: str, package: str, state: str = "fail") -> Look:
    """Return a check that a program is installed. ``state`` is that of the finding if it is not."""

    async def check(_config: Config) -> Finding:
        places = os.pathsep.join((os.environ.get("PATH", os.defpath), SYSTEM_FOLDERS))
        path = shutil.which(name, path=places)
        return ok(path) if path else Finding(state, f"{name} is not installed", Mend((package,)), "HR5106")

    return check


async def _qemu(_config: Config) -> Finding:
    if shutil.which(QEMU) is None:
        return fail(f"{QEMU} is not installed", "HR5104", "qemu-system-x86")
    said = await process.run([QEMU, "--version"], timeout=30)
    found = re.search(r"version ((\d+)\.(\d+)[.\d]*)", said.text)
    if not found:
        return fail(f"{QEMU} does not report its version: {said.complaint or said.text.strip()}", "HR5104")
    if (int(found[2]), int(found[3])) < QEMU_NEEDED:
        return fail(f"{found[1]}, needs 7.2", "HR5104", "qemu-system-x86")
    return ok(found[1])


async def _kvm(config: Config) -> Finding:
    from hotreload.vm.probe import choose_accel

    if config.accel == "tcg":
        return ok("not used: accel is tcg")
    if shutil.which(QEMU) is None:
        return Finding("warn", "cannot be checked without QEMU", code="HR5101")
    accel = await choose_accel()
    if accel.name == "kvm":
        return ok(accel.reason)
    return Finding("fail" if config.accel == "kvm" else "warn", accel.reason, code=accel.code)


async def _apt(config: Config) -> Finding:
    if packaged_flavour(config.kernel) is None:
        return ok(f"not needed: the kernel is {config.kernel}")
    missing = [name for name in ("apt-get", "apt-cache", "dpkg") if shutil.which(name) is None]
    if missing:
        return fail(f"{', '.join(missing)} not installed: name a kernel with -K", "HR5106")
    if not any(APT_LISTS.glob("*_Packages*")):
        return Finding("fail", "apt has no package lists yet", UPDATE, "HR5109")
    days = _days_since_update()
    if days > LISTS_DAYS:
        return Finding("warn", f"the package lists are {days} days old", UPDATE, "HR5109")
    return ok("has package lists")


def _days_since_update() -> int:
    """Return the age of the package lists in days.

    `apt-get update` changes its download folder even if the archive has nothing new.
    """
    partial = APT_LISTS / "partial"
    return int((time.time() - (partial if partial.exists() else APT_LISTS).stat().st_mtime) / 86_400)


async def _kernel(config: Config) -> Finding:
    from hotreload.build.kernel_tree import check_fit

    tree = _tree(config)
    if tree is None:
        return ok("packaged; fetched on first use (40 MB)")
    check_fit(tree)
    return ok(f"{tree.release} in {tree.output}")


def _tree(config: Config) -> KernelTree | None:
    """Return the kernel to be used, or None for a packaged one that was not fetched yet."""
    from hotreload.build import debian_kernel
    from hotreload.build.kernel_tree import find_kernel

    flavour = packaged_flavour(config.kernel)
    if flavour is None:
        return find_kernel(config.kernel)
    return debian_kernel._cached(debian_kernel._kernels_folder(), flavour)


async def _compiler(config: Config) -> Finding:
    from hotreload.build.kernel_tree import kernel_compiler

    tree = _tree(config)
    if tree is None:
        return await program(name := await _packaged_compiler(config), name)(config)
    try:
        compiler = await kernel_compiler(tree)
    except EnvironmentFault as fault:
        named = re.search(r"gcc(-\d+)?$", (tree.option("CC_VERSION_TEXT") or "gcc").split()[0])
        return fail(fault.message, "HR5103", named[0] if named else "gcc")
    return Finding("warn", compiler.note, code="HR5103") if compiler.note else ok(compiler.version)


async def _module_needs(config: Config) -> Finding:
    from hotreload.build.module_needs import missing_for_modules

    tree = _tree(config)
    if tree is None:
        # Debian's kernels have BTF for modules since v5.11, so pahole is needed once there is a kernel.
        return await program("pahole", "pahole", "warn")(config)
    missing = tuple(missing_for_modules(tree))
    if missing:
        fact = ", ".join(f"{need.program} is not installed, and {need.option} needs it" for need in missing)
        return fail(fact, "HR5106", *(need.package for need in missing))
    return ok(f"{tree.release} needs no other programs")


async def _packaged_compiler(config: Config) -> str:
    """Return the compiler of Debian's newest kernel, as the dependencies of its headers name it."""
    meta = f"linux-headers-{packaged_flavour(config.kernel)}"
    headers = re.search(r"linux-headers-\d[^\s,]*", await _depends(meta))
    named = re.search(r"gcc-\d+", await _depends(headers[0])) if headers else None
    return named[0] if named else "gcc"


async def _depends(package: str) -> str:
    if shutil.which("apt-cache") is None:
        return ""
    shown = await process.run(["apt-cache", "show", "--no-all-versions", package], timeout=60)
    found = re.search(r"^Depends: (.*)$", shown.text, re.MULTILINE)
    return found[1] if found else ""


async def _objtool_library(_config: Config) -> Finding:
    import ctypes

    try:
        ctypes.CDLL("libelf.so.1")
    except OSError:
        return fail("libelf.so.1 is not installed", "HR5106", "libelf1")
    return ok("libelf.so.1")


async def _kernel_build(_config: Config) -> Finding:
    from hotreload.build.kernel_make import missing_packages

    # Packaged sources are unpacked with xz.
    unpacking = () if shutil.which("xz") else ("xz-utils",)
    missing = tuple(dict.fromkeys((*missing_packages({}), *unpacking)))
    if missing:
        return Finding("warn", f"not installed: {', '.join(missing)}", Mend(missing), "HR5106")
    return ok("flex, bison, bc, libelf, xz")


async def _inotify(_config: Config) -> Finding:
    limits = {name: int((INOTIFY / name).read_text()) for name in INOTIFY_NEEDED}
    low = {name: need for name, need in INOTIFY_NEEDED.items() if limits[name] < need}
    if not low:
        return ok(", ".join(f"{name} {value}" for name, value in limits.items()))
    fact = ", ".join(f"{name} is {limits[name]}, needs {need}" for name, need in low.items())
    command = ("sysctl", "-w", *(f"fs.inotify.{name}={need * 8}" for name, need in low.items()))
    return Finding("warn", fact, Mend(command=command), "HR5102")


async def _cache(_config: Config) -> Finding:
    return _room(cache_folder(), CACHE_BYTES)


async def _state(_config: Config) -> Finding:
    return _room(state_folder(), STATE_BYTES)


def _room(folder: Path, needed: int) -> Finding:
    if not os.access(folder, os.W_OK | os.X_OK):
        owner = ("chown", "-R", f"{os.getuid()}:{os.getgid()}", str(folder))
        return Finding("fail", f"{folder} is not writable", Mend(command=owner), "HR5108")
    free = shutil.disk_usage(folder).free
    if free < needed:
        fact = f"{folder} has only {free // MB} MB free, and {needed // MB} MB are recommended"
        return Finding("warn" if free > needed / 10 else "fail", fact, code="HR5107")
    return ok(f"{folder}, {free / 1000 / MB:.1f} GB free")


async def _sockets(_config: Config) -> Finding:
    from hotreload.vm.sockets import socket_folder

    with socket_folder() as folder:
        return ok(f"in {folder.parent}")


CHECKS = (
    Check("python", "hotreload is written in it", _python),
    Check("apt", "fetches the packaged kernel", _apt),
    Check("qemu", "runs the guest", _qemu),
    Check("qemu-img", "makes the disk that holds checkpoints", program("qemu-img", "qemu-utils")),
    Check("kvm", "runs the guest ten times faster; everything also works without it", _kvm),
    Check("kernel", "the guest boots it, and modules are built against it", _kernel),
    Check("compiler", "modules and patches need the compiler that built the kernel", _compiler),
    Check(
        "module-tools", "kbuild runs them for modules, if the kernel is configured that way", _module_needs
    ),
    Check("binutils", "kbuild links modules with ld", program("ld", "binutils")),
    Check("make", "kbuild needs it for the first build of a module", program("make", "make")),
    Check("libelf", "objtool needs it; it checks each object of the kernel", _objtool_library),
    Check("kernel-build", "`hotreload kernel build` builds kernels with it", _kernel_build),
    Check("busybox", "the guest's shell and commands", program("busybox", "busybox-static")),
    Check("dropbear", "the guest's SSH server", program("dropbear", "dropbear-bin")),
    Check("dropbearkey", "makes the guest's host key", program("dropbearkey", "dropbear-bin")),
    Check(
        "zstd", "unpacks the modules of kernels that compress them with zstd", program("zstd", "zstd", "warn")
    ),
    Check("patch", "`hotreload build -p` applies source patches with it", program("patch", "patch", "warn")),
    Check("setpriv", "ends QEMU and compilers when hotreload is killed", program("setpriv", "util-linux")),
    Check("ssh", "`hotreload guest ssh` runs it", program("ssh", "openssh-client", "warn")),
    Check("inotify", "reports saved files; each watched folder uses one watch", _inotify),
    Check("cache", "kernels, images and base objects are kept there", _cache),
    Check("state", "console logs and the stages of each reload are kept there", _state),
    Check("sockets", "hotreload talks to QEMU through them; their paths are limited to 107 bytes", _sockets),
)
