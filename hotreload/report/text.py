# SPDX-License-Identifier: MIT
"""Text for a terminal: without control sequences, of a given width, in colour or not. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

# ECMA-48: CSI sequences (colours, cursor); OSC, DCS, SOS, PM and APC strings (titles, clipboard, links), if
# they are terminated (an unterminated one must not hide the rest of the text); and the short sequences.
ESCAPE_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
# Control characters, and those that change the direction of text ("Trojan Source", CVE-2021-42574).
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

STYLES = {"green": "32", "yellow": "33", "red": "31", "alarm": "1;31", "bold": "1", "dim": "2", "plain": ""}


def harmless(text: str) -> str:
    """Return text from a guest, a compiler or a file name without anything that a terminal would obey.

    Escape sequences are removed, and other control characters become visible. Newlines and tabs stay.
    """
    text = ESCAPE_SEQUENCES.sub("", text.replace("\r\n", "\n"))
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """Return the same on one line."""
    return " ".join(harmless(text).split())


def styled(text: str, style: str, color: bool) -> str:
    """Return ``text`` in one of ``STYLES`` if ``color`` is set."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if color and STYLES[style] and text else text


def enumerate_names(names: Sequence[str], width: int | None) -> str:
    """Return ``a, b, c``, or as many as fit and ``+3 more``. The first is always shown."""
    full = ", ".join(names)
    if width is None or len(full) <= width:
        return full
    for shown in range(len(names) - 1, 1, -1):
        text = f"{', '.join(names[:shown])}, +{len(names) - shown} more"
        if len(text) <= width:
            return text
    return f"{names[0]}, +{len(names) - 1} more" if len(names) > 1 else full


def shown_path(path: Path, cwd: Path) -> str:
    """Return a path as a person would type it in ``cwd``.

    It is relative unless that would lead up more than one folder.
    """
    relative = os.path.relpath(path, cwd)
    return one_line(str(path) if relative.startswith("../..") else relative)


def seconds(milliseconds: float) -> str:
    """Format a time as ``0.94 s``, or in milliseconds if it is under 10 ms."""
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 10 else f"{milliseconds:.1f} ms"
