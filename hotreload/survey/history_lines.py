# SPDX-License-Identifier: MIT
"""Line numbers that code hands on: those of unchanged lines stay what they were when the guest booted. Pure.

So a guest that was reloaded may have another number than one freshly booted, and be right. Which numbers
may differ is asked of the sources: the line that one number names now is the one that the other named then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hotreload.build.lines import BEYOND

Texts = Mapping[str, Sequence[str]]  # the lines of each source file, by its path in the folder

HANDED_ON = re.compile(r"^((?:mov|push) .*?)(0x[0-9a-f]{1,5}|\d+)$")
# A text is in quotes (history_code.Reader.name_of).
TEXT = re.compile(r"^(.*?<)(['\"].*['\"])(>.*)$")
DECIMAL = re.compile(r"(?<![\w.%])\d+(?![\w.])")


@dataclass(frozen=True, slots=True)
class Lines:
    """The sources ``now``, and as they were at each reload since the guest ``booted``."""

    now: Texts
    since: Sequence[Texts] = ()

    def are_one(self, fresh: int, live: int) -> bool:
        """Do both numbers stand for one line, the first in the sources of now?"""
        if live == fresh or live == fresh + BEYOND:
            return True
        return any(
            line is not None and line == _line(before, path, live)
            for path, lines in self.now.items()
            if (line := _line({path: lines}, path, fresh)) is not None
            for before in self.since
        )

    def differ_alone(self, fresh: str, live: str) -> bool:
        """Do two instructions differ in nothing but such numbers?"""
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
    """A line that may hand its number on: one that calls something, or ends a call."""
    lines = texts.get(path, ())
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    return line if "(" in line or ")" in line else None
