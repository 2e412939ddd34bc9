# SPDX-License-Identifier: MIT
"""Keep results of a survey for later runs with the same commit, kernel and workload."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kept:
    """Keeps results in ``folder``, if there is one. ``of``: what all results depend on."""

    folder: Path | None
    of: Sequence[str]

    async def found(self, what: str, find: Callable[[], Awaitable[T]]) -> T:
        """Return the kept result for ``what``; if there is none, call ``find`` and keep its result."""
        if not self.folder:
            return await find()
        digest = hashlib.sha256(repr((what, self.of)).encode()).hexdigest()
        file = self.folder / f"{what.replace(' ', '-')}-{digest[:16]}.pickle"
        if file.exists():
            kept: T = pickle.loads(file.read_bytes())
            return kept
        found = await find()
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_bytes(pickle.dumps(found))
        unfinished.replace(file)
        return found
