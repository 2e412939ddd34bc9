# SPDX-License-Identifier: MIT
"""What make and the programs that it runs say when something fails. Pure: texts in, lines out."""

from __future__ import annotations

import re

MAKES_OWN = re.compile(r"make(\[\d+\])?: ")
FAILED = re.compile(r"\*\*\* (?:\[.*\] )?(.*)")
# What make says of a recipe that failed, and of what waits for others: no reason of its own.
NO_REASON = re.compile(r"Error \d+|Terminated|Killed|Waiting for unfinished jobs")
WARNING = re.compile(r"\bwarning\b|^Skipping BTF|^  [A-Z]", re.IGNORECASE)


def without_make(said: str) -> str:
    """The lines that are not make's own."""
    return "".join(line for line in said.splitlines(keepends=True) if not MAKES_OWN.match(line))


def first_error(said: str) -> str | None:
    """The one line that tells best why it failed: a compiler's error, make's own reason (a target without a
    rule, a Makefile that it cannot read), or what the program said last before its recipe failed."""
    lines = [line.strip() for line in said.splitlines()]
    for line in lines:
        if re.search(r"\berror:", line, re.IGNORECASE) and not MAKES_OWN.match(line):
            return line
    last = None
    for line in lines:
        failed = FAILED.search(line)
        if failed is None:
            if line and not MAKES_OWN.match(line) and not WARNING.search(line):
                last = line
        elif not NO_REASON.search(failed[1]):
            return MAKES_OWN.sub("", line).removeprefix("*** ")
        elif last is not None:
            return last
    return last
