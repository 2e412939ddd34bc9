# SPDX-License-Identifier: MIT
"""Explain why two layouts of a struct or union differ, and whether live objects allow the change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from hotreload.diff.layouts import BOOL, Field, Layout
from hotreload.diff.obstacles import Note, Obstacle
from hotreload.diff.spelling import at, resized, spelled, width
from hotreload.diff.type_pair import Kinship, TypePair


def explain(pair: TypePair, name: str, was: Layout, now: Layout) -> None:
    """Report why two layouts differ: an obstacle with the first real cause, or notes."""
    old = {field.name: field for field in was.fields}
    new = {field.name: field for field in now.fields}
    renamed = _renamed(old, new)
    gone = [f for f in was.fields if f.name not in new and f.name not in renamed]
    added = [f for f in now.fields if f.name not in old and f.name not in renamed.values()]
    kept = [(f, new[f.name]) for f in was.fields if f.name in new]

    causes = [*_changed(pair, kept), *_misplaced(pair, was, gone, added)]
    moved = next(((a, b) for a, b in kept if a.offset != b.offset), None)
    if was.size != now.size or moved:
        causes += [(f.offset, f.name, f"field '{f.name}' added at offset {at(f)}") for f in added]
        causes += [(f.offset, f.name, f"field '{f.name}' removed from offset {at(f)}") for f in gone]
    if causes or was.size != now.size or moved:
        _refuse(pair, name, was.size, now.size, causes, moved)
        return
    said = [f"field '{a}' is now called '{b}'" for a, b in renamed.items()]
    said += [
        f"field '{a.name}' is now {spelled(b.shape)}, was {spelled(a.shape)}"
        for a, b in kept
        if pair.kinship(a.shape, b.shape) is Kinship.RETYPED
    ]
    said += [f"field '{f.name}' was removed" for f in gone]
    said += [_filled(pair, was, f) for f in added]
    pair.notes += [Note("HR2101", name, f"{name}: {text}") for text in said]


def _changed(pair: TypePair, kept: Iterable[tuple[Field, Field]]) -> Iterator[tuple[int, str, str]]:
    """Yield members with another type or width, and embedded structs whose size changed."""
    for a, b in kept:
        if a.bits != b.bits:
            text = f"changed its width from {width(a)} to {width(b)}"
        elif _differs(pair, a, b):
            text = f"changed its type from {spelled(a.shape)} to {spelled(b.shape)}"
        elif not a.bits and pair.original.size(a.shape) != pair.patched.size(b.shape):
            inner = a.shape[2] if a.shape[0] == "[]" else a.shape
            sizes = pair.original.size(inner), pair.patched.size(inner)
            text = f"contains {spelled(inner)}, which {resized(*sizes)}"
        else:
            continue
        yield a.offset, a.name, f"field '{a.name}' {text}"


def _differs(pair: TypePair, a: Field, b: Field) -> bool:
    if a.bits and a.shape[0] == b.shape[0] == "int":
        return bool((a.shape[2] == BOOL) != (b.shape[2] == BOOL))  # widths are compared elsewhere
    return pair.kinship(a.shape, b.shape) is Kinship.DIFFERENT


def _misplaced(
    pair: TypePair, was: Layout, gone: list[Field], added: list[Field]
) -> Iterator[tuple[int, str, str]]:
    """Yield new members at an offset where live objects have something else, or nothing."""
    for f in added:
        end = f.offset + pair.patched.width(f)
        flexible = f.shape[:2] == ("[]", 0)
        if flexible and not any(g.offset == f.offset and g.shape[:2] == ("[]", 0) for g in was.fields):
            yield (
                f.offset,
                f.name,
                f"field '{f.name}' added at offset {at(f)}, past the end of live objects",
            )
        for g in gone:
            if f.offset < g.offset + pair.original.width(g) and g.offset < end:
                yield f.offset, f.name, f"field '{f.name}' replaced '{g.name}' at offset {at(g)}"
                break


def _refuse(
    pair: TypePair,
    name: str,
    was: int,
    now: int,
    causes: list[tuple[int, str, str]],
    moved: tuple[Field, Field] | None,
) -> None:
    causes.sort(key=lambda cause: cause[0])
    member = text = ""
    if causes:
        _, member, text = causes[0]
    elif moved:
        member = moved[0].name
        text = f"field '{member}' moved from offset {at(moved[0])} to {at(moved[1])}"
    if causes and moved and was == now:
        text += f", field '{moved[0].name}' moved from offset {at(moved[0])} to {at(moved[1])}"
    fact = resized(was, now) if was != now else "changed"
    message = f"{name} {fact}: {text}" if text else f"{name} {fact}"
    pair.members[name] = member
    chosen = pair.consequences if " contains " in text else pair.obstacles
    chosen.append(Obstacle("HR2101", name, message))


def _filled(pair: TypePair, was: Layout, f: Field) -> str:
    end = f.offset + pair.patched.width(f)
    if any(f.offset < g.offset + pair.original.width(g) and g.offset < end for g in was.fields):
        return f"field '{f.name}' is another view of the bytes at offset {at(f)}"
    return (
        f"field '{f.name}' was added in padding at offset {at(f)}: in live objects it has the value of the "
        "padding, which is 0 if they came from kzalloc or are static data"
    )


def _renamed(old: Mapping[str, Field], new: Mapping[str, Field]) -> dict[str, str]:
    """Return the members that only have another name, with the same offset, width and shape: old -> new."""
    arrived = {f[1:]: f.name for f in new.values() if f.name not in old}
    return {f.name: arrived[f[1:]] for f in old.values() if f.name not in new and f[1:] in arrived}
