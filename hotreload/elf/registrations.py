# SPDX-License-Identifier: MIT
"""With which member of an object code registers a function.

``timer_setup(&dev->a, tick, 0)`` passes the address of ``tick`` together with that of a member of ``*dev``,
and ``INIT_WORK(&dev->work, poll)`` stores the address of ``poll`` in one. How far the member lies behind the
pointer that the code began with is a number in the instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hotreload.elf.decoded import RDI, Decoded, Memory, Number, Register, body_of
from hotreload.elf.model import Symbol, SymbolRef

# psABI, 3.2.3: what a call may change, and where its arguments are.
_CALL_USES: Final = frozenset((0, 1, 2, 6, 7, 8, 9, 10, 11))
_STORED: Final = "="


@dataclass(frozen=True, slots=True)
class Registration:
    """``by``: the function that is called, or "=" where it is stored; ``object``: the symbol that the pointer
    was made of, "" for one that was found at run time; ``offset`` in bytes from there."""

    by: str
    object: str
    offset: int


@dataclass(frozen=True, slots=True)
class _Pointer:
    object: str
    offset: int


def registrations_of(holder: Symbol, function: Symbol) -> Iterator[Registration]:
    """Where the code of ``holder`` puts the address of ``function``, as far as a glance can tell.

    What is known of registers is forgotten wherever a jump leads.
    """
    body = body_of(holder).instructions
    targets = {target for at in body.values() if (target := _jumps_to(at)) is not None}
    known: dict[int, _Pointer] = {}
    holding: set[int] = set()
    for place, at in body.items():
        if place in targets:
            known, holding = {}, set()
        callee = at.destination.name if at.destination is not None else ""
        if at.mnemonic in ("call", "jmp") and holding - {RDI} and RDI in known and callee:
            yield Registration(callee, known[RDI].object, known[RDI].offset)
        if at.mnemonic == "call":
            known = {register: each for register, each in known.items() if register not in _CALL_USES}
            holding -= _CALL_USES
            continue
        if _takes(at, function):
            into = at.operands[0]
            if isinstance(into, Memory) and into.base is not None and into.index is None:
                pointer = known.get(into.base, _Pointer("", 0))
                yield Registration(_STORED, pointer.object, pointer.offset + into.displacement)
            elif isinstance(into, Register):
                holding.add(into.number)
                known.pop(into.number, None)
            continue
        pointer_made = _made(at, known)
        holding -= at.writes
        known = {register: each for register, each in known.items() if register not in at.writes}
        if pointer_made is not None:
            known[pointer_made[0]] = pointer_made[1]
        if at.mnemonic in ("jmp", "ret"):
            known, holding = {}, set()


def _made(at: Decoded, known: dict[int, _Pointer]) -> tuple[int, _Pointer] | None:
    """The register that becomes a pointer, and which."""
    if len(at.operands) != 2 or not isinstance(into := at.operands[0], Register) or into.size < 8:
        return None
    source = at.operands[1]
    if at.immediate is not None:
        target = at.immediate.target
        if at.mnemonic in ("mov", "movabs") and isinstance(target, SymbolRef):
            return into.number, _Pointer(target.symbol.name, at.immediate.addend)
        return None
    if at.mnemonic == "mov" and isinstance(source, Register):
        return into.number, known.get(source.number, _Pointer("", 0))
    if at.mnemonic == "mov" and isinstance(source, Memory):
        return into.number, _Pointer("", 0)
    if at.mnemonic == "lea" and isinstance(source, Memory) and source.index is None:
        if source.base is None or at.displacement is not None:
            return None
        return into.number, _moved(known.get(source.base), source.displacement)
    if at.mnemonic in ("add", "sub") and isinstance(source, Number):
        by = source.value if at.mnemonic == "add" else -source.value
        return into.number, _moved(known.get(into.number), by)
    return None


def _moved(pointer: _Pointer | None, by: int) -> _Pointer:
    pointer = pointer or _Pointer("", 0)
    return _Pointer(pointer.object, pointer.offset + by)


def _takes(at: Decoded, function: Symbol) -> bool:
    relocation = at.immediate
    return (
        at.mnemonic in ("mov", "movabs")
        and relocation is not None
        and relocation.target == SymbolRef(function)
        and relocation.addend == 0
    )


def _jumps_to(at: Decoded) -> int | None:
    if at.mnemonic[0] != "j" or at.immediate is not None or not at.operands:
        return None
    to = at.operands[0]
    return to.value if isinstance(to, Number) else None
