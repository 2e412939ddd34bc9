# SPDX-License-Identifier: MIT
"""Find where code derives something from a line's number.

This may be a name (``PASTE(x_, __LINE__)``), an index, or a case label. In such places, two lines with the
same number would make two things with the same name. Pure: texts in, names and lines out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

LINE = "__LINE__"
DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)((?:\\[ \t]*\n|[^\n])*)", re.MULTILINE)
WORD = re.compile(r"[A-Za-z_]\w*")


def names_of_lines(texts: Iterable[str]) -> frozenset[str]:
    """Return ``__LINE__`` and the macros in these texts that expand to it; nothing if no text has it."""
    bodies: dict[str, set[str]] = {}
    found = set()
    for text in texts:
        if LINE in text:
            found.add(LINE)
        for name, body in DEFINE.findall(text):
            bodies.setdefault(name, set()).update(WORD.findall(body))
    while found:
        more = {name for name, words in bodies.items() if name not in found and words & found}
        if not more:
            break
        found |= more
    return frozenset(found)


def lines_that_use(names: frozenset[str], code: Sequence[str]) -> set[int]:
    """Return the indices of the lines on which one of these names may be expanded.

    These are the line with the name, and the lines with the rest of its arguments. ``code``: the lines
    without comments and literals. Macro definitions are skipped, because they are expanded elsewhere.
    """
    found = set()
    depth = 0
    defining = False
    for place, line in enumerate(code):
        is_define = defining or re.match(r"\W*#\W*define\b", line) is not None
        defining = is_define and line.rstrip().endswith("\\")
        if is_define:
            continue
        if depth or names.intersection(WORD.findall(line)):
            found.add(place)
            depth = max(0, depth + line.count("(") - line.count(")"))
    return found
