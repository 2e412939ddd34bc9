# SPDX-License-Identifier: MIT
"""A view of the file system in which some files have other texts, for one compile.

``ROOT/absolute/path`` stands for ``/absolute/path``. The folders that contain a unit's files are real folders
in the view. Everything else in them is a link to the original, so that the compiler finds the headers that it
would find without the view, including added ones and those in a linked folder (which is a link to the place
of its target below ROOT). Of the folders above, only the path down to these is in the view. The result is
discarded if that may have mattered because of a ``..``, or if a link led out of the view to a file whose text
is replaced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Folders with more entries are not worth the time: a link takes 20 to 100 us.
MANY = 1000
QUOTED = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)
# What kbuild leaves in a folder: more than half of the entries. These files are never included.
PRODUCTS = (".o", ".ko", ".cmd", ".mod", ".order", ".symvers")


@dataclass(frozen=True, slots=True)
class Overlay:
    """A view below ``root`` in which the files ``texts`` (real paths) differ.

    ``folders``: the folders that are searched for headers in it, absolute, as the compiler spells them
    without the view.
    """

    root: Path
    texts: frozenset[str]
    folders: frozenset[str]

    def real(self, path: str) -> str:
        """Return the real path for an absolute path in the view.

        Relative ones are marked with ``/.`` (see Shadow).
        """
        if not self._is_here(path):
            return path
        return path.removeprefix(str(self.root)).removeprefix("/.")

    def is_faithful(self, files: Collection[str]) -> bool:
        """Return whether the compiler would have read the same files without the view.

        ``files``: the absolute paths that it has read.
        """
        real_ones = {_identity(text) for text in self.texts}
        return not any(_identity(file) in real_ones for file in files) and not self._lacks(files)

    def _lacks(self, files: Collection[str]) -> bool:
        """Return whether a file outside of the view would have been found before one of these files.

        Only a ``..`` can lead a search out of the folders that are completely in the view.
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
    """Build a view that only has the folders of the ``texts``.

    The compiler searches it for headers first, then the real folders (replay.PartialShadow). A kernel's unit
    uses files from 80 folders.

    A quoted include is first searched in the folder of the including file. Therefore the view has all files
    of the folders of the ``texts``, and of the folders that are reached by ``"../x.h"``; if a folder is too
    large, only the files that the texts quote. ``inputs``: the files that the unit is known to use. Raises
    OSError.
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
    """Return the texts, and all files that are quoted with a path from the folder of one of these."""
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
    """Return the existing files that a file includes in quotes with a path, not by name alone."""
    try:
        text = texts.get(file) or Path(file).read_bytes()
    except OSError:
        return set()
    names = [os.fsdecode(name) for name in QUOTED.findall(text) if b"/" in name]
    paths = (os.path.normpath(os.path.join(os.path.dirname(file), name)) for name in names)
    return {path for path in paths if os.path.isfile(path)}


def _link_quoted(root: Path, folder: str, texts: Mapping[str, bytes]) -> None:
    """Show the files of a folder that its texts include by name alone."""
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
    """Build the view in the empty folder ``root``; None if a folder is too large or cannot be read.

    ``files``: the files that the unit is known to use; ``folders``: the folders that are searched for
    headers. Both are absolute, as the compiler spells them. ``texts``: the replaced texts, by the real paths
    of the files. Raises OSError.
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
    """What the view consists of, by real path.

    ``folders``: all folders, of which those in ``shown`` have their complete content. ``links``: links that
    lead to one of these folders or to one of the ``texts``.
    """

    def __init__(self, texts: Collection[str]) -> None:
        self.texts = texts
        self.folders = {"/"}
        self.shown: set[str] = set()
        self.links: dict[str, str] = {}
        self._entered: dict[str, str] = {}

    def find(self, file: str) -> None:
        """Add the folder of a file.

        If the file is a link to one of the texts, add the folder of that text, too.
        """
        folder, name = os.path.split(file)
        path = os.path.join(self.show(folder), name)
        if os.path.islink(path) and (real := os.path.realpath(path)) in self.texts:
            self.links[path] = real
            self.show(os.path.dirname(real))

    def show(self, folder: str) -> str:
        """Add a folder with its complete content, and return its real path."""
        place = self._enter(folder)
        if place in self.folders:
            self.shown.add(place)
        return place

    def fill(self, root: Path, folder: str) -> bool:
        """Make the links in a shown folder. Return False if it is too large or cannot be read."""
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
        """Make the links that lead to places in the view, and write the texts."""
        for link, target in self.links.items():
            os.symlink(f"{root}{target}", f"{root}{link}")
        for real, text in texts.items():
            Path(f"{root}{real}").write_bytes(text)

    def _enter(self, folder: str) -> str:
        """Add a folder and all folders above it, and return its real path."""
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
