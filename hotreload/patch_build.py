# SPDX-License-Identifier: MIT
"""Build a livepatch module file from source patches, without a guest.

Read ``build_patch`` first. The stages are those of an edit (reload.py), except the last. The base is the
sources as they are. The module does not fit a driver that was built from other sources.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotreload.build.base import Base, SourceMovedError, build_base, work_folder
from hotreload.build.built import MAKEFILE_NAME, Build
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import ObjectPair
from hotreload.build.kernel_record import kernel_base
from hotreload.build.kernel_tree import KernelTree, kernel_compiler
from hotreload.build.patched_sources import PatchedSources, apply_patches
from hotreload.build.patched_units import compile_units
from hotreload.build.units import UnitSelection, units_for
from hotreload.compared import Compared, Original, proved, read_original
from hotreload.cycle import Cycle
from hotreload.diff.obstacles import NotPatchableError, Obstacle
from hotreload.diff.unit_diff import UnitContext
from hotreload.errors import CompileError, InputError
from hotreload.kernel_knowledge import learn_offline
from hotreload.patch.glue import build_glue
from hotreload.patch.kernel_symbols import own_names, read_symbols
from hotreload.patch.model import PatchPlan
from hotreload.patch.module import LivePatch, write_module
from hotreload.plan_units import compare_unit, made_at_load, obstacles_of, plan_units
from hotreload.report.outcome import Outcome, ReloadReport
from hotreload.source_texts import SourceTexts

Progress = Callable[[str], None]

# MODULE_NAME_LEN of include/linux/moduleparam.h is 64 - sizeof(unsigned long), which includes the NUL.
LONGEST_NAME = 55
RECIPE = re.compile(rf"{MAKEFILE_NAME.pattern}|Kconfig(?:\..+)?")
BUILD_BY_HAND = "apply the patch, build the module and reload it"


@dataclass(frozen=True, slots=True)
class Order:
    """Patches of the module in ``folder``, built for ``kernel``. ``name`` is the name of the patch module."""

    folder: Path
    kernel: KernelTree
    patches: tuple[Path, ...]
    name: str


@dataclass(frozen=True, slots=True)
class PatchBuild:
    """The result.

    ``compared``   the units whose sources changed
    ``obstacles``  all of them, if the patch is refused
    ``module``     the content of the module file, if there is something to patch
    """

    report: ReloadReport
    compared: tuple[Compared, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    module: bytes | None = None


async def build_patch(order: Order, progress: Progress | None = None) -> PatchBuild:
    """Build a patch module from source patches. A refusal is a result, not an error.

    Raises InputError (HR1006, HR1009, HR1010), CompileError, EnvironmentFault, KernelUnfitError.
    """
    started = time.monotonic()
    # Patch copies of the files. Nothing of this is written into the user's tree.
    sources = await apply_patches(order.patches, order.folder)
    cycle = Cycle(tuple(sources.texts), started, lambda _type, _fields: None)
    cycle.notes += sources.notes
    compared: dict[Path, Compared] = {}
    try:
        refuse_recipes(sources)
        if not sources.texts:
            cycle.notes.append("the patch changes no file")
            return PatchBuild(cycle.no_change(None))
        patch = await _through(order, sources, cycle, compared, progress or (lambda _line: None))
    except NotPatchableError as error:
        return PatchBuild(cycle.failed(error, None), tuple(compared.values()), error.obstacles)
    if patch is None:
        return PatchBuild(cycle.no_change(None), tuple(compared.values()))
    return PatchBuild(_built(cycle), tuple(compared.values()), module=patch.module)


async def _through(
    order: Order,
    sources: PatchedSources,
    cycle: Cycle,
    compared: dict[Path, Compared],
    progress: Progress,
) -> LivePatch | None:
    # Build what the patch is for, and keep the sources that it was built from.
    module, base = await _base(order, cycle, progress)
    require_same_sources(sources, base)
    require_other_name(order.name, base)

    # Which translation units do the changed files go into?
    selection = units_for(sources.texts, module)
    units = patched_units(sources, module, selection)

    with work_folder() as work:
        # Compile them from a mirror of the sources that has the patched files.
        with cycle.stage("build"):
            compiled = await compile_units(base, units, sources.texts, work)

        # What changed? Put it into ``compared``, because a refusal reports it, too.
        with cycle.stage("diff"):
            linked = read_symbols((), {built.name: built.ko for built in base.modules})

            def compare(pair: ObjectPair, original: Original) -> Compared:
                context = UnitContext(is_own=own_names(linked, pair.unit.module))
                return compare_unit(pair, original, patched_texts(pair.unit, module, sources), context)

            for pair in compiled.pairs:
                original = read_original(pair.original, base.plain_object(pair.unit))
                compared[pair.unit.object] = compare(pair, original)

        # gcc folds away a variable that nothing writes or nothing reads. It still has a value in the guest,
        # so compile the unit again in a way that keeps it.
        if folded := [each for each in compared.values() if each.diff.folded]:
            again = [each.pair.unit for each in folded]
            with cycle.stage("build"):
                kept = await compile_units(base, again, sources.texts, work / "kept", keep=True)
            for pair, each in zip(kept.pairs, folded, strict=True):
                compared[pair.unit.object] = compare(pair, each.original)
        for key, each in compared.items():
            compared[key] = await proved(base.of(each.pair.unit), each)
        cycle.compared += compared.values()

    # Can it be patched? All obstacles are reported at once.
    require_built(sources, selection, compiled.used, cycle, compared)
    glue = await build_glue(order.kernel, progress, base if module.is_kernel else None)
    with cycle.stage("link"):
        knowledge = learn_offline(module, base, glue)
        plan = plan_units(base, compared, knowledge.symbols)
        if plan is None:
            return None
        cycle.moved = plan.moved
        cycle.notes += made_at_load(base, compared.values())
        _note_what_stays(plan, cycle)
        return write_module(plan, order.name, knowledge.glue)


# --- stages ---


async def _base(order: Order, cycle: Cycle, progress: Progress) -> tuple[Build, Base]:
    compiler = await kernel_compiler(order.kernel)
    if compiler.note:
        cycle.notes.append(f"HR5103 {compiler.note}")
    try:
        if order.folder == order.kernel.source:
            base = await kernel_base(order.kernel, progress)
            return base.build, base
        return await build_base(order.kernel, order.folder, progress)
    except CompileError as error:
        message = f"the build fails even without the patch: {error.message}"
        hint = error.hint or "fix the sources first"
        raise CompileError(message, error.diagnostics, hint=hint) from error


def refuse_recipes(sources: PatchedSources) -> None:
    """Raise NotPatchableError (HR1004) for a changed Makefile, Kbuild or Kconfig file."""
    recipes = sorted(str(file) for file in sources.texts if RECIPE.fullmatch(file.name))
    if recipes:
        raise NotPatchableError(
            Obstacle(
                "HR1004",
                Path(file).name,
                f"the patch changes {Path(file).name}: a live patch cannot change what is built, or how",
                BUILD_BY_HAND,
                file,
            )
            for file in recipes
        )


def require_same_sources(sources: PatchedSources, base: Base) -> None:
    """Raise SourceMovedError (HR1006) if a file was saved between being patched and being built."""
    for file, digest in base.digests.items():
        before = sources.before.get(Path(os.path.realpath(file)))
        if before is not None and hashlib.sha256(before).hexdigest() != digest:
            raise SourceMovedError(f"{file} was saved meanwhile", hint="run the command again")


def patched_units(
    sources: PatchedSources, module: Build, selection: UnitSelection
) -> tuple[TranslationUnit, ...]:
    """Return the units to compile.

    If files are added or removed, this includes units in which a header may hide, or stop hiding, another
    one. Raises NotPatchableError (HR1004) if the patch removes the source of a unit.
    """
    gone = {file for file, text in sources.texts.items() if text is None}
    if lost := [unit.source for unit in module.units if Path(os.path.realpath(unit.source)) in gone]:
        raise NotPatchableError(
            Obstacle(
                "HR1004", file.name, f"the patch removes {file.name}, which the module is built from",
                BUILD_BY_HAND, str(file),
            )
            for file in lost
        )  # fmt: skip
    moved = {file.name for file, text in sources.texts.items() if None in (text, sources.before[file])}
    if not moved or not module.is_kernel:
        # The inputs of a module's units do not list the kernel's headers.
        return module.units if moved else selection.units
    same_name = [file for file in module.inputs.files if file.name in moved]
    touched = {unit.object for unit in selection.units} | set(module.inputs.users(same_name))
    return tuple(unit for unit in module.units if unit.object in touched)


def patched_texts(unit: TranslationUnit, module: Build, sources: PatchedSources) -> Mapping[str, str]:
    """Return the unit's sources with the patch applied, its own file first."""
    new = [file for file, text in sources.texts.items() if sources.before[file] is None and text is not None]
    files = dict.fromkeys((unit.source, *module.inputs[unit.object], *new))
    instead = {file: sources.texts.get(Path(os.path.realpath(file))) for file in files}
    return SourceTexts(tuple(files), {file: text for file, text in instead.items() if text is not None})


def require_built(
    sources: PatchedSources,
    selection: UnitSelection,
    used: frozenset[Path],
    cycle: Cycle,
    compared: Mapping[Path, Compared],
) -> None:
    """Raise NotPatchableError (HR1002) for a source that no unit is made of. Note other such files."""
    strays = _strays(sources, selection, used)
    if missing := tuple(_not_built(strays, sources)):
        raise NotPatchableError((*missing, *obstacles_of(compared)))
    if names := ", ".join(file.name for file in strays):
        cycle.notes.append(f"not part of the build: {names}")


def _strays(sources: PatchedSources, selection: UnitSelection, used: frozenset[Path]) -> tuple[Path, ...]:
    """Return the files of the patch that no unit was made of, before or after it."""
    other = (file for file in selection.not_part_of_build if file not in used)
    return tuple(file for file in other if sources.texts[file] is not None)


def _not_built(strays: Sequence[Path], sources: PatchedSources) -> Iterator[Obstacle]:
    """Yield an obstacle for each source among them. Otherwise their change would be missing silently."""
    for file in filter(_is_source, strays):
        new = sources.before[file] is None
        fact = "new, and no unit is built from it" if new else "not part of this build"
        hint = "put the code into a file that is built, or include it there" if new else BUILD_BY_HAND
        yield Obstacle("HR1002", file.name, f"{file.name} is {fact}", hint, str(file))


def _is_source(file: Path) -> bool:
    return file.suffix in (".c", ".S", ".s")


def _note_what_stays(plan: PatchPlan, cycle: Cycle) -> None:
    """Note what the kernel may still point at after the patch is disabled."""
    names = dict.fromkeys((*(piece.name for piece in plan.pieces if piece.escapes), *plan.strings))
    if names:
        told = ", ".join(names)
        cycle.notes.append(f"keep it loaded after it is disabled, because something may point at: {told}")


# --- names and endings ---


def module_name_of(file: Path) -> str:
    """Return the name of the module in a file: characters that the kernel allows, and at most 55 bytes."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", file.name.removesuffix(".ko"))
    return name[:LONGEST_NAME] or "livepatch"


def default_output(patch: Path) -> Path:
    """Return ``livepatch-NAME.ko`` for ``NAME.patch``, in the current folder."""
    return Path(f"livepatch-{re.sub(r'[.](patch|diff|mbox|eml|txt)$', '', patch.name)}.ko")


def require_other_name(name: str, base: Base) -> None:
    """Raise InputError (HR1009) if the patch module would have the name of a module that it patches."""
    if any(built.name == name for built in base.modules):
        raise InputError(
            f"{name} is the name of the module that the patch is for", hint="name another file with -o"
        )


def _built(cycle: Cycle) -> ReloadReport:
    milliseconds = (time.monotonic() - cycle.saved_at) * 1000
    diffs = [each.diff for each in cycle.compared]
    notes = cycle.notes_of_units()
    notes += [
        f"{fn} is replaced too, because it {why}"
        for diff in diffs
        for fn, why in diff.callers_promoted.items()
    ]
    return ReloadReport(
        Outcome.PATCHABLE,
        files=cycle.files,
        symbols=tuple(dict.fromkeys(name for diff in diffs for name in diff.changed_names)),
        milliseconds=cycle.milliseconds,
        saved_to_live_ms=milliseconds,
        notes=(*notes, *cycle.notes),
        error="".join(each.pair.warnings for each in cycle.compared),
    )
