# SPDX-License-Identifier: MIT
"""Find how code uses the members of objects: it sets one up, follows its pointer, or only touches it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NamedTuple

from hotreload.elf.decoded import (
    RSP,
    Body,
    Decoded,
    Memory,
    Number,
    Operand,
    Register,
    body_of,
    register_of_thunk,
)
from hotreload.elf.model import Symbol
from hotreload.elf.object_pointers import ARGUMENTS, WORD, Pointer, State, address_of, states_of, stored_by
from hotreload.elf.readers import READERS

# Words in the names of functions that make a member usable: __init_waitqueue_head(), hrtimer_setup().
_SETS_UP: Final = frozenset("init setup initialize".split())
# Words in the names of functions that undo something, and do nothing to what is not there: kfree(NULL).
_UNDOES: Final = frozenset(
    "free release put remove unregister destroy cleanup exit del delete disable unprepare stop unmap".split()
)
_LONGEST_PATH: Final = 4
# This minus the place of an instruction stands for the origin of a pointer that it uses, if that is unknown.
_UNKNOWN: Final = -100


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
    """A use of the memory at the end of a path.

    ``root``        where the path begins: a variable, a parameter by its number, or None if that is unknown
    ``path``        offsets in bytes; at each place but the last, a pointer is loaded
    ``came``        the symbol or the place in the code that the last pointer came from
    ``is_spilled``  that pointer was kept on the stack
    ``is_unknown``  that pointer may have come from several places
    """

    how: How
    root: Symbol | int | None
    path: tuple[int, ...]
    came: Symbol | int
    is_spilled: bool = False
    is_unknown: bool = False


def member_uses(function: Symbol) -> Iterator[MemberUse]:
    """Yield how the instructions of a function use memory that they reach through pointers.

    If the address of a whole object is passed on, that is no use of its first member.
    """
    body = body_of(function)
    uses = _Uses(body, states_of(body, liberal=True))
    for place, known in uses.states.items():
        at = body.instructions[place]
        for number, operand in enumerate(at.operands):
            if isinstance(operand, Memory) and at.mnemonic not in ("lea", "nop"):
                yield from uses.of_memory(at, number, operand, known)
        if at.mnemonic in ("call", "jmp"):
            yield from uses.of_call(at, known)


@dataclass
class _Uses:
    """``loads``: the addresses from which words are loaded, by the place of the instruction.

    ``checked``: those of these addresses whose value is compared with NULL.
    """

    body: Body
    states: dict[int, State]
    loads: dict[int, Pointer] = field(init=False)
    checked: set[Pointer] = field(init=False)

    def __post_init__(self) -> None:
        self.loads = dict(self._all_loads())
        self.checked = set(self._all_checked())

    def _all_loads(self) -> Iterator[tuple[int, Pointer]]:
        for place, known in self.states.items():
            at = self.body.instructions[place]
            if at.mnemonic == "mov" and len(at.operands) == 2 and isinstance(at.operands[0], Register):
                source = at.operands[1]
                if isinstance(source, Memory) and source.size == WORD:
                    address = _address(at, source, known)
                    if address is not None:
                        yield place, address

    def _all_checked(self) -> Iterator[Pointer]:
        for place, known in self.states.items():
            at = self.body.instructions[place]
            if not _compares_with_null(at):
                continue
            operand = at.operands[0]
            if isinstance(operand, Register):
                pointer = known.get(operand.number)
                address = self.loads.get(pointer.came) if pointer and isinstance(pointer.came, int) else None
            else:
                address = _address(at, operand, known)
            if address is not None:
                yield address

    def of_memory(self, at: Decoded, number: int, operand: Memory, known: State) -> Iterator[MemberUse]:
        if operand.base is not None:
            yield from self._followed(known.get(operand.base))
        into = _address(at, operand, known)
        if into is None or (at.mnemonic == "cmp" and into in self.checked):
            return
        if at.mnemonic == "mov" and number == 0 and operand.size == WORD:
            value = stored_by(at, known)
            if value is None and at.immediate is None and isinstance(at.operands[1], Number):
                return  # NULL, or a number
            yield self._use(How.EMPTIES if value == into else How.POINTS, into)
            return
        if at.mnemonic in ("call", "jmp") and into not in self.checked:
            yield self._use(How.FOLLOWS, into)
        yield self._use(How.TOUCHES, into)

    def of_call(self, at: Decoded, known: State) -> Iterator[MemberUse]:
        name = at.destination.name if at.destination is not None else ""
        words = frozenset(name.split("_"))
        callee = register_of_thunk(name)
        if callee is not None:
            yield from self._followed(known.get(callee))
        how = How.TOUCHES if _SETS_UP.isdisjoint(words) else How.SETS_UP
        is_followed = name not in READERS and _UNDOES.isdisjoint(words)
        for register in ARGUMENTS:
            pointer = known.get(register)
            if is_followed:
                yield from self._followed(pointer)
            if pointer is not None and (isinstance(pointer.came, Symbol) or pointer.offset):
                yield self._use(how, pointer)

    def _followed(self, pointer: Pointer | None) -> Iterator[MemberUse]:
        """Yield the use of the member from which a pointer was loaded that the code follows."""
        member = (
            self.loads.get(pointer.came) if pointer is not None and isinstance(pointer.came, int) else None
        )
        if member is not None and member not in self.checked:
            yield self._use(How.FOLLOWS, member)

    def _use(self, how: How, pointer: Pointer) -> MemberUse:
        root, path = self._path(pointer)
        if isinstance(pointer.came, int) and pointer.came <= _UNKNOWN:
            return MemberUse(how, root, path, pointer.came, is_unknown=True)
        at = self.body.instructions.get(pointer.came) if isinstance(pointer.came, int) else None
        if at is None or at.mnemonic == "call":
            return MemberUse(how, root, path, pointer.came)
        source = at.operands[1] if at.mnemonic == "mov" and len(at.operands) > 1 else None
        is_spilled = isinstance(source, Memory) and source.base in self.body.frame
        return MemberUse(how, root, path, pointer.came, is_spilled, not isinstance(source, Memory))

    def _path(self, pointer: Pointer) -> tuple[Symbol | int | None, tuple[int, ...]]:
        offsets = [pointer.offset]
        came = pointer.came
        while isinstance(came, int) and came in self.loads and len(offsets) < _LONGEST_PATH:
            address = self.loads[came]
            offsets.append(address.offset)
            came = address.came
        if isinstance(came, Symbol):
            return came, tuple(reversed(offsets))
        if _UNKNOWN < came < 0:
            return ARGUMENTS.index(-1 - came), tuple(reversed(offsets))
        return None, (pointer.offset,)


def _address(at: Decoded, operand: Operand, known: State) -> Pointer | None:
    """Return the address that a memory operand names. The pointer may be unknown, but not the offset."""
    address = address_of(at, operand, known)
    if address is None and isinstance(operand, Memory) and at.displacement is None and operand.index is None:
        return Pointer(_UNKNOWN - at.start, operand.displacement) if operand.base not in (None, RSP) else None
    return address


def _compares_with_null(at: Decoded) -> bool:
    if at.mnemonic == "test":
        return at.operands[0] == at.operands[1]
    return at.mnemonic == "cmp" and at.immediate is None and at.operands[1] == Number(0)
