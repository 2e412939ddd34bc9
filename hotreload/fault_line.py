# SPDX-License-Identifier: MIT
"""From a place in the code of a patch, as an oops names it, to the line of the source.

Patches are compiled without tables of lines, which would make each compile longer. A unit that crashed is
compiled once more with one: that changes no code. Whether it is the code that ran, the function's bytes tell;
where they differ (the file was saved since), no line is told rather than a wrong one.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import ObjectPair
from hotreload.build.gcc import compile_object
from hotreload.elf.model import Symbol
from hotreload.elf.reader import read_object
from hotreload.errors import HotReloadError

LIMIT = 10.0


@dataclass(frozen=True, slots=True)
class CodePlace:
    """An offset, in bytes, in a function of a module; it is in the middle of the instruction that is meant,
    or at its start."""

    module: str | None
    function: str
    offset: int


@dataclass(frozen=True, slots=True)
class SourceLine:
    """``line`` counts from 1."""

    file: Path
    line: int


async def fault_line(place: CodePlace, pairs: Iterable[ObjectPair]) -> SourceLine | None:
    """The line of a place in what these units were compiled to; None: nobody knows for sure."""
    found = [(pair.unit, function) for pair in pairs if (function := _find(pair.patched, place))]
    return await _line_in(*found[0], place) if len(found) == 1 else None


async def _line_in(unit: TranslationUnit, ran: Symbol, place: CodePlace) -> SourceLine | None:
    with tempfile.TemporaryDirectory(prefix="hotreload-line-") as folder:
        target = Path(folder, unit.object.name)
        try:
            await compile_object(unit, target, lines=True)
            made = _find(target, place)
            if made is None or made.section is None or not _is_same_code(made, ran):
                return None
            words = ["addr2line", "-j", made.section.name, "-e", str(target), hex(made.value + place.offset)]
            told = (await process.run(words, timeout=LIMIT)).text
        except (HotReloadError, TimeoutError, OSError):
            return None  # the report of the crash is what matters
    found = re.match(r"(.+):(\d+)", told)
    return SourceLine(unit.cwd / found[1], int(found[2])) if found and found[2] != "0" else None


def _find(file: Path, place: CodePlace) -> Symbol | None:
    """The function of that name in an object, where it is long enough."""
    try:
        symbols = read_object(file).symbols
    except HotReloadError:
        return None
    named = [each for each in symbols if each.is_function and each.name == place.function]
    return named[0] if len(named) == 1 and place.offset < named[0].size else None


def _is_same_code(made: Symbol, ran: Symbol) -> bool:
    """The same function, but for numbers of lines: as long, and referring to something at the same places."""
    shapes = [[(each.offset, each.type) for each in symbol.relocations] for symbol in (made, ran)]
    return shapes[0] == shapes[1] and made.size == ran.size
