# SPDX-License-Identifier: MIT
"""Find how code uses the members of objects: it sets one up, follows its pointer, or only touches it."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import Final, NamedTuple

from hotreload.elf.decoded import RSP, Body, Decoded, Memory, Number, Register, body_of
from hotreload.elf.model import Symbol
from hotreload.elf.object_pointers import ARGUMENTS, WORD, Pointer, State, address_of, states_of, stored_by

# Words in the names of functions that make a member usable: __init_waitqueue_head(), hrtimer_setup().
_SETS_UP: Final = frozenset("init setup initialize".split())
_THUNK: Final = "__x86_indirect_"
_REGISTERS: Final = {
    name: number
    for number, name in enumerate("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split())
}


class How(Enum):
    """How code uses a member.

    SETS_UP   it passes the member's address to a function that initializes it
    EMPTIES   it makes an empty list of it, which points at itself
    POINTS    it stores a pointer in it
    FOLLOWS   it follows the pointer in it, and nowhere asks whether it is NULL
    TOUCHES   it reads it, writes it, or passes its address
    """

    SETS_UP = auto()
    EMPTIES = auto()
    POINTS = auto()
    FOLLOWS = auto()
    TOUCHES = auto()


class MemberUse(NamedTuple):
    """``at``: the address of the member.

    ``is_spilled``: the pointer to the object was kept on the stack. ``is_unknown``: it may come from several
    places.
    """

    how: How
    at: Pointer
    is_spilled: bool = False
    is_unknown: bool = False


def member_uses(function: Symbol) -> Iterator[MemberUse]:
    """Yield how the instructions of a function use memory that they reach through pointers.

    If the address of a whole object is passed on, that is no use of its first member.
    """
    body = body_of(function)
    states = states_of(body, with_unknown=True)
    loads = _loads(body, states)
    checked = {loads[place] for place in _checked(body, states) if place in loads}
    for place, known in states.items():
        at = body.instructions[place]
        for number, operand in enumerate(at.operands):
            if isinstance(operand, Memory) and at.mnemonic not in ("lea", "nop"):
                for use in _of_memory(at, number, operand, known, loads, checked):
                    yield _with_origin(body, use)
        if at.mnemonic in ("call", "jmp"):
            for use in _of_call(at, known, loads, checked):
                yield _with_origin(body, use)


def _with_origin(body: Body, use: MemberUse) -> MemberUse:
    """Return a use with what is known of the place that its pointer came from."""
    at = body.instructions.get(use.at.came) if isinstance(use.at.came, int) else None
    if at is None or at.mnemonic == "call":
        return use
    source = at.operands[1] if at.mnemonic == "mov" and len(at.operands) > 1 else None
    is_spilled = isinstance(source, Memory) and source.base in body.frame
    return use._replace(is_spilled=is_spilled, is_unknown=not isinstance(source, Memory))


def _loads(body: Body, states: dict[int, State]) -> dict[int, Pointer]:
    """Return the addresses from which instructions load a word, by the place of the instruction."""
    found = {}
    for place, known in states.items():
        at = body.instructions[place]
        if at.mnemonic == "mov" and len(at.operands) == 2 and isinstance(at.operands[0], Register):
            source = at.operands[1]
            if isinstance(source, Memory) and source.size == WORD and (into := address_of(at, source, known)):
                found[place] = into
    return found


def _checked(body: Body, states: dict[int, State]) -> Iterator[int]:
    """Yield the places of the loads whose values are compared with anything."""
    for place, known in states.items():
        at = body.instructions[place]
        if at.mnemonic in ("test", "cmp"):
            for operand in at.operands:
                pointer = known.get(operand.number) if isinstance(operand, Register) else None
                if pointer is not None and isinstance(pointer.came, int):
                    yield pointer.came


def _of_memory(
    at: Decoded,
    number: int,
    operand: Memory,
    known: State,
    loads: dict[int, Pointer],
    checked: set[Pointer],
) -> Iterator[MemberUse]:
    if operand.base is not None:
        yield from _followed(known.get(operand.base), loads, checked)
    into = address_of(at, operand, known)
    if into is None and at.displacement is None and operand.index is None and operand.base not in (None, RSP):
        into = Pointer(at.start, operand.displacement)
    if into is None:
        return
    if at.mnemonic == "mov" and number == 0 and operand.size == WORD:
        value = stored_by(at, known)
        if value == into:
            yield MemberUse(How.EMPTIES, into)
            return
        if value is not None or not isinstance(at.operands[1], Number):
            yield MemberUse(How.POINTS, into)
            return
    if at.mnemonic in ("call", "jmp") and into not in checked:
        yield MemberUse(How.FOLLOWS, into)
    yield MemberUse(How.TOUCHES, into)


def _of_call(
    at: Decoded, known: State, loads: dict[int, Pointer], checked: set[Pointer]
) -> Iterator[MemberUse]:
    name = at.destination.name if at.destination is not None else ""
    if name.startswith(_THUNK):
        yield from _followed(known.get(_REGISTERS.get(name.rpartition("_")[2], -1)), loads, checked)
    is_elsewhere = at.destination is not None and not at.destination.is_defined
    sets_up = is_elsewhere and not _SETS_UP.isdisjoint(name.split("_"))
    for number, register in enumerate(ARGUMENTS):
        pointer = known.get(register)
        if pointer is None:
            continue
        yield from _followed(pointer, loads, checked)
        if isinstance(pointer.came, Symbol) or pointer.offset:
            yield MemberUse(How.SETS_UP if sets_up and number == 0 else How.TOUCHES, pointer)


def _followed(
    pointer: Pointer | None, loads: dict[int, Pointer], checked: set[Pointer]
) -> Iterator[MemberUse]:
    """Yield the use of the member from which a pointer was loaded that the code follows."""
    member = loads.get(pointer.came) if pointer is not None and isinstance(pointer.came, int) else None
    if member is not None and member not in checked:
        yield MemberUse(How.FOLLOWS, member)
