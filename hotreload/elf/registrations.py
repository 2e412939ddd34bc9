# SPDX-License-Identifier: MIT
"""Find the member of an object with which code registers a function.

``timer_setup(&dev->a, tick, 0)`` passes the address of ``tick`` together with that of a member of ``*dev``.
``request_irq(n, handle, 0, "", &dev->a)`` passes the member as the argument of ``handle``.
``INIT_WORK(&dev->work, poll)`` stores the address of ``poll`` in the member. The offset of the member from
the pointer that the code started with is a number in the instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hotreload.elf.decoded import Memory, body_of
from hotreload.elf.model import Symbol
from hotreload.elf.object_pointers import ARGUMENTS, Pointer, states_of, stored_at, stored_by
from hotreload.elf.readers import AT_ONCE, forgets

_STORED: Final = "="


@dataclass(frozen=True, slots=True)
class Registration:
    """The address of a function is passed along with an object, or stored in one.

    ``by``: the function that is called, or "=" for a store. ``argument``: the number of the argument that is
    the object. ``object``: the symbol that the pointer to the object was made from, "" if it was found at run
    time. ``offset``: in bytes from there.
    """

    by: str
    object: str
    offset: int
    argument: int = 0


def registrations_of(holder: Symbol, sought: frozenset[Symbol]) -> Iterator[Registration]:
    """Yield where the code of ``holder`` puts the address of a function, or of a table that contains it."""
    body = body_of(holder)
    for place, known in states_of(body).items():
        at = body.instructions[place]
        if at.mnemonic in ("call", "jmp") and at.destination is not None:
            name = at.destination.name
            passed = [(n, known[register]) for n, register in enumerate(ARGUMENTS) if register in known]
            if name in AT_ONCE or forgets(name) or not any(each.came in sought for _, each in passed):
                continue
            for number, each in passed:
                if each.came not in sought:
                    yield Registration(name, _object(each), each.offset, number)
        elif at.mnemonic == "mov" and isinstance(at.operands[0], Memory):
            what, where = stored_by(at, known), stored_at(at, known)
            if what is not None and what.came in sought and where is not None:
                yield Registration(_STORED, _object(where), where.offset)


def _object(pointer: Pointer) -> str:
    return pointer.came.name if isinstance(pointer.came, Symbol) else ""
