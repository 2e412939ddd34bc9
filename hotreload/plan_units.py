# SPDX-License-Identifier: MIT
"""From the two objects of each unit to one plan for all of them; with a guest (reload.py) and without
(patch_build.py)."""

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
from hotreload.diff.allocations import message_of, refuse_other_frees, users_of_other_sizes
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
    """What a unit's objects differ in. ``sources``: its texts by path, its own file first.

    Raises InputError (HR1009) when an object cannot be read.
    """
    is_c = pair.unit.source.suffix == ".c"
    patched = unit_object_of(read_object(pair.patched))
    diff = diff_unit(original.base, patched, sources, types_known=is_c, context=context)
    if not is_c and diff.verdict != "unchanged":
        name = pair.unit.source.name
        message = f"{name} is not C: where its functions begin and end, nobody can tell for sure"
        diff = replace(diff, obstacles=(*diff.obstacles, Obstacle("HR2206", name, message)))
    types = _new_types(original.base.layouts, patched.layouts)
    digest, linkage = _digest(patched.object), linkage_of(patched.object)
    return Compared(pair, original, diff, types, digest, {}, context.renames, linkage, prototypes_of(patched))


def _digest(obj: ObjectFile) -> bytes:
    """Of what goes into the kernel: the lines of the debugging information move with each comment."""
    digest = hashlib.sha256()
    for section in obj.sections:
        if section.is_allocated:
            digest.update(f"{section.name} {section.size} ".encode() + section.data)
            for r in section.relocations:
                what = r.target.symbol.name if isinstance(r.target, SymbolRef) else r.target
                digest.update(f"{r.offset} {r.type} {r.addend} {what}".encode())
    return digest.digest()


def _new_types(base: Layouts | None, now: Layouts | None) -> Layouts | None:
    """Those of a unit, if it has any that the base has not: objects of them may be made."""
    return None if now is None or base is None or base.has_types_of(now) else now


def plan_units(
    base: AnyBase,
    compared: Mapping[Path, Compared],
    symbols: KernelSymbols,
    further: Iterable[Obstacle] = (),
    used_by_edits: Mapping[str, Collection[str]] = NONE,
) -> PatchPlan | None:
    """One plan for all units, by object, that differ from the base; None: none does.

    ``used_by_edits``: what edits since the boot have needed of other units, by module.

    Raises NotPatchableError with the obstacles of all of them, and ``further`` ones, at once.
    """
    joined = joined_modules(base, (each.pair.unit.module for each in compared.values()))
    of_modules = (*_linked_twice(base, compared), *_read_elsewhere(base, compared, joined))
    of_modules += (*held_across_units(base, compared), *allocations_across_units(compared, joined))
    of_modules += (*_imported_elsewhere(base, compared, used_by_edits),)
    of_modules += tuple(
        unlinkable(
            base,
            compared,
            lambda unit: _plain(base.of(unit).plain_object(unit)),
            lambda module, name: module in symbols.modules and symbols.modules[module].has_global(name),
            lambda unit, names: _mentions(base.of(unit).plain_object(unit), names),
        )
    )
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
    return plan_patch(units, symbols) if changed else None


def _imported_elsewhere(
    base: AnyBase, compared: Mapping[Path, Compared], used_by_edits: Mapping[str, Collection[str]]
) -> Iterator[Obstacle]:
    """Exports that are gone, and that another module has used: even if it does so no more, it may have handed
    them on."""
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
    """The names that a module of the base needs of others; its path is that of its content."""
    return linkage_of(read_object(ko)).needs


def _linked_twice(base: AnyBase, compared: Mapping[Path, Compared]) -> Iterator[Obstacle]:
    """An object that is linked into two modules is there twice, with two states and at two addresses."""
    owners: dict[Path, list[str]] = {}
    for module in base.modules:
        for unit in module.units:
            if (one := compared.get(unit.object)) is not None and one.diff.brings:
                owners.setdefault(unit.object, []).append(module.name)
    for target, names in owners.items():
        if len(names) > 1:
            message = f"{target.name} is linked into {' and '.join(names)}: one patch does not reach both"
            yield Obstacle("HR2208", target.name, message, where=str(compared[target].pair.unit.source))


def joined_modules(base: AnyBase, edited: Iterable[str]) -> dict[str, frozenset[str]]:
    """Each module with those that exports join it to, itself too: what one uses of another is like what one
    unit uses of another. Of a kernel's thousands of modules those that are ``edited``."""
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
    """New values of what init or exit code has used in another unit of the module, or in a module that is
    joined to it: of variables, and of functions that compute nothing else."""
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
    """Tell of functions that changed, and that made something when init or probe of another unit called them.

    Modules of very many units are left alone: all would have to be read for a note.
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


def allocations_across_units(
    compared: Mapping[Path, Compared], joined: Mapping[str, frozenset[str]]
) -> Iterator[Obstacle]:
    """Code that counts on another size, or another allocator, of what another unit of its module, or of one
    that is joined to it, has allocated."""
    changed = {
        key: [(twins.original, twins.patched) for twins in (*one.diff.changed, *one.diff.only_for_exit)]
        for key, one in compared.items()
    }
    for key, one in compared.items():
        module, where = one.pair.unit.module, str(one.pair.unit.source)
        group = joined.get(module, frozenset())  # none for vmlinux
        others = [o for o in compared if o != key and compared[o].pair.unit.module in group]
        beside = [twins for other in others for twins in changed[other]]
        new = [function for other in others for function in compared[other].diff.new_functions]
        for resized, user in users_of_other_sizes(changed[key], beside) if beside else ():
            yield Obstacle("HR2101", resized.function.name, message_of(resized, user), where=where)
        told = {obstacle.symbol for obstacle in one.diff.obstacles}
        for obstacle in refuse_other_frees(changed[key], new, beside) if beside or new else ():
            if obstacle.symbol not in told:
                yield replace(obstacle, where=where)


def _new_values(each: Compared) -> list[Symbol]:
    """The global functions that have changed, and do nothing but to compute a value."""
    changed = (t for t in each.diff.changed if not t.original.is_local)
    return [twins.original for twins in changed if gives_another_value(twins.original, twins.patched)]


@functools.lru_cache(maxsize=256)
def _depends(ko: Path) -> tuple[str, ...]:
    """The modules that a file of the base uses; its path is that of its content."""
    return depends_of(ko)


def linkage_of_plain(base: AnyBase, unit: TranslationUnit) -> Linkage:
    """What a unit needs of the others, as the guest booted it."""
    return linkage_of(_plain(base.of(unit).plain_object(unit)))


@functools.lru_cache(maxsize=32)
def _plain(file: Path) -> ObjectFile:
    """An object that kbuild made; its path is that of its content."""
    return read_object(file)


def obstacles_of(compared: Mapping[Path, Compared]) -> tuple[Obstacle, ...]:
    """What stands in the way in any unit; where no place is known, in its source."""
    return tuple(
        obstacle if obstacle.where else replace(obstacle, where=str(one.pair.unit.source))
        for one in compared.values()
        for obstacle in one.diff.obstacles
    )


def block_of(base: AnyBase, module: str, unit: TranslationUnit, symbols: KernelSymbols) -> int | None:
    """Which stretch of the module's symbols is the unit's: several may come from files of one name."""
    units = next(built.units for built in base.modules if built.name == module)
    namesakes = [other for other in units if other.source.name == unit.source.name]
    return symbols.modules[module].block_of(unit.source.name, namesakes.index(unit))
