# SPDX-License-Identifier: MIT
"""Tell which members of which structs code uses. Pure.

An instruction shows offsets only. The types of parameters and variables tell which struct an offset is in.
Where they do not, for example behind a ``void *``, it may be in each struct that the function handles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hotreload.diff.correlate import source_name
from hotreload.diff.layouts import VOID, Field, Layouts, Member, Shape
from hotreload.elf.member_uses import How, MemberUse
from hotreload.elf.model import Symbol

_NAMED: Final = ("struct", "union", "typedef")
_OF_POINTERS: Final = (How.EMPTIES, How.POINTS, How.FOLLOWS)
# include/linux/netdevice.h: the private part of a device begins behind it, at a multiple of this many bytes.
_PRIVATE_ALIGN: Final = 32


class MemberPaths:
    """Tells members by the types of one object. Answers are kept, because most are asked for often."""

    def __init__(self, layouts: Layouts) -> None:
        self.layouts = layouts
        self._fields_at: dict[tuple[Shape, int], tuple[Field, ...]] = {}

    def members_at(self, function: Symbol, use: MemberUse) -> Iterator[Member]:
        """Yield the members that a function may use there, as far as the types tell."""
        variable = use.root if isinstance(use.root, Symbol) and len(use.path) == 1 else None
        for base, offset in _bases(function, use, self.layouts):
            is_struct = base[0] in (*_NAMED, "{}")
            found = list(self._fields(base, offset * 8)) if is_struct else []
            if variable is not None and (offset == 0 or not is_struct):
                found.append(Field("", 0, 0, base))
            for field in found:
                place = offset * 8 - field.offset
                if use.how in _OF_POINTERS and not _is_pointer(field.shape, place, self.layouts):
                    continue
                if variable is not None:
                    yield Member(variable.name, field.name, field.shape)
                elif base[0] in _NAMED:
                    yield Member(base, field.name, field.shape)

    def _fields(self, base: Shape, place: int) -> tuple[Field, ...]:
        key = base, place
        if key not in self._fields_at:
            fields = _fields(base, self.layouts)
            self._fields_at[key] = tuple(each for each in fields if _contains(each, place, self.layouts))
        return self._fields_at[key]


def _bases(function: Symbol, use: MemberUse, layouts: Layouts) -> Iterator[tuple[Shape, int]]:
    """Yield the types of the objects in which the path may end, each with the offset there."""
    *path, offset = use.path
    base = _type_of_root(function, use.root, layouts)
    for step in path:
        target = _scalar(base, step * 8, layouts) if base is not None else None
        base = target[1] if target is not None and target[0] == "*" else None
    if base is None and isinstance(use.root, Symbol) and not path:
        return
    size = layouts.size(base) if base is not None else 0
    if base is not None and size and (0 <= offset < size or (isinstance(use.root, Symbol) and not path)):
        yield base, offset
        return
    for struct in layouts.handled.get(source_name(function.name), ()):
        if not size:
            yield struct, offset
            continue
        # container_of(): the parameter points at a member. netdev_priv(): the object is behind it.
        for field in _fields(struct, layouts):
            if field.shape == base:
                yield struct, field.offset // 8 + offset
        yield struct, offset - -(-size // _PRIVATE_ALIGN) * _PRIVATE_ALIGN


def _type_of_root(function: Symbol, root: Symbol | int | None, layouts: Layouts) -> Shape | None:
    """Return the type of a variable, or the type that a parameter points at; None if it is unknown."""
    if isinstance(root, Symbol):
        return layouts.shapes.get(root.name)
    # The parameters of a clone are not those of the source.
    known = layouts.functions.get(function.name, ())
    if root is None or len(known) != 1 or len(known[0][2]) <= root:
        return None
    shape: Shape = known[0][2][root]
    return shape[1] if shape[0] == "*" and shape[1] != VOID else None


def _fields(shape: Shape, layouts: Layouts) -> Iterator[Field]:
    if shape[0] == "{}":
        yield from shape[2]
    for layout in layouts.aggregates.get(shape, ()):
        yield from layout.fields


def _contains(field: Field, place: int, layouts: Layouts) -> bool:
    return field.offset <= place < field.offset + layouts.width(field)


def _scalar(shape: Shape, place: int, layouts: Layouts) -> Shape | None:
    """Return the type of the value at a place, in bits, of an object; None if there are several or none."""
    if shape[0] == "[]":
        size = layouts.size(shape[2]) * 8
        return _scalar(shape[2], place % size, layouts) if size else None
    if shape[0] not in (*_NAMED, "{}"):
        return shape
    found = {
        _scalar(field.shape, place - field.offset, layouts)
        for field in _fields(shape, layouts)
        if _contains(field, place, layouts)
    }
    return found.pop() if len(found) == 1 else None


def _is_pointer(shape: Shape, place: int, layouts: Layouts) -> bool:
    """Return whether there may be a pointer at a place, in bits, of a value."""
    if shape[0] == "[]":
        size = layouts.size(shape[2]) * 8
        return bool(size) and _is_pointer(shape[2], place % size, layouts)
    if shape[0] not in (*_NAMED, "{}"):
        return bool(shape[0] == "*")
    return any(
        _is_pointer(field.shape, place - field.offset, layouts)
        for field in _fields(shape, layouts)
        if _contains(field, place, layouts)
    )
