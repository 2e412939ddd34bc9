# SPDX-License-Identifier: MIT
"""The files in a module's folder that no unit names, such as the input of a rule or of a script.

Only make knows what they are used for. This module only answers whether one of them has changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hotreload.build.built import Stamp

# What kbuild, compilers and people leave next to sources. No rule takes these as its input.
PRODUCTS = frozenset(
    ".o .a .ko .cmd .mod .d .order .symvers .dwo .gcno .gcda .su .i .lst .ll .s .map .pyc .log .orig .rej "
    ".tmp .qcow2".split()
)
HIDDEN_FOLDERS = frozenset(("__pycache__", "node_modules"))


def is_other(name: str) -> bool:
    """Return whether a file of this name can be the input of a rule."""
    return not (
        name.startswith((".", "#")) or name.endswith(("~", ".mod.c")) or os.path.splitext(name)[1] in PRODUCTS
    )


def stamp(path: str | Path) -> Stamp | None:
    """Return the stamp of a file, or None if it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def stamps(folder: Path) -> dict[Path, Stamp]:
    """Return the stamps of all such files in a folder and below."""
    return {Path(file): seen for file in _files(str(folder)) if (seen := stamp(file)) is not None}


def _files(folder: str) -> Iterator[str]:
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.startswith(".") and entry.name not in HIDDEN_FOLDERS:
                            waiting.append(entry.path)
                    elif is_other(entry.name) and entry.is_file():
                        yield entry.path
        except OSError:
            continue
