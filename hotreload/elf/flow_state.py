# SPDX-License-Identifier: MIT
"""The state of the registers and the stack while an address is followed through a function.

A value has a *level*: 0 is the address itself (or one computed from it), 1 what was loaded through it, and so
on up to the depth that the caller asks for. A register or a slot of the function's own stack holds a set of
levels. A value that is put anywhere else has *got away*. An instruction that is not understood lets every
value that it uses get away.

If a register holds the address on only one of two paths that join, its levels include OTHER. So a comparison
is harmless only if no pointer from elsewhere can be in the register.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from hotreload.elf.decoded import (
    RAX,
    RBP,
    RCX,
    RDI,
    RDX,
    RSI,
    RSP,
    Decoded,
    Memory,
    Number,
    Operand,
    Register,
)
from hotreload.elf.model import Relocation

Levels = frozenset[int]
NONE: Final[Levels] = frozenset()
# OTHER is any other value; NUMBER is a number in the code itself (NULL).
OTHER: Final = -1
NUMBER: Final[Levels] = frozenset((-2,))
# rdi rsi rdx rcx r8 r9 (psABI 3.2.3)
ARGUMENTS: Final = (RDI, RSI, RDX, RCX, 8, 9)
# The registers that a call clobbers. With -pg, gcc assumes that a callee uses all of them (no -fipa-ra).
USED_UP: Final = frozenset((RAX, RCX, RDX, RSI, RDI, 8, 9, 10, 11))

_MOVES: Final = frozenset(("mov", "movabs", "movzx", "movsx", "movsxd"))
# The result has the levels of the operands.
_MIXES: Final = frozenset(
    """add adc sbb and or xor imul shl sal shr sar rol ror rcl rcr neg not inc dec bswap bts btr btc
    andn""".split()
)
_NEUTRAL: Final = frozenset(
    """nop endbr64 test bt pause lfence mfence sfence int3 ud2 prefetcht0 prefetchnta prefetchw prefetcht1
    clac stac cld cdqe cwde cbw clflush""".split()
)
_FAR: Final = 1 << 20
_STRINGS: Final = ("movs", "stos", "lods", "scas", "cmps")


class GotAwayError(Exception):
    """A value got away. The message says how, as the rest of a sentence that begins with the function.

    ``is_sure``: the answer does not depend on what else is known of the function, its stack and its callers.
    """

    def __init__(self, how: str, is_sure: bool = False) -> None:
        super().__init__(how)
        self.is_sure = is_sure


def lose(levels: Levels, least: int, how: str, is_sure: bool = False) -> None:
    """Raise GotAwayError(``how``) if one of these levels is at least ``least``."""
    if any(level >= least for level in levels):
        raise GotAwayError(how, is_sure)


@dataclass(frozen=True, slots=True)
class State:
    """What the registers and the stack hold at one place in the code.

    ``registers`` (by number) and ``slots`` (by offset from the stack pointer at the function's entry) hold
    levels. ``frame`` lists the registers that point into the stack, each with its offset.
    """

    registers: frozenset[tuple[int, Levels]] = frozenset()
    slots: frozenset[tuple[int, Levels]] = frozenset()
    frame: frozenset[tuple[int, int]] = frozenset()

    def of(self, register: int | None) -> Levels:
        return next((levels for number, levels in self.registers if number == register), NONE)

    def slot(self, offset: int) -> Levels:
        return next((levels for place, levels in self.slots if place == offset), NONE)

    def offset_of(self, register: int | None) -> int | None:
        return next((offset for number, offset in self.frame if number == register), None)

    def having(self, register: int, levels: Levels) -> State:
        others = {pair for pair in self.registers if pair[0] != register}
        frame = self.frame if self.offset_of(register) is None else self._unframed(register)
        return replace(
            self, registers=frozenset(others | ({(register, levels)} if levels else set())), frame=frame
        )

    def pointing(self, register: int, offset: int | None) -> State:
        """Return the state after the register is set to point into the stack at ``offset``.

        None: it does not point into the stack, or the offset is unknown.
        """
        rest = self.having(register, NONE)
        pairs = rest._unframed(register) | ({(register, offset)} if offset is not None else set())
        return replace(rest, frame=frozenset(pairs))

    def _unframed(self, register: int) -> frozenset[tuple[int, int]]:
        return frozenset(pair for pair in self.frame if pair[0] != register)

    def storing(self, offset: int, levels: Levels) -> State:
        others = {pair for pair in self.slots if pair[0] != offset}
        return replace(self, slots=frozenset(others | ({(offset, levels)} if levels else set())))

    def joined(self, other: State) -> State:
        """Return the state that may hold after either of two paths to one place."""
        if self == other:
            return self
        return State(
            _united(self.registers, other.registers),
            _united(self.slots, other.slots),
            self.frame & other.frame,
        )

    @property
    def levels(self) -> Levels:
        """The levels of all registers and slots, without OTHER and NUMBER."""
        held = (*self.registers, *self.slots)
        return frozenset(level for _, levels in held for level in levels if level >= 0)


def _united(
    one: frozenset[tuple[int, Levels]], other: frozenset[tuple[int, Levels]]
) -> frozenset[tuple[int, Levels]]:
    ours, theirs = dict(one), dict(other)
    found = {place: either(ours.get(place, NONE), theirs.get(place, NONE)) for place in ours | theirs}
    return frozenset((place, levels) for place, levels in found.items() if levels)


def either(one: Levels, other: Levels) -> Levels:
    """Return the levels of a value that is one or the other."""
    found = one | other | (NONE if one and other else {OTHER})
    return found if is_held(found) or found == NUMBER else NONE


def is_held(levels: Levels) -> bool:
    """Return whether a value may be one that is followed."""
    return any(level >= 0 for level in levels)


@dataclass(frozen=True, slots=True)
class Step:
    """The effect of one instruction, other than a branch, on a state.

    ``is_source``: whether a relocation makes the address that is followed. ``is_loaded``: whether a load
    matters whose address is a relocation without registers. ``least``: the lowest level that counts if a
    value gets away; ``least_compared``: the same for comparisons. ``depth``: the level up to which loads are
    followed. ``is_exposed``: whether others may have a pointer to the function's stack.
    """

    is_source: Callable[[Relocation], bool]
    is_loaded: Callable[[Relocation, Decoded], bool]
    least: int
    least_compared: int
    depth: int
    is_exposed: Callable[[], bool]

    def after(self, at: Decoded, state: State) -> State:
        """Return the state after an instruction. Raises GotAwayError."""
        word = at.mnemonic
        operands = at.operands
        if word in _MOVES:
            return self._put(at, state, operands[0], self.value(at, state, operands[1]), operands[1])
        if word == "lea":
            return self._lea(at, state)
        if word == "push":
            return self._push(at, state)
        if word == "pop":
            return self._pop(state, operands[0])
        if word in ("cmp", "sub"):
            return self._compare(at, state)
        if word.startswith("cmov"):
            found = either(self.value(at, state, operands[0]), self.value(at, state, operands[1]))
            return self._put(at, state, operands[0], found, operands[1])
        if word in _MIXES:
            return self._mix(at, state)
        if word in _NEUTRAL:
            return state
        if word == "leave":
            return replace(state, frame=frozenset())
        if any(word.split(" ")[-1].startswith(each) for each in _STRINGS):
            return self._string(at, state)
        return self._unknown(at, state)

    # --- operands ---

    def value(self, at: Decoded, state: State, operand: Operand) -> Levels:
        """Return the levels of an operand's value; for a memory operand, of what the memory holds."""
        if isinstance(operand, Register):
            return state.of(operand.number)
        if isinstance(operand, Number):
            if at.immediate is None:
                return NUMBER
            return frozenset((0,)) if self.is_source(at.immediate) else NONE
        offset = self._slot(state, operand)
        if offset is not None:
            return state.slot(offset)
        if state.offset_of(operand.base) is not None or state.offset_of(operand.index) is not None:
            # An element of an array on the stack, with an unknown index.
            return either(NONE.union(*(levels for _, levels in state.slots)), NONE)
        if operand.size != 8 or not operand.plain:
            return NONE
        direct = at.displacement is not None and operand.base is None and operand.index is None
        if direct and at.displacement is not None and not self.is_loaded(at.displacement, at):
            return NONE
        return frozenset(level + 1 for level in self.address(at, state, operand) if 0 <= level < self.depth)

    def address(self, at: Decoded, state: State, memory: Memory) -> Levels:
        """Return the levels of the address of a memory operand."""
        own = at.displacement is not None and self.is_source(at.displacement)
        return state.of(memory.base) | state.of(memory.index) | (frozenset((0,)) if own else NONE)

    def _slot(self, state: State, memory: Memory) -> int | None:
        offset = state.offset_of(memory.base)
        return offset + memory.displacement if offset is not None and memory.index is None else None

    def _put(self, at: Decoded, state: State, target: Operand, levels: Levels, source: Operand) -> State:
        if isinstance(target, Register):
            if target.number < 0:
                return self._unknown(at, state)
            if target.size < 4:
                levels |= state.of(target.number)
            if isinstance(source, Register) and at.mnemonic == "mov" and target.size == 8:
                offset = state.offset_of(source.number)
                if offset is not None:
                    return state.pointing(target.number, offset)
            return state.having(target.number, levels)
        assert isinstance(target, Memory)
        offset = self._slot(state, target)
        if offset is None:
            lose(levels, self.least, "stores it", target.base not in (RSP, RBP))
            return state
        if is_held(levels) and self.is_exposed():
            lose(levels, self.least, "stores it where other code may find it")
        return state.storing(offset, levels if target.size == 8 else levels | state.slot(offset))

    # --- kinds of instructions ---

    def _lea(self, at: Decoded, state: State) -> State:
        target, memory = at.operands
        assert isinstance(target, Register)
        assert isinstance(memory, Memory)
        offset = self._slot(state, memory)
        if offset is not None:
            return state.pointing(target.number, offset)
        return state.having(target.number, self.address(at, state, memory))

    def _push(self, at: Decoded, state: State) -> State:
        levels = self.value(at, state, at.operands[0])
        top = state.offset_of(RSP)
        if top is None or (is_held(levels) and self.is_exposed()):
            lose(levels, self.least, "stores it")
        if top is None:
            return state
        moved = state.pointing(RSP, top - 8)
        return moved.storing(top - 8, levels)

    def _pop(self, state: State, target: Operand) -> State:
        top = state.offset_of(RSP)
        levels = state.slot(top) if top is not None else NONE
        if not isinstance(target, Register):
            lose(levels, self.least, "stores it")
            return state
        found = state.having(target.number, levels)
        if target.number == RSP or top is None:
            return found
        return found.storing(top, NONE).pointing(RSP, top + 8)

    def _compare(self, at: Decoded, state: State) -> State:
        """Handle CMP and SUB.

        They are harmless between two addresses of one object, or an address and a number: no address from
        elsewhere is involved.
        """
        target, source = at.operands
        ours, theirs = self.value(at, state, target), self.value(at, state, source)
        if not (ours and theirs) or OTHER in ours | theirs:
            lose(ours | theirs, self.least_compared, "compares something with it")
        if at.mnemonic == "cmp":
            return state
        if isinstance(target, Register) and target.number == RSP:
            return self._move_stack(state, source, "sub")
        if is_held(theirs) or not is_held(ours):
            ours = NONE  # a difference
        return self._put(at, state, target, ours, source) if isinstance(target, Register) or ours else state

    def _mix(self, at: Decoded, state: State) -> State:
        target = at.operands[0]
        if isinstance(target, Register) and target.number == RSP:
            return self._move_stack(state, at.operands[1], at.mnemonic)
        if at.mnemonic == "xor" and target == at.operands[1] and isinstance(target, Register):
            return state.having(target.number, NUMBER)
        found = NONE.union(*(self.value(at, state, operand) for operand in at.operands))
        levels = found - NUMBER if is_held(found) else NONE
        if at.mnemonic == "imul" and len(at.operands) == 1:
            return self._unknown(at, state)
        if not levels and not isinstance(target, Register):
            return state
        return self._put(at, state, target, levels, target)

    def _move_stack(self, state: State, by: Operand, word: str) -> State:
        top = state.offset_of(RSP)
        if top is None or not isinstance(by, Number):
            return replace(state, frame=frozenset())
        if word == "and":
            return state.pointing(RSP, top - _FAR)  # aligned; _FAR keeps new slots apart from old ones
        return state.pointing(RSP, top - by.value if word == "sub" else top + by.value)

    def _string(self, at: Decoded, state: State) -> State:
        """Handle MOVS and its relatives, which read memory at rsi, write it at rdi, and advance both."""
        kind = next(each for each in _STRINGS if at.mnemonic.split(" ")[-1].startswith(each))
        read = frozenset(level + 1 for level in state.of(RSI) if 0 <= level < self.depth)
        if kind in ("stos", "scas", "movs"):
            lose(read if kind == "movs" else state.of(RAX), self.least, "stores it")
        if kind == "lods":
            return state.having(RAX, read)
        return state

    def _unknown(self, at: Decoded, state: State) -> State:
        """Handle an instruction that is not understood.

        A register that is used only in the address of a memory operand does not get away: that is a load or a
        store like any other.
        """
        addresses = {r for o in at.operands if isinstance(o, Memory) for r in (o.base, o.index)}
        named = {o.number for o in at.operands if isinstance(o, Register)}
        used = [state.of(register) for register in (at.reads - addresses) | (named & at.reads)]
        used += [self.value(at, state, o) for o in at.operands if not isinstance(o, Register)]
        lose(NONE.union(*used), self.least, f"uses it in '{at.mnemonic}'")
        for register in at.writes:
            state = state.having(register, self._left(at, state, register))
        return state

    def _left(self, at: Decoded, state: State, register: int) -> Levels:
        """Return the levels left in a register that is written: all if only a part is written, else none."""
        parts = [o for o in at.operands if isinstance(o, Register) and o.number == register and o.size < 4]
        return state.of(register) if parts else NONE
