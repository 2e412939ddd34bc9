# SPDX-License-Identifier: MIT
"""Find the source line of a place in code that an oops names.

Neither patches nor most modules have line tables, because these would slow down each compile. So a unit that
crashed is compiled once more with a line table, which does not change its code. The function's bytes tell
whether it is the code that ran. If they differ, because the file was saved since, no line is reported rather
than a wrong one.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.build.base import Base
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import ObjectPair
from hotreload.build.gcc import compile_as_kbuild, compile_object
from hotreload.build.guest_base import GuestBase
from hotreload.build.lines import wanted_numbers
from hotreload.elf.model import ObjectFile, StringRef, Symbol, SymbolRef
from hotreload.elf.reader import read_object
from hotreload.errors import HotReloadError

LIMIT = 10.0


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of a file. ``line`` counts from 1."""

    file: Path
    line: int


async def fault_line(
    module: bytes, function: str, offset: int, pairs: Iterable[ObjectPair]
) -> SourceLine | None:
    """Return the source line of an offset in a function of a patch module that was made of these units.

    ``offset`` is in bytes, at the start or in the middle of an instruction. Return None if the line is
    uncertain.
    """
    with tempfile.TemporaryDirectory(prefix="hotreload-line-") as folder:
        file = Path(folder, "patch.ko")
        try:
            file.write_bytes(module)
            ran = _find(file, function)
            if ran is None or offset >= ran.size:
                return None
            for unit in (pair.unit for pair in pairs if _find(pair.patched, function)):
                target = Path(folder, unit.object.name)
                await compile_object(unit, target, lines=True)
                if line := await _line_in(unit, target, ran, offset):
                    return line
        except (HotReloadError, TimeoutError, OSError):
            pass  # the crash is reported even without the line
    return None


async def base_line(base: GuestBase, module: str, function: str, offset: int) -> SourceLine | None:
    """Return the same for a function as it was booted, or as its ``module`` (or vmlinux) was loaded.

    The line is that of the current file.
    """
    with tempfile.TemporaryDirectory(prefix="hotreload-line-") as folder:
        try:
            having = await asyncio.to_thread(lambda: list(_having(base, module, function)))
            if len(having) == 1:  # several static functions of one name cannot be told apart
                unit, ran = having[0]
                part, target = base.of(unit), Path(folder, unit.object.name)
                await compile_as_kbuild(unit, target, part.shadow, lines=True)
                root = str(part.shadow.root)
                if offset < ran.size and (line := await _line_in(unit, target, ran, offset, root)):
                    return _as_now(part, line)
        except (HotReloadError, TimeoutError, OSError):
            pass
    return None


def _having(base: GuestBase, module: str, function: str) -> Iterator[tuple[TranslationUnit, Symbol]]:
    """Yield the units of a module that define a function, each with its definition."""
    name = b"%b\0" % function.encode()  # it may also be the end of a longer name
    for unit in (unit for built in base.modules if built.name == module for unit in built.units):
        plain = base.of(unit).plain_object(unit)
        # Parsing is expensive, so only parse the objects of the kernel that contain the name.
        if name in plain.read_bytes() and (ran := _find(plain, function)):
            yield unit, ran


def _as_now(base: Base, found: SourceLine) -> SourceLine | None:
    """Return where a line of the recorded file is in the current file, or None if it no longer exists."""
    recorded = base.source(found.file)
    if recorded is None:
        return found
    was, now = (each.read_text(errors="replace").split("\n") for each in (recorded, found.file))
    places = [
        place
        for place, number in enumerate(wanted_numbers(was, now))
        if number == found.line and now[place] == was[found.line - 1]
    ]
    return SourceLine(found.file, places[0] + 1) if len(places) == 1 else None


def function_at(module: bytes, offset: int) -> tuple[str, int] | None:
    """Return the function at an offset in the code of a patch module, and the offset in that function."""
    with tempfile.NamedTemporaryFile(prefix="hotreload-line-", suffix=".ko") as file:
        file.write(module)
        file.flush()
        try:
            symbols = read_object(Path(file.name)).symbols
        except HotReloadError:
            return None
    code = (each for each in symbols if each.is_function and each.section and each.section.name == ".text")
    found = next((each for each in code if each.value <= offset < each.value + each.size), None)
    return (found.name, offset - found.value) if found else None


async def _line_in(
    unit: TranslationUnit, target: Path, ran: Symbol, offset: int, root: str = ""
) -> SourceLine | None:
    """Return the line of an offset in the function ``ran``.

    ``target`` is the unit's object with a line table, compiled from a mirror of the sources below ``root``.
    """
    made = _find(target, ran.name)
    if made is None or made.section is None or not _is_same_code(made, ran):
        return None
    if line := _line_of_check(read_object(target), ran.name, offset):
        return SourceLine(_file(unit, line[0], root), line[1])
    words = ["addr2line", "-i", "-j", made.section.name, "-e", str(target), hex(made.value + offset)]
    told = re.findall(r"(?m)^(.+):(\d+)", (await process.run(words, timeout=LIMIT)).text)
    lines = [SourceLine(_file(unit, file, root), int(line)) for file, line in told if line != "0"]
    # The innermost function comes first. If a function of a header was inlined, the line that calls it is
    # more useful.
    return next((line for line in lines if line.file == unit.source), lines[0] if lines else None)


def _file(unit: TranslationUnit, told: str, root: str) -> Path:
    name = os.path.normpath(told.replace(root, "") if root else told)
    # The kernel's own objects name files relative to its sources, wherever they were compiled.
    return unit.source if f"{unit.source}".endswith(f"/{name}") else unit.cwd / name


def _line_of_check(made: ObjectFile, function: str, offset: int) -> tuple[str, int] | None:
    """Return the file and line of the WARN() or BUG() at an offset, as its bug table entry has them.

    See struct bug_entry, asm/bug.h. gcc's line table would attribute the instruction to the code before it.
    """
    for table in (section for section in made.sections if section.name == "__bug_table"):
        at = {relocation.offset: relocation for relocation in table.relocations}
        for start, relocation in at.items():
            target, file = relocation.target, at.get(start + 4)
            if not isinstance(target, SymbolRef) or file is None or not isinstance(file.target, StringRef):
                continue
            if target.symbol.name == function and relocation.addend == offset:
                line = int.from_bytes(table.data[start + 8 : start + 10], "little")
                return file.target.text.decode(errors="replace"), line
    return None


def _find(file: Path, name: str) -> Symbol | None:
    """Return the function of that name in an object, or None if there is not exactly one."""
    named = [each for each in read_object(file).symbols if each.is_function and each.name == name]
    return named[0] if len(named) == 1 else None


def _is_same_code(made: Symbol, ran: Symbol) -> bool:
    """Return whether two functions have the same bytes.

    Bytes that relocations write are zero in both. The livepatch relocations of the module are stored
    elsewhere, so its function has fewer.
    """
    places = [{each.offset for each in symbol.relocations if each.type} for symbol in (made, ran)]
    return made.content == ran.content and places[1] <= places[0]
