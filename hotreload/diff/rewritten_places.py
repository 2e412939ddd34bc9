# SPDX-License-Identifier: MIT
"""Find the places in code that a running kernel rewrites.

An object tells where they are: by its tables of special sections, and by the targets of its branches, because
objtool makes some tables only when vmlinux is linked. What may be written there (kernel_texts.py) is known
for all but two kinds: an ftrace site may call any trampoline, and a constant that is set at boot may have any
value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hotreload.diff.kernel_texts import (
    CS_PREFIX,
    DS_PREFIX,
    ENDBR64,
    JMP_SHORT,
    LOCK,
    NOP2,
    REGISTERS,
    SEALED,
    Text,
    is_anything,
    is_direct_call,
    is_ftrace,
    is_return,
    jump_label,
    retpoline,
    static_call,
)
from hotreload.diff.special_sections import Entry, EntryTable
from hotreload.elf.instructions import UndecodableError, instructions
from hotreload.elf.model import ObjectFile, Relocation, Symbol, SymbolRef

RETPOLINE: Final = "__x86_indirect_thunk_"
RETURN_THUNK: Final = "__x86_return_thunk"
STATIC_CALL, STATIC_KEY = "__SCT__", "__SCK__"
FENTRY: Final = "__fentry__"
# ALT_FLAG_DIRECT_CALL of arch/x86/include/asm/alternative.h: the call's destination is in pv_ops.
_DIRECT_CALL: Final = 2
# Constants of include/asm/runtime-const.h (since v6.11): prefixes of section names, and their sizes in bytes.
_RUNTIME_CONSTANTS: Final = {"runtime_ptr_": 8, "runtime_shift_": 1}


@dataclass(frozen=True, slots=True)
class Place:
    """A rewritten place ``function[start:end]``; ``kind`` names it in messages.

    ``accepts``  whether the kernel may have written what is found there
    ``traces``   whether anything but the NOP means that the function is traced
    """

    start: int
    end: int
    kind: str
    accepts: Callable[[Text], bool]
    traces: bool = False


@dataclass(frozen=True, slots=True)
class Alternative:
    """``function[start:end]`` may be replaced by ``code``, padded with NOPs.

    ``is_direct_call``: the replacement is a call of what the original indirect call reaches at boot.
    """

    start: int
    end: int
    code: bytes
    relocations: tuple[Relocation, ...]
    is_direct_call: bool


@dataclass(frozen=True, slots=True)
class RewrittenPlaces:
    """The rewritten places of one object, by function. ``alternatives`` are ordered by their start."""

    places: Mapping[Symbol, list[Place]]
    alternatives: Mapping[Symbol, list[Alternative]]


def rewritten_places(obj: ObjectFile, entries: EntryTable) -> RewrittenPlaces:
    """Return all places in an object's functions that the running kernel may have rewritten.

    ``entries``: the special-section entries of the object.
    """
    places: dict[Symbol, list[Place]] = defaultdict(list)
    alternatives: dict[Symbol, list[Alternative]] = defaultdict(list)
    keys = {symbol.name: symbol for symbol in obj.symbols if symbol.name.startswith(STATIC_KEY)}
    for symbol in obj.functions:
        places[symbol] += _by_branches(symbol, keys)
        if symbol.name.startswith(STATIC_CALL):
            # The trampoline of a static call is rewritten as well: to a jump or a return.
            places[symbol].append(Place(0, 5, "a static call's trampoline", _static_call(symbol.name, keys)))
        if ENDBR64 in symbol.content:
            places[symbol] += _endbrs(symbol)
    for symbol, own in entries.of.items():
        for entry in own:
            # The field is relative to itself (S + A - P), so the addend is the offset in the function.
            offset = entry.code.addend
            if entry.row.name == ".altinstructions":
                alternatives[symbol].append(_alternative(entry, offset))
            elif place := _by_entry(symbol, entry, offset):
                places[symbol].append(place)
    for symbol, place in _runtime_constants(obj):
        places[symbol].append(place)
    for rows in alternatives.values():
        rows.sort(key=lambda row: row.start)
    return RewrittenPlaces(places, alternatives)


def _static_call(trampoline: str, keys: Mapping[str, Symbol]) -> Callable[[Text], bool]:
    return static_call(keys.get(STATIC_KEY + trampoline.removeprefix(STATIC_CALL)))


def _by_branches(symbol: Symbol, keys: Mapping[str, Symbol]) -> Iterator[Place]:
    """Yield the places that are recognized by the target of a branch."""
    for relocation in symbol.relocations:
        if not isinstance(relocation.target, SymbolRef):
            continue
        name = relocation.target.symbol.name
        if not name.startswith("__"):
            continue
        end = relocation.offset + 4
        start = relocation.offset - (2 if _is_jcc(symbol.content, relocation.offset) else 1)
        if name == FENTRY:
            yield Place(start, end, "an ftrace site", is_ftrace, traces=True)
        elif name == RETURN_THUNK:
            yield Place(start, end, "a return", is_return)
        elif name.startswith(STATIC_CALL):
            yield Place(start, end, "a static call", _static_call(name, keys))
        elif name.startswith(RETPOLINE):
            # gcc puts a CS prefix before thunks of the registers that need a REX prefix, so that both
            # instructions have the same length (-mindirect-branch-cs-prefix).
            prefixed = (
                start > 0
                and symbol.content[start - 1] == CS_PREFIX
                and name.removeprefix(RETPOLINE) in REGISTERS[8:]
            )
            yield Place(start - prefixed, end, "a retpoline", retpoline(name.removeprefix(RETPOLINE)))


def _endbrs(symbol: Symbol) -> Iterator[Place]:
    try:
        for instruction in instructions(symbol.content):
            if symbol.content[instruction.start : instruction.end] == ENDBR64:
                yield Place(
                    instruction.start, instruction.end, "an ENDBR64", lambda text: text.found in SEALED
                )
    except UndecodableError:
        return


def _by_entry(symbol: Symbol, entry: Entry, offset: int) -> Place | None:
    code = symbol.content
    match entry.row.name:
        case ".smp_locks":
            return Place(offset, offset + 1, "a lock prefix", lambda text: text.found[0] in (LOCK, DS_PREFIX))
        case "__mcount_loc":
            # objtool may have turned the call into a NOP already.
            return Place(offset, offset + 5, "an ftrace site", is_ftrace, traces=True)
        case ".parainstructions":
            return Place(offset, offset + entry.content[9], "a paravirt call", is_direct_call)
        case "__jump_table":
            size = 2 if code[offset] in (JMP_SHORT, NOP2[0]) else 5
            return Place(offset, offset + size, "a jump label", jump_label(entry))
    return None


def _alternative(entry: Entry, offset: int) -> Alternative:
    # { s32 instr, repl; u16 cpuid; u8 instrlen, replacementlen; }; later kernels have u16 flags behind cpuid.
    long = len(entry.content) == 14
    length = entry.content[12 if long else 10]
    flags = int.from_bytes(entry.content[10:12], "little") if long else 0
    code, relocations = entry.replacement or (b"", ())
    return Alternative(offset, offset + length, code, relocations, bool(flags & _DIRECT_CALL))


def _runtime_constants(obj: ObjectFile) -> Iterator[tuple[Symbol, Place]]:
    for section in obj.sections:
        for prefix, size in _RUNTIME_CONSTANTS.items():
            if not section.name.startswith(prefix):
                continue
            for relocation in section.relocations:
                if isinstance(relocation.target, SymbolRef):
                    start = relocation.addend
                    place = Place(start, start + size, "a constant set at boot", is_anything)
                    yield relocation.target.symbol, place


def _is_jcc(code: bytes, field: int) -> bool:
    return field > 1 and code[field - 2] == 0x0F and code[field - 1] & 0xF0 == 0x80
