# SPDX-License-Identifier: MIT
"""The file system as it is, but for the texts of some files: what one compile is shown.

``ROOT/absolute/path`` is ``/absolute/path``. The folders that a unit's files are in are folders here, too;
all else in them are links to the real thing, so that a compiler looking for a header finds what it would find
without us: also one that is new, or in a linked folder (which is a link here, to its target's place below
ROOT). Of the folders above these only the way down is here. Where that may have mattered, because of a
``..``, or where a link led out of here to a file with another text, the result does not count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# With more entries in one folder it is not worth while: a link takes 20 to 100 us.
MANY = 1000
QUOTED = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)
# What kbuild leaves in a folder, more than half of its entries. None is ever included.
PRODUCTS = (".o", ".ko", ".cmd", ".mod", ".order", ".symvers")


@dataclass(frozen=True, slots=True)
class Overlay:
    """A view below ``root`` in which the files ``texts`` (real paths) differ.

    ``folders``: where headers were looked for in it, absolute as the compiler spells them without it.
    """

    root: Path
    texts: frozenset[str]
    folders: frozenset[str]

    def real(self, path: str) -> str:
        """The path that an absolute path stands for; a relative one was marked with ``/.`` (see Shadow)."""
        if not self._is_here(path):
            return path
        return path.removeprefix(str(self.root)).removeprefix("/.")

    def is_faithful(self, files: Collection[str]) -> bool:
        """Are these absolute paths, which a compiler has read, what it would have read without the view?"""
        real_ones = {_identity(text) for text in self.texts}
        return not any(_identity(file) in real_ones for file in files) and not self._lacks(files)

    def _lacks(self, files: Collection[str]) -> bool:
        """Is there, in reality only, a file that was looked for before one of these was found?

        Only by ``..`` does a search leave the folders of which everything is here.
        """
        searched = self.folders | {os.path.dirname(self.real(file)) for file in files if self._is_here(file)}
        upwards = [real for file in files if "/../" in (real := self.real(file))]
        spelled = {
            real.removeprefix(f"{folder}/")
            for real in upwards
            for folder in searched
            if real.startswith(f"{folder}/")
        }
        return any(
            os.path.exists(f"{folder}/{text}") and not os.path.exists(f"{self.root}{folder}/{text}")
            for folder in searched
            for text in spelled
        )

    def _is_here(self, path: str) -> bool:
        return path.startswith(f"{self.root}/")


def make_partial_overlay(
    root: Path, source: Path, inputs: Iterable[Path], texts: Mapping[str, bytes]
) -> Overlay:
    """Build only the folders of the ``texts``; whoever looks for headers looks for them here first, and then
    in reality (replay.PartialShadow). A kernel's unit uses files of 80 folders.

    What a file here quotes is looked for here first: so all that is in its folder is here, and in those of
    ``"../x.h"``; of a folder that is too large only what the texts quote. ``inputs``: what the unit is known
    to use. Raises OSError.
    """
    places = _Places(texts)
    for file in _reached(str(source), inputs, texts):
        places.find(file)
    for place in sorted(places.folders):
        os.makedirs(f"{root}{place}", exist_ok=True)
    for place in places.shown:
        if not places.fill(root, place):
            _link_quoted(root, place, texts)
    places.write_rest(root, texts)
    return Overlay(root, frozenset(texts), frozenset())


def _reached(source: str, inputs: Iterable[Path], texts: Mapping[str, bytes]) -> set[str]:
    """The texts, and every file that is quoted by a path from the folder of one of these."""
    beside: dict[str, set[str]] = {}
    for file in (source, *map(str, inputs)):
        name = os.path.normpath(file)
        beside.setdefault(os.path.dirname(name), set()).add(name)
    found: set[str] = set()
    waiting = {*texts}
    if not texts.keys().isdisjoint(_quoted(source, texts)):
        waiting.add(source)
    while waiting:
        file = waiting.pop()
        found.add(file)
        for each in {file, *beside.pop(os.path.dirname(file), ())}:
            waiting |= _quoted(each, texts) - found
    return found


def _quoted(file: str, texts: Mapping[str, bytes]) -> set[str]:
    """The files that a file quotes by a path, not by their names alone."""
    try:
        text = texts.get(file) or Path(file).read_bytes()
    except OSError:
        return set()
    names = [os.fsdecode(name) for name in QUOTED.findall(text) if b"/" in name]
    paths = (os.path.normpath(os.path.join(os.path.dirname(file), name)) for name in names)
    return {path for path in paths if os.path.isfile(path)}


def _link_quoted(root: Path, folder: str, texts: Mapping[str, bytes]) -> None:
    """Show those of a folder's files that its texts include by their names alone."""
    for real, text in texts.items():
        for name in QUOTED.findall(text) if os.path.dirname(real) == folder else ():
            path = os.path.join(folder, os.fsdecode(name))
            if (
                b"/" not in name
                and os.path.isfile(path)
                and not os.path.lexists(f"{root}{path}")
                and path not in texts
            ):
                os.symlink(path, f"{root}{path}")


def make_overlay(
    root: Path, files: Iterable[Path], folders: Iterable[str], texts: Mapping[str, bytes]
) -> Overlay | None:
    """Build the view in the empty folder ``root``; None when a folder is too large or may not be read.

    ``files``: what the unit is known to use, ``folders``: where headers are looked for, both absolute as the
    compiler spells them; ``texts``: the other texts by the real paths of files. Raises OSError.
    """
    folders = frozenset(folder.rstrip("/") for folder in folders)
    places = _Places(texts)
    for folder in folders:
        places.show(folder)
    for file in files:
        places.find(str(file))
    for place in sorted(places.folders):
        os.makedirs(f"{root}{place}", exist_ok=True)
    if not all(places.fill(root, place) for place in places.shown):
        return None
    places.write_rest(root, texts)
    return Overlay(root, frozenset(texts), folders)


class _Places:
    """What the view is made of, by real path.

    ``folders``, some of which are ``shown`` with all that is in them; and ``links``, which lead to one of
    these or to one of the ``texts``.
    """

    def __init__(self, texts: Collection[str]) -> None:
        self.texts = texts
        self.folders = {"/"}
        self.shown: set[str] = set()
        self.links: dict[str, str] = {}
        self._entered: dict[str, str] = {}

    def find(self, file: str) -> None:
        """Take in a file's folder, and where it is a link to one of the texts that one's, too."""
        folder, name = os.path.split(file)
        path = os.path.join(self.show(folder), name)
        if os.path.islink(path) and (real := os.path.realpath(path)) in self.texts:
            self.links[path] = real
            self.show(os.path.dirname(real))

    def show(self, folder: str) -> str:
        """Take in a folder with all that is in it; its real path."""
        place = self._enter(folder)
        if place in self.folders:
            self.shown.add(place)
        return place

    def fill(self, root: Path, folder: str) -> bool:
        """Make the links for a shown folder. False: it is too large, or may not be read."""
        try:
            names = [name for name in os.listdir(folder) if not name.endswith(PRODUCTS)]
        except PermissionError:
            return False
        if len(names) > MANY:
            return False
        for name in names:
            path = os.path.join(folder, name)
            if path not in self.folders and path not in self.links and path not in self.texts:
                os.symlink(path, f"{root}{path}")
        return True

    def write_rest(self, root: Path, texts: Mapping[str, bytes]) -> None:
        """Make the links that lead to places here, and write the texts."""
        for link, target in self.links.items():
            os.symlink(f"{root}{target}", f"{root}{link}")
        for real, text in texts.items():
            Path(f"{root}{real}").write_bytes(text)

    def _enter(self, folder: str) -> str:
        """Take in a folder and all above it; its real path."""
        if folder not in self._entered:
            place = "/"
            for name in folder.split("/"):
                if name == "..":
                    place = os.path.dirname(place)
                elif name not in ("", "."):
                    place = self._step(os.path.join(place, name))
            self._entered[folder] = place
        return self._entered[folder]

    def _step(self, path: str) -> str:
        if os.path.islink(path):
            self.links[path] = os.path.realpath(path)
            return self._enter(self.links[path])
        if os.path.isdir(path):
            self.folders.add(path)
        return path


def _identity(file: str) -> tuple[int, int] | str:
    try:
        found = os.stat(file)
    except OSError:
        return file
    return found.st_dev, found.st_ino
