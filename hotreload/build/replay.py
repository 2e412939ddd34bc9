# SPDX-License-Identifier: MIT
"""Rewrite the arguments of a recorded compile. Pure: lists of words in, lists of words out.

A recorded command is run again with other outputs, with one section per function and variable, and with our
debugging flags. For the base object it is run on the *shadow*: a mirror of the sources the guest booted,
``SHADOW/absolute/path/of/foo.c``. Every path of the user's in the command is prefixed with the shadow's, so
that quoted includes, ``../x.h`` and ``-I`` find the recorded files by the same rules, and
``-fmacro-prefix-map`` removes the prefix from ``__FILE__``. An unchanged source gives the same object except
for its debugging information, which names the shadow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SECTION_FLAGS = ("-ffunction-sections", "-fdata-sections")
# Does not affect the code. Without it, 50 MB of garbage keep gcc busy for minutes.
FEW_ERRORS = "-fmax-errors=100"
# KASAN puts a red zone after each global variable and string, and registers them in a constructor. Our
# objects are compiled without that: the variables in the guest have theirs, a patch runs no constructor, and
# strings would be bytes without a name. All other checks stay, including those of array indices.
KASAN_FLAG = "-fsanitize=kernel-address"
KASAN_OF_OURS = ("--param=asan-globals=0",)
FOLDER_FLAGS = ("-I", "-iquote", "-isystem", "-idirafter")
FILE_FLAGS = ("-include", "-imacros")
PREFIX_MAP = re.compile(r"-f(?:macro|file)-prefix-map=([^=]+)=(.*)")
# -Wp,-MMD,FILE is kbuild's own; the others appear in hand-written rules.
DEPENDENCY_FLAG = re.compile(r"-Wp,-MM?D,.*|-MM?D|-MP")
# -g, -g2, -ggdb3, -gdwarf-5, -gz=zlib, -gsplit-dwarf ... also when passed to the assembler.
DEBUG_FLAG = re.compile(
    r"(?:-Wa,)?-g(?:$|\d|gdb|dwarf|z|split|btf|ctf|stabs|no-|strict|inline|column|record|var|as-).*"
)


@dataclass(frozen=True, slots=True)
class Shadow:
    """A mirror below ``root``; ``is_users(path)`` returns whether an absolute path is mirrored."""

    root: Path
    is_users: Callable[[Path], bool]
    folder: Path

    def path(self, spelled: str, cwd: Path) -> str:
        """Return the mirrored path for a path in a command; the path itself if it is not the user's."""
        absolute = os.path.join(cwd, spelled)
        if not self.is_users(Path(os.path.normpath(absolute))):
            return spelled
        # A relative path is marked with "/.", so that its prefix differs from that of the same place spelled
        # absolutely, and __FILE__ becomes relative again.
        return f"{self.root}{absolute}" if os.path.isabs(spelled) else f"{self.root}/.{absolute}"

    def folders(self, spelled: str, cwd: Path) -> tuple[str, ...]:
        """Return the include folders that replace one.

        A kernel folder above the user's keeps its own files.
        """
        mirrored = self.path(spelled, cwd)
        absolute = Path(os.path.normpath(os.path.join(cwd, spelled)))
        if mirrored == spelled and self.folder.is_relative_to(absolute):
            return f"{self.root}{os.path.join(cwd, spelled)}", spelled
        return (mirrored,)

    def prefix_maps(self, argv: Sequence[str], cwd: Path) -> tuple[str, ...]:
        """Return flags that make ``__FILE__`` what it is without the shadow. In gcc the last match wins."""
        own = [PREFIX_MAP.fullmatch(word) for word in argv]
        return (
            f"-fmacro-prefix-map={self.root}=",
            f"-fmacro-prefix-map={self.root}/.{cwd}/=",
            # Only one map applies to a path, so the maps of the command must begin with the shadow's prefix.
            # A kernel that is built in place maps "./", because its headers are below -I./include.
            *(f"-fmacro-prefix-map={self._prefix(found[1], cwd)}={found[2]}" for found in own if found),
        )

    def _prefix(self, spelled: str, cwd: Path) -> str:
        return f"{self.root}{spelled}" if os.path.isabs(spelled) else f"{self.root}/.{cwd}/{spelled}"


@dataclass(frozen=True, slots=True)
class PartialShadow(Shadow):
    """A mirror with only some of the files: each folder is searched in the mirror, then in its real place."""

    def path(self, spelled: str, cwd: Path) -> str:
        mirrored = Shadow.path(self, spelled, cwd)
        return mirrored if os.path.lexists(mirrored) else spelled

    def folders(self, spelled: str, cwd: Path) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.path(spelled, cwd), spelled)))


def replayed(
    argv: Sequence[str], *, output: Path, dependencies: Path, debug: Sequence[str], assembly: bool = False
) -> tuple[str, ...]:
    """Return the compile command with redirected outputs, and with our section flags and the ``debug`` flags.

    With ``assembly``, sections and debug flags stay as they are, because the source defines them.
    """
    kept = tuple(argv)
    if not assembly:
        checks = KASAN_OF_OURS if KASAN_FLAG in kept else ()
        kept = (*(word for word in kept if not DEBUG_FLAG.fullmatch(word)), *SECTION_FLAGS, *checks, *debug)
    return redirected((*kept, FEW_ERRORS), output=output, dependencies=dependencies)


def redirected(argv: Sequence[str], *, output: Path, dependencies: Path) -> tuple[str, ...]:
    """Return the compile command with other outputs, otherwise unchanged."""
    return (*_without_outputs(argv), "-MMD", "-MF", str(dependencies), "-o", str(output))


def _without_outputs(argv: Sequence[str]) -> Iterator[str]:
    words = iter(argv)
    for word in words:
        if word in ("-o", "-MF", "-MT", "-MQ"):
            next(words, None)
        elif not DEPENDENCY_FLAG.fullmatch(word):
            yield word


def shadowed(argv: Sequence[str], cwd: Path, source: Path, shadow: Shadow) -> tuple[str, ...]:
    """Return the compile command with the shadow's paths in place of the user's."""
    words = [argv[0], *shadow.prefix_maps(argv, cwd)]
    rest = iter(argv[1:])
    for word in rest:
        flag = next((flag for flag in (*FOLDER_FLAGS, *FILE_FLAGS) if word == flag), None)
        if flag:
            words += _with_paths(flag, next(rest, ""), cwd, shadow)
        elif joined := next((flag for flag in FOLDER_FLAGS if word.startswith(flag)), None):
            words += [f"{joined}{path}" for path in shadow.folders(word.removeprefix(joined), cwd)]
        elif os.path.normpath(os.path.join(cwd, word)) == str(source):
            words.append(shadow.path(word, cwd))
        else:
            words.append(word)
    return tuple(words)


def _with_paths(flag: str, spelled: str, cwd: Path, shadow: Shadow) -> list[str]:
    paths = shadow.folders(spelled, cwd) if flag in FOLDER_FLAGS else (shadow.path(spelled, cwd),)
    return [word for path in paths for word in (flag, path)]


def include_folders(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the folders that a command searches for headers, as spelled."""
    folders = []
    words = iter(argv)
    for word in words:
        if word in FOLDER_FLAGS:
            folders.append(next(words, ""))
        elif flag := next((flag for flag in FOLDER_FLAGS if word.startswith(flag)), None):
            folders.append(word.removeprefix(flag))
    return tuple(folders)
