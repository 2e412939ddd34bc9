# SPDX-License-Identifier: MIT
"""Find sources that the user's make rules use as well, in addition to the compiles.

An example is a list that units include, and from which a rule makes a header with its length. When it is
saved, compiling its units is not enough. make's database names the prerequisites of every target.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from hotreload import process
from hotreload.build.make_words import environment_in

RULE = re.compile(r"^[^\s#:=][^#:=]*::?(?!=)", re.MULTILINE)
# A line of the database: targets, and their prerequisites.
TARGETS = re.compile(r"([^\s#:=%][^#:=%]*?)\s*::?\s+(?!=)(.*)")
# Targets that are compiled from sources. Compiles are tracked anyway.
COMPILED = (".o", ".ko", ".mod", ".i", ".s", ".lst", ".ll", ".symtypes")
ASK_LIMIT = 60.0
# Text from a program whose inputs are unknown; mostly the name of a commit. Nearly every module's Makefile
# asks for the running kernel and the current folder, which do not change.
SHELL = re.compile(r"\$[({]shell\s+(?!(?:uname|pwd)\b)", re.MULTILINE)


def may_have_rules(makefiles: Iterable[Path]) -> bool:
    """Return whether one of them has a rule of its own."""
    return any(RULE.search(_text(file)) for file in makefiles)


def may_ask_the_world(makefiles: Iterable[Path]) -> bool:
    """Return whether one of them may give another result although no file in the folder has changed."""
    return any(SHELL.search(_text(file)) for file in makefiles)


async def rule_inputs(
    argv: Sequence[str | Path], places: Sequence[Path], sources: Collection[Path]
) -> frozenset[Path]:
    """Return those of the ``sources`` that are prerequisites of something other than a compile.

    ``argv``: the make command; ``places``: the folders that its paths may be relative to, the
    module's first.
    """
    try:
        asked = await process.run(
            [argv[0], "-n", "-p", *argv[1:]],
            timeout=ASK_LIMIT,
            cwd=places[0],
            env=environment_in(places[0]),
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
