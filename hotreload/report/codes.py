# SPDX-License-Identifier: MIT
"""The codes, which say what each refusal, crash and fault means. Their texts are in ``codes.md``.

The texts are a document of their own, so that they can be read as one. Each section is one row of the table::

    ## HR2101 the layout of a structure or union changed
    Rung: module
    <blank line>
    the long answer, as ``hotreload why HR2101`` prints it
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from hotreload.errors import InputError

TABLE = Path(__file__).with_name("codes.md")
SECTION = re.compile(
    r"^## (?P<number>HR\d{4}) (?P<title>.+)\n(?:Rung: (?P<rung>\w+)\n)?\n(?P<explanation>(?:(?!^#).*\n)*)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Code:
    """One code. ``rung`` is the lowest rung that gets past it, or None if the code is not about an edit."""

    number: str
    title: str
    rung: str | None
    explanation: str


def parse_codes(text: str) -> tuple[Code, ...]:
    """Return the rows of a text like ``codes.md``, in its order."""
    return tuple(
        Code(found["number"], found["title"], found["rung"], found["explanation"].strip())
        for found in SECTION.finditer(text)
    )


@functools.cache
def codes() -> dict[str, Code]:
    """Return the table, as a mapping from number to code."""
    return {code.number: code for code in parse_codes(TABLE.read_text(encoding="utf-8"))}


def find_code(text: str) -> Code:
    """Return the code that a person means: ``HR2101``, ``hr2101`` or ``2101``. Raises InputError (HR1009)."""
    number = "HR" + text.strip().upper().removeprefix("HR")
    if number not in codes():
        same_range = [known for known in codes() if known[:4] == number[:4]]
        raise InputError(
            f"there is no code {text}",
            hint=f"the codes {number[:4]}xx are {', '.join(same_range)}"
            if same_range
            else "codes look like HR2101",
        )
    return codes()[number]


def long_answer(code: Code) -> str:
    """Return the text of ``hotreload why CODE``."""
    needs = f"\nneeds: {RUNG_NAMES[code.rung]}\n" if code.rung in RUNG_NAMES else ""
    return f"{code.number}: {code.title}\n{needs}\n{code.explanation}\n"


RUNG_NAMES = {
    "module": "a module reload",
    "restore": "a return to a checkpoint",
    "reboot": "a restart of the guest",
}
