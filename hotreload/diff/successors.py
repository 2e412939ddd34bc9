# SPDX-License-Identifier: MIT
"""Which struct of the patched object is one of the original's under another name. Pure.

Live objects have no names of types. Where ``struct sess`` became ``struct session`` with other members in one
save, code goes on to work on the objects that were made as ``struct sess``. Two structs are taken for one
where one is gone and the other has come, and something holds objects of both: a variable, a parameter, a
member, a result of the same name; or where they have most members in common.
"""

from __future__ import annotations

from collections.abc import Iterator

from hotreload.diff.layouts import Layout, Layouts, Shape, behind


def successors(original: Layouts, patched: Layouts) -> Iterator[tuple[Shape, Shape]]:
    """Pairs of a struct that is gone and the one that has taken its place."""
    gone = [shape for shape in original.aggregates if shape not in patched.aggregates]
    come = [shape for shape in patched.aggregates if shape not in original.aggregates]
    if not gone or not come:
        return
    held = set(_held_alike(original, patched))
    for was in gone:
        for now in come:
            if (was, now) in held or _are_alike(original.aggregates[was], patched.aggregates[now]):
                yield was, now


def _held_alike(original: Layouts, patched: Layouts) -> Iterator[tuple[Shape, Shape]]:
    """What each holder of both objects holds before and after."""
    for key, shape in original.holders.items():
        yield shape, patched.holders.get(key, shape)
    for aggregate, layouts in original.aggregates.items():
        for before, after in zip(layouts, patched.aggregates.get(aggregate, ()), strict=False):
            theirs = {field.name: field.shape for field in after.fields}
            for field in before.fields:
                yield behind(field.shape), behind(theirs.get(field.name, field.shape))
    for name, prototypes in original.functions.items():
        for one, other in zip(prototypes, patched.functions.get(name, ()), strict=False):
            yield behind(one[1]), behind(other[1])


def _are_alike(ours: tuple[Layout, ...], theirs: tuple[Layout, ...]) -> bool:
    """Whether two structs have most of their members in common, by name and type."""
    if len(ours) != 1 or len(theirs) != 1:
        return False
    mine, yours = ({(f.name, f.shape) for f in layouts[0].fields} for layouts in (ours, theirs))
    common = len(mine & yours)
    return common > 0 and 2 * common >= max(len(mine), 1)
