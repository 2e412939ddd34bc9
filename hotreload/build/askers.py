# SPDX-License-Identifier: MIT
"""Which units may ask for a file that was not there when they were compiled.

A header that comes into being may be found before the one of its name that a unit included, or answer
``__has_include``: neither is in any list of what a unit was made of. make does not see it; the compiler does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.external_module import read_notes
from hotreload.build.guest_base import GuestBase

# What is included, or asked for, by a name that a macro makes.
COMPUTED = re.compile(rb"(?:#[ \t]*include(?:_next)?[ \t]+|__has_include(?:_next)?[ \t]*\([ \t]*)[A-Za-z_]")


def askers(base: GuestBase, new: Collection[Path]) -> Iterator[TranslationUnit]:
    """The units in whose files one of the names appears, or that included another file of that name."""
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
    """Of the kernel's headers, which are not among a unit's inputs."""
    notes = read_notes(unit.object)
    return notes is not None and any(file.rpartition("/")[2] in names for file in notes.dependencies)


def _text(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
