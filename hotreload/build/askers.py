# SPDX-License-Identifier: MIT
"""Find the units that may look for a file that did not exist when they were compiled.

A header that is created may be found before a header of the same name that a unit included, or it may be the
answer to an ``__has_include``. Neither case shows in a unit's list of dependencies. make does not notice it,
but the compiler would.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.external_module import read_notes
from hotreload.build.guest_base import GuestBase

# An include or ``__has_include`` whose file name comes from a macro.
COMPUTED = re.compile(rb"(?:#[ \t]*include(?:_next)?[ \t]+|__has_include(?:_next)?[ \t]*\([ \t]*)[A-Za-z_]")


def askers(base: GuestBase, new: Collection[Path]) -> Iterator[TranslationUnit]:
    """Yield the units whose files mention one of the names, or that included another file of that name."""
    names = {file.name for file in new}
    wanted = re.compile(b"|".join(re.escape(name.encode(errors="surrogateescape")) for name in names))
    texts: dict[Path, bool] = {}

    def asks(file: Path) -> bool:
        if file not in texts:
            text = _text(file)
            texts[file] = wanted.search(text) is not None or COMPUTED.search(text) is not None
        return texts[file]

    for unit in base.units if names else ():
        inputs = base.of(unit).inputs[unit.object]
        if _has_one(inputs, names) or any(map(asks, inputs)) or _included_one(unit, names):
            yield unit


def _has_one(files: Iterable[Path], names: Collection[str]) -> bool:
    return any(file.name in names for file in files)


def _included_one(unit: TranslationUnit, names: Collection[str]) -> bool:
    """Check the kernel's headers, which are not among a unit's inputs."""
    notes = read_notes(unit.object)
    return notes is not None and any(file.rpartition("/")[2] in names for file in notes.dependencies)


def _text(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
