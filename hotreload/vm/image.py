# SPDX-License-Identifier: MIT
"""Build the guest's initramfs: busybox, dropbear and the kernel's own virtio modules.

The guest runs from memory. There is no disk to make, to mount or to break, booting means reading one file,
and all changes disappear with the guest. The archive is written by our own code, so nothing needs root. It is
not compressed: QEMU copies it into the guest's memory almost instantly, but unpacking 3 MB of gzip takes a
guest without KVM a third of a second.

An image is cached by the digest of everything that goes into it: the recipe, the host's programs with their
libraries, the modules, the extra files. Its keys are made once, together with the image.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import hotreload
from hotreload import process
from hotreload.errors import EnvironmentFault, InputError
from hotreload.paths import cache_folder, writing_to
from hotreload.vm import cpio
from hotreload.vm.kernel_modules import ModuleFolder, ModuleSet, modules_dep

# Part of the digest. Increment it when the image changes in a way that its inputs do not show.
FORMAT = 1

SYSTEM_FOLDERS = ("proc", "sys", "dev", "tmp", "run", "mnt", "root", "var/log", "usr/lib/hotreload")
# What is in /dev besides devices; init copies it there.
DEV = "usr/lib/hotreload/dev"
STREAMS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))


class BootableKernel(Protocol):
    """What an image needs to know about a kernel; hotreload.build.kernel_tree.KernelTree implements it."""

    @property
    def release(self) -> str: ...
    @property
    def modules(self) -> Path | None: ...


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A built image: the initramfs, the client's private key and the guest's public host key.

    ``digest`` is the hexadecimal SHA-256 that names it in the cache.
    """

    initramfs: Path
    client_key: Path
    host_key: Path
    digest: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """``recipe.toml`` of a folder below vmimages/, and the files next to it."""

    folder: Path
    applets: tuple[str, ...]
    programs: tuple[str, ...]
    required_modules: tuple[str, ...]
    optional_modules: tuple[str, ...]
    carried_modules: tuple[str, ...]

    def text(self, name: str) -> bytes:
        return _read(self.folder / name)


def recipe_folder(name: str = "minimal") -> Path:
    """Return the recipe of that name, in the installed package or in the source checkout."""
    package = Path(hotreload.__file__).parent
    for folder in (package / "_vmimages" / name, package.parent / "vmimages" / name):
        if folder.is_dir():
            return folder
    raise InputError(
        f"there is no guest image recipe called {name}", hint="each folder of vmimages/ is a recipe"
    )


def read_recipe(folder: Path) -> Recipe:
    """Read a recipe. Raises InputError (HR1009) if it is missing or malformed."""
    try:
        table = tomllib.loads((folder / "recipe.toml").read_text())
        modules = table["modules"]
        return Recipe(
            folder,
            tuple(table["applets"]),
            tuple(table["programs"]),
            tuple(modules["required"]),
            tuple(modules["optional"]),
            tuple(modules["carried"]),
        )
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{folder}/recipe.toml cannot be read: {error}") from error
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}/recipe.toml lacks {error}", hint="see vmimages/README.md") from error


async def build_image(
    kernel: BootableKernel,
    recipe: Path | None = None,
    extra: Mapping[str, bytes] | None = None,
    modules: Sequence[str] = (),
) -> GuestImage:
    """Return the image for this kernel, from the cache or newly built (0.3 s).

    ``extra``: additional files, guest path to content; files that start with ``#!`` become executable.
    ``modules``: names of additional modules of the kernel that modprobe can find in the guest. Raises
    KernelUnfitError (HR3102) if the kernel has no virtio, EnvironmentFault (HR5106, HR5107, HR5108, HR5110)
    if this machine lacks something.
    """
    plan = read_recipe(recipe or recipe_folder())
    content = await _content(kernel, plan, extra or {}, modules)
    digest = hashlib.sha256(
        b"%d\0%s\0" % (FORMAT, kernel.release.encode()) + cpio.archive(content)
    ).hexdigest()
    place = cache_folder() / "images" / digest[:32]
    if not _is_whole(place):
        await _write_image(place, kernel, plan, content)
    return GuestImage(place / "initramfs", place / "client_key", place / "host_key.pub", digest)


async def _content(
    kernel: BootableKernel, plan: Recipe, extra: Mapping[str, bytes], modules: Sequence[str]
) -> list[cpio.Entry]:
    """Return everything in the image but its keys."""
    folder = await asyncio.to_thread(ModuleFolder, kernel.release, kernel.modules)
    loaded = await folder.closure(plan.required_modules, plan.optional_modules)
    carried = await folder.closure(modules, plan.carried_modules)
    return [
        *_base_system(plan),
        *await _busybox(plan.applets),
        *await _host_programs(plan.programs),
        *_modules(kernel.release, loaded, carried),
        *(_extra_file(path, data) for path, data in sorted(extra.items())),
    ]


def _base_system(plan: Recipe) -> list[cpio.Entry]:
    return [
        *(cpio.folder(name) for name in SYSTEM_FOLDERS),
        # The kernel opens /dev/console for init before init can mount devtmpfs.
        cpio.character_device("dev/console", 5, 1),
        cpio.character_device("dev/null", 1, 3, 0o666),
        *(cpio.folder(f"{DEV}/{name}") for name in ("pts", "shm")),
        *(cpio.link(f"{DEV}/{name}", target) for name, target in STREAMS.items()),
        cpio.file("init", plan.text("init"), 0o755),
        cpio.file("etc/inittab", plan.text("inittab")),
        cpio.file("etc/hotreload/sysctls", plan.text("sysctls")),
        cpio.file("etc/hostname", b"guest\n"),
        cpio.file("etc/hosts", b"127.0.0.1 localhost guest\n10.0.2.2 host\n"),
        # No password can match the *.
        cpio.file("etc/passwd", b"root:*:0:0:root:/root:/bin/sh\nnobody:*:65534:65534::/:/bin/false\n"),
        cpio.file("etc/group", b"root:*:0:\ntty:*:5:\nnobody:*:65534:\n"),
        cpio.file("etc/shells", b"/bin/sh\n"),
        cpio.file("etc/profile", b"export PATH=/usr/sbin:/usr/bin:/sbin:/bin PS1='guest:\\w# '\n"),
        cpio.folder("root", 0o700),
        cpio.folder("tmp", 0o1777),
    ]


async def _busybox(applets: Sequence[str]) -> list[cpio.Entry]:
    """Return busybox (static or not), and a link for each applet that the recipe needs."""
    program = _host_program("busybox", "busybox-static")
    listing = await process.run([program, "--list"], timeout=10)
    missing = set(applets).difference(listing.text.split())
    if missing:
        raise EnvironmentFault(
            f"{program} has no {', '.join(sorted(missing))}",
            code="HR5110",
            hint="apt-get install busybox-static",
        )
    links = [cpio.link(f"bin/{applet}", "busybox") for applet in applets if applet != "busybox"]
    return [*await _with_libraries(program, "bin/busybox"), cpio.link("sbin", "bin"), *links]


async def _host_programs(names: Iterable[str]) -> list[cpio.Entry]:
    found: list[cpio.Entry] = []
    for name in names:
        program = _host_program(name, "dropbear-bin" if name == "dropbear" else name)
        found += await _with_libraries(program, f"usr/bin/{name}")
    return found


async def program_with_libraries(name: str, path: str, package: str) -> list[cpio.Entry]:
    """Return a program of this machine, for ``path`` in the guest, and the shared libraries it needs.

    Raises EnvironmentFault: HR5106 it is not installed (``package`` has it), HR5110 it cannot be copied.
    """
    return await _with_libraries(_host_program(name, package), path)


def _host_program(name: str, package: str) -> Path:
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise EnvironmentFault(
            f"{name} is not installed, and the guest needs it", hint=f"apt-get install {package}"
        )
    return Path(path)


async def _with_libraries(program: Path, path: str) -> list[cpio.Entry]:
    """Return a program with its dynamic loader and libraries, at the paths that the loader searches."""
    loader = _interpreter(program)
    entries = [cpio.file(path, _read(program), 0o755)]
    if loader is None:
        return entries
    # The loader lists the files that it would map, without running the program. LD_PRELOAD and
    # LD_LIBRARY_PATH are empty, so that it only lists what the program needs, not what this shell adds.
    clean = {"LD_PRELOAD": "", "LD_LIBRARY_PATH": ""}
    listing = await process.run([loader, "--list", program], env=clean, timeout=10)
    libraries = _listed_libraries(listing.text)
    if not listing.ok or not libraries:
        raise EnvironmentFault(
            f"the libraries of {program} cannot be found: {listing.complaint or listing.text.strip()}",
            code="HR5110",
            hint="reinstall it; ldd shows which libraries are missing",
        )
    return [*entries, *(cpio.file(name, _read(Path(name)), 0o755) for name in {loader, *libraries})]


def _listed_libraries(listing: str) -> list[str]:
    """Return the paths in ``libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x7f..)``; the vdso has none."""
    words = [line.split() for line in listing.splitlines()]
    return [line[2] for line in words if len(line) > 2 and line[1] == "=>" and line[2].startswith("/")]


def _interpreter(program: Path) -> str | None:
    """Return the dynamic loader that a program names (PT_INTERP); None for a static program."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    try:
        with program.open("rb") as stream:
            names = [
                s.get_interp_name() for s in ELFFile(stream).iter_segments() if isinstance(s, InterpSegment)
            ]
    except (OSError, ELFError) as error:
        raise EnvironmentFault(f"{program} cannot be put into the guest: {error}", code="HR5110") from error
    return names[0] if names else None


def _modules(release: str, loaded: ModuleSet, carried: ModuleSet) -> list[cpio.Entry]:
    folder = f"lib/modules/{release}"
    every = {module.name: module for module in (*loaded.modules, *carried.modules)}
    order = " ".join(module.name for module in loaded.modules)
    return [
        *(cpio.file(f"{folder}/{name}.ko", module.content) for name, module in every.items()),
        cpio.file(f"{folder}/modules.dep", modules_dep(list(every.values())).encode()),
        cpio.file("etc/modules", order.encode() + b"\n" if order else b""),
    ]


def _extra_file(path: str, content: bytes) -> cpio.Entry:
    return cpio.file(path, content, 0o755 if content.startswith(b"#!") else 0o644)


async def _write_image(
    place: Path, kernel: BootableKernel, plan: Recipe, content: Sequence[cpio.Entry]
) -> None:
    """Make the keys and the archive in a folder next to ``place``, then rename it."""
    with writing_to(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place.parent)
        with tempfile.TemporaryDirectory(prefix=f"new-{os.getpid()}-", dir=place.parent) as scratch:
            folder = Path(scratch, "image")
            folder.mkdir(mode=0o700)
            host_key = await _make_host_key(folder)
            client_public = _make_client_key(folder)
            keys = [
                cpio.file("etc/dropbear/host_key", host_key, 0o600),
                cpio.folder("root/.ssh", 0o700),
                cpio.file("root/.ssh/authorized_keys", client_public, 0o600),
            ]
            data = cpio.archive([*content, *keys])
            _write_private(folder / "initramfs", data)
            about = {"release": kernel.release, "recipe": plan.folder.name, "bytes": len(data)}
            (folder / "image.json").write_text(json.dumps(about, indent=1) + "\n")
            _move(folder, place)


def _sweep(images: Path) -> None:
    """Remove the unfinished images of processes that no longer exist."""
    for entry in images.glob("new-*"):
        if not Path("/proc", entry.name.split("-")[1]).exists():
            shutil.rmtree(entry, ignore_errors=True)


def _move(folder: Path, place: Path) -> None:
    if place.exists() and not _is_whole(place):
        shutil.rmtree(place)
    try:
        folder.rename(place)
    except OSError:
        # Another process built the same image at the same time and was faster. Its image is as good.
        if not _is_whole(place):
            raise


def _is_whole(place: Path) -> bool:
    """Return whether there is a complete image, not one that was cut short by a crash of this machine."""
    try:
        expected = json.loads((place / "image.json").read_text())["bytes"]
        keys = [(place / name).stat().st_size for name in ("client_key", "host_key.pub")]
        return bool((place / "initramfs").stat().st_size == expected and all(keys))
    except (OSError, ValueError, KeyError, TypeError):
        return False


async def _make_host_key(folder: Path) -> bytes:
    """Make the guest's host key. ``host_key.pub`` stays in the folder; return the private key."""
    private = folder / "host_key"
    made = await process.run(["dropbearkey", "-t", "ed25519", "-f", private], timeout=30)
    public = [line for line in made.text.splitlines() if line.startswith("ssh-ed25519 ")]
    if not made.ok or not public:
        raise EnvironmentFault(f"dropbearkey did not make a host key: {made.complaint}", code="HR5110")
    kind, key = public[0].split()[:2]
    (folder / "host_key.pub").write_text(f"{kind} {key} hotreload-guest\n")
    data = private.read_bytes()
    # The private key is only kept inside the image.
    private.unlink()
    return data


def _make_client_key(folder: Path) -> bytes:
    """Make ``client_key`` (OpenSSH's format, mode 0600), and return the line for authorized_keys."""
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519", comment="hotreload")
    _write_private(folder / "client_key", key.export_private_key("openssh"))
    return bytes(key.export_public_key("openssh"))


def _write_private(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
