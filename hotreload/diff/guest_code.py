# SPDX-License-Identifier: MIT
"""Check whether a guest runs the code of an object.

This is Ksplice's run-pre matching (Arnold and Kaashoek, EuroSys 2009, section 4.3) against the memory of a
modern kernel.

The object is relocated to where the guest has it and compared byte by byte. An address that is known, from
vmlinux's symbols or kallsyms, must match the relocated field. An unknown address is solved from the field and
must be the same wherever the unit refers to it. Sections are contiguous, so one solved address fixes
everything else in its section. What the kernel rewrites in its own code is accepted only where the object
says so, and only if the kernel could have written it (rewritten_places.py, kernel_texts.py).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from hotreload.diff.guest_addresses import AddressOf, NameAt, UnitAddresses
from hotreload.diff.kernel_texts import CALL, INT3, JMP, Text, is_direct_call, meaning
from hotreload.diff.rewritten_places import Alternative, Place, rewritten_places
from hotreload.diff.special_sections import read_entries
from hotreload.elf.constants import (
    PC_RELATIVE,
    R_X86_64_32,
    R_X86_64_64,
    R_X86_64_NONE,
    R_X86_64_PC64,
    SHF_MERGE,
    SHF_STRINGS,
    WRITES,
)
from hotreload.elf.model import ConstRef, ObjectFile, Relocation, StringRef, Symbol, SymbolRef

_ADDRESSES = 1 << 64


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A difference: ``offset`` is the first byte of ``function`` that differs, ``why`` is one line."""

    function: str
    offset: int
    why: str

    def __str__(self) -> str:
        return f"{self.function}+{self.offset:#x}: {self.why}"


@dataclass(frozen=True, slots=True)
class Pointed:
    """A condition: ``address`` must contain ``content``, which code at ``offset`` refers to.

    It is a string or a constant.
    """

    offset: int
    address: int
    content: bytes

    def mismatch(self, function: str, found: bytes) -> Mismatch:
        """Return the mismatch for memory that contains ``found``, which is empty if nothing is mapped."""
        there = repr(found)[1:] if found else "nothing"
        return Mismatch(
            function, self.offset, f"expected {repr(self.content)[1:]} at {self.address:#x}, found {there}"
        )


@dataclass(frozen=True, slots=True)
class Matched:
    """A function that runs as its object has it, as far as its own bytes tell.

    ``traced``: its entry calls a tracer or a live patch. ``pointed``: what remains to be checked in memory.
    """

    function: str
    traced: bool
    pointed: tuple[Pointed, ...]


class GuestUnit:
    """A unit as the guest runs it. Addresses that one check finds out are binding for later checks."""

    def __init__(self, obj: ObjectFile, address_of: AddressOf, name_at: NameAt) -> None:
        """``name_at`` tells which function a redirected call goes to."""
        self.addresses = UnitAddresses(address_of, name_at)
        self.rewritten = rewritten_places(obj, read_entries(obj))

    def check(self, function: Symbol, address: int, found: bytes) -> Matched | Mismatch:
        """Compare a function with the bytes ``found`` at ``address`` of the guest.

        ``found`` must have ``function.size`` bytes. After a mismatch, addresses found out by this check are
        dropped.
        """
        before = self.addresses.solved()
        result = _Check(self, function, address, found).run()
        if isinstance(result, Mismatch):
            self.addresses.go_back(before)
        return result

    def address_of_function(self, function: Symbol) -> int | None:
        """Return the address of a function of the unit; see UnitAddresses.own."""
        return self.addresses.own(function)


class _Check:
    """One comparison, used once. ``expected`` is turned into what the guest should have."""

    def __init__(self, unit: GuestUnit, function: Symbol, address: int, found: bytes) -> None:
        self.guest = unit.addresses
        self.rewritten = unit.rewritten
        self.function = function
        self.address = address
        self.found = found
        self.expected = bytearray(function.content)
        self.pointed: list[Pointed] = []
        self.traced = False

    def run(self) -> Matched | Mismatch:
        function, section = self.function, self.function.section
        assert section is not None
        if len(self.found) != function.size:
            return self._mismatch(0, f"{len(self.found)} bytes were read instead of {function.size}")
        if not self.guest.place(section, self.address - function.value):
            return self._mismatch(0, f"not at {self.address:#x}: the unit's {section.name} is elsewhere")
        places = self.rewritten.places.get(function, [])
        alternatives = self.rewritten.alternatives.get(function, [])
        self._relocate(places, alternatives)
        if self.expected != self.found:
            self._accept_counted_calls()
            for place in places:
                self._accept(place)
            for group in _groups(alternatives):
                self._accept_alternative(group)
        if self.expected != self.found:
            return self._explain(places, alternatives)
        return Matched(function.name, self.traced, tuple(self.pointed))

    # --- relocations ---

    def _relocate(self, places: list[Place], alternatives: list[Alternative]) -> None:
        spans: list[Place | Alternative] = [*places, *alternatives]
        rewritten = {offset for span in spans for offset in range(span.start, span.end)}
        for relocation in self.function.relocations:
            if relocation.type == R_X86_64_NONE:
                continue
            found = None if relocation.offset in rewritten else self.found
            value = self._value(relocation, relocation.offset, found)
            if value is not None:
                self.expected[relocation.offset : relocation.offset + len(value)] = value

    def _value(self, relocation: Relocation, at: int, found: bytes | None) -> bytes | None:
        """Return what a relocation writes at offset ``at`` of the function.

        An unknown address is solved from ``found``. The result is None if that is impossible.
        """
        size = WRITES.get(relocation.type, 4)
        relative = self.address + at if relocation.type in PC_RELATIVE else 0
        target = relocation.target
        if isinstance(target, SymbolRef) and not _is_merged(target.symbol):
            fields = [
                self._field(address + relocation.addend - relative, size)
                for address in self.guest.where(target.symbol)
            ]
            if fields:
                same = found is not None and found[at : at + size] in fields
                return found[at : at + size] if found is not None and same else fields[0]
            if found is not None:
                read = _read(found, relocation, at, size)
                self.guest.note(target.symbol, (read + relative - relocation.addend) % _ADDRESSES)
                return found[at : at + size]
            return None
        if found is None:
            return None
        # The linker keeps one copy of a string or constant, anywhere. Only its content matters.
        read = (_read(found, relocation, at, size) + relative) % _ADDRESSES
        content, inside = _merged(relocation, size if relocation.type in PC_RELATIVE else 0)
        self.pointed.append(Pointed(at, (read - relocation.addend + inside) % _ADDRESSES, content))
        return found[at : at + size]

    def _field(self, value: int, size: int) -> bytes:
        return (value % _ADDRESSES).to_bytes(8, "little")[:size]

    # --- what the kernel rewrote ---

    def _accept(self, place: Place) -> None:
        """Accept the bytes found at a place if the kernel may have written them."""
        span = slice(place.start, place.end)
        found = self.found[span]
        # A lock prefix inside of a larger place is a place by itself as well.
        if self.expected[span] != found:
            text = Text(bytes(self.expected[span]), found, self.address + place.start, self.guest)
            if not place.accepts(text):
                return
            self._take(span, text)
        if place.traces and found[0] == CALL and not self._goes_to_fentry(place):
            self.traced = True

    def _goes_to_fentry(self, place: Place) -> bool:
        text = Text(b"", self.found[place.start : place.end], self.address + place.start, self.guest)
        return self.guest.name_at(text.destination(5)) == "__fentry__"

    def _accept_counted_calls(self) -> None:
        """Accept calls that call depth tracking redirects to the code before each function."""
        for relocation in self.function.relocations:
            span = slice(relocation.offset - 1, relocation.offset + 4)
            expected, found = bytes(self.expected[span]), self.found[span]
            if expected[:1] != bytes((CALL,)) or found[:1] != expected[:1] or found == expected:
                continue
            text = Text(expected, found, self.address + span.start, self.guest)
            if isinstance(relocation.target, SymbolRef) and text.function_called(5) in (
                address + relocation.addend + 4 for address in self.guest.where(relocation.target.symbol)
            ):
                self._take(span, text)

    def _accept_alternative(self, group: list[Alternative]) -> None:
        start, end = group[0].start, max(alternative.end for alternative in group)
        span = slice(start, end)
        if self.expected[span] == self.found[span]:
            return
        address = self.address + start
        runs = meaning(self.found[span], address, self.guest)
        if runs is None:
            return
        original = bytes(self.expected[span])
        texts = [original, *(self._replaced(original, start, alternative) for alternative in group)]
        if any(code is not None and meaning(code, address, self.guest) == runs for code in texts):
            self.expected[span] = self.found[span]
        elif any(alternative.is_direct_call for alternative in group):
            text = Text(original, self.found[span], address, self.guest)
            if is_direct_call(text):
                self._take(span, text)

    def _take(self, span: slice, text: Text) -> None:
        self.expected[span] = text.found
        self.pointed += [Pointed(span.start, address, content) for address, content in text.needs]

    def _replaced(self, original: bytes, start: int, alternative: Alternative) -> bytes | None:
        """Return a group's text with one alternative applied; None if an address is unknown."""
        code = bytearray(alternative.code)
        for relocation in alternative.relocations:
            value = self._value(relocation, alternative.start + relocation.offset, None)
            if value is None:
                return None
            code[relocation.offset : relocation.offset + len(value)] = value
        length = alternative.end - alternative.start
        at = alternative.start - start
        return original[:at] + bytes(code).ljust(length, b"\x90") + original[at + length :]

    # --- messages ---

    def _explain(self, places: list[Place], alternatives: list[Alternative]) -> Mismatch:
        offset = next(i for i, byte in enumerate(self.expected) if byte != self.found[i])
        if self.found[offset] == INT3:
            return self._mismatch(offset, "there is a breakpoint: a kprobe, or a debugger")
        rewritten: list[Place | Alternative] = [*places, *alternatives]
        place = next((place for place in rewritten if place.start <= offset < place.end), None)
        if place is not None:
            kind = place.kind if isinstance(place, Place) else "an alternative"
            text = self.found[place.start : place.end].hex(" ")
            return self._mismatch(place.start, f"{kind} that the kernel would not write: {text}")
        for relocation in self.function.relocations:
            size = WRITES.get(relocation.type, 4)
            if relocation.offset <= offset < relocation.offset + size:
                return self._mismatch(relocation.offset, self._elsewhere(relocation, size))
        if self.found[offset] == JMP and offset + 5 <= len(self.found):
            jump = Text(b"", self.found[offset : offset + 5], self.address + offset, self.guest)
            there = jump.destination(5)
            if not self.address <= there < self.address + self.function.size:
                return self._mismatch(offset, f"a jump to {self._named(there)} was written there")
        expected, found = bytes(self.expected[offset : offset + 8]), self.found[offset : offset + 8]
        return self._mismatch(offset, f"expected {expected.hex(' ')}, found {found.hex(' ')}")

    def _elsewhere(self, relocation: Relocation, size: int) -> str:
        relative = self.address + relocation.offset if relocation.type in PC_RELATIVE else 0
        found = _read(self.found, relocation, relocation.offset, size) + relative - relocation.addend
        assert isinstance(relocation.target, SymbolRef)
        symbol = relocation.target.symbol
        should = " or ".join(f"{address:#x}" for address in self.guest.where(symbol))
        return f"expected {symbol.name} ({should}), found {self._named(found % _ADDRESSES)}"

    def _named(self, address: int) -> str:
        name = self.guest.name_at(address)
        return f"{name} ({address:#x})" if name else f"{address:#x}"

    def _mismatch(self, offset: int, why: str) -> Mismatch:
        return Mismatch(self.function.name, offset, why)


def _read(code: bytes, relocation: Relocation, at: int, size: int) -> int:
    """Return the number in a field, extended to 64 bits as the processor does it."""
    return int.from_bytes(
        code[at : at + size],
        "little",
        signed=relocation.type not in (R_X86_64_32, R_X86_64_64, R_X86_64_PC64),
    )


def _is_merged(symbol: Symbol) -> bool:
    return symbol.section is not None and symbol.section.flags & SHF_MERGE != 0


def _merged(relocation: Relocation, field: int) -> tuple[bytes, int]:
    """Return the content that a relocation into a mergeable section refers to, and an offset.

    The offset is that of the content from the target's start. If the relocation points into the middle of a
    string or constant, the content is the rest of it.
    """
    match relocation.target:
        case StringRef(text):
            return text + b"\0", 0
        case ConstRef(content):
            return content, 0
        case SymbolRef(symbol):
            section = symbol.section
            assert section is not None
            inside = min(max(relocation.addend + field, 0), section.size - symbol.value)
            start = symbol.value + inside
            if section.flags & SHF_STRINGS:
                end = section.data.find(b"\0", start) + 1
            else:
                end = start - start % section.entry_size + section.entry_size
            return section.data[start:end], inside


def _groups(alternatives: list[Alternative]) -> list[list[Alternative]]:
    """Group alternatives that overlap: nested ones, and several for one place."""
    groups: dict[int, list[Alternative]] = defaultdict(list)
    start = end = -1
    for alternative in alternatives:
        if alternative.start >= end:
            start = alternative.start
        groups[start].append(alternative)
        end = max(end, alternative.end)
    return list(groups.values())
