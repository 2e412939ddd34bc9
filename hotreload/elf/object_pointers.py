# SPDX-License-Identifier: MIT
"""Track pointers into objects through registers: which object a pointer is into, and how far.

``&item->node`` is a pointer that an allocation returned, or a parameter, plus a number. It is followed
through the registers along all paths. Where paths join, what they disagree about is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hotreload.elf.constants import PC_RELATIVE
from hotreload.elf.decoded import (
    RAX,
    RCX,
    RDI,
    RDX,
    RSI,
    RSP,
    Body,
    Decoded,
    Memory,
    Number,
    Operand,
    Register,
)
from hotreload.elf.model import Relocation, Symbol, SymbolRef

# psABI, 3.2.3: the registers that a call may change, and those of its arguments.
_CALL_USES: Final = frozenset((RAX, RCX, RDX, RSI, RDI, 8, 9, 10, 11))
ARGUMENTS: Final = (RDI, RSI, RDX, RCX, 8, 9)
WORD: Final = 8

# Where a pointer comes from: a symbol, or a name such as that of the function that returned it.
Origin = Symbol | str


@dataclass(frozen=True, slots=True)
class Pointer:
    """A pointer, ``offset`` bytes from where it ``came`` from.

    ``came`` is the place of an instruction, -1 minus the register of a parameter, or a symbol.
    """

    came: int | Symbol
    offset: int


State = dict[int, Pointer]


def states_of(body: Body, *, liberal: bool = False) -> dict[int, State]:
    """Return what is known of the registers before each instruction that is reached.

    ``liberal``: all instructions are looked at, also those that no known path reaches. And an instruction
    that adds a number to an unknown pointer makes one that came from there.
    """
    # A part that gcc split off does not begin with the arguments in their registers.
    is_part = ".cold" in body.symbol.name
    first = {} if is_part else {register: Pointer(-1 - register, 0) for register in ARGUMENTS}
    states = _followed(body, 0, first, liberal, {})
    for place in body.instructions if liberal else ():
        if place not in states:
            states |= _followed(body, place, {}, liberal, states)
    return states


def _followed(
    body: Body, start: int, first: State, liberal: bool, done: Mapping[int, State]
) -> dict[int, State]:
    """Follow the code from a place on, except where it was ``done`` before."""
    states: dict[int, State] = {}
    todo: list[tuple[int, State]] = [(start, first)]
    while todo:
        place, known = todo.pop()
        at = body.instructions.get(place)
        if at is None or place in done:
            continue
        if place in states:
            meeting = {r: p for r, p in states[place].items() if known.get(r) == p}
            if meeting == states[place]:
                continue
            known = meeting
        states[place] = known
        todo += [(to, _after(at, known, liberal)) for to in _next(at)]
    return states


def origin_of(body: Body, pointer: Pointer) -> Origin:
    """Return where a pointer comes from, in terms that also hold for another version of the code."""
    if isinstance(pointer.came, Symbol):
        return pointer.came
    at = body.instructions.get(pointer.came) if pointer.came >= 0 else None
    if at is None:
        return f"parameter {-1 - pointer.came}"
    return at.destination.name if at.mnemonic == "call" and at.destination is not None else at.mnemonic


def is_of_variable(body: Body, pointer: Pointer) -> bool:
    """Return whether a pointer was loaded from a variable, which has none until something is stored there."""
    at = body.instructions.get(pointer.came) if isinstance(pointer.came, int) else None
    return at is not None and at.mnemonic == "mov" and at.displacement is not None


def address_of(at: Decoded, operand: Operand, known: State) -> Pointer | None:
    """Return the address that a memory operand of an instruction names."""
    if not isinstance(operand, Memory):
        return None
    if at.displacement is not None:
        symbol = _symbol(at.displacement)
        return Pointer(symbol, _addend(at, at.displacement)) if symbol is not None else None
    if operand.base is None or operand.index is not None:
        return None
    return _moved(known.get(operand.base), operand.displacement)


def stored_at(at: Decoded, known: State) -> Pointer | None:
    """Return the address at which an instruction stores."""
    return address_of(at, at.operands[0], known)


def stored_by(at: Decoded, known: State) -> Pointer | None:
    """Return the pointer that an instruction stores."""
    value = at.operands[1]
    if at.immediate is not None:
        symbol = _symbol(at.immediate)
        return Pointer(symbol, at.immediate.addend) if symbol is not None else None
    return known.get(value.number) if isinstance(value, Register) and value.size == WORD else None


def _next(at: Decoded) -> Iterator[int]:
    is_jump = at.mnemonic[0] == "j"
    if is_jump and at.immediate is None and at.operands and isinstance(to := at.operands[0], Number):
        yield to.value
    if at.mnemonic not in ("jmp", "ret", "ud2"):
        yield at.end


def _after(at: Decoded, known: State, liberal: bool) -> State:
    if at.mnemonic == "call":
        if at.destination is not None and at.destination.name == "__fentry__":
            return known
        kept = {register: each for register, each in known.items() if register not in _CALL_USES}
        return {**kept, RAX: Pointer(at.start, 0)}
    made = _made(at, known)
    if made is None and liberal:
        made = _from_unknown(at)
    after = {register: each for register, each in known.items() if register not in at.writes}
    if made is not None and isinstance(at.operands[0], Register):
        after[at.operands[0].number] = made
    return after


def _made(at: Decoded, known: State) -> Pointer | None:
    """Return the pointer that an instruction puts into a register."""
    if len(at.operands) != 2 or not isinstance(into := at.operands[0], Register) or into.size < WORD:
        return None
    source = at.operands[1]
    if at.mnemonic in ("mov", "movabs") and at.immediate is not None:
        symbol = _symbol(at.immediate)
        return Pointer(symbol, at.immediate.addend) if symbol is not None else None
    if at.mnemonic == "mov" and isinstance(source, Register):
        return known.get(source.number)
    if at.mnemonic == "mov" and isinstance(source, Memory):
        return Pointer(at.start, 0)
    if at.mnemonic == "lea" and isinstance(source, Memory):
        if at.displacement is not None:
            symbol = _symbol(at.displacement)
            return Pointer(symbol, _addend(at, at.displacement)) if symbol is not None else None
        if source.index is None and source.base is not None and source.base != RSP:
            return _moved(known.get(source.base), source.displacement)
    if at.mnemonic == "add" and at.immediate is not None:  # an element of a table
        symbol = _symbol(at.immediate)
        return Pointer(symbol, at.immediate.addend) if symbol is not None else None
    if at.mnemonic in ("add", "sub") and isinstance(source, Number) and at.immediate is None:
        return _moved(known.get(into.number), source.value if at.mnemonic == "add" else -source.value)
    return None


def _from_unknown(at: Decoded) -> Pointer | None:
    """Return the pointer that ``lea`` or ``add`` makes from an unknown one, which is not the stack's."""
    if at.displacement is not None or at.immediate is not None or len(at.operands) != 2:
        return None
    into, source = at.operands
    if not isinstance(into, Register) or into.size < WORD or into.number == RSP:
        return None
    if at.mnemonic == "lea" and isinstance(source, Memory) and source.index is None:
        return Pointer(at.start, source.displacement) if source.base not in (None, RSP) else None
    if at.mnemonic == "add" and isinstance(source, Number):
        return Pointer(at.start, source.value)
    return None


def _moved(pointer: Pointer | None, by: int) -> Pointer | None:
    return None if pointer is None else Pointer(pointer.came, pointer.offset + by)


def _addend(at: Decoded, relocation: Relocation) -> int:
    is_relative = relocation.type in PC_RELATIVE
    return relocation.addend + (at.end - relocation.offset if is_relative else 0)


def _symbol(relocation: Relocation) -> Symbol | None:
    return relocation.target.symbol if isinstance(relocation.target, SymbolRef) else None
