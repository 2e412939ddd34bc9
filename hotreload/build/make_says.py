# SPDX-License-Identifier: MIT
"""Interpret the output of make, and of the programs that it runs, after a failure.

Pure: texts in, lines out.
"""

from __future__ import annotations

import re

MAKES_OWN = re.compile(r"make(\[\d+\])?: ")
FAILED = re.compile(r"\*\*\* (?:\[.*\] )?(.*)")
# make's message about a failed recipe, and about jobs that it waits for. It is not the reason.
NO_REASON = re.compile(r"Error \d+|Terminated|Killed|Waiting for unfinished jobs")
WARNING = re.compile(r"\bwarning\b|^Skipping BTF|^  [A-Z]", re.IGNORECASE)


def without_make(said: str) -> str:
    """Return the lines that make did not write itself."""
    return "".join(line for line in said.splitlines(keepends=True) if not MAKES_OWN.match(line))


def first_error(said: str) -> str | None:
    """Return the line that best explains the failure.

    That is a compiler's error, make's own reason (a target without a rule, an unreadable Makefile), or the
    last line that a program wrote before its recipe failed.
    """
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
