# SPDX-License-Identifier: MIT
"""Find out what an instruction does with a variable, and whether a value that it loads is only printed.

A value is only printed if it goes nowhere but into the arguments of a printing function, and decides nothing
but whether such a function is called. Anything that is not understood counts as a use.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
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
    Register,
    body_of,
    register_of_thunk,
)
from hotreload.elf.model import Relocation, Symbol

# The registers that a call may change. Its arguments are among them, so an argument is gone after the call.
_USED_UP: Final = frozenset((RAX, RCX, RDX, RSI, RDI, 8, 9, 10, 11))
_COPIES: Final = ("mov", "movabs", "movzx", "movsx", "movsxd", "lea", "xor", "cdqe", "movaps")
_RETURN: Final = "__x86_return_thunk"
NOWHERE: Final = -1
_ENOUGH: Final = 40  # the most instructions of a branch that only prints

IsPrinter = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Access:
    """The bytes that an instruction loads: ``size`` bytes at ``offset`` of the target, None meaning anywhere.

    ``size`` is 0 if it only stores.
    """

    offset: int | None
    size: int


def access_of(function: Symbol, relocation: Relocation) -> Access:
    """Return what an instruction loads that uses a relocation to access memory, not to make an address."""
    at = _instruction_of(body_of(function), relocation)
    memory = next((each for each in at.operands if isinstance(each, Memory)), None) if at else None
    if at is None or memory is None:
        return Access(None, 1)
    is_stored = at.operands[0] is memory and at.mnemonic.startswith(("mov", "set"))
    offset: int | None = relocation.addend
    if relocation.type in PC_RELATIVE:
        offset = relocation.addend + at.end - relocation.offset
    elif memory.base is not None or memory.index is not None:
        offset = None
    return Access(offset, 0 if is_stored else max(1, memory.size))


def stores_address(function: Symbol, relocation: Relocation) -> bool:
    """Return whether an instruction does nothing with an address but store it."""
    at = _instruction_of(body_of(function), relocation)
    if at is None or at.mnemonic != "mov" or at.immediate != relocation:
        return False
    return isinstance(at.operands[0], Memory)


def called_with(function: Symbol, relocation: Relocation) -> str | None:
    """Return the function that is called next with an address in a register; None for any other use."""
    body = body_of(function)
    at = _instruction_of(body, relocation)
    if at is None or not at.operands or not isinstance(at.operands[0], Register):
        return None
    register = at.operands[0].number
    for each in _following(body, at.end):
        if each.mnemonic in ("call", "jmp"):
            name = _destination(each) if register in _USED_UP else None
            return None if register_of_thunk(name) == register else name
        if register in each.reads | each.writes or each.mnemonic[0] == "j":
            return None
    return None


def handed_to(function: Symbol, relocation: Relocation) -> str | None:
    """Return the next function that is called with an address, in a register or in a struct on the stack."""
    body = body_of(function)
    at = _instruction_of(body, relocation)
    into = at.operands[0] if at is not None and at.operands else None
    if at is None or not isinstance(into, Memory) or into.base != RSP:
        return called_with(function, relocation)
    return next((_destination(each) for each in _following(body, at.end) if each.mnemonic == "call"), None)


def is_only_printed(function: Symbol, relocation: Relocation, is_printer: IsPrinter) -> bool:
    """Return whether a value or an address only goes to printing functions, or only decides about them."""
    name = called_with(function, relocation)
    if name is not None:
        return is_printer(name)
    body = body_of(function)
    at = _instruction_of(body, relocation)
    if at is None:
        return False
    if at.mnemonic in ("cmp", "test"):
        return _decides_printing(body, at.end, is_printer) is not None
    if not at.mnemonic.startswith("mov") or not isinstance(at.operands[0], Register):
        return False
    register = at.operands[0].number
    asks = body.instructions.get(at.end)
    if asks is None or not _compares_registers(asks):
        return False
    meeting = _decides_printing(body, asks.end, is_printer)
    # A call clobbers the register. If no path calls anything, the register must not be read later.
    return meeting is not None and register in _USED_UP and not _is_read(body, meeting, register)


def _decides_printing(body: Body, start: int, is_printer: IsPrinter) -> int | None:
    """Return where both paths of the branch at ``start`` meet, if they differ only in what is printed.

    NOWHERE if both end on their own in the same way; None in all other cases.
    """
    branch = body.instructions.get(start)
    if branch is None or not _is_branch(branch):
        return None
    target = branch.operands[0]
    if not isinstance(target, Number):
        return None
    one, other = ([*_way(body, place)] for place in (branch.end, target.value))
    common = {at.start for at in one} & {at.start for at in other}
    if not common:  # each path has its own end
        while one and other and _says(one[-1]) == _says(other[-1]):
            one.pop()
            other.pop()
            common.add(NOWHERE)
    meeting = next((at.start for at in one if at.start in common), NOWHERE)
    before = (itertools.takewhile(lambda at: at.start != meeting, way) for way in (one, other))
    return meeting if common and all(_prints_only(way, is_printer) for way in before) else None


def _says(at: Decoded) -> tuple[object, ...]:
    """Return what an instruction does, independent of its place."""
    fields = [(r.target, r.addend) for r in (at.displacement, at.immediate) if r is not None]
    return at.mnemonic, at.operands if at.immediate is None else (), *fields


def _is_branch(at: Decoded) -> bool:
    return at.mnemonic[0] == "j" and at.mnemonic != "jmp" and at.immediate is None


def _compares_registers(at: Decoded) -> bool:
    return at.mnemonic in ("cmp", "test") and not any(isinstance(each, Memory) for each in at.operands)


def _way(body: Body, place: int) -> Iterator[Decoded]:
    """Yield the instructions from a place on, along jumps, up to the next branch."""
    for _ in range(_ENOUGH):
        at = body.instructions.get(place)
        if at is None:
            return
        is_jump = at.mnemonic == "jmp" and at.immediate is None and isinstance(at.operands[0], Number)
        if at.mnemonic == "jmp" and at.immediate is not None:
            yield from _last_call(at)
            return
        if not is_jump:
            yield at
        if is_jump and isinstance(at.operands[0], Number):
            place = at.operands[0].value
        elif at.mnemonic[0] == "j" or at.mnemonic.startswith("ret"):
            return
        else:
            place = at.end


def _last_call(jump: Decoded) -> Iterator[Decoded]:
    """Yield what a jump to another function stands for: a call and a return, or only a return."""
    if _destination(jump) != _RETURN:
        yield replace(jump, mnemonic="call")
    yield replace(jump, mnemonic="ret", operands=(), displacement=None, immediate=None)


def _prints_only(way: Iterable[Decoded], is_printer: IsPrinter) -> bool:
    """Return whether instructions only fill registers for calls of printing functions."""
    pending = False
    for at in way:
        if at.mnemonic == "call":
            name = _destination(at)
            if name is None or not is_printer(name):
                return False
            pending = False
        elif at.mnemonic != "nop":
            into = at.operands[0] if at.operands else None
            if at.mnemonic not in _COPIES or not isinstance(into, Register) or into.number not in _USED_UP:
                return False
            pending = True
    return not pending


def _is_read(body: Body, place: int, register: int) -> bool:
    for at in _following(body, place):
        if register in at.reads:
            return True
        if at.mnemonic in ("call", "jmp") or at.mnemonic.startswith("ret") or register in at.writes:
            return False
        if at.mnemonic[0] == "j":
            return True  # it may be read after the jump
    return False


def _following(body: Body, place: int) -> Iterator[Decoded]:
    while (at := body.instructions.get(place)) is not None:
        yield at
        place = at.end


def _destination(at: Decoded) -> str | None:
    return at.destination.name if at.destination is not None else None


def _instruction_of(body: Body, relocation: Relocation) -> Decoded | None:
    return next((at for at in body.instructions.values() if at.start <= relocation.offset < at.end), None)
