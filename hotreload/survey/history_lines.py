# SPDX-License-Identifier: MIT
"""Decide whether two line numbers in code mean the same line. Pure.

Code may pass its line number on, as WARN() does. A reload keeps the numbers that unchanged lines had when the
guest booted, so a reloaded guest may legitimately have other numbers than a freshly booted one. Two numbers
may differ if the line that one has in the current sources is the line that the other had in earlier sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hotreload.build.lines import BEYOND

Texts = Mapping[str, Sequence[str]]  # the lines of each source file, by its path in the folder

HANDED_ON = re.compile(r"^((?:mov|push) .*?)(0x[0-9a-f]{1,5}|\d+)$")
# A text in quotes (history_code.Reader.name_of).
TEXT = re.compile(r"^(.*?<)(['\"].*['\"])(>.*)$")
DECIMAL = re.compile(r"(?<![\w.%])\d+(?![\w.])")


@dataclass(frozen=True, slots=True)
class Lines:
    """The sources ``now``, and at each reload ``since`` the guest booted."""

    now: Texts
    since: Sequence[Texts] = ()

    def are_one(self, fresh: int, live: int) -> bool:
        """Return whether both numbers mean the same line, ``fresh`` in the current sources."""
        if live == fresh or live == fresh + BEYOND:
            return True
        return any(
            line is not None and line == _line(before, path, live)
            for path, lines in self.now.items()
            if (line := _line({path: lines}, path, fresh)) is not None
            for before in self.since
        )

    def differ_alone(self, fresh: str, live: str) -> bool:
        """Return whether two instructions differ only in such line numbers."""
        one, other = HANDED_ON.match(fresh), HANDED_ON.match(live)
        if one and other:
            return one[1] == other[1] and self.are_one(int(one[2], 0), int(other[2], 0))
        one, other = TEXT.match(fresh), TEXT.match(live)
        return bool(
            one and other and one.group(1, 3) == other.group(1, 3) and self._texts_are_one(one[2], other[2])
        )

    def _texts_are_one(self, fresh: str, live: str) -> bool:
        if DECIMAL.sub("0", fresh) != DECIMAL.sub("0", live):
            return False
        numbers = zip(DECIMAL.findall(fresh), DECIMAL.findall(live), strict=True)
        return all(self.are_one(int(one), int(other)) for one, other in numbers)


def _line(texts: Texts, path: str, number: int) -> str | None:
    """Return a line, if its code may pass its number on: it has a call, or the end of one."""
    lines = texts.get(path, ())
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    return line if "(" in line or ")" in line else None
