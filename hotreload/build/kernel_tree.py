# SPDX-License-Identifier: MIT
"""A kernel to build against and to boot: where its parts are, and whether it can be live patched."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.errors import EnvironmentFault, InputError, KernelUnfitError

# Where a kernel's own build leaves the bootable image. x86_64 is the only architecture so far.
BUILT_IMAGE = "arch/x86/boot/bzImage"


@dataclass(frozen=True, slots=True)
class KernelTree:
    """A configured and built kernel, or the headers of one.

    ``output`` is the folder for ``make -C``: it holds ``.config`` and ``Module.symvers``. ``source`` has the
    sources (or only the headers); it is the same folder for a kernel built in place. ``image`` is the
    bootable image. ``modules`` is its ``lib/modules/RELEASE`` with ``kernel/`` below it, or the folder it was
    built in.
    """

    release: str
    arch: str
    source: Path
    output: Path
    image: Path
    modules: Path | None
    config: Path
    system_map: Path

    def option(self, name: str) -> str | None:
        """Return ``y``, ``m``, or a number or string as configured; None if not set.

        ``name`` may omit ``CONFIG_``.
        """
        stat = self.config.stat()
        return _options(self.config, stat.st_mtime_ns, stat.st_size).get(name.removeprefix("CONFIG_"))

    def offers(self, name: str) -> bool:
        """Return whether the option could be set.

        kconfig writes a line for each option that can be set, and for no other.
        """
        unset = f"\n# CONFIG_{name} is not set\n"
        return self.option(name) is not None or unset in self.config.read_text(errors="replace")


@functools.lru_cache(maxsize=8)
def _options(config: Path, _mtime_ns: int, _size: int) -> dict[str, str]:
    pairs = re.findall(r"^CONFIG_(\w+)=(.*)$", config.read_text(errors="replace"), re.MULTILINE)
    return {name: value.strip('"') for name, value in pairs}


def find_kernel(where: str) -> KernelTree:
    """Return the kernel at ``where``: a tree built in place, an O= folder, or a headers folder.

    The headers of release X below ``ROOT/usr/src`` belong to ``ROOT/boot/vmlinuz-X`` and
    ``ROOT/lib/modules/X``; ROOT is ``/`` for installed packages. Raises InputError (HR1009) that says what is
    missing.
    """
    output = Path(where).expanduser().resolve()
    _require_kernel_folder(output, where)
    release = _release(output)
    image, root = _image(output, release)
    return KernelTree(
        release=release,
        arch="x86_64" if _has_option(output, "X86_64") else "other",
        source=_source(output),
        output=output,
        image=image,
        modules=_modules(output, root, release),
        config=output / ".config",
        system_map=_first_file(output / "System.map", root / f"boot/System.map-{release}")
        or output / "System.map",
    )


def image_version(image: Path) -> str | None:
    """Return the version string in a bzImage: ``RELEASE (BUILDER) VERSION``, the last as in ``uname -v``.

    None if there is none. The offset of that text, minus 0x200, is at 0x20e (Documentation/arch/x86/boot.rst,
    kernel_version).
    """
    with image.open("rb") as stream:
        header = stream.read(0x8000)
    place = int.from_bytes(header[0x20E:0x210], "little")
    if header[0x202:0x206] != b"HdrS" or not place:
        return None
    return header[place + 0x200 :].partition(b"\0")[0].decode(errors="replace")


def kernel_root(folder: Path) -> Path | None:
    """Return the root of the kernel sources that a folder is or is in, or None."""
    places = (folder, *folder.parents)
    return next(
        (place for place in places if (place / "Kconfig").is_file() and (place / "init/main.c").is_file()),
        None,
    )


def sources_of(where: str) -> Path | None:
    """Return the sources of the kernel built in a folder; None if there is no kernel, or only headers."""
    output = Path(where).expanduser()
    if not (output / "Makefile").is_file():
        return None
    source = _source(output.resolve())
    return source if kernel_root(source) == source else None


def watched_kernel(folder: Path, where: str | None) -> tuple[Path, str] | None:
    """Return the sources of the kernel that is meant in ``folder``, and the folder it is built in.

    ``where`` is what ``-K`` names, if anything. Returns None if the folder is an external module's. Raises
    InputError (HR1009) if the kernel is not built.
    """
    root = kernel_root(folder)
    if root is None:
        return None
    if where is None and (root / "vmlinux").is_file():
        return root, str(root)
    output = Path(where).expanduser() if where else None
    if output is not None and (output / "Makefile").is_file() and _source(output.resolve()) == root:
        return root, str(output.resolve())
    if folder == root:
        raise InputError(
            f"the kernel in {root} is not built" + (f", and {where} is not built from it" if where else ""),
            hint="run hotreload kernel build; or name the folder it was built in: -K DIR",
        )
    return None


def _require_kernel_folder(output: Path, where: str) -> None:
    choice = "-K takes a kernel tree, an O= folder, a headers folder, or debian"
    if not output.is_dir():
        raise InputError(f"{where} is not a folder", hint=choice)
    if not (output / "Makefile").is_file():
        raise InputError(f"{where} is not a kernel tree: it has no Makefile", hint=choice)
    if not (output / ".config").is_file():
        raise InputError(
            f"the kernel in {where} is not configured: it has no .config",
            hint="configure and build it first, or name its O= folder",
        )
    if not (output / "Module.symvers").is_file():
        raise InputError(
            f"the kernel in {where} is not built: it has no Module.symvers",
            hint=f"build the kernel and its modules: make -C {where} all",
        )


def _has_option(output: Path, name: str) -> bool:
    return f"\nCONFIG_{name}=y\n" in (output / ".config").read_text(errors="replace")


def _release(output: Path) -> str:
    # Debian's include/config/kernel.release says "6.1.192", but the kernel calls itself 6.1.0-56-cloud-amd64
    # (.kernelvariables overrides it). utsrelease.h is what was compiled in.
    for name, pattern in (
        ("include/generated/utsrelease.h", r'UTS_RELEASE "([^"]+)"'),
        ("include/config/kernel.release", r"(\S+)"),
    ):
        file = output / name
        found = re.search(pattern, file.read_text()) if file.is_file() else None
        if found:
            return found[1]
    raise InputError(
        f"the kernel in {output} is not built: it has no include/generated/utsrelease.h",
        hint=f"build the kernel and its modules: make -C {output} all",
    )


def _image(output: Path, release: str) -> tuple[Path, Path]:
    """Return the bootable image, and the root folder that its modules are below."""
    built = output / BUILT_IMAGE
    if built.is_file():
        return built, Path("/")
    packaged = Path(*output.parts[:-3]) if output.parts[-3:-1] == ("usr", "src") else Path("/")
    for root in dict.fromkeys((packaged, Path("/"))):
        if (root / f"boot/vmlinuz-{release}").is_file():
            return root / f"boot/vmlinuz-{release}", root
    raise InputError(
        f"no bootable image for the kernel in {output}: neither {BUILT_IMAGE} nor /boot/vmlinuz-{release}",
        hint=f"run make -C {output} bzImage, or install the image package of {release}",
    )


def _source(output: Path) -> Path:
    # `make O=` leaves a link "source", and a Makefile that includes the source's own. Debian's headers only
    # have such a Makefile.
    link = output / "source"
    if link.is_dir():
        return link.resolve()
    # The kernel's own Makefile also includes arch's, but through a variable.
    found = re.search(r"^include\s+([^\s$]+)/Makefile\s*$", (output / "Makefile").read_text(), re.MULTILINE)
    return (output / found[1]).resolve() if found else output


def _modules(output: Path, root: Path, release: str) -> Path | None:
    if (output / BUILT_IMAGE).is_file() and (output / "modules.order").is_file():
        return output
    for folder in (root / "lib/modules" / release, root / "usr/lib/modules" / release):
        # If the kernel was built here, an installed modules folder only belongs to it if it was installed
        # from here.
        ours = not (output / BUILT_IMAGE).is_file() or (folder / "build").resolve() == output
        if ours and (folder / "kernel").is_dir():
            return folder
    return None


def _first_file(*candidates: Path) -> Path | None:
    return next((file for file in candidates if file.is_file()), None)


@dataclass(frozen=True, slots=True)
class Need:
    """One row of NEEDS: one of ``any_of`` must be set, or none of them (``forbidden``).

    ``where_offered``: not required of a kernel that knows none of them.
    """

    any_of: tuple[str, ...]
    reason: str
    forbidden: bool = False
    code: str = "HR3102"
    where_offered: bool = False

    def met(self, kernel: KernelTree) -> bool:
        if self.where_offered and not any(map(kernel.offers, self.any_of)):
            return True
        return any(kernel.option(name) == "y" for name in self.any_of) is not self.forbidden

    @property
    def told(self) -> str:
        fact = "must not be set" if self.forbidden else "is not set"
        return f"{' or '.join(self.any_of)} {fact}: {self.reason}"

    @property
    def settings(self) -> tuple[str, ...]:
        """The arguments for scripts/config that satisfy the need."""
        if self.forbidden:
            return tuple(f"--disable {name}" for name in self.any_of)
        return (f"--enable {self.any_of[0]}",)


NEEDS = (
    Need(("X86_64",), "only x86-64 kernels can be patched so far"),
    Need(("MODULES",), "a patch is a module"),
    Need(("MODULE_UNLOAD",), "it removes replaced patches and reloaded modules"),
    Need(("LIVEPATCH",), "it switches the guest to the new code"),
    # klp_find_object_symbol() goes through kallsyms, which has data symbols only with _ALL.
    Need(("KALLSYMS_ALL",), "new code needs it to find the kernel's private data"),
    Need(("FUNCTION_TRACER",), "functions are redirected at their ftrace call"),
    Need(("DYNAMIC_FTRACE",), "functions are redirected at their ftrace call"),
    # Linux commit 2860cd8a2353 ("livepatch: Use the default ftrace_ops instead of REGS when ARGS is
    # available") (in v5.11): one of the two is enough.
    Need(
        ("DYNAMIC_FTRACE_WITH_REGS", "DYNAMIC_FTRACE_WITH_ARGS"),
        "the redirection changes the instruction pointer",
    ),
    Need(("CC_IS_CLANG",), "objects of clang are not supported", forbidden=True),
    # RANDSTRUCT_FULL and _PERFORMANCE select it (GCC_PLUGIN_RANDSTRUCT up to v5.18). The type information in
    # an object has the source order, so layouts could not be compared.
    Need(
        ("RANDSTRUCT", "GCC_PLUGIN_RANDSTRUCT"),
        "it shuffles structures, so layouts cannot be compared",
        forbidden=True,
    ),
    Need(
        ("GCC_PLUGIN_LATENT_ENTROPY",),
        "it puts different random numbers into each object, so no two are equal",
        forbidden=True,
    ),
    # Linux commit e8639b7ef0f8 ("modules: Allow extended modversions without basic MODVERSIONS") (in v6.14):
    # both can be off. Then modpost writes no checksums, but the loader insists on them.
    Need(
        ("BASIC_MODVERSIONS", "EXTENDED_MODVERSIONS"),
        "with MODVERSIONS, modules without checksums are refused",
        where_offered=True,
    ),
    Need(("MODULE_SIG_FORCE",), "hotreload's modules are not signed", forbidden=True, code="HR3105"),
    Need(
        ("LOCK_DOWN_KERNEL_FORCE_INTEGRITY", "LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY"),
        "lockdown allows only signed modules",
        forbidden=True,
        code="HR3105",
    ),
)


def unmet_needs(kernel: KernelTree) -> tuple[Need, ...]:
    """Return the rows of NEEDS that this kernel does not meet, in the table's order."""
    return tuple(need for need in NEEDS if not need.met(kernel))


def check_fit(kernel: KernelTree) -> None:
    """Raise KernelUnfitError, listing every unmet need.

    The code is HR3102, or HR3105 if only module signing is in the way.
    """
    unmet = unmet_needs(kernel)
    if not unmet:
        return
    settings = (setting for need in unmet for setting in need.settings)
    hint = f"scripts/config {' '.join(settings)}; make olddefconfig all"
    if not (kernel.source / "init" / "main.c").is_file():
        hint = "these are headers of a kernel that is already built; use another kernel: -K debian"
    raise KernelUnfitError(
        f"kernel {kernel.release} cannot be live patched: " + "; ".join(need.told for need in unmet),
        code=min(need.code for need in unmet),
        hint=hint,
    )


@dataclass(frozen=True, slots=True)
class KernelCompiler:
    """The kernel's compiler as found on this machine.

    ``note`` (HR5103): the kernel was built by another one.
    """

    program: str
    version: str
    recorded: str
    note: str | None


async def kernel_compiler(kernel: KernelTree) -> KernelCompiler:
    """Find the kernel's compiler (the first word of CONFIG_CC_VERSION_TEXT) on this machine.

    Raises EnvironmentFault (HR5106) with the command that installs it if it is missing.
    """
    recorded = kernel.option("CC_VERSION_TEXT") or "gcc"
    program = os.path.basename(recorded.split()[0])
    version = await _version_line(program)
    # Another build of the same compiler may generate different code. Base and patch can still be compared
    # with each other, but not with what the guest runs. That only deserves a note, because verify compares
    # the code.
    differs = version != recorded
    note = f"kernel {kernel.release} was built by {recorded}; this machine has {version}" if differs else None
    return KernelCompiler(program, version, recorded, note)


async def _version_line(program: str) -> str:
    try:
        done = await process.run([program, "--version"], timeout=30)
    except EnvironmentFault as fault:
        raise EnvironmentFault(
            f"the kernel's compiler {program} is not installed",
            code="HR5106",
            hint=f"apt-get install {program}  (hotreload doctor --fix does it)",
        ) from fault
    return done.text.partition("\n")[0].strip()
