# SPDX-License-Identifier: MIT
"""Turn saves into batches. Pure: events, times and digests of contents in, changes out.

An event only means "this path may differ now". Two steps lie between it and a batch:

The *quiet time*. A save often causes several events, and people (and formatters, and git) save several files
at once. A batch is due 15 ms after the last event. Some events mean that more must follow: a file that was
created but not closed is still being written, and one that vanished is often about to reappear under its name
(vim moves the old file away first, then writes and syncs the new one). In these cases the batch is due after
120 ms. It is due 300 ms after the first event at the latest.

The *content*. The content of a path is compared with what was last delivered. So `touch`, a save without a
change, an edit that was reverted in time, and a file that was deleted and created again yield nothing.
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
Digest = bytes | None  # of a file's content; None: the file does not exist


@dataclass(frozen=True, slots=True)
class SourceChange:
    """A file that differs from what was last delivered."""

    path: Path
    kind: Kind


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Files that changed together, ordered by path.

    ``saved_at``: when the last of their events arrived, by ``time.monotonic()``. The time from save to live
    is measured from it.
    """

    changes: tuple[SourceChange, ...]
    saved_at: float = field(default=0.0, compare=False)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(change.path for change in self.changes)


class Hint(Enum):
    """What an event says about its path, besides that it may differ."""

    COMPLETE = "closed after writing, or moved here: the content is all there"
    OPENED = "created and not closed yet: more is likely to follow"
    GONE = "deleted or moved away: likely to come back"
    TOUCHED = "time or permissions differ: says nothing about whether somebody still writes"


class Debounce:
    """Collects paths that may differ, and decides when to read them. Times are in seconds."""

    def __init__(self, quiet: float = QUIET, patience: float = PATIENCE, limit: float = LIMIT) -> None:
        self.quiet = quiet
        self.patience = max(quiet, patience)
        self.limit = max(self.patience, limit)
        self._paths: set[str] = set()
        self._unsettled: set[str] = set()
        self._first = self._last = 0.0

    def note(self, path: str, hint: Hint, now: float) -> None:
        """Record an event. For each path, the last hint counts."""
        if not self._paths:
            self._first = now
        self._last = now
        self._paths.add(path)
        if hint in (Hint.OPENED, Hint.GONE):
            self._unsettled.add(path)
        elif hint is Hint.COMPLETE:
            self._unsettled.discard(path)

    def due(self) -> float | None:
        """Return the time at which to take the collected paths, or None if there are none."""
        if not self._paths:
            return None
        wait = self.patience if self._unsettled else self.quiet
        return min(self._last + wait, self._first + self.limit)

    def take(self) -> tuple[frozenset[str], float]:
        """Return the paths collected so far, and the time of the last event."""
        paths = frozenset(self._paths)
        self._paths.clear()
        self._unsettled.clear()
        return paths, self._last


def compare(delivered: Mapping[str, Digest], now: Mapping[str, Digest]) -> tuple[SourceChange, ...]:
    """Return which paths of ``now`` differ from what was last delivered, ordered by path."""
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
