# SPDX-License-Identifier: MIT
"""The result of each commit of a history, as text and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# Outcomes that claim that the guest runs what the sources say.
CLAIMS = frozenset({"live", "no change", "undone", "reloaded", "restored", "rebooted"})
SHOWN = 4  # differences that the text of a row shows


@dataclass(frozen=True, slots=True)
class Row:
    """The result of a commit.

    ``differs``: the differences of the guest from a freshly booted one. ``before``: the first result of this
    commit, if that guest had been damaged by the driver's own bugs.
    """

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
        """Return whether hotreload claimed success but the guest differs, or its kernel complained."""
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
    """Return lines with the count of each outcome and its codes, and the counts of wrong and lost commits."""
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
    """Return the first lines in which the output of a workload differs. None: that output is not known."""
    if fresh is None or live is None:
        return []
    one, other = fresh.splitlines(), live.splitlines()
    length = max(len(one), len(other))
    one, other = ([*lines, *[""] * (length - len(lines))] for lines in (one, other))
    return [f"prints {b!r}, freshly booted {a!r}" for a, b in zip(one, other, strict=True) if a != b][:SHOWN]


def tell(rows: Sequence[Row], file: Path | None) -> None:
    """Print the newest row, and write all rows to the file.

    A replay takes about an hour and may be interrupted, so this is done after each row.
    """
    print(rows[-1].text(), flush=True)
    if file:
        file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
