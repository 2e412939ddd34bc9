# SPDX-License-Identifier: MIT
"""Read a kernel's own tree as kbuild left it: what vmlinux and each module are linked from.

``vmlinux.a`` is a thin archive. It lists what goes into vmlinux in link order, and so does not list the vdso,
the boot code and host programs (Linux commit 989538ad9e34 "kbuild: build init/built-in.a just once" and its
neighbours, v6.1).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hotreload.build.built import VMLINUX, Build, BuiltModule, UnitInputs, is_users, saved_ns, sha256
from hotreload.build.cmd_files import (
    CmdFile,
    TranslationUnit,
    late_steps,
    parse_mod_file,
    parse_modules_order,
    split_command,
)
from hotreload.build.external_module import read_link, read_notes
from hotreload.build.kernel_tree import KernelTree
from hotreload.errors import InputError

Progress = Callable[[str], None]

# fixdep omits it from every .cmd file, and lists each of its options instead (scripts/basic/fixdep.c).
AUTOCONF = Path("include/generated/autoconf.h")
KCONFIG_HEADER = "include/linux/kconfig.h"


def read_kernel_build(tree: KernelTree) -> Build:
    """Return everything that the kernel in ``tree`` was built from. Raises InputError (HR1009)."""
    reader = _Reader(tree, UnitInputs(), {}, {})
    modules = (
        BuiltModule(VMLINUX, tree.output / VMLINUX, tuple(reader.units(VMLINUX, _linked_into_vmlinux(tree)))),
        *reader.modules(),
    )
    files = reader.inputs.files
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(files, pool.map(sha256, files), strict=True))
    makefiles = tuple(sorted(_makefiles(tree, reader.inputs)))
    return Build(tree.source, tree, modules, makefiles, reader.inputs, digests, ())


@dataclass(frozen=True, slots=True)
class _Reader:
    tree: KernelTree
    inputs: UnitInputs
    # When the stamp of each configuration option was made, in ns of Unix time.
    options: dict[str, int]
    # The number of each file, or None if it is not the user's.
    spelled: dict[str, int | None]

    def units(self, module: str, targets: Iterable[Path], link: str = "") -> Iterator[TranslationUnit]:
        """Yield the units of the objects that were compiled, and record their inputs."""
        for target in targets:
            notes = read_notes(target)
            if notes is None or notes.source is None:
                continue
            self._require_configured(target, notes)
            files = [notes.source, *notes.dependencies]
            if any(file.endswith(KCONFIG_HEADER) for file in notes.dependencies):
                files.append(str(AUTOCONF))
            numbers = (self._number(file) for file in files)
            self.inputs.add_numbers(target, (number for number in numbers if number is not None))
            source = Path(os.path.normpath(self.tree.output / notes.source))
            yield TranslationUnit(source, target, notes.command, self.tree.output, module, _late(notes, link))

    def _require_configured(self, target: Path, notes: CmdFile) -> None:
        """Raise InputError (HR1006) if a configuration option changed after the object was compiled."""
        made = saved_ns(target)
        for option in notes.options:
            if option not in self.options:
                self.options[option] = saved_ns(self.tree.output / "include/config" / option)
            if self.options[option] > made:
                name = os.path.relpath(target, self.tree.output)
                raise InputError(
                    f"CONFIG_{option} was changed after {name} was built",
                    code="HR1006",
                    hint="run hotreload kernel build (or make), which uses the current configuration",
                )

    def modules(self) -> Iterator[BuiltModule]:
        for ko in module_files(self.tree):
            stem = ko.with_suffix("")
            listed = parse_mod_file(stem.with_name(f"{stem.name}.mod").read_text())
            targets = [Path(os.path.normpath(self.tree.output / each)) for each in listed]
            link = read_link(stem.with_name(f"{stem.name}.o"))
            module = stem.name.replace("-", "_")
            yield BuiltModule(module, ko, tuple(self.units(module, targets, link)))

    def _number(self, spelled: str) -> int | None:
        # Hundreds of units name the same file: a million calls in all.
        if spelled not in self.spelled:
            path = Path(os.path.join(self.tree.output, spelled))
            ours = is_users(Path(os.path.normpath(path)), self.tree.source, self.tree)
            self.spelled[spelled] = self.inputs.number(path) if ours else None
        return self.spelled[spelled]


def module_files(tree: KernelTree) -> Iterator[Path]:
    """Yield the module files that a build has made, in the order of modules.order."""
    order = tree.output / "modules.order"
    for name in parse_modules_order(order.read_text()) if order.is_file() else ():
        # Up to v6.1 the lines begin with kernel/, the folder of the installed module.
        stem = tree.output / name
        if not stem.with_name(f"{stem.name}.mod").is_file():
            stem = tree.output / name.removeprefix("kernel/")
        yield stem.with_name(f"{stem.name}.ko")


def _linked_into_vmlinux(tree: KernelTree) -> list[Path]:
    archive = tree.output / "vmlinux.a"
    try:
        names = thin_archive_members(archive.read_bytes())
    except OSError as error:
        raise InputError(
            f"the kernel in {tree.output} is not built: it has no vmlinux.a",
            hint="run hotreload kernel build, or make",
        ) from error
    return [Path(os.path.normpath(tree.output / name)) for name in dict.fromkeys(names)]


def thin_archive_members(archive: bytes) -> list[str]:
    """Return the names in a thin archive, in its order.

    They are as ``ar`` wrote them (binutils' ar.texi, "thin archives"). Raises InputError (HR1009) if it is
    not a thin archive.
    """
    if not archive.startswith(b"!<thin>\n"):
        raise InputError("vmlinux.a is not a thin archive", hint="use a kernel from v6.1 on")
    place, names, found = 8, b"", []
    while place + 60 <= len(archive):
        name, size = archive[place : place + 16].rstrip(), int(archive[place + 48 : place + 58])
        place += 60
        if name in (b"/", b"//", b"/SYM64/"):  # the index and the long names have content
            names = archive[place : place + size] if name == b"//" else names
            place += size + size % 2
        elif long := re.match(rb"/(\d+)", name):
            start = int(long[1])
            found.append(names[start : names.index(b"/\n", start)].decode(errors="surrogateescape"))
        else:
            found.append(name.rstrip(b"/").decode(errors="surrogateescape"))
    return found


def _late(notes: CmdFile, link: str) -> str:
    """Return objtool's call on the linked module if it was not run on the object (cmd_files.late_steps)."""
    if not link or split_command(notes.command).after:
        return ""
    return late_steps(link, notes.target)


def _makefiles(tree: KernelTree, inputs: UnitInputs) -> set[Path]:
    """Return the files that say how to build: .config, and the Makefiles in and above source folders."""
    folders = {Path(os.path.normpath(file.parent)) for file in inputs.files}
    every = {above for folder in folders for above in (folder, *folder.parents)}
    found = {tree.config}
    for folder in (each for each in every if each.is_relative_to(tree.source)):
        found.update(file for name in ("Makefile", "Kbuild") if (file := folder / name).is_file())
    return found
