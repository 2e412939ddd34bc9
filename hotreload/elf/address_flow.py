# SPDX-License-Identifier: MIT
"""Who may hold an address that code makes: it is followed from instruction to instruction to all its uses.

The question: a constant, a string or a place in code is another one after an edit. May somebody go on to use
the old one? Its address is followed through registers and the function's own stack, along every way that the
code can take, into functions of the same object that it is passed to, and back to the callers of one that
returns it. Loads through it are harmless. It *gets away* when it is stored, compared with an address from
elsewhere, passed to a function that is not known to read and forget, and with every instruction that is not
understood. So an answer of None is a proof; any other is a "may".

Rejected: to tell by the shape of the code around the instruction that makes the address. One instruction more
between the two, and the answer was another one.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from hotreload.elf.constants import STB_WEAK
from hotreload.elf.decoded import RAX, RDI, RDX, RSI, RSP, Decoded, Memory, Register, body_of
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

# Function -> place in it -> where control may go besides the next instruction and by branches: jump labels,
# and what follows a fault.
Detours = Mapping[Symbol, Mapping[int, Sequence[tuple[Symbol, int]]]]
# A function and the registers that it is passed something in -> the levels it returns, or how it loses it.
_Passed = dict[tuple[Symbol, frozenset[tuple[int, Levels]]], Levels | str]
NEVER: Final = 99
# RAX and RDX: a struct of 16 bytes.
TWO: Final = 2
_DEEPEST: Final = 5  # calls into functions of the object
# It keeps all registers (arch/x86/kernel/ftrace_64.S).
_TRACER: Final = "__fentry__"
_RETURNS: Final = "__x86_return_thunk"
# Calls by a register with retpolines, and static calls, which may have been updated.
_INDIRECT: Final = (
    "__x86_indirect_thunk_",
    "__x86_indirect_call_thunk_",
    "__x86_indirect_jump_thunk_",
    "__SCT__",
)
# They neither go anywhere else nor ask for flags.
_ALIGNING: Final = frozenset("mov lea add sub shr shl and xor".split())
_ENTRY: Final = State(frame=frozenset(((RSP, 0),)))


@dataclass(frozen=True, slots=True)
class Sought:
    """What is followed: addresses of ``target``, and up to ``depth`` what is loaded through them.

    ``least``: the level from which on it counts where a value gets away, ``least_compared``: where it is
    compared, if another; NEVER: it does not. ``places``: the offsets in the
    target that are of interest to loads that name one; None: all. ``at``: the only relocations that count,
    by their offset; None: all. ``is_label``: places inside of a function are sought, not its start; no
    function outside of the object goes to one.
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
    """The flows of one object, of which ``symbols`` are all, or not (``is_whole``).

    ``forgets``: whether a function of that name, which the object does not define, surely keeps nothing that
    it is passed. ``registers``: in how many a function of the object returns something, at most: what
    is left in others when it ends, no caller looks at.
    """

    symbols: Sequence[Symbol]
    forgets: Callable[[str], bool]
    detours: Detours = field(default_factory=dict)
    is_whole: bool = True
    registers: Callable[[Symbol], int] = lambda _function: TWO
    _passed: dict[object, _Passed] = field(default_factory=dict)
    _callers: dict[Symbol, list[tuple[Symbol, Relocation]]] | None = None

    def gets_away(self, sought: Sought, holders: Iterable[Symbol]) -> str | None:
        """Who lets an address get away, and how, told for people; None: nobody. ``holders``: functions that
        have relocations to the target."""
        # What becomes of an argument is the same whatever it is, as long as nothing else is made of it.
        passed = self._passed.setdefault(replace(sought, target=ConstRef(b""), at=None), {})
        return _Search(self, sought, passed=passed).run(holders)

    def callers_of(self, function: Symbol) -> list[tuple[Symbol, Relocation]]:
        """All that refers to a function, with how."""
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
    """One question. ``returning``: functions that return what is sought; ``passed``: what is known of
    functions that are passed it, by the registers: the levels that they return."""

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
                    # Who failed may have compared with what this one returns.
                    todo += dict.fromkeys((*callers, *failed))
                    self.passed = {}
            except GotAwayError as how:
                failed[function] = f"{_in_source(function)} {how}"
        return next(iter(failed.values()), None)

    def _given_back(self, function: Symbol, returned: Levels) -> Iterator[Symbol]:
        """The callers of a function that returns what is sought. Raises GotAwayError for unknown ones."""
        users = self.flow.callers_of(function)
        if not function.is_local or not self.flow.is_whole or not all(_is_call(*user) for user in users):
            lose(returned, self.sought.least, "returns it")
        yield from (caller for caller, relocation in users if _is_call(caller, relocation))

    def called(self, function: Symbol, state: State, depth: int) -> Levels:
        """What a function of the object returns that is passed what is sought. Raises GotAwayError."""
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
    """One function, along every way through it, until no place has anything new."""

    search: _Search
    function: Symbol
    depth: int
    states: dict[tuple[Symbol, int], State] = field(default_factory=dict)
    todo: list[tuple[Symbol, int]] = field(default_factory=list)
    returned: Levels | None = None
    steps: dict[Symbol, Step] = field(default_factory=dict)
    is_alone: bool = False  # what does not hold anything is not followed

    def run(self, entry: State) -> Levels:
        """The levels that it returns. Raises GotAwayError.

        Most addresses are made and used up within a few instructions: those are looked at alone first. Where
        that proves nothing, the function is followed from its entry.
        """
        sources = list(self._sources())
        if not entry.levels and self._is_used_up(sources):
            return NONE
        self._reach(self.function, 0, entry)
        self._go_on()
        # What only a jump leads to that was not understood: from there on nothing is known of the stack.
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
        """The instructions that make what is sought, or call who returns it. Raises GotAwayError."""
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
            # A compiler ends a function with a call only if that does not return: __stack_chk_fail().
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
                # A place in code dies with the stack of the function that has it.
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
                self._lose(state.levels, f"goes on in the middle of {target.name}")
        elif at.operands and not isinstance(at.operands[0], Register | Memory):
            self._reach(function, at.operands[0].value, state)
        else:
            self._leave(function, at, state)

    def _leave(self, function: Symbol, at: Decoded, state: State) -> None:
        """A jump to where a register says: a loaded label, a case of a switch, or another function."""
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
            # In the second half of a struct of 16 bytes (System V psABI, 3.2.3), or left from before.
            found = state.of(RDX) if registers == TWO else found
        self.returned = found if self.returned is None else either(self.returned, found)

    def _call(self, function: Symbol, at: Decoded, state: State) -> State:
        """The state after a call. Raises GotAwayError where somebody is passed what he may keep."""
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
        """The levels that a function returns."""
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
        """A function that calls back (bsearch) shows what it is passed to whatever that may be."""
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
    """The places in code that an indirect jump of a function may go to: their addresses are made in it, or in
    a table that it refers to."""
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
    """The name that the author gave it, without what gcc adds (``.isra.0``, ``.cold``)."""
    return function.name.partition(".")[0] or function.name


def _is_aligned_copy(function: Symbol, at: Decoded) -> bool:
    """Whether gcc moves the source of a copy by as much as it has aligned the destination: SUB, and before
    anybody sees what came of it, REP MOVS."""
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
    """The place that an operand without registers names: the processor counts from the instruction's end."""
    return relocation.addend, relocation.addend + at.end - relocation.offset


def _passed(state: State) -> Levels:
    """The levels of what is where a callee looks for its arguments."""
    in_registers = (levels for number, levels in state.registers if number in ARGUMENTS)
    return NONE.union(*in_registers, *(levels for _, levels in _on_top(state)))


def _on_top(state: State) -> Collection[tuple[int, Levels]]:
    """The slots that the seventh argument and those behind it would be in."""
    top = state.offset_of(RSP)
    return [pair for pair in state.slots if top is None or top <= pair[0] < top + 64]


def _branch_name(at: Decoded) -> str | None:
    """What a direct branch out of the function goes to."""
    relocation = at.immediate
    if relocation is None or not isinstance(relocation.target, SymbolRef) or _is_indirect(at):
        return None
    return relocation.target.symbol.name


def _is_indirect(at: Decoded) -> bool:
    return bool(at.operands) and isinstance(at.operands[0], Register | Memory)


def _thunk_of(name: str, number: int) -> bool:
    """Whether ``__x86_indirect_thunk_rax`` and the like jumps to what is in that register."""
    registers = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
    return name.startswith(_INDIRECT) and name.rpartition("_")[2] == registers[number]


def _are_parts(one: Symbol, other: Symbol) -> bool:
    """Whether two are parts of one function, with one stack frame: ``foo`` and ``foo.cold``."""
    return other.is_defined and one.name.partition(".cold")[0] == other.name.partition(".cold")[0]
