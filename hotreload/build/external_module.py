# SPDX-License-Identifier: MIT
"""Build an external module's folder with kbuild, and read units and commands from its ``.cmd`` files."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hotreload import process
from hotreload.build.built import (
    MAKEFILE_NAME,
    Build,
    BuiltModule,
    Carried,
    UnitInputs,
    is_users,
    saved_ns,
    sha256,
)
from hotreload.build.cmd_files import (
    CmdFile,
    TranslationUnit,
    is_compile,
    late_steps,
    parse_cmd_file,
    parse_mod_file,
    parse_modules_order,
)
from hotreload.build.embedded import embedded_files, may_embed
from hotreload.build.gcc import MOST_SAID
from hotreload.build.kernel_tree import KernelTree, kernel_compiler
from hotreload.build.make_says import first_error, without_make
from hotreload.build.make_words import environment_in, wanted_variables
from hotreload.build.module_needs import require_for_modules
from hotreload.build.other_files import stamps
from hotreload.build.rule_inputs import may_have_rules, rule_inputs
from hotreload.build.unfinished import TICK_NS, remembered
from hotreload.errors import CompileError, EnvironmentFault, InputError
from hotreload.paths import full_disk

Progress = Callable[[str], None]

OBJ_M = re.compile(r"^\s*(?:(?:export|override)\s+)?obj-(?:m|\$[({])", re.MULTILINE)
INCLUDE = re.compile(r"^\s*-?s?include\s", re.MULTILINE)
TRIES = 4
GRACE = 3.0


async def build_modules(
    tree: KernelTree, folder: Path, progress: Progress | None = None, variables: Sequence[str] = ()
) -> Build:
    """Bring the modules of ``folder`` up to date with kbuild, and read what it recorded.

    ``variables`` are passed to make (``HDAPS=1``) after those of make_words.py. A source that is saved while
    kbuild runs is compiled again, so that ``digests`` are those of the sources that the modules were made
    from. Raises InputError (HR1007 no obj-m here, HR1006 sources that keep changing), EnvironmentFault
    (HR5106 no compiler, no pahole) and CompileError.
    """
    folder = folder.resolve()
    # make would report a missing compiler with some hundred words.
    await kernel_compiler(tree)
    require_for_modules(tree)
    makefiles = _checked_makefiles(folder)
    words = (*await wanted_variables(folder), *variables)
    known: Mapping[Path, str] = {}
    for _ in range(TRIES):
        started = time.time_ns()
        others = await asyncio.to_thread(stamps, folder)
        await _make(tree, folder, progress, words)
        module, stale = await _with_embedded(_read_build(tree, folder, makefiles))
        stale |= await asyncio.to_thread(_older_than_inputs, module)
        if stale:
            for target in stale:
                target.unlink()
            continue
        named = module.watched_files
        others = {file: seen for file, seen in others.items() if file not in named}
        used = await _rule_inputs(tree, folder, makefiles, words, named)
        module = replace(module, others=others, variables=tuple(variables), rule_inputs=used)
        late = {file for file in module.digests if changed_ns(file) > started - TICK_NS}
        if all(known.get(file) == module.digests[file] for file in late):
            return module
        known = module.digests
        _forget(module, late)
    raise InputError(
        f"the sources in {folder} changed while they were compiled: {', '.join(sorted(map(str, late)))}",
        code="HR1006",
        hint="wait until no file is being saved, then start again",
    )


def changed_ns(file: Path) -> int:
    """Return when a file was last changed, or moved or copied to its place, in ns of Unix time.

    Return the current time if it does not exist.
    """
    # Unlike mtime, ctime also changes when a file is moved or copied here with its old mtime. A link has its
    # own.
    try:
        return max(file.stat().st_ctime_ns, file.lstat().st_ctime_ns)
    except FileNotFoundError:
        return time.time_ns()


def _older_than_inputs(module: Build) -> set[Path]:
    """Return the objects that are older than the time when one of their input files was put in its place.

    make takes such an object for up to date if the file kept the mtime that it had elsewhere (mv, cp -p,
    rsync -a).
    """
    return {
        unit.object
        for unit in module.units
        if any(changed_ns(file) > saved_ns(unit.object) for file in module.inputs[unit.object])
    }


def _forget(module: Build, late: Iterable[Path]) -> None:
    """Make kbuild compile the users of these files again: it may have read the files too early."""
    files = set(late)
    for target, inputs in module.inputs.items():
        if files.intersection(inputs):
            target.unlink(missing_ok=True)


def builds_modules(folder: Path) -> bool:
    """Return whether a folder looks like a module's folder."""
    try:
        return bool(_checked_makefiles(folder))
    except InputError:
        return False


def _checked_makefiles(folder: Path) -> tuple[Path, ...]:
    if re.search(r"[\s:]", str(folder)):
        raise InputError(
            f"{folder}: make allows no space or colon in a module's path", hint="move or rename the folder"
        )
    main = next((folder / name for name in ("Kbuild", "Makefile") if (folder / name).is_file()), None)
    if main is None:
        raise InputError(
            f"{folder} has neither a Kbuild nor a Makefile", code="HR1007", hint="name the folder of a module"
        )
    try:
        text = main.read_text(errors="replace")
    except OSError as error:
        raise InputError(f"{main}: {error.strerror}", hint="fix its permissions") from error
    if not OBJ_M.search(text) and not INCLUDE.search(text):
        raise _no_module(main)
    return tuple(sorted(_makefiles(folder)))


def _no_module(makefile: Path) -> InputError:
    return InputError(
        f"{makefile} builds no module: it has no obj-m",
        code="HR1007",
        hint="name the folder whose Kbuild or Makefile has obj-m := NAME.o",
    )


def _makefiles(folder: Path) -> Iterable[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in files if MAKEFILE_NAME.fullmatch(name))


async def _rule_inputs(
    tree: KernelTree,
    folder: Path,
    makefiles: tuple[Path, ...],
    variables: Sequence[str],
    sources: Collection[Path],
) -> frozenset[Path]:
    if not await asyncio.to_thread(may_have_rules, makefiles):
        return frozenset()
    return await rule_inputs(_call(tree, folder, variables), (folder, tree.output), sources)


def _call(tree: KernelTree, folder: Path, variables: Sequence[str]) -> list[str | Path]:
    """Return the command that builds the modules of a folder with kbuild."""
    return ["make", "--no-print-directory", "-C", tree.output, f"M={folder}", *variables, "modules"]


async def _make(tree: KernelTree, folder: Path, progress: Progress | None, variables: Sequence[str]) -> None:
    argv = [*_call(tree, folder, variables), f"-j{os.cpu_count() or 1}"]
    # If this run is killed, the next one deletes the files that it left unfinished.
    with remembered(folder):
        await _run_make(argv, tree, folder, progress)


async def _run_make(
    argv: Sequence[str | Path], tree: KernelTree, folder: Path, progress: Progress | None
) -> None:
    running = await process.spawn(argv, cwd=folder, env=environment_in(folder), tidies=True)
    assert running.stdout
    assert running.stderr
    try:
        stdout, stderr = await asyncio.gather(
            _told(running.stdout, progress), process.beginning_of(running.stderr, MOST_SAID)
        )
        status = await running.wait()
    finally:
        # make removes the targets that are unfinished.
        await process.end(running, grace=GRACE)
    if status:
        raise _build_error(tree, folder, stdout, stderr.decode(errors="replace"))


async def _told(stream: asyncio.StreamReader, progress: Progress | None) -> str:
    """Read to the end. Report kbuild's own lines (``CC [M]  foo.o``) as they come."""
    text = ""
    async for line in process.lines_of(stream):
        text += f"{line}\n"
        if progress and re.match(r"  [A-Z]+ ", line):
            progress(" ".join(line.split()))
    return text


def _build_error(tree: KernelTree, folder: Path, stdout: str, stderr: str) -> CompileError | EnvironmentFault:
    if full := full_disk(stderr + stdout, f"to build {folder}"):
        return full
    first = first_error(stderr)
    hint = None
    if first and "modpost" in first:
        hint = f"kernel {tree.release} does not have what the module needs; name another one with -K"
    if first and "error:" in first.lower():
        return CompileError(first, without_make(stderr), hint=hint)
    # The compiler did not fail, so what make said is part of the message.
    message = f"kbuild failed in {folder}" + (f": {first}" if first else "")
    return CompileError(message, stderr or stdout, hint=hint)


def _read_build(tree: KernelTree, folder: Path, makefiles: tuple[Path, ...]) -> Build:
    order = folder / "modules.order"
    names = parse_modules_order(order.read_text()) if order.is_file() else ()
    if not names:
        raise _no_module(next(folder / name for name in ("Kbuild", "Makefile") if (folder / name).is_file()))
    inputs = UnitInputs()
    kernel_files: set[Path] = set()
    carried: dict[Carried, str] = {}
    modules = tuple(_module(folder / name, tree, folder, inputs, kernel_files, carried) for name in names)
    digests = {file: sha256(file) for file in inputs.files}
    return Build(folder, tree, modules, makefiles, inputs, digests, tuple(sorted(kernel_files)), carried)


async def _with_embedded(build: Build) -> tuple[Build, set[Path]]:
    """Add the ``.incbin`` files to a build, and find the objects that are older than one of these files.

    The files become inputs of an assembly unit. For a C unit they are ``carried``, because we could not
    compile its base object once the file has changed. make only rebuilds the stale objects by itself if the
    Makefile has the dependency.
    """
    inputs, carried, stale = build.inputs, dict(build.carried), set()
    for unit in build.units:
        files = inputs[unit.object]
        if not may_embed(files):
            continue
        more = [file for file in await embedded_files(unit) if build.is_users(file)]
        if any(saved_ns(file) > saved_ns(unit.object) for file in more):
            stale.add(unit.object)
        if unit.is_assembly:
            inputs.add(unit.object, (*files, *more))
        else:
            carried |= {(unit.module, file): sha256(file) for file in more}
    digests = {file: build.digests.get(file) or sha256(file) for file in inputs.files}
    return replace(build, digests=digests, carried=carried), stale


def _module(
    stem: Path,
    tree: KernelTree,
    folder: Path,
    inputs: UnitInputs,
    kernel_files: set[Path],
    carried: dict[Carried, str],
) -> BuiltModule:
    name = stem.name.replace("-", "_")
    units = []
    link = read_link(stem.with_name(f"{stem.name}.o"))
    for spelled in parse_mod_file(stem.with_name(f"{stem.name}.mod").read_text()):
        target = Path(os.path.normpath(folder / spelled))
        notes = read_notes(target)
        if notes is None or notes.source is None:
            carried[name, target] = sha256(target)
            continue
        # Since v6.13 (Linux commit 13b25489b6f8 "kbuild: change working directory to external module
        # directory with M=") the paths are relative to the module's folder; before, commands run in the
        # kernel's output folder and name the module's files absolutely.
        cwd = tree.output if os.path.isabs(notes.target) else folder
        files = [Path(os.path.join(cwd, file)) for file in (notes.source, *notes.dependencies)]
        ours = [file for file in files if is_users(Path(os.path.normpath(file)), folder, tree)]
        inputs.add(target, ours)
        kernel_files.update(set(files).difference(ours))
        units.append(
            TranslationUnit(
                Path(os.path.normpath(files[0])),
                target,
                notes.command,
                cwd,
                name,
                late_steps(link, notes.target),
            )
        )
    return BuiltModule(name, stem.with_name(f"{stem.name}.ko"), tuple(units))


def read_link(linked: Path) -> str:
    """Return the command that linked an object from several others; empty if it has a single source."""
    file = linked.with_name(f".{linked.name}.cmd")
    command = parse_cmd_file(file.read_text(errors="surrogateescape")).command if file.is_file() else ""
    return "" if is_compile(command) else command


def read_notes(target: Path) -> CmdFile | None:
    """Return what kbuild recorded about an object, or None if it is not compiled here (a shipped ``.o``)."""
    file = target.with_name(f".{target.name}.cmd")
    text = file.read_text(errors="surrogateescape") if file.is_file() else ""
    if not text.strip():  # shipped objects have an empty .cmd file, because modpost requires one
        return None
    notes = parse_cmd_file(text)
    return notes if is_compile(notes.command) else None
