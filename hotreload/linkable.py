# SPDX-License-Identifier: MIT
"""Check whether a module's units could still be linked, from what each defines and needs. Pure.

The guest still has every function that it booted with. It would keep calling one that no source defines any
more, and make could not link such sources. So this module checks what the linker would check.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from hotreload.build.base import AnyBase
from hotreload.build.built import VMLINUX
from hotreload.build.cmd_files import TranslationUnit
from hotreload.compared import Compared
from hotreload.diff.obstacles import Obstacle
from hotreload.elf.linkage import Linkage, linkage_of
from hotreload.elf.model import ObjectFile

HasGlobal = Callable[[str, str], bool]


def unlinkable(
    base: AnyBase,
    compared: Mapping[Path, Compared],
    plain: Callable[[TranslationUnit], ObjectFile],
    has_global: HasGlobal,
    mentions: Callable[[TranslationUnit, Collection[str]], bool],
) -> Iterator[Obstacle]:
    """Yield an obstacle for each symbol that is used but not defined (HR2209), or defined twice (HR2208).

    ``plain``       reads the object that kbuild made of a unit
    ``has_global``  returns whether a module that the guest booted defines a name
    ``mentions``    returns whether the object that kbuild made of a unit has one of these names
    """
    exported = {name: one.pair.unit.module for one in compared.values() for name in one.diff.new_exports}
    for module in base.modules:
        edited = {unit.object: compared[unit.object] for unit in module.units if unit.object in compared}
        before = {key: linkage_of(one.original.base.object) for key, one in edited.items()}
        now = {key: one.linkage for key, one in edited.items()}
        # A name that another module exports from now on is found there.
        elsewhere = {name for name, exporter in exported.items() if exporter != module.name}
        gone = _defined(before) - _defined(now) - elsewhere
        if gone:
            # vmlinux has too many units to read them all.
            units = [u for u in module.units if module.name != VMLINUX or mentions(u, gone)]
            all_now = {u.object: linkage_of(plain(u)) for u in units if u.object not in edited} | now
            known = {u.object: u for u in module.units}
            yield from _weak_now(gone - _defined(all_now), all_now, known)
            yield from _missed(gone - _defined(all_now) - _weak(all_now), all_now, known)
        for key, one in edited.items():
            others = _defined({other: each for other, each in now.items() if other != key})
            # If the guest has the name, and no edited unit defined it, an unedited unit still defines it.
            for name in sorted(now[key].defines - before[key].defines):
                if name in others or (name not in _defined(before) and has_global(module.name, name)):
                    message = f"{name} is also defined in another unit of {module.name}"
                    yield Obstacle("HR2208", name, message, where=str(one.pair.unit.source))


def _defined(units: Mapping[Path, Linkage]) -> frozenset[str]:
    return frozenset().union(*(each.defines for each in units.values()))


def _weak(units: Mapping[Path, Linkage]) -> frozenset[str]:
    return frozenset().union(*(each.weak for each in units.values()))


def _weak_now(
    gone: frozenset[str], units: Mapping[Path, Linkage], known: Mapping[Path, TranslationUnit]
) -> Iterator[Obstacle]:
    """Yield an obstacle for each weak definition of a name that is gone.

    The linker would use it, but the guest was linked with the one that is gone.
    """
    for key, each in units.items():
        for name in sorted(each.weak & gone):
            where = known[key].source
            message = (
                f"{name} is now the weak definition in {where.name},"
                " but the guest was linked with another one"
            )
            yield Obstacle("HR2208", name, message, where=str(where))


def _missed(
    gone: frozenset[str], units: Mapping[Path, Linkage], known: Mapping[Path, TranslationUnit]
) -> Iterator[Obstacle]:
    for key, each in units.items():
        for name in sorted(each.needs & gone):
            where = known[key].source
            message = f"{name} is no longer defined, and {where.name} uses it"
            yield Obstacle("HR2209", name, message, "define it, or do not use it", where=str(where))
