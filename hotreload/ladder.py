# SPDX-License-Identifier: MIT
"""How far an edit has to go: which modules must be reloaded if a patch is not enough. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from hotreload.build.built import VMLINUX, BuiltModule
from hotreload.compared import Compared
from hotreload.config import RUNGS
from hotreload.diff.obstacles import NotPatchableError, Obstacle
from hotreload.report.codes import codes


def is_allowed(rung: str, max_rung: str) -> bool:
    """Return whether an edit may go as far as ``rung``."""
    return RUNGS.index(rung) <= RUNGS.index(max_rung)


def can_be_loaded(obstacles: Iterable[Obstacle]) -> bool:
    """Return whether reloading a rebuilt module gets past all of these obstacles."""
    return all(codes()[each.code].rung in ("patch", "module") for each in obstacles)


def modules_in_the_way(
    edited: Mapping[Path, Compared], plan: Callable[[Mapping[Path, Compared]], object]
) -> frozenset[str]:
    """Return the fewest modules without whose edits the others can be patched. vmlinux may be among them.

    ``plan`` raises NotPatchableError for edits that cannot be patched.
    """
    by_module: dict[str, dict[Path, Compared]] = {}
    for key, each in edited.items():
        by_module.setdefault(each.pair.unit.module, {})[key] = each
    alone = frozenset(name for name, units in by_module.items() if not _can_be(plan, units))
    rest = {key: each for key, each in edited.items() if each.pair.unit.module not in alone}
    # An obstacle that only the combination has is attributed to every module.
    return alone if _can_be(plan, rest) else frozenset(by_module)


def _can_be(plan: Callable[[Mapping[Path, Compared]], object], edited: Mapping[Path, Compared]) -> bool:
    try:
        plan(edited)
    except NotPatchableError:
        return False
    return True


def with_dependents(
    names: Collection[str], modules: Sequence[BuiltModule], depends: Mapping[str, Collection[str]]
) -> frozenset[str]:
    """Return these modules, those that use them, and those that share an object with them.

    Modules that use another must be unloaded before it. ``depends`` maps each module to those that it uses.
    Names that are not in ``modules`` do not count.
    """
    wanted = set(names)
    known = {built.name for built in modules}
    objects = {
        built.name: {unit.object for unit in built.units} for built in modules if built.name != VMLINUX
    }
    while True:
        more = {name for name, uses in depends.items() if wanted.intersection(uses)}
        held = set().union(*(objects.get(name, set()) for name in wanted))
        more |= {name for name, units in objects.items() if units & held}
        more &= known
        if more <= wanted:
            return frozenset(wanted)
        wanted |= more
