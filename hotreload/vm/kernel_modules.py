# SPDX-License-Identifier: MIT
"""Find kernel modules and their dependencies without depmod.

A freshly unpacked kernel package has no ``modules.dep`` (depmod writes it at installation), so the
dependencies are read from the ``depends=`` that modpost left in each module's ``.modinfo`` section.
"""

from __future__ import annotations

import gzip
import io
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.errors import InputError, KernelUnfitError

# The suffixes that CONFIG_MODULE_COMPRESS_* can give.
SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")


@dataclass(frozen=True, slots=True)
class KernelModule:
    """A module: ``name`` with underscores, ``content`` uncompressed, ``depends`` as names."""

    name: str
    content: bytes
    depends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModuleSet:
    """Modules in a possible load order, and those of the requested names that are built in."""

    modules: tuple[KernelModule, ...]
    built_in: frozenset[str]


def canonical(name: str) -> str:
    """Return the name as the kernel shows it in /proc/modules."""
    return name.replace("-", "_")


class ModuleFolder:
    """The modules of one kernel.

    ``folder`` is lib/modules/RELEASE, or the folder in which the kernel was built, or None for a kernel
    without modules.
    """

    def __init__(self, release: str, folder: Path | None) -> None:
        self.release = release
        self._files = _module_files(folder) if folder else {}
        self._built_in = _built_in_names(folder) if folder else None

    def is_built_in(self, name: str) -> bool:
        # Without a module folder the kernel has no modules, so everything is built in.
        return self._built_in is None or canonical(name) in self._built_in

    async def load(self, name: str) -> KernelModule:
        """Read one module. Raises KernelUnfitError (HR3102) if the kernel does not have it."""
        path = self._files.get(canonical(name))
        if path is None:
            raise KernelUnfitError(
                f"kernel {self.release} has no {name}, neither built in nor as a module",
                hint="use a kernel with virtio (CONFIG_VIRTIO_PCI, CONFIG_VIRTIO_NET), or -K debian",
            )
        content = await read_module(path)
        depends = modinfo(content, str(path)).get("depends", [""])[0]
        return KernelModule(
            canonical(name), content, tuple(canonical(word) for word in depends.split(",") if word)
        )

    async def closure(self, names: Iterable[str], optional: Iterable[str] = ()) -> ModuleSet:
        """Return the named modules and all their dependencies, dependencies first.

        Raises KernelUnfitError (HR3102) if one of ``names`` is missing; missing ``optional`` ones are left
        out.
        """
        found: dict[str, KernelModule] = {}
        built_in: set[str] = set()

        async def visit(name: str) -> None:
            if name in found or name in built_in:
                return
            if name not in self._files and self.is_built_in(name):
                built_in.add(name)
                return
            module = await self.load(name)
            for dependency in module.depends:
                await visit(dependency)
            found[name] = module

        for name in names:
            await visit(canonical(name))
        for name in optional:
            if canonical(name) in self._files or self.is_built_in(name):
                await visit(canonical(name))
        return ModuleSet(tuple(found.values()), frozenset(built_in))


def modules_dep(modules: Sequence[KernelModule]) -> str:
    """Return the text of a ``modules.dep`` for modules, in load order, that are next to it as NAME.ko."""
    depends = {module.name: module.depends for module in modules}
    position = {module.name: place for place, module in enumerate(modules)}

    def needed(name: str) -> set[str]:
        direct = {word for word in depends[name] if word in depends}
        return direct.union(*(needed(word) for word in direct))

    # modprobe loads the last one first.
    lines = (
        [
            f"{name}.ko:",
            *(f"{word}.ko" for word in sorted(needed(name), key=position.__getitem__, reverse=True)),
        ]
        for name in depends
    )
    return "".join(" ".join(words) + "\n" for words in lines)


async def read_module(path: Path) -> bytes:
    """Return a module's ELF file, decompressed according to its suffix. Raises InputError (HR1009)."""
    try:
        data = path.read_bytes()
        match path.suffix:
            case ".xz":
                return lzma.decompress(data)
            case ".gz":
                return gzip.decompress(data)
            case ".zst":
                return await _unzstd(data)
            case _:
                return data
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def modinfo(content: bytes, what: str) -> dict[str, list[str]]:
    """Return the ``.modinfo`` section as ``key -> values``.

    Raises InputError (HR1009) if this is not a module.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(content)).get_section_by_name(".modinfo")
    except ELFError as error:
        raise InputError(f"{what} is not an ELF file: {error}") from error
    if section is None:
        raise InputError(f"{what} is not a kernel module: it has no .modinfo section")
    facts: dict[str, list[str]] = {}
    for word in section.data().decode(errors="replace").split("\0"):
        key, separator, value = word.partition("=")
        if separator:
            facts.setdefault(key, []).append(value)
    return facts


async def _unzstd(data: bytes) -> bytes:
    # The standard library only has zstd since Python 3.14.
    done = await process.run(["zstd", "-dc"], stdin=data)
    if not done.ok:
        raise OSError(done.complaint)
    return done.stdout


def _module_files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in _built_modules(folder) if (folder / ".config").is_file() else _installed_modules(folder):
        for suffix in SUFFIXES:
            if path.name.endswith(suffix):
                files[canonical(path.name.removesuffix(suffix))] = path
    return files


def _installed_modules(folder: Path) -> list[Path]:
    return sorted(folder.glob("kernel/**/*.ko*"))


def _built_modules(folder: Path) -> list[Path]:
    """Return the modules of a kernel's own tree. modules.order names them with .ko, since v6.3 with .o."""
    order = (folder / "modules.order").read_text().split()
    stems = [folder / line.removeprefix("kernel/").rpartition(".")[0] for line in order]
    return [stem.with_name(f"{stem.name}.ko") for stem in stems]


def _built_in_names(folder: Path) -> frozenset[str]:
    listing = folder / "modules.builtin"
    lines = listing.read_text().splitlines() if listing.is_file() else []
    return frozenset(canonical(Path(line).name.removesuffix(".ko")) for line in lines)
