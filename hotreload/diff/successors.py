# SPDX-License-Identifier: MIT
"""Find structs of the original that have another name in the patched object. Pure.

Live objects carry no type names. If ``struct sess`` becomes ``struct session`` with other members in one
save, the new code goes on to work on objects that were made as ``struct sess``. A removed and an added struct
are taken for the same one if a variable, a parameter, a member or a result of the same name holds the one
before and the other after, or if they have most members in common.
"""

from __future__ import annotations

from collections.abc import Iterator

from hotreload.diff.layouts import Layout, Layouts, Shape, behind


def successors(original: Layouts, patched: Layouts) -> Iterator[tuple[Shape, Shape]]:
    """Yield pairs of a removed struct and the one that replaces it."""
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
    """Yield what each holder that exists in both objects holds before and after."""
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
    """Return whether two structs have most of their members in common, by name and type."""
    if len(ours) != 1 or len(theirs) != 1:
        return False
    mine, yours = ({(f.name, f.shape) for f in layouts[0].fields} for layouts in (ours, theirs))
    common = len(mine & yours)
    return common > 0 and 2 * common >= max(len(mine), 1)
