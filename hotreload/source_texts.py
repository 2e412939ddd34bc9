# SPDX-License-Identifier: MIT
"""Texts of source files by path, read on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


class SourceTexts(Mapping[str, str]):
    """A mapping from path to text, in the order given. A file that cannot be read is empty.

    ``instead`` has contents to use in place of those on disk.
    """

    def __init__(self, files: Sequence[Path], instead: Mapping[Path, bytes] | None = None) -> None:
        self._files = tuple(map(str, files))
        self._instead = {str(file): text for file, text in (instead or {}).items()}

    def __getitem__(self, file: str) -> str:
        if file not in self._files:
            raise KeyError(file)
        if file in self._instead:
            return self._instead[file].decode(errors="replace")
        try:
            return Path(file).read_text(errors="replace")
        except OSError:
            return ""

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
