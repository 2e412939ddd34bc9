# SPDX-License-Identifier: MIT
"""Follow an address that code makes to all its uses, to find out who may hold it.

When an edit changes a constant, a string or a place in code, may somebody still use the old one? The address
is followed through registers and the function's own stack, along every path that the code can take, into
functions of the same object that it is passed to, and back to the callers of a function that returns it.
Loads through it are harmless. It *gets away* when it is stored, compared with an address from elsewhere,
passed to a function that is not known to read and forget it, or used by an instruction that is not
understood. So the answer None is a proof that nobody holds it; any other answer only means that somebody may.

Rejected: judging by the shape of the code around the instruction that makes the address. One more instruction
in between changed the answer.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from hotreload.elf.constants import STB_WEAK
from hotreload.elf.decoded import RAX, RDI, RDX, REGISTER_NAMES, RSI, RSP, Decoded, Memory, Register, body_of
from hotreload.elf.flow_state import (
    ARGUMENTS,
    NONE,
    USED_UP,
    GotAwayError,
    Levels,
    State,
    Step,
    either,
    is_held,
    lose,
)
from hotreload.elf.model import ConstRef, Relocation, Symbol, SymbolRef, Target
from hotreload.elf.readers import CALLERS, FINDERS, KEEP_FIRST
from hotreload.elf.references import is_direct_branch, points_at_start, start_of, takes_address

# Function -> place in it -> where control may go besides the next instruction and the targets of branches:
# jump labels, and the code that handles a fault.
Detours = Mapping[Symbol, Mapping[int, Sequence[tuple[Symbol, int]]]]
# (function, levels of its argument registers) -> the levels that it returns, or how it lets them get away.
_Passed = dict[tuple[Symbol, frozenset[tuple[int, Levels]]], Levels | str]
NEVER: Final = 99
# The number of registers that return a struct of 16 bytes: RAX and RDX.
TWO: Final = 2
_DEEPEST: Final = 5  # nested calls of functions of the object
# It preserves all registers (arch/x86/kernel/ftrace_64.S).
_TRACER: Final = "__fentry__"
_RETURNS: Final = "__x86_return_thunk"
# Calls through a register with retpolines, and static calls, whose target may have been updated.
_INDIRECT: Final = (
    "__x86_indirect_thunk_",
    "__x86_indirect_call_thunk_",
    "__x86_indirect_jump_thunk_",
    "__SCT__",
)
# Instructions that neither branch nor read the flags.
_ALIGNING: Final = frozenset("mov lea add sub shr shl and xor".split())
_ENTRY: Final = State(frame=frozenset(((RSP, 0),)))


@dataclass(frozen=True, slots=True)
class Sought:
    """What is followed: addresses of ``target``, and what is loaded through them up to level ``depth``.

    ``least``: the lowest level that counts if a value gets away; NEVER: none does. ``least_compared``: the
    same for comparisons, if it differs. ``places``: the offsets in the target from which loads matter, if the
    instruction names the offset; None: all. ``at``: the offsets of the only relocations that count; None:
    all. ``is_label``: the search is for places inside a function, not for its start; no function outside the
    object jumps to such a place.
    """

    target: Target
    depth: int = 0
    least: int = 0
    least_compared: int | None = None
    places: frozenset[int] | None = None
    at: frozenset[int] | None = None
    is_label: bool = False

    def is_source(self, holder: Symbol, relocation: Relocation) -> bool:
        if self.at is not None and relocation.offset not in self.at:
            return False
        if relocation.target != self.target:
            return False
        if self.is_label:
            branch = is_direct_branch(holder.content, relocation.offset)
            return not branch and not points_at_start(holder, relocation)
        return True


@dataclass(slots=True)
class AddressFlow:
    """The flows of one object. ``symbols`` are all its symbols if ``is_whole``, else only some.

    ``forgets``: whether a function of that name, which the object does not define, is sure to keep nothing
    that it is passed. ``registers``: the largest number of registers in which a function of the object
    returns something. No caller looks at what is left in the other registers.
    """

    symbols: Sequence[Symbol]
    forgets: Callable[[str], bool]
    detours: Detours = field(default_factory=dict)
    is_whole: bool = True
    registers: Callable[[Symbol], int] = lambda _function: TWO
    _passed: dict[object, _Passed] = field(default_factory=dict)
    _callers: dict[Symbol, list[tuple[Symbol, Relocation]]] | None = None

    def gets_away(self, sought: Sought, holders: Iterable[Symbol]) -> str | None:
        """Return who lets an address get away, and how, as text for the user; None if nobody does.

        ``holders``: the functions that have relocations to the target.
        """
        # What a callee does with an argument does not depend on the target, so searches for other targets
        # share these answers. A search drops them when it finds a function that returns the address.
        passed = self._passed.setdefault(replace(sought, target=ConstRef(b""), at=None), {})
        return _Search(self, sought, passed=passed).run(holders)

    def callers_of(self, function: Symbol) -> list[tuple[Symbol, Relocation]]:
        """Return all symbols that refer to a function, each with the relocation that refers to it."""
        if self._callers is None:
            found = defaultdict(list)
            for symbol in self.symbols:
                if symbol.section is not None and symbol.section.is_allocated:
                    for relocation in symbol.relocations:
                        if isinstance(relocation.target, SymbolRef) and relocation.target.symbol.is_function:
                            found[relocation.target.symbol].append((symbol, relocation))
            self._callers = dict(found)
        return self._callers.get(function, [])


@dataclass(slots=True)
class _Search:
    """The state of one search.

    ``returning``: the functions that return what is sought, with its levels. ``passed``: what is known of
    functions to which it is passed, by function and argument registers.
    """

    flow: AddressFlow
    sought: Sought
    returning: dict[Symbol, Levels] = field(default_factory=dict)
    passed: _Passed = field(default_factory=dict)

    def run(self, holders: Iterable[Symbol]) -> str | None:
        todo = list(holders)
        failed: dict[Symbol, str] = {}
        while todo:
            function = todo.pop()
            failed.pop(function, None)
            try:
                returned = _Walk(self, function, 0).run(_ENTRY)
                returned |= self.returning.get(function, NONE)
                if is_held(returned) and returned != self.returning.get(function):
                    callers = list(self._given_back(function, returned))
                    self.returning[function] = returned
                    # A function that failed may have compared the address with what this one returns.
                    todo += dict.fromkeys((*callers, *failed))
                    self.passed = {}
            except GotAwayError as how:
                failed[function] = f"{_in_source(function)} {how}"
        return next(iter(failed.values()), None)

    def _given_back(self, function: Symbol, returned: Levels) -> Iterator[Symbol]:
        """Yield the callers of a function that returns what is sought.

        Raises GotAwayError if it may have callers that are not known.
        """
        users = self.flow.callers_of(function)
        if not function.is_local or not self.flow.is_whole or not all(_is_call(*user) for user in users):
            lose(returned, self.sought.least, "returns it")
        yield from (caller for caller, relocation in users if _is_call(caller, relocation))

    def called(self, function: Symbol, state: State, depth: int) -> Levels:
        """Return the levels that a function of the object returns when it is passed what is sought.

        Raises GotAwayError.
        """
        arguments = frozenset((n, levels) for n, levels in state.registers if n in ARGUMENTS)
        key = function, arguments
        if key not in self.passed:
            self.passed[key] = f"passes it to {function.name}, which calls itself"
            if depth >= _DEEPEST:
                raise GotAwayError(f"passes it to {function.name}", is_sure=True)
            try:
                entry = State(registers=arguments, frame=_ENTRY.frame)
                self.passed[key] = _Walk(self, function, depth + 1).run(entry)
            except GotAwayError as how:
                self.passed[key] = f"passes it to {_in_source(function)}, which {how}"
        known = self.passed[key]
        if isinstance(known, str):
            raise GotAwayError(known, is_sure=True)
        return known


@dataclass(slots=True)
class _Walk:
    """A walk through one function, along every path, until no state changes any more."""

    search: _Search
    function: Symbol
    depth: int
    states: dict[tuple[Symbol, int], State] = field(default_factory=dict)
    todo: list[tuple[Symbol, int]] = field(default_factory=list)
    returned: Levels | None = None
    steps: dict[Symbol, Step] = field(default_factory=dict)
    is_alone: bool = False  # do not follow states that hold nothing sought

    def run(self, entry: State) -> Levels:
        """Return the levels that the function returns. Raises GotAwayError.

        Most addresses are made and used up within a few instructions, so the walk first starts at the
        instructions that make them. If that proves nothing, the function is followed from its entry.
        """
        sources = list(self._sources())
        if not entry.levels and self._is_used_up(sources):
            return NONE
        self._reach(self.function, 0, entry)
        self._go_on()
        # A source not reached so far lies behind a jump that was not understood. Nothing is known of its
        # stack.
        for source in sources:
            if (self.function, source) not in self.states:
                self._reach(self.function, source, State())
                self._go_on()
        return self.returned or NONE

    def _is_used_up(self, sources: list[int]) -> bool:
        self.is_alone = True
        try:
            for source in sources:
                self.states.setdefault((self.function, source), _ENTRY)
                self.todo.append((self.function, source))
                self._go_on()
        except GotAwayError as how:
            if how.is_sure:
                raise
            return self._forget()
        if not is_held(self.returned or NONE):
            return True
        if not self.search.flow.is_whole:
            lose(self.returned or NONE, self.search.sought.least, "returns it")
        return self._forget()

    def _forget(self) -> bool:
        self.states, self.todo, self.returned, self.is_alone = {}, [], None, False
        return False

    def _sources(self) -> Iterator[int]:
        """Yield the instructions that make what is sought, or that call a function that returns it.

        Raises GotAwayError if the code cannot be decoded.
        """
        sought, returning = self.search.sought, self.search.returning
        for relocation in self.function.relocations:
            target = relocation.target
            returns = isinstance(target, SymbolRef) and target.symbol in returning
            if returns or sought.is_source(self.function, relocation):
                start = start_of(self.function, relocation)
                if start is None:
                    raise GotAwayError("has instructions that cannot be decoded")
                yield start

    def _reach(self, function: Symbol, place: int, state: State) -> None:
        key = function, place
        if self.is_alone and not state.levels:
            return
        known = self.states.get(key)
        joined = state if known is None else known.joined(state)
        if known is None or joined != known:
            self.states[key] = joined
            self.todo.append(key)

    def _go_on(self) -> None:
        while self.todo:
            function, place = key = self.todo.pop()
            at = body_of(function).at(place)
            if at is None:
                self._lose(self.states[key].levels, "has code that could not be followed")
                continue
            self._advance(function, at, self.states[key])

    def _advance(self, function: Symbol, at: Decoded, state: State) -> None:
        for other, target in self.search.flow.detours.get(function, {}).get(at.start, ()):
            self._reach(other, target, state)
        if at.mnemonic == "call":
            after = self._call(function, at, state)
            # A function ends with a call only if the callee does not return, as __stack_chk_fail().
            if at.end < function.size:
                self._reach(function, at.end, after)
        elif at.mnemonic.startswith("ret"):
            self._return(state)
        elif at.mnemonic.startswith(("j", "loop")):
            self._jump(function, at, state)
        elif _is_aligned_copy(function, at):
            self._reach(function, at.end, state)
        else:
            self._reach(function, at.end, self._step(function).after(at, state))

    def _step(self, function: Symbol) -> Step:
        if function not in self.steps:
            sought = self.search.sought
            self.steps[function] = Step(
                lambda r: sought.is_source(function, r),
                lambda r, at: sought.places is None or not sought.places.isdisjoint(_places(r, at)),
                sought.least,
                sought.least if sought.least_compared is None else sought.least_compared,
                sought.depth,
                # A label on the stack is gone when the function returns, no matter who sees the stack.
                lambda: not sought.is_label and body_of(function).exposes_stack,
            )
        return self.steps[function]

    # --- branches ---

    def _jump(self, function: Symbol, at: Decoded, state: State) -> None:
        relocation = at.immediate
        if at.mnemonic != "jmp":
            self._reach(function, at.end, state)
        if relocation is not None and isinstance(relocation.target, SymbolRef) and not _is_indirect(at):
            target = relocation.target.symbol
            place = relocation.addend + at.end - relocation.offset
            if target is function or _are_parts(function, target):
                self._reach(target, place, state)
            elif target.name == _RETURNS:
                self._return(state)
            elif target.name.startswith(_INDIRECT):
                self._leave(function, at, state)
            elif place == 0:
                self._return(self._call(function, at, state))
            else:
                self._lose(state.levels, f"jumps into the middle of {target.name}")
        elif at.operands and not isinstance(at.operands[0], Register | Memory):
            self._reach(function, at.operands[0].value, state)
        else:
            self._leave(function, at, state)

    def _leave(self, function: Symbol, at: Decoded, state: State) -> None:
        """Handle a jump through a register or memory: to a label, a case of a switch, or another function."""
        used = {o.number for o in at.operands if isinstance(o, Register)}
        name = _branch_name(at)
        if name is not None:
            used = {n for n, _ in state.registers if _thunk_of(name, n)}
        kept = State(frozenset(pair for pair in state.registers if pair[0] not in used), state.slots)
        self._lose(_passed(kept), "passes it to a function through a pointer")
        for target, place in labels_of(function):
            if target is function or _are_parts(function, target):
                self._reach(target, place, state)

    def _lose(self, levels: Levels, how: str, is_sure: bool = False) -> None:
        lose(levels, self.search.sought.least, how, is_sure)

    def _return(self, state: State) -> None:
        registers = self.search.flow.registers(self.function)
        if not registers:
            return
        found = state.of(RAX)
        if is_held(state.of(RDX)) and not is_held(found):
            # The second half of a struct of 16 bytes (System V psABI, 3.2.3), or a leftover value.
            found = state.of(RDX) if registers == TWO else found
        self.returned = found if self.returned is None else either(self.returned, found)

    def _call(self, function: Symbol, at: Decoded, state: State) -> State:
        """Return the state after a call. Raises GotAwayError if the callee may keep what it is passed."""
        name = _branch_name(at)
        if name == _TRACER:
            return state
        result = NONE
        if name is None or name.startswith(_INDIRECT):
            self._lose(_passed(state), "passes it to a function through a pointer", True)
        else:
            assert at.immediate is not None
            assert isinstance(at.immediate.target, SymbolRef)
            callee = at.immediate.target.symbol
            result = self._answer(function, callee, state)
        after = state
        for register in USED_UP:
            after = after.having(register, NONE)
        return after.having(RAX, result)

    def _answer(self, function: Symbol, callee: Symbol, state: State) -> Levels:
        """Return the levels that a callee returns. Raises GotAwayError if it may keep what it is passed."""
        known = self.search.returning.get(callee, NONE)
        if not is_held(_passed(state)):
            return known
        how = f"passes it to {callee.name}"
        if callee.is_defined and callee.is_function and callee.binding != STB_WEAK:
            self._lose(NONE.union(*(levels for _, levels in _on_top(state))), how)
            return (
                either(known, self.search.called(callee, state, self.depth))
                if known
                else self.search.called(callee, state, self.depth)
            )
        if callee.is_defined or not (self.search.sought.is_label or self.search.flow.forgets(callee.name)):
            self._lose(_passed(state), how, is_sure=True)
        if callee.name in KEEP_FIRST and not self.search.sought.is_label:
            self._lose(state.of(RDI), how, is_sure=True)
        if callee.name in CALLERS:
            self._show_to_callbacks(function, state)
        return state.of(RDI) | state.of(RSI) if callee.name in FINDERS else NONE

    def _show_to_callbacks(self, function: Symbol, state: State) -> None:
        """Follow the arguments of a function that calls back, such as bsearch(), into the callbacks.

        The callback may be any function whose address the caller takes.
        """
        levels = frozenset(level for _, found in state.registers for level in found)
        for relocation in function.relocations:
            if not isinstance(relocation.target, SymbolRef) or not takes_address(function, relocation):
                continue
            callback = relocation.target.symbol
            if callback.is_function and callback.is_defined:
                self.search.called(
                    callback, State(registers=frozenset(((RDI, levels), (RSI, levels)))), self.depth
                )
            elif not callback.is_defined and not self.search.flow.forgets(callback.name):
                raise GotAwayError(f"passes it to {callback.name}")


@functools.lru_cache(maxsize=64)
def labels_of(function: Symbol) -> tuple[tuple[Symbol, int], ...]:
    """Return the places in code that an indirect jump of a function may go to.

    Their addresses are made in the function or are in a table that it refers to.
    """
    found: dict[tuple[Symbol, int], None] = {}
    for relocation in function.relocations:
        if not isinstance(relocation.target, SymbolRef):
            continue
        target = relocation.target.symbol
        if target.is_function:
            if not is_direct_branch(function.content, relocation.offset):
                found[target, relocation.addend] = None
        elif target.section is not None and not target.section.is_code:
            for r in target.relocations:
                if isinstance(r.target, SymbolRef) and r.target.symbol.is_function:
                    found[r.target.symbol, r.addend] = None
    return tuple(found)


def _in_source(function: Symbol) -> str:
    """Return the name in the source, without the suffixes that gcc adds (``.isra.0``, ``.cold``)."""
    return function.name.partition(".")[0] or function.name


def _is_aligned_copy(function: Symbol, at: Decoded) -> bool:
    """Return whether this SUB adjusts the source of a copy after gcc has aligned its destination.

    It moves the source by as much as the destination, and REP MOVS follows, with nothing in between that uses
    the result.
    """
    if at.mnemonic != "sub" or at.operands[0] != Register(RSI, 8):
        return False
    following = body_of(function).at(at.end)
    while following is not None and not following.mnemonic.startswith("rep movs"):
        if following.mnemonic not in _ALIGNING or RSI in following.reads | following.writes:
            return False
        following = body_of(function).at(following.end)
    return following is not None


def _is_call(user: Symbol, relocation: Relocation) -> bool:
    section = user.section
    return section is not None and section.is_code and not takes_address(user, relocation)


def _places(relocation: Relocation, at: Decoded) -> tuple[int, int]:
    """Return the offsets in the target that an operand without registers may mean: absolute and PC-relative.

    A PC-relative operand counts from the end of the instruction.
    """
    return relocation.addend, relocation.addend + at.end - relocation.offset


def _passed(state: State) -> Levels:
    """Return the levels of everything in the places where a callee looks for its arguments."""
    in_registers = (levels for number, levels in state.registers if number in ARGUMENTS)
    return NONE.union(*in_registers, *(levels for _, levels in _on_top(state)))


def _on_top(state: State) -> Collection[tuple[int, Levels]]:
    """Return the stack slots that would hold the seventh and later arguments."""
    top = state.offset_of(RSP)
    return [pair for pair in state.slots if top is None or top <= pair[0] < top + 64]


def _branch_name(at: Decoded) -> str | None:
    """Return the name of the symbol that a direct branch out of the function goes to."""
    relocation = at.immediate
    if relocation is None or not isinstance(relocation.target, SymbolRef) or _is_indirect(at):
        return None
    return relocation.target.symbol.name


def _is_indirect(at: Decoded) -> bool:
    return bool(at.operands) and isinstance(at.operands[0], Register | Memory)


def _thunk_of(name: str, number: int) -> bool:
    """Return whether a thunk like ``__x86_indirect_thunk_rax`` jumps to what is in that register."""
    return name.startswith(_INDIRECT) and name.rpartition("_")[2] == REGISTER_NAMES[number]


def _are_parts(one: Symbol, other: Symbol) -> bool:
    """Return whether two symbols are parts of one function with one stack frame: ``foo`` and ``foo.cold``."""
    return other.is_defined and one.name.partition(".cold")[0] == other.name.partition(".cold")[0]
