# SPDX-License-Identifier: MIT
"""What came of each commit of a history, for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# Outcomes that say that the guest is what the sources are.
CLAIMS = frozenset({"live", "no change", "undone", "reloaded", "restored", "rebooted"})
SHOWN = 4  # differences, in a row


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a commit. ``differs``: how the guest is otherwise than freshly booted; ``before``: what
    had come of it in a guest that the driver's own faults have damaged."""

    commit: str
    subject: str
    outcome: str
    codes: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    splats: tuple[str, ...] = ()
    seconds: float = 0.0
    said: str = ""
    before: str = ""

    @property
    def is_good(self) -> bool:
        return self.outcome in CLAIMS and not self.is_wrong

    @property
    def is_lost(self) -> bool:
        return self.outcome not in {*CLAIMS, "refused", "rejected", "stalled"}

    @property
    def is_wrong(self) -> bool:
        """Said to be done, and it is not; or the kernel complains."""
        return bool(self.splats) or (self.outcome in CLAIMS and bool(self.differs))

    def text(self) -> str:
        verdict = "WRONG" if self.is_wrong else "LOST" if self.is_lost else ""
        head = f"{self.commit:<9} {self.outcome:<10} {' '.join(self.codes):<24} {self.subject[:56]:<56}"
        return "\n".join(
            (
                f"{head} {verdict}".rstrip(),
                *(f"          {line[:300]}" for line in (*self.differs, *self.splats)[:SHOWN]),
                *([f"          in a damaged guest:\n{self.before}"] if self.before else []),
            )
        )


def shares(rows: Sequence[Row]) -> list[str]:
    """How many of each outcome, with the codes that led to it; and the sum of what counts."""
    told = []
    for outcome, count in Counter(row.outcome for row in rows).most_common():
        codes = Counter(code for row in rows if row.outcome == outcome for code in row.codes)
        why = ", ".join(f"{code} {number}" for code, number in codes.most_common())
        told.append(f"{count:5} {100 * count / len(rows):5.1f} %  {outcome}{f'  ({why})' if why else ''}")
    for word, number in (
        ("wrong", sum(row.is_wrong for row in rows)),
        ("lost", sum(row.is_lost for row in rows)),
    ):
        told.append(f"{number:5} {100 * number / len(rows):5.1f} %  {word}")
    return told


def line_differences(fresh: str | None, live: str | None) -> list[str]:
    """The first lines in which a workload printed something else; of None nothing is known."""
    if fresh is None or live is None:
        return []
    one, other = fresh.splitlines(), live.splitlines()
    length = max(len(one), len(other))
    one, other = ([*lines, *[""] * (length - len(lines))] for lines in (one, other))
    return [f"prints {b!r}, freshly booted {a!r}" for a, b in zip(one, other, strict=True) if a != b][:SHOWN]


def tell(rows: Sequence[Row], file: Path | None) -> None:
    """Print the newest row, and write all: a history takes an hour, and may be interrupted."""
    print(rows[-1].text(), flush=True)
    if file:
        file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
