# SPDX-License-Identifier: MIT
"""Which sources are more than that: what a rule of the user's makes something else of, too.

A list that units include, and of which a rule makes a header with its length: when it is saved, compiling its
units is not all. make's database names the prerequisites of every target.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from hotreload import process

RULE = re.compile(r"^[^\s#:=][^#:=]*::?(?!=)", re.MULTILINE)
# A line of the database: targets, and what they are made of.
TARGETS = re.compile(r"([^\s#:=%][^#:=%]*?)\s*::?\s+(?!=)(.*)")
# Targets that are made of sources by a compile, which is followed anyway.
COMPILED = (".o", ".ko", ".mod", ".i", ".s", ".lst", ".ll", ".symtypes")
ASK_LIMIT = 60.0
# Text that a program makes, of which nobody knows what it looks at: the name of a commit, mostly. Nearly each
# Makefile of a module asks for the running kernel and the folder, which are what they are.
SHELL = re.compile(r"\$[({]shell\s+(?!(?:uname|pwd)\b)", re.MULTILINE)


def may_have_rules(makefiles: Iterable[Path]) -> bool:
    """Does one of them have a rule of its own?"""
    return any(RULE.search(_text(file)) for file in makefiles)


def may_ask_the_world(makefiles: Iterable[Path]) -> bool:
    """May one of them say something else although no file of the folder has changed?"""
    return any(SHELL.search(_text(file)) for file in makefiles)


async def rule_inputs(
    argv: Sequence[str | Path], places: Sequence[Path], sources: Collection[Path]
) -> frozenset[Path]:
    """Those of the ``sources`` that are prerequisites of something else than a compile.

    ``argv``: how make is called; ``places``: where its relative paths may begin.
    """
    try:
        asked = await process.run(
            [argv[0], "-n", "-p", *argv[1:]], timeout=ASK_LIMIT, env={"MAKEFLAGS": "", "MAKELEVEL": "0"}
        )
    except TimeoutError:
        return frozenset()
    found = set(_prerequisites(asked.text))
    paths = (Path(os.path.normpath(place / name)) for name in found for place in places)
    return frozenset(paths).intersection(sources)


def _prerequisites(database: str) -> Iterator[str]:
    for line in database.splitlines():
        found = TARGETS.fullmatch(line)
        if found and any(not target.endswith(COMPILED) for target in found[1].split()):
            yield from found[2].partition("|")[0].split()


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
