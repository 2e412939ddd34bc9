# SPDX-License-Identifier: MIT
"""Saves become batches. Pure: events and times, digests of contents in; what changed out.

An event means no more than "this path may differ now". Two things stand between it and a batch:

The *quiet time*. A save is seldom one event, and people (and formatters, and git) save several files at
once. A batch is due 15 ms after the last event. Some events say that more must follow: a file that was
created but not closed yet is still being written, and one that vanished is often about to come back under
its name (vim moves the old file away first, then writes and syncs the new one). Those are given 120 ms.
Whatever happens, nobody waits longer than 300 ms from the first event.

The *content*. What a path holds is compared with what was last delivered, so `touch`, a save without a
change, an edit that was taken back in time, or a file deleted and made again yield nothing at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

QUIET = 0.015
PATIENCE = 0.120
LIMIT = 0.300

Kind = Literal["modified", "created", "deleted"]
Digest = bytes | None  # of a file's content; None: there is no such file


@dataclass(frozen=True, slots=True)
class SourceChange:
    """One file that differs from what was last delivered."""

    path: Path
    kind: Kind


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Files that changed together, ordered by path.

    ``saved_at``: when the last of their events arrived, by ``time.monotonic()``; "saved to live" begins.
    """

    changes: tuple[SourceChange, ...]
    saved_at: float = field(default=0.0, compare=False)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(change.path for change in self.changes)


class Hint(Enum):
    """What an event tells about its path, besides that it may differ."""

    COMPLETE = "closed after writing, or moved here: the content is all there"
    OPENED = "created and not closed yet: more is likely to follow"
    GONE = "deleted or moved away: likely to come back"
    TOUCHED = "time or permissions differ: says nothing about whether somebody still writes"


class Debounce:
    """Collects paths that may differ, and says when it is time to look at them. Times are in seconds."""

    def __init__(self, quiet: float = QUIET, patience: float = PATIENCE, limit: float = LIMIT) -> None:
        self.quiet = quiet
        self.patience = max(quiet, patience)
        self.limit = max(self.patience, limit)
        self._paths: set[str] = set()
        self._unsettled: set[str] = set()
        self._first = self._last = 0.0

    def note(self, path: str, hint: Hint, now: float) -> None:
        """An event came in. The last hint about a path is the one that counts."""
        if not self._paths:
            self._first = now
        self._last = now
        self._paths.add(path)
        if hint in (Hint.OPENED, Hint.GONE):
            self._unsettled.add(path)
        elif hint is Hint.COMPLETE:
            self._unsettled.discard(path)

    def due(self) -> float | None:
        """The time at which to take what was collected; None while there is nothing."""
        if not self._paths:
            return None
        wait = self.patience if self._unsettled else self.quiet
        return min(self._last + wait, self._first + self.limit)

    def take(self) -> tuple[frozenset[str], float]:
        """The paths collected so far, and the time of the last event."""
        paths = frozenset(self._paths)
        self._paths.clear()
        self._unsettled.clear()
        return paths, self._last


def compare(delivered: Mapping[str, Digest], now: Mapping[str, Digest]) -> tuple[SourceChange, ...]:
    """What differs, among the paths of ``now``, from what was last delivered; ordered by path."""
    changes = []
    for path in sorted(now):
        kind = _kind(delivered.get(path), now[path])
        if kind:
            changes.append(SourceChange(Path(path), kind))
    return tuple(changes)


def _kind(before: Digest, after: Digest) -> Kind | None:
    if before == after:
        return None
    if before is None:
        return "created"
    return "deleted" if after is None else "modified"
