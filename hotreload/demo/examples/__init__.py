# SPDX-License-Identifier: MIT
"""The example driver, and ways to edit and save its source."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hotreload.paths import writing_to

NAME = "ticker"


@dataclass(frozen=True, slots=True)
class Edit:
    """Replaces ``old``, which must occur exactly once in ``file``, by ``new``."""

    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """Return the text after the edit. Raises ValueError if it does not fit."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} has {text.count(self.old)} times {self.old!r}")
        return text.replace(self.old, self.new)


def sources() -> Mapping[str, str]:
    """Return the texts of the example driver's files, by name."""
    folder = Path(__file__).with_name(NAME)
    return {
        file.name: file.read_text(encoding="utf-8")
        for file in sorted(folder.iterdir())
        if file.name == "Kbuild" or file.suffix in (".c", ".h")
    }


def copy_example(parent: Path) -> Path:
    """Write the example driver's source into a folder of its own below ``parent``. Return that folder.

    Raises FileExistsError if there is one, EnvironmentFault (HR5107, HR5108) if it cannot be written.
    """
    folder = parent / NAME
    with writing_to(parent):
        parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        for name, text in sources().items():
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def save_in_place(path: Path, text: str) -> None:
    """Save as `nano` and `echo >` do: overwrite the file."""
    path.write_text(text, encoding="utf-8")


def save_by_rename(path: Path, text: str) -> None:
    """Save as VS Code, `sed -i` and git do: a new file replaces the old one atomically."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def save_with_backup(path: Path, text: str) -> None:
    """Save as vim does.

    The old file is renamed, and removed once the new one is safe on disk.
    """
    backup = path.with_name(f"{path.name}~")
    path.rename(backup)
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    shutil.copymode(backup, path)
    backup.unlink()


WAYS_TO_SAVE = (save_in_place, save_by_rename, save_with_backup)
