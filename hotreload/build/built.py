# SPDX-License-Identifier: MIT
"""What kbuild has built: modules (vmlinux is one), what they are linked from, and the files of that."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.kernel_tree import KernelTree

VMLINUX: Final = "vmlinux"
# Headers of the compiler and the C library: no one edits these in the loop.
SYSTEM_FOLDERS = (
    Path("/usr/lib/gcc"),
    Path("/usr/lib/llvm"),
    Path("/usr/include"),
    Path("/usr/local/include"),
)
STAMPS = frozenset(("compile.h", "utsrelease.h", "utsversion.h"))
MAKEFILE_NAME = re.compile(r"(?:Kbuild|Makefile|GNUmakefile)(?:\..+)?|.+\.mk")


@dataclass(frozen=True, slots=True)
class BuiltModule:
    """A module and what it is linked from, in link order. ``ko`` of vmlinux is vmlinux itself."""

    name: str
    ko: Path
    units: tuple[TranslationUnit, ...]


# A file that is in a module as it is: the module's name, the file.
Carried = tuple[str, Path]
# When a file was saved, how large it is, and which one: nanoseconds, bytes, inode.
Stamp = tuple[int, int, int]


class UnitInputs(Mapping[Path, tuple[Path, ...]]):
    """For each unit's object the files it was compiled from, the source first, absolute as gcc spelled them.

    A kernel has a thousand units of five hundred files each: a file is kept once, and a unit's as numbers.
    """

    def __init__(self, inputs: Mapping[Path, Iterable[Path]] | None = None) -> None:
        self.files: list[Path] = []
        self._numbers: dict[Path, int] = {}
        self._of: dict[Path, array[int]] = {}
        self._named: dict[str, list[int]] | None = None
        for target, files in (inputs or {}).items():
            self.add(target, files)

    def add(self, target: Path, files: Iterable[Path]) -> None:
        """Note what a unit's object was compiled from."""
        self.add_numbers(target, map(self.number, files))

    def add_numbers(self, target: Path, numbers: Iterable[int]) -> None:
        """The same by the files' numbers."""
        self._of[target] = array("I", dict.fromkeys(numbers))

    def numbers(self, target: Path) -> array[int]:
        """The files of one unit, by number."""
        return self._of[target]

    def users(self, files: Iterable[Path]) -> Iterator[Path]:
        """The objects that were compiled from any of these files, spelled as here."""
        wanted = {number for file in files if (number := self._numbers.get(file)) is not None}
        # A branch switch asks for hundreds of files: to look for each in each unit takes seconds.
        return (target for target, held in self._of.items() if not wanted.isdisjoint(held))

    def named(self, names: Iterable[Path]) -> dict[Path, set[Path]]:
        """Those of the files that have one of these names (``names_of``), each with those that it has.

        What links lead to is looked at once: it takes 0.1 s for a kernel's 4,000 files.
        """
        if self._named is None:
            self._named = defaultdict(list)
            for number, file in enumerate(self.files):
                for text in {str(name) for name in names_of(file)}:
                    self._named[text].append(number)
        found: dict[Path, set[Path]] = defaultdict(set)
        for name in names:
            for number in self._named.get(str(name), ()):
                found[self.files[number]].add(name)
        return found

    def every_name(self) -> frozenset[Path]:
        """The names of all files."""
        self.named(())
        return frozenset(map(Path, self._named or ()))

    def has(self, file: Path) -> bool:
        """Is it one of the files, spelled like this?"""
        return file in self._numbers

    def to_json(self) -> dict[str, Any]:
        """Texts and numbers, from which ``from_json`` makes the same again."""
        return {
            "files": list(map(str, self.files)),
            "of": {str(target): list(held) for target, held in self._of.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        made = cls()
        made.files = list(map(Path, data["files"]))
        made._numbers = {file: number for number, file in enumerate(made.files)}
        made._of = {Path(target): array("I", held) for target, held in data["of"].items()}
        return made

    def number(self, file: Path) -> int:
        """The place of a file in ``files``."""
        number = self._numbers.setdefault(file, len(self.files))
        if number == len(self.files):
            self.files.append(file)
            self._named = None
        return number

    def __getitem__(self, target: Path) -> tuple[Path, ...]:
        return tuple(self.files[number] for number in self._of[target])

    def __iter__(self) -> Iterator[Path]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


@dataclass(frozen=True, slots=True)
class Build:
    """A folder that kbuild has built: an external module's, or a kernel's.

    ``inputs``: for each unit's object the user's files it was compiled from. ``digests``: SHA-256 of each of
    these as compiled. ``kernel_files``: headers that are not the user's. In a kernel all files are the
    user's. ``carried``: digests of files that are in a module as they are (an object that somebody else made,
    bytes of ``.incbin``); ``others``: stamps of the files of the folder that nothing above names, from before
    kbuild ran; ``variables``: what make was given; ``rule_inputs``: sources that rules use besides.
    """

    folder: Path
    tree: KernelTree
    modules: tuple[BuiltModule, ...]
    makefiles: tuple[Path, ...]
    inputs: UnitInputs
    digests: Mapping[Path, str]
    kernel_files: tuple[Path, ...]
    carried: Mapping[Carried, str] = field(default_factory=dict)
    others: Mapping[Path, Stamp] = field(default_factory=dict)
    variables: tuple[str, ...] = ()
    rule_inputs: frozenset[Path] = frozenset()

    @property
    def units(self) -> tuple[TranslationUnit, ...]:
        """Every unit once per module it belongs to."""
        return tuple(unit for module in self.modules for unit in module.units)

    @property
    def watched_files(self) -> frozenset[Path]:
        """Sources and headers of the user's, by the name they are used under and by their real one."""
        return self.inputs.every_name() | {file for _module, file in self.carried}

    @property
    def is_kernel(self) -> bool:
        """Is this a kernel's own tree?"""
        return self.folder == self.tree.source

    def is_users(self, path: Path) -> bool:
        """Is this absolute path the user's own, not the kernel's and not the compiler's?"""
        return is_users(path, self.folder, self.tree)


def is_users(path: Path, folder: Path, tree: KernelTree) -> bool:
    """Is ``path`` the user's own? A module's folder below the kernel's sources is, and so is all of a kernel
    that is worked on itself."""
    # Compared as texts: this is asked hundreds of times a unit, and pathlib is ten times slower.
    if _below(str(path), folder):
        return True
    others = () if folder == tree.source else (tree.source, tree.output)
    return not any(_below(str(path), other) for other in (*others, *SYSTEM_FOLDERS))


def _below(path: str, folder: Path) -> bool:
    return path == str(folder) or path.startswith(f"{folder}/")


def names_of(path: Path) -> tuple[Path, Path]:
    """The names under which a watcher may report a file: without ``..``, and with links resolved."""
    return Path(os.path.normpath(path)), Path(os.path.realpath(path))


def is_product(path: Path) -> bool:
    """Is this a source that kbuild makes? It keeps the command beside what it made; only what its filechk
    makes has none (scripts/Kbuild.include), and is in a folder that says so."""
    return "generated" in path.parts or path.with_name(f".{path.name}.cmd").is_file()


def is_stamp(path: Path) -> bool:
    """Does kbuild write here what a build is called, and who made it? That changes with each commit and each
    LOCALVERSION, and is no edit: what the guest runs keeps the name it was built with."""
    return path.parts[-3:-1] == ("include", "generated") and path.name in STAMPS


def saved_ns(file: Path) -> int:
    """When a file was saved last, in ns of Unix time; 0 when there is none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def sha256(file: Path) -> str:
    """The hexadecimal digest of a file's content; empty when it has gone, or is no file that can be read."""
    try:
        # Without O_NONBLOCK the open of a fifo waits for its writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return ""
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""
