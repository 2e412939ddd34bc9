# SPDX-License-Identifier: MIT
"""The result of a kbuild run: modules (vmlinux is one), the units they are linked from, and their files."""

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
# Headers of the compiler and the C library. Nobody edits these while working on a driver.
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
    """A module and the units it is linked from, in link order. ``ko`` of vmlinux is vmlinux itself."""

    name: str
    ko: Path
    units: tuple[TranslationUnit, ...]


# A file that becomes part of a module without being compiled: the module's name, and the file.
Carried = tuple[str, Path]
# Identifies one saved version of a file: mtime in nanoseconds, size in bytes, inode.
Stamp = tuple[int, int, int]


class UnitInputs(Mapping[Path, tuple[Path, ...]]):
    """Map each unit's object to the files it was compiled from, source first, absolute, as gcc spelled them.

    A kernel has a thousand units with five hundred files each. Therefore each file is stored once, and a
    unit's files are stored as numbers.
    """

    def __init__(self, inputs: Mapping[Path, Iterable[Path]] | None = None) -> None:
        self.files: list[Path] = []
        self._numbers: dict[Path, int] = {}
        self._of: dict[Path, array[int]] = {}
        self._named: dict[str, list[int]] | None = None
        for target, files in (inputs or {}).items():
            self.add(target, files)

    def add(self, target: Path, files: Iterable[Path]) -> None:
        """Record the files that a unit's object was compiled from."""
        self.add_numbers(target, map(self.number, files))

    def add_numbers(self, target: Path, numbers: Iterable[int]) -> None:
        """Like add, but with the numbers of the files."""
        self._of[target] = array("I", dict.fromkeys(numbers))

    def numbers(self, target: Path) -> array[int]:
        """Return the files of one unit as numbers."""
        return self._of[target]

    def users(self, files: Iterable[Path]) -> Iterator[Path]:
        """Return the objects that were compiled from any of these files, given in the spelling used here."""
        wanted = {number for file in files if (number := self._numbers.get(file)) is not None}
        # A branch switch asks for hundreds of files. Searching for each file in each unit would take seconds.
        return (target for target, held in self._of.items() if not wanted.isdisjoint(held))

    def named(self, names: Iterable[Path]) -> dict[Path, set[Path]]:
        """Return the files that have one of these names (``names_of``), each with the names that matched.

        Links are resolved only once, because that takes 0.1 s for a kernel's 4,000 files.
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
        """Return the names of all files."""
        self.named(())
        return frozenset(map(Path, self._named or ()))

    def has(self, file: Path) -> bool:
        """Return whether the file, in this spelling, is one of the files."""
        return file in self._numbers

    def to_json(self) -> dict[str, Any]:
        """Return strings and numbers from which ``from_json`` restores the object."""
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
        """Return the index of a file in ``files``. Append the file if it is not there yet."""
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

    ``inputs``: the user's files that each unit's object was compiled from (in a kernel, all files are the
    user's). ``digests``: the SHA-256 of each of these files as compiled. ``kernel_files``: headers that are
    not the user's. ``carried``: digests of files that become part of a module without being compiled (a
    prebuilt object, the bytes of an ``.incbin``). ``others``: stamps, taken before kbuild ran, of the files
    in the folder that none of the above names. ``variables``: the variables that make was given.
    ``rule_inputs``: sources that make rules other than compiles use.
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
        """All units; one that belongs to several modules appears once for each."""
        return tuple(unit for module in self.modules for unit in module.units)

    @property
    def watched_files(self) -> frozenset[Path]:
        """The user's sources and headers, by the name under which they are used and by their real path."""
        return self.inputs.every_name() | {file for _module, file in self.carried}

    @property
    def is_kernel(self) -> bool:
        """Return whether this is a kernel's own tree."""
        return self.folder == self.tree.source

    def is_users(self, path: Path) -> bool:
        """Return whether an absolute path is the user's own, not the kernel's or the compiler's."""
        return is_users(path, self.folder, self.tree)


def is_users(path: Path, folder: Path, tree: KernelTree) -> bool:
    """Return whether ``path`` is the user's own.

    That includes a module's folder below the kernel's sources, and all of a kernel tree that is being edited.
    """
    # Compare strings: this is called hundreds of times per unit, and pathlib is ten times slower.
    if _below(str(path), folder):
        return True
    others = () if folder == tree.source else (tree.source, tree.output)
    return not any(_below(str(path), other) for other in (*others, *SYSTEM_FOLDERS))


def _below(path: str, folder: Path) -> bool:
    return path == str(folder) or path.startswith(f"{folder}/")


def names_of(path: Path) -> tuple[Path, Path]:
    """Return the names under which a watcher may report a file: without ``..``, and with links resolved."""
    return Path(os.path.normpath(path)), Path(os.path.realpath(path))


def is_product(path: Path) -> bool:
    """Return whether this is a source that kbuild generates.

    kbuild stores the command next to what it made. Only the products of filechk have none
    (scripts/Kbuild.include); they are in a folder called ``generated``.
    """
    return "generated" in path.parts or path.with_name(f".{path.name}.cmd").is_file()


def is_stamp(path: Path) -> bool:
    """Return whether this is a file in which kbuild writes the name of the build, and who made it.

    It changes with each commit and each LOCALVERSION. That is not an edit: what the guest runs keeps the name
    that it was built with.
    """
    return path.parts[-3:-1] == ("include", "generated") and path.name in STAMPS


def saved_ns(file: Path) -> int:
    """Return when a file was last saved, in ns of Unix time; 0 if it does not exist."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def sha256(file: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content.

    Return an empty string if it does not exist, is not a regular file, or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a fifo waits for a writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return ""
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""
