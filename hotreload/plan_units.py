# SPDX-License-Identifier: MIT
"""From the two objects of each unit to one plan for all units.

Used both with a guest (reload.py) and without one (patch_build.py).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hotreload.build.base import AnyBase
from hotreload.build.built import VMLINUX
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import ObjectPair
from hotreload.compared import Compared, Original, prototypes_of
from hotreload.deploy.module_reload import depends_of
from hotreload.diff.init_reads import (
    LOAD_NAMES,
    called_at_load,
    gives_another_value,
    may_leave_something,
    ran_at_load,
    ran_message,
    tied_by,
    tied_message,
    uses_of_init,
    value_message,
)
from hotreload.diff.layouts import Layouts
from hotreload.diff.obstacles import NotPatchableError, Obstacle
from hotreload.diff.registered import binding, called_back_at_load
from hotreload.diff.unit_diff import NOTHING_ELSE, UnitContext, diff_unit, unit_object_of
from hotreload.elf.linkage import Linkage, linkage_of
from hotreload.elf.model import ObjectFile, Symbol, SymbolRef
from hotreload.elf.reader import read_object
from hotreload.linkable import unlinkable
from hotreload.moved_across import moves
from hotreload.objects_across import (
    allocations_across_units,
    pairs_across_units,
    recast_across_units,
    unset_members_across_units,
    wrappers_of,
)
from hotreload.patch.kernel_symbols import KernelSymbols
from hotreload.patch.model import PatchPlan, UnitDiff
from hotreload.patch.plan import plan_patch
from hotreload.renamed_across import held_across_units

_FEW_UNITS: Final = 16
NONE: Final[Mapping[str, Collection[str]]] = MappingProxyType({})


def compare_unit(
    pair: ObjectPair,
    original: Original,
    sources: Mapping[str, str],
    context: UnitContext = NOTHING_ELSE,
) -> Compared:
    """Return the difference between a unit's objects.

    ``sources`` are its texts by path, its own file first. Raises InputError (HR1009) if an object cannot be
    read.
    """
    is_c = pair.unit.source.suffix == ".c"
    patched = unit_object_of(read_object(pair.patched))
    diff = diff_unit(original.base, patched, sources, types_known=is_c, context=context)
    if not is_c and diff.verdict != "unchanged":
        name = pair.unit.source.name
        message = f"{name} is not C: hotreload cannot tell where its functions begin and end"
        diff = replace(diff, obstacles=(*diff.obstacles, Obstacle("HR2206", name, message)))
    types = _new_types(original.base.layouts, patched.layouts)
    digest, linkage = _digest(patched.object), linkage_of(patched.object)
    return Compared(pair, original, diff, types, digest, {}, context.renames, linkage, prototypes_of(patched))


def _digest(obj: ObjectFile) -> bytes:
    """Return a digest of what goes into the kernel.

    This leaves out debugging information, in which line numbers change with each comment.
    """
    digest = hashlib.sha256()
    for section in obj.sections:
        if section.is_allocated:
            digest.update(f"{section.name} {section.size} ".encode() + section.data)
            for r in section.relocations:
                what = r.target.symbol.name if isinstance(r.target, SymbolRef) else r.target
                digest.update(f"{r.offset} {r.type} {r.addend} {what}".encode())
    return digest.digest()


def _new_types(base: Layouts | None, now: Layouts | None) -> Layouts | None:
    """Return the types of a unit if it has any that the base lacks.

    Objects of such types may come into being.
    """
    return None if now is None or base is None or base.has_types_of(now) else now


def plan_units(
    base: AnyBase,
    compared: Mapping[Path, Compared],
    symbols: KernelSymbols,
    further: Iterable[Obstacle] = (),
    used_by_edits: Mapping[str, Collection[str]] = NONE,
) -> PatchPlan | None:
    """Return one plan for all units, by object, that differ from the base, or None if none does.

    ``used_by_edits`` are the names that edits since the boot have needed of other units, by module. Raises
    NotPatchableError with the obstacles of all units, and the ``further`` ones, at once.
    """

    def plain(unit: TranslationUnit) -> ObjectFile:
        return _plain(base.of(unit).plain_object(unit))

    def has_global(module: str, name: str) -> bool:
        return module in symbols.modules and symbols.modules[module].has_global(name)

    joined = joined_modules(base, (each.pair.unit.module for each in compared.values()))
    of_modules = (*_linked_twice(base, compared), *_read_elsewhere(base, compared, joined))
    wrappers = wrappers_of(base, compared, joined, has_global, plain)
    of_modules += (*held_across_units(base, compared), *pairs_across_units(compared, joined))
    of_modules += (*allocations_across_units(compared, joined, wrappers),)
    of_modules += (*unset_members_across_units(compared, joined), *recast_across_units(compared, joined))
    of_modules += (*_imported_elsewhere(base, compared, used_by_edits),)
    of_modules += tuple(
        unlinkable(
            base,
            compared,
            plain,
            has_global,
            lambda unit, names: _mentions(base.of(unit).plain_object(unit), names),
        )
    )
    moved = tuple(moves(base, compared))
    of_modules += tuple(move.obstacle() for move in moved if not move.is_same)
    obstacles = (*obstacles_of(compared), *further, *of_modules)
    if obstacles:
        raise NotPatchableError(obstacles)
    units = [
        UnitDiff(
            module.name,
            str(unit.source),
            block_of(base, module.name, unit, symbols),
            one.diff,
            one.original.running,
        )
        for module in base.modules
        for unit in module.units
        if (one := compared.get(unit.object)) is not None and one.diff.brings
    ]
    changed = any(unit.diff.verdict == "patchable" for unit in units)
    elsewhere = frozenset((move.module, move.name) for move in moved)
    return plan_patch(units, symbols, elsewhere) if changed else None


def _imported_elsewhere(
    base: AnyBase, compared: Mapping[Path, Compared], used_by_edits: Mapping[str, Collection[str]]
) -> Iterator[Obstacle]:
    """Yield an obstacle for each export that is gone and that another module has used.

    Even if that module no longer uses it, it may have passed it on.
    """
    for one in compared.values():
        unit = one.pair.unit
        for built in base.modules if one.diff.gone_exports else ():
            if built.name in (unit.module, VMLINUX):
                continue
            for name in sorted(one.diff.gone_exports & _imports(built.ko)):
                message = f"{name} is no longer exported, and {built.name} was built to use it"
                yield Obstacle("HR2105", name, message, where=str(unit.source))
        others = (names for module, names in used_by_edits.items() if module != unit.module)
        for name in sorted(one.diff.gone_exports.intersection(itertools.chain.from_iterable(others))):
            message = f"{name} is no longer exported, and an edit has used it"
            yield Obstacle("HR2105", name, message, where=str(unit.source))


def _mentions(file: Path, names: Collection[str]) -> bool:
    content = file.read_bytes()
    return any(b"\0%b\0" % name.encode() in content for name in names)


@functools.lru_cache(maxsize=256)
def _imports(ko: Path) -> frozenset[str]:
    """Return the names that a module of the base needs of others.

    The result can be cached because the path depends on the content.
    """
    return linkage_of(read_object(ko)).needs


def _linked_twice(base: AnyBase, compared: Mapping[Path, Compared]) -> Iterator[Obstacle]:
    """Yield an obstacle for each changed object that is linked into several modules.

    Such an object exists several times in the kernel, with separate state and at different addresses.
    """
    owners: dict[Path, list[str]] = {}
    for module in base.modules:
        for unit in module.units:
            if (one := compared.get(unit.object)) is not None and one.diff.brings:
                owners.setdefault(unit.object, []).append(module.name)
    for target, names in owners.items():
        if len(names) > 1:
            message = f"{target.name} is linked into {' and '.join(names)}: one patch cannot replace both"
            yield Obstacle("HR2208", target.name, message, where=str(compared[target].pair.unit.source))


def joined_modules(base: AnyBase, edited: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return each module with the modules that it is joined to by exports, including itself.

    What a module uses of a joined one is treated like what a unit uses of another unit. In a kernel with
    thousands of modules, only those that are ``edited`` count.
    """
    known = frozenset(edited) if base.is_kernel else frozenset(built.name for built in base.modules)
    joined = {name: {name} for name in known - {VMLINUX}}
    for built in base.modules if len(joined) > 1 else ():
        for used in _depends(built.ko) if built.name in joined else ():
            if used in joined:
                both = joined[built.name] | joined[used]
                joined |= dict.fromkeys(both, both)
    return {name: frozenset(group) for name, group in joined.items()}


def _read_elsewhere(
    base: AnyBase, compared: Mapping[Path, Compared], joined: Mapping[str, frozenset[str]]
) -> Iterator[Obstacle]:
    """Yield an obstacle for each new value that init or exit code of another unit has used.

    The other unit belongs to the same module or to one that is joined to it. Values are those of variables,
    and of functions that only compute a value.
    """
    edited = [e for e in compared.values() if not e.diff.obstacles and (e.diff.rewrites or _new_values(e))]
    for group in {joined[e.pair.unit.module] for e in edited if e.pair.unit.module != VMLINUX}:
        modules = {
            unit.object: built.name
            for built in base.modules
            if built.name in group
            for unit in built.units
            if unit.source.suffix == ".c"
        }
        objects = {
            unit.object: one.original.base.object
            if (one := compared.get(unit.object)) is not None
            else _plain(base.of(unit).plain_object(unit))
            for unit in base.units
            if modules.get(unit.object) == unit.module
        }
        also = [
            (key, function)
            for key, obj in objects.items()
            if key in compared
            for function in called_back_at_load(obj, compared[key].original.base.layouts)
        ]
        uses = uses_of_init(objects, modules, also) if len(objects) > 1 else {}
        called = called_at_load(objects, modules, also)
        for each in edited:
            if each.pair.unit.module not in group:
                continue
            for function in _new_values(each):
                if (each.pair.unit.object, function) in called:
                    where = str(each.pair.unit.source)
                    yield Obstacle("HR2201", function.name, value_message(function), where=where)
            for rewrite in each.diff.rewrites:
                if use := tied_by(rewrite, uses.get((each.pair.unit.object, rewrite.original.name), [])):
                    where = str(each.pair.unit.source)
                    name = rewrite.original.name
                    yield Obstacle("HR2103", name, tied_message(rewrite, use), where=where)


def made_at_load(base: AnyBase, compared: Iterable[Compared]) -> Iterator[str]:
    """Yield notes on changed functions that init or probe of another unit called, and that made something.

    Modules with very many units are skipped, because all units would have to be read for a note.
    """
    edited = {each.pair.unit.object: each for each in compared}
    for module in base.modules:
        units = {unit.object: unit for unit in module.units if unit.source.suffix == ".c"}
        ours = {key: edited[key] for key in units if key in edited}
        makers = [
            (key, twins.original)
            for key, one in ours.items()
            for twins in one.diff.changed
            if may_leave_something(twins.original) and not _is_told(one, twins.original)
        ]
        if not makers or module.name == VMLINUX or not 1 < len(units) <= _FEW_UNITS:
            continue
        objects = {
            key: ours[key].original.base.object if key in ours else _plain(base.of(unit).plain_object(unit))
            for key, unit in units.items()
        }
        probes = [
            (key, function)
            for key, one in ours.items()
            for function in binding(one.original.base.object, one.original.base.layouts)
        ]
        at_load = ran_at_load(objects)
        bound = ran_at_load(objects, also=probes) if probes else at_load
        for maker in makers:
            if maker in bound:
                yield ran_message(maker[1]) if maker in at_load else ran_message(maker[1], "for each device")


def _is_told(one: Compared, function: Symbol) -> bool:
    known = {note.symbol for note in one.diff.notes if note.code == "HR2201"}
    return function.name in known or not LOAD_NAMES.isdisjoint((function.name, *function.aliases))


def _new_values(each: Compared) -> list[Symbol]:
    """Return the global functions that have changed and only compute a value."""
    changed = (t for t in each.diff.changed if not t.original.is_local)
    return [twins.original for twins in changed if gives_another_value(twins.original, twins.patched)]


@functools.lru_cache(maxsize=256)
def _depends(ko: Path) -> tuple[str, ...]:
    """Return the modules that a module file of the base uses.

    The result can be cached because the path depends on the content.
    """
    return depends_of(ko)


def linkage_of_plain(base: AnyBase, unit: TranslationUnit) -> Linkage:
    """Return the linkage of a unit as the guest booted it."""
    return linkage_of(_plain(base.of(unit).plain_object(unit)))


@functools.lru_cache(maxsize=32)
def _plain(file: Path) -> ObjectFile:
    """Read an object that kbuild made. It can be cached because the path depends on the content."""
    return read_object(file)


def obstacles_of(compared: Mapping[Path, Compared]) -> tuple[Obstacle, ...]:
    """Return the obstacles of all units. Those without a place get the source of their unit."""
    return tuple(
        obstacle if obstacle.where else replace(obstacle, where=str(one.pair.unit.source))
        for one in compared.values()
        for obstacle in one.diff.obstacles
    )


def block_of(base: AnyBase, module: str, unit: TranslationUnit, symbols: KernelSymbols) -> int | None:
    """Return which block of the module's symbols is the unit's.

    Several blocks may come from files of the same name.
    """
    units = next(built.units for built in base.modules if built.name == module)
    namesakes = [other for other in units if other.source.name == unit.source.name]
    return symbols.modules[module].block_of(unit.source.name, namesakes.index(unit))
