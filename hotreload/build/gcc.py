# SPDX-License-Identifier: MIT
"""Replay a recorded compile: the compiler, then objtool, as argument lists and without a shell."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hotreload import process
from hotreload.build.cmd_files import TranslationUnit, split_command, split_late
from hotreload.build.replay import Shadow, redirected, replayed, shadowed
from hotreload.errors import CompileError, CompilerDiedError
from hotreload.paths import full_disk, writing_to

# Part of gcc's message when one of its programs was killed.
DIED = "signal terminated program"
# Bytes. A binary file compiled as a source gives an error per byte, and a header may warn in each unit.
MOST_SAID = 1 << 20
# __DATE__ and __TIME__ are errors in kbuild, but a module may allow them. The value must be the same for base
# and patch. SRCARCH is kbuild's variable: Debian's objtool of 6.12, made for several architectures, selects
# by it.
ENVIRONMENT = {"SOURCE_DATE_EPOCH": "0", "SRCARCH": "x86"}
# The macros for authors of patches. They come after all folders of the kernel and of the module.
AUTHORS_HEADERS = ("-idirafter", str(Path(__file__).with_name("include")))
# DWARF 4 has the fewest forms, and all compilers of the kernel can write it. The locations of variables at
# each instruction are not needed, and take the compiler longest to compute. clang does not know the second
# flag.
DEBUG_FLAGS = (("-gdwarf-4", "-fno-var-tracking"), ("-gdwarf-4",))
# Without it gcc gives no storage to a static variable that is never written, or never read, so its value is
# lost (-fipa-reference-addressable of gcc 10 and later).
KEEP_VARIABLES = ("-fno-ipa-reference-addressable",)
_debug_flags_known: dict[str, tuple[str, ...]] = {}


async def compile_object(
    unit: TranslationUnit,
    target: Path,
    shadow: Shadow | None = None,
    *,
    lines: bool = False,
    keep_variables: bool = False,
) -> str:
    """Compile ``unit`` to ``target``, and write its dependencies next to it with ``.d``. Return the warnings.

    With ``shadow``, the sources are taken from there. With ``lines``, the debugging information has line
    numbers but no types. With ``keep_variables``, every static variable that the code names has storage.
    ``target`` appears complete or not at all. Raises CompileError with gcc's (or objtool's) output,
    EnvironmentFault when a program or disk space is missing.
    """
    recorded = split_command(unit.command)
    argv = recorded.compile if shadow is None else shadowed(recorded.compile, unit.cwd, unit.source, shadow)
    debug = ("-g1",) if lines else await _debug_flags(argv[0])
    with _temporary(target) as (output, dependencies):
        command = replayed(
            (*argv, *AUTHORS_HEADERS, *(KEEP_VARIABLES if keep_variables else ())),
            output=output,
            dependencies=dependencies,
            debug=debug,
            assembly=unit.source.suffix == ".S",
        )
        steps = (*recorded.after, *split_late(unit.late))
        return await _make(command, steps, unit, target, output, dependencies)


async def compile_as_kbuild(
    unit: TranslationUnit, target: Path, shadow: Shadow | None = None, *, lines: bool = False
) -> str:
    """Compile ``unit`` with kbuild's flags, up to the link of the module; ``lines`` adds line numbers.

    Raises what compile_object raises.
    """
    recorded = split_command(unit.command)
    argv = recorded.compile if shadow is None else shadowed(recorded.compile, unit.cwd, unit.source, shadow)
    with _temporary(target) as (output, dependencies):
        command = redirected((*argv, "-g1") if lines else argv, output=output, dependencies=dependencies)
        return await _make(command, recorded.after, unit, target, output, dependencies)


async def _make(
    command: Sequence[str],
    steps: Iterable[Sequence[str]],
    unit: TranslationUnit,
    target: Path,
    output: Path,
    dependencies: Path,
) -> str:
    said = await _step(command, unit, output)
    for step in steps:
        said += await _step(_on_object(step, unit, output), unit, output)
    dependencies.replace(target.with_suffix(".d"))
    output.replace(target)
    return said


async def finish_object(unit: TranslationUnit, target: Path) -> None:
    """Run on a copy of kbuild's object of the unit the steps that kbuild runs after linking the module.

    Raises CompileError.
    """
    for step in split_late(unit.late):
        await _step(_on_object(step, unit, target), unit, target)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, Path]]:
    """Yield paths for an object and its dependencies, in a temporary folder.

    A compiler that is killed leaves its temporary files there, too.
    """
    with writing_to(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.stem}-", dir=target.parent, ignore_cleanup_errors=True
        ) as folder:
            output = Path(folder, target.name)
            # gcc would report an unwritable or full folder as a compile error, so try to write first.
            output.touch()
            yield output, output.with_suffix(".d")


def _on_object(step: Sequence[str], unit: TranslationUnit, output: Path) -> tuple[str, ...]:
    # In the commands, KVM's shared files are called arch/x86/kvm/../../../virt/kvm/eventfd.o.
    target = os.path.normpath(unit.object)
    spelled = ((word, os.path.normpath(os.path.join(unit.cwd, word))) for word in step)
    return tuple(str(output) if named == target else word for word, named in spelled)


async def _step(argv: Sequence[str], unit: TranslationUnit, output: Path) -> str:
    program = os.path.join(unit.cwd, argv[0]) if "/" in argv[0] else argv[0]
    done = await process.run(
        [program, *argv[1:]],
        cwd=unit.cwd,
        env=ENVIRONMENT | {"TMPDIR": str(output.parent)},
        most=MOST_SAID,
    )
    # objtool names the object it reads. Replace it with the name that the user knows.
    said = (done.stdout + done.stderr).decode(errors="replace").replace(str(output), str(unit.object))
    if done.ok:
        return said
    if full := full_disk(said, f"to compile {unit.source.name}"):
        raise full
    if done.status < 0 or DIED in said:
        raise CompilerDiedError(f"the compiler was killed while it compiled {unit.source.name}", said)
    raise CompileError(_first_error(said) or f"{argv[0]} failed on {unit.source}", said)


def _first_error(said: str) -> str | None:
    return next((line.strip() for line in said.splitlines() if "error:" in line), None)


async def _debug_flags(program: str) -> tuple[str, ...]:
    """Return the flags for debugging information that this compiler accepts. Each compiler is tried once."""
    if program not in _debug_flags_known:
        for flags in DEBUG_FLAGS:
            done = await process.run([program, *flags, "-fsyntax-only", "-x", "c", "-"], stdin=b"")
            if done.ok:
                break
        _debug_flags_known[program] = flags
    return _debug_flags_known[program]


def program_identity(programs: Sequence[str], cwd: Path) -> str:
    """Return a digest of resolved path, size and mtime that changes when one of the programs is replaced."""
    digest = hashlib.sha256()
    for program in programs:
        found = shutil.which(program) or os.path.join(cwd, program)
        real = Path(os.path.realpath(found))
        with contextlib.suppress(FileNotFoundError):
            stat = real.stat()
            digest.update(f"{real}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()
