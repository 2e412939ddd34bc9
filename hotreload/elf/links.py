# SPDX-License-Identifier: MIT
"""Find the member by which code links an object into a list or a tree, or lets another object point at it.

``list_add(&item->by_name, &items)`` stores the address of a member of ``*item`` in ``items``, and the address
of ``items`` in the member. ``rb_insert_color(&node->rb, &root)`` is passed both.
``file->private_data = &dev->a`` stores the address of a member for code that reads it later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hotreload.elf.decoded import RDI, Body, Memory, body_of
from hotreload.elf.model import Symbol
from hotreload.elf.object_pointers import (
    ARGUMENTS,
    WORD,
    Pointer,
    origin_of,
    states_of,
    stored_at,
    stored_by,
)

# Functions of the kernel that link the member that is their first argument.
_LINK: Final = frozenset(
    """__list_add_valid __list_add_valid_or_report llist_add_batch rb_insert_color __rb_insert_augmented
    plist_add klist_add_head klist_add_tail""".split()
)
# Functions of the kernel that keep the pointer in that argument, and return it when asked for it.
_KEEP: Final = {
    name: ARGUMENTS[number]
    for number, names in (
        (1, "idr_alloc idr_alloc_u32 idr_alloc_cyclic idr_replace"),
        (2, "xa_store __xa_store __xa_insert __xa_alloc __xa_alloc_cyclic radix_tree_insert mtree_store"),
    )
    for name in names.split()
}


@dataclass(frozen=True, slots=True)
class Head:
    """A list head, tree root or pointer that objects are linked into.

    ``offset``: in bytes from the pointer that ``came`` describes; 0 for a variable, which has its own name.
    ``is_list``: False if it is only a pointer, which any code may read.
    """

    came: str
    offset: int = 0
    is_list: bool = True
    is_variable: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A member that is linked. ``offset`` counts from the pointer to its object, which ``came`` describes."""

    head: Head
    came: str
    offset: int


_Stores = dict[Pointer, set[Pointer]]


def links_of(function: Symbol, heads: frozenset[str]) -> Iterator[Link]:
    """Yield what ``function`` links into variables of these names, and into objects found at run time."""
    body = body_of(function)
    stored: _Stores = defaultdict(set)
    for place, known in states_of(body).items():
        at = body.instructions[place]
        callee = at.destination.name if at.destination is not None else ""
        if at.mnemonic in ("call", "jmp") and callee in _KEEP:
            if (each := known.get(_KEEP[callee])) is not None:
                yield _link(body, Head(callee), each)
        elif at.mnemonic in ("call", "jmp") and callee and RDI in known:
            for into in (known[register] for register in ARGUMENTS[1:] if register in known):
                if into.came == known[RDI].came:
                    continue
                if variable := _variable(into, heads):
                    yield _link(body, Head(variable, is_variable=True), known[RDI])
                elif callee in _LINK and not isinstance(into.came, Symbol):
                    yield _link(body, Head(_origin(body, into), into.offset), known[RDI])
        elif at.mnemonic == "mov" and isinstance(at.operands[0], Memory):
            where, what = stored_at(at, known), stored_by(at, known)
            if where is not None and what is not None and where.came != what.came:
                stored[where].add(what)
    for where, values in stored.items():
        for new in values:
            if variable := _variable(where, heads):
                yield _link(body, Head(variable, is_variable=True), new)
            elif not isinstance(where.came, Symbol):
                back = _points_back(stored, where, new)
                if back is None and _points_back(stored, new, where) is not None:
                    continue  # ``where`` is the member, which points at what it is linked into
                offset = where.offset if back is None else back
                yield _link(body, Head(_origin(body, where), offset, back is not None), new)


def reads_pointer_at(function: Symbol, offset: int) -> bool:
    """Return whether code loads a word that is ``offset`` bytes after a pointer."""
    return any(
        isinstance(operand, Memory)
        and operand.displacement == offset
        and operand.size == WORD
        and operand.base is not None
        for at in body_of(function).instructions.values()
        if at.mnemonic != "lea" and at.displacement is None
        for operand in at.operands[1:]
    )


def _points_back(stored: _Stores, where: Pointer, new: Pointer) -> int | None:
    """Return the offset of the head that ``where`` is in, if ``new`` is a member that is linked into it.

    That is the case if both words of the member are set, and one of them points at the head.
    """
    if not _is_stored(stored, new, 0) or not _is_stored(stored, new, WORD):
        return None
    for member in (new.offset, new.offset + WORD):
        for back in stored[Pointer(new.came, member)]:
            if back.came == where.came and where.offset - back.offset in (0, WORD):
                is_member = _is_stored(stored, back, 0) and _is_stored(stored, back, WORD)
                return None if is_member else back.offset
    return None


def _is_stored(stored: _Stores, pointer: Pointer, word: int) -> bool:
    return Pointer(pointer.came, pointer.offset + word) in stored


def _variable(pointer: Pointer, heads: frozenset[str]) -> str:
    came = pointer.came
    return came.name if isinstance(came, Symbol) and came.name in heads else ""


def _link(body: Body, head: Head, pointer: Pointer) -> Link:
    return Link(head, _origin(body, pointer), pointer.offset)


def _origin(body: Body, pointer: Pointer) -> str:
    came = origin_of(body, pointer)
    return came.name if isinstance(came, Symbol) else came
