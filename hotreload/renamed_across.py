# SPDX-License-Identifier: MIT
"""Global functions that were renamed: one unit defines them, and others take their addresses. Pure.

Each unit reports what it sees (ObjectDiff). Only with the reports of all units is it known whether two names
are one function. The units are then compared once more with these renames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from hotreload.build.base import AnyBase
from hotreload.compared import Compared
from hotreload.diff.functions import gone_message
from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.obstacles import Obstacle


def renames_across(base: AnyBase, compared: Mapping[Path, Compared]) -> dict[Path, dict[str, str]]:
    """Return, for each unit by object, the renamed global functions of its module: old name -> new name."""
    return {key: known for units in _modules(base, compared) for known in [_renames(units)] for key in units}


def held_across_units(base: AnyBase, compared: Mapping[Path, Compared]) -> Iterator[Obstacle]:
    """Yield an obstacle for each function that is gone while another unit gave its address away."""
    for units in _modules(base, compared):
        gone = {s.name for diff in units.values() for s in diff.removed_functions if not s.is_local}
        renamed = {old: new for diff in units.values() for old, new in _renamed(diff).items()}
        for key, diff in units.items():
            for name in sorted(diff.held_elsewhere & (gone | renamed.keys())):
                if renamed.get(name) is None or diff.renamed_elsewhere.get(name) != renamed[name]:
                    where = str(compared[key].pair.unit.source)
                    yield Obstacle("HR2207", name, gone_message(name), where=where)


def _modules(base: AnyBase, compared: Mapping[Path, Compared]) -> Iterator[dict[Path, ObjectDiff]]:
    for module in base.modules:
        units = {unit.object: compared[unit.object].diff for unit in module.units if unit.object in compared}
        if units:
            yield units


def _renamed(diff: ObjectDiff) -> dict[str, str]:
    return {**diff.renamed, **diff.renamed_by_others}


def _renames(units: Mapping[Path, ObjectDiff]) -> dict[str, str]:
    diffs = units.values()
    gone = {s.name for diff in diffs for s in diff.removed_functions if not s.is_local}
    new = {s.name for diff in diffs for s in diff.new_functions if not s.is_local}
    gone |= {name for diff in diffs for name in diff.renamed_by_others}
    new |= {name for diff in diffs for name in diff.renamed_by_others.values()}
    found = {old: new for diff in diffs for old, new in diff.renamed.items()}
    for diff in diffs:
        for old, name in diff.renamed_elsewhere.items():
            agree = all(
                other.renamed_elsewhere.get(old) == name for other in diffs if old in other.held_elsewhere
            )
            if old in gone and name in new and agree:
                found[old] = name
    return found
