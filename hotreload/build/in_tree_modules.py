# SPDX-License-Identifier: MIT
"""Build modules of a kernel's own tree outside it, by replaying what kbuild recorded.

`make` cannot be used, because the tree must stay what the guest has booted: vmlinux and its units may be
edited as well, and these edits are live as a patch. The steps are those of scripts/Makefile.modpost and
scripts/Makefile.modfinal: compile, link a module's objects, run modpost, compile what it wrote, link the
module. BTF of modules is left out, as kbuild does without pahole. With MODVERSIONS an export keeps the CRC of
the kernel's build; units that include a changed header are compiled again, whether or not the CRC would
change.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hotreload import process
from hotreload.build.base import Base, SourceMovedError, record_base
from hotreload.build.built import Build, BuiltModule, UnitInputs, sha256
from hotreload.build.cmd_files import (
    TranslationUnit,
    modpost_flags,
    parse_cmd_file,
    parse_mod_file,
    split_command,
    split_link,
)
from hotreload.build.compile import compiled_from, patched_object
from hotreload.build.external_module import changed_ns, read_link, read_notes
from hotreload.build.gcc import compile_as_kbuild
from hotreload.build.guest_base import GuestBase
from hotreload.build.kernel_record import require_same_kernel
from hotreload.build.kernel_sources import module_files
from hotreload.build.kernel_tree import KernelTree
from hotreload.build.replay import redirected
from hotreload.build.unfinished import TICK_NS
from hotreload.errors import CompileError, InputError
from hotreload.paths import full_disk

TRIES = 3
MODPOST = Path("scripts/mod/modpost")
SYMBOLS = Path("Module.symvers")


async def build_in_tree(base: GuestBase, names: Collection[str], work: Path) -> Base:
    """Build modules of a kernel from the current sources, in the empty folder ``work``, and record them.

    Raises CompileError, EnvironmentFault, InputError (HR1006 a source that keeps changing, HR1009).
    """
    for attempt in range(TRIES):
        into = work / str(attempt)
        into.mkdir()
        try:
            return await _built(base, names, into)
        except SourceMovedError:
            if attempt + 1 == TRIES:
                raise
    raise AssertionError("one try returns or raises")


@dataclass(frozen=True, slots=True)
class _Place:
    """A module in the kernel's tree and in our folder. Both paths are without suffix."""

    name: str
    original: Path
    new: Path

    def spelled(self, suffix: str, tree: KernelTree) -> str:
        """Return the path of the original as kbuild's commands spell it."""
        return os.path.relpath(f"{self.original}{suffix}", tree.output)


async def _built(base: GuestBase, names: Collection[str], into: Path) -> Base:
    tree = base.tree
    require_same_kernel(base)
    modules = [built for built in base.modules if built.name in names]
    started = time.time_ns()
    before = await asyncio.to_thread(_digests, base, modules)
    objects = await _compile(base, modules, before, into)
    inputs = UnitInputs()
    for built in modules:
        for unit in built.units:
            inputs.add(unit.object, _made_from(base, unit, objects[unit.object]))
    digests = {file: sha256(file) for file in inputs.files}
    for file, digest in digests.items():
        is_late = file not in before and changed_ns(file) > started - TICK_NS
        if is_late or digest != before.get(file, digest):
            raise SourceMovedError(f"{file} was saved while it was compiled", hint="save it again")

    places = [_place(built.name, tree, into) for built in modules]
    for place in places:
        await _link_objects(place, tree, objects)
    await _modpost(places, tree, into)
    for place in places:
        await _link_module(place, tree)

    made = tuple(
        replace(built, ko=Path(f"{place.new}.ko")) for built, place in zip(modules, places, strict=True)
    )
    makefiles = tuple(base.makefiles)
    build = Build(base.build.folder, tree, made, makefiles, inputs, digests, ())
    return await record_base(build, objects)


# --- compile ---


def _digests(base: GuestBase, modules: Iterable[BuiltModule]) -> dict[Path, str]:
    """Return the current digests of all files that these modules were made from."""
    files = {file for built in modules for unit in built.units for file in base.of(unit).inputs[unit.object]}
    return {file: sha256(file) for file in files}


async def _compile(
    base: GuestBase, modules: Iterable[BuiltModule], now: Mapping[Path, str], into: Path
) -> dict[Path, Path]:
    """Map kbuild's object of each unit to an object made from the current sources."""
    units = {unit.object: unit for built in modules for unit in built.units}
    slots = asyncio.Semaphore(os.cpu_count() or 1)

    async def compiled(unit: TranslationUnit) -> Path:
        part = base.of(unit)
        if not unit.late and all(part.digests[file] == now[file] for file in part.inputs[unit.object]):
            return part.plain_object(unit)
        async with slots:
            target = patched_object(unit, into)
            await compile_as_kbuild(unit, target)
            return target

    try:
        async with asyncio.TaskGroup() as group:
            tasks = {key: group.create_task(compiled(unit)) for key, unit in units.items()}
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    return {key: task.result() for key, task in tasks.items()}


def _made_from(base: GuestBase, unit: TranslationUnit, made: Path) -> Iterable[Path]:
    part = base.of(unit)
    if made == part.plain_object(unit):
        return part.inputs[unit.object]
    return sorted(compiled_from(made.with_suffix(".d"), unit.cwd, base.build.folder, base.tree))


# --- link ---


def _place(name: str, tree: KernelTree, into: Path) -> _Place:
    for ko in module_files(tree):
        if ko.stem.replace("-", "_") == name:
            new = into / os.path.relpath(ko.with_suffix(""), tree.output)
            new.parent.mkdir(parents=True, exist_ok=True)
            return _Place(name, ko.with_suffix(""), new)
    raise InputError(
        f"{tree.output / 'modules.order'} no longer names {name}",
        hint="run hotreload kernel build, or make",
    )


async def _link_objects(place: _Place, tree: KernelTree, objects: Mapping[Path, Path]) -> None:
    """Link the objects of a module into one, and write the list of them."""
    listed = Path(f"{place.original}.mod").read_text()
    Path(f"{place.new}.mod").write_text(listed)
    targets = [Path(os.path.normpath(tree.output / each)) for each in parse_mod_file(listed)]
    if {target for target in targets if read_notes(target)} - objects.keys():
        raise InputError(
            f"{place.spelled('.mod', tree)} names other objects than when the guest booted",
            hint="run hotreload kernel build, or make",
        )
    members = [str(objects.get(target, target)) for target in targets]
    linked = Path(f"{place.new}.o")
    command = read_link(Path(f"{place.original}.o"))
    if not command:
        linked.symlink_to(members[0])
        return
    others = {f"@{place.spelled('.mod', tree)}": members, place.spelled(".o", tree): [str(linked)]}
    await _run_all(split_link(command), others, tree)


async def _modpost(places: Iterable[_Place], tree: KernelTree, into: Path) -> None:
    """Write ``NAME.mod.c`` of each module: its imports, with versions, and the modules it depends on."""
    symbols, order = into / SYMBOLS, into / "modules.list"
    ours = {os.path.relpath(place.original, tree.output) for place in places}
    # CRC, symbol, module, kind of export, namespace (Documentation/kbuild/modules.rst).
    rows = (row.split("\t") for row in (tree.output / SYMBOLS).read_text().splitlines(keepends=True))
    symbols.write_text("".join("\t".join(row) for row in rows if len(row) > 2 and row[2] not in ours))
    order.write_text("".join(f"{place.new}.o\n" for place in places))
    flags = modpost_flags(_command(tree.output / SYMBOLS))
    argv = (str(MODPOST), *flags, "-i", str(symbols), "-o", f"{symbols}.new", "-T", str(order))
    await _run(argv, tree)


async def _link_module(place: _Place, tree: KernelTree) -> None:
    source = _command(Path(f"{place.original}.mod.o"))
    others = {place.spelled(".mod.c", tree): [f"{place.new}.mod.c"]}
    argv = _with(split_command(source).compile, others, tree)
    target = Path(f"{place.new}.mod.o")
    await _run(redirected(argv, output=target, dependencies=target.with_suffix(".d")), tree)
    linked = {place.spelled(suffix, tree): [f"{place.new}{suffix}"] for suffix in (".ko", ".o", ".mod.o")}
    await _run_all(split_link(_command(Path(f"{place.original}.ko"))), linked, tree)


def _command(target: Path) -> str:
    file = target.with_name(f".{target.name}.cmd")
    try:
        return parse_cmd_file(file.read_text(errors="surrogateescape")).command
    except FileNotFoundError as error:
        raise InputError(
            f"kbuild did not write {file}", hint="run hotreload kernel build, or make"
        ) from error


async def _run_all(
    steps: Iterable[Sequence[str]], others: Mapping[str, Sequence[str]], tree: KernelTree
) -> None:
    for step in steps:
        await _run(_with(step, others, tree), tree)


def _with(argv: Sequence[str], others: Mapping[str, Sequence[str]], tree: KernelTree) -> tuple[str, ...]:
    """Return the command with some files replaced."""
    named = ((word, os.path.relpath(tree.output / word, tree.output)) for word in argv)
    return tuple(new for word, name in named for new in others.get(word) or others.get(name) or (word,))


async def _run(argv: Sequence[str], tree: KernelTree) -> None:
    program = str(tree.output / argv[0]) if "/" in argv[0] else argv[0]
    done = await process.run([program, *argv[1:]], cwd=tree.output)
    if not done.ok:
        said = (done.stdout + done.stderr).decode(errors="replace")
        if full := full_disk(said, f"to run {Path(argv[0]).name}"):
            raise full
        first = next((line.strip() for line in said.splitlines() if "rror" in line), "")
        raise CompileError(first or f"{Path(argv[0]).name} failed with status {done.status}", said)
