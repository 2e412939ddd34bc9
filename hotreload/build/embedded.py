# SPDX-License-Identifier: MIT
"""Find the files whose bytes a unit includes with the assembler's ``.incbin``.

The compiler does not list them, and the assembler does so only on request.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hotreload import process
from hotreload.build.cmd_files import TranslationUnit, parse_dependency_file, split_command
from hotreload.build.gcc import ENVIRONMENT
from hotreload.build.replay import redirected
from hotreload.errors import CompileError
from hotreload.paths import cache_folder

WORD = b".incbin"


def may_embed(files: Iterable[Path]) -> bool:
    """Return whether one of these files contains the directive, even inside a string or a macro."""
    return any(_mentions(file) for file in files)


def _mentions(file: Path) -> bool:
    try:
        return WORD in file.read_bytes()
    except OSError:
        return False


async def embedded_files(unit: TranslationUnit) -> tuple[Path, ...]:
    """Return the files that the assembler reads for a unit in addition to the compiler's output, absolute.

    Raises CompileError if the unit does not compile.
    """
    recorded = split_command(unit.command)
    with tempfile.TemporaryDirectory(prefix="hotreload-", dir=cache_folder()) as folder:
        output, notes = Path(folder, "unit.o"), Path(folder, "assembler.d")
        command = redirected(
            (*recorded.compile, f"-Wa,--MD,{notes}"), output=output, dependencies=output.with_suffix(".d")
        )
        done = await process.run(command, cwd=unit.cwd, env=ENVIRONMENT | {"TMPDIR": folder})
        if not done.ok:
            raise CompileError(f"{unit.source} no longer compiles", done.complaint)
        files = parse_dependency_file(notes.read_text(errors="surrogateescape")) if notes.is_file() else ()
    paths = (Path(os.path.normpath(os.path.join(unit.cwd, file))) for file in files)
    return tuple(
        path for path in dict.fromkeys(paths) if not path.is_relative_to(folder) and path != unit.source
    )
