# SPDX-License-Identifier: MIT
"""Read a module from a guest's memory: the code of each function, and the constants that it reads. Pure.

This is an oracle for the differ, so it shares no code with it. The differ compares relocatable objects. Here
the relocations are resolved, so the bytes of the guest are decoded, and each address in them is replaced with
the name that the guest's own kernel has for it. So two guests can be compared wherever their modules are, and
whether a function is in the module or in a patch.

Parts that may legitimately differ are left out: the landing pad for indirect calls and the ftrace call at the
beginning of a function, the distance of jumps within it, and all writable data.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from hotreload.survey.history_lines import Lines

PAGE: Final = 0x1000
KERNEL: Final = 0xFFFF_FFFF_8000_0000  # arch/x86/include/asm/page_64_types.h: __START_KERNEL_map
LARGEST: Final = 0x10000  # the most bytes of a function or variable of another module
OURS = "hotreload_"  # prefix of patch modules

SYMBOL = re.compile(r"^([0-9a-f]+) (\w) (\S+)(?:\s+\[(\w+)\])?$", re.MULTILINE)
SECTION = re.compile(r"^/sys/module/(\w+)/sections/(\S+) 0x([0-9a-f]+)$", re.MULTILINE)
REPLACED = re.compile(r"^/sys/kernel/livepatch/(\w+)/(\w+)/(\S+),\d+$", re.MULTILINE)

ADDRESS = re.compile(r"rip ([+-]) (0x[0-9a-f]+|\d+)|- 0x([0-9a-f]{8})\b|0x(ffffffff[89a-f][0-9a-f]{7})\b")
NUMBERED = re.compile(r"(\.\d+)+$")
# The padding between two functions, and the empty rest of a page.
PADDING = re.compile(r"nop|int3|add byte ptr \[rax\], al$|xchg ax, ax|data16|cs nop")
# A text, which may begin with the level of a message (KERN_SOH, include/linux/kern_levels.h).
TEXT = re.compile(rb"(?:\x01[0-7cd])?[\t\n\r\x1b -~]+|\x01[0-7cd]")
# The landing pads of indirect calls: ENDBR64, and what the kernel replaces it with if nothing takes the
# function's address (arch/x86/include/asm/ibt.h: gen_endbr_poison()). In a patch, ENDBR64 stays.
LANDINGS: Final = (b"\xf3\x0f\x1e\xfa", b"\x66\x0f\x1f\x00")
# How a report says that a function has another name in the sources (diff/functions.py, renames.py).
TOOK_PLACE = re.compile(r"\b(\w+) takes the place of (\w+)")
RENAMED = re.compile(r"\b(\w+) was renamed to (\w+)")
FREED = (".init", ".symtab", ".strtab")
TEXT_AHEAD = 96  # bytes of a text that are compared
CONSTANT_LIMIT = 2048


@dataclass(frozen=True, slots=True)
class Symbol:
    """A line of /proc/kallsyms. ``owner`` is the module, or empty for the kernel itself."""

    address: int
    kind: str
    name: str
    owner: str = ""

    @property
    def is_code(self) -> bool:
        return self.kind in "tTwW"


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a loaded module."""

    address: int
    name: str
    owner: str

    @property
    def is_text(self) -> bool:
        """Return whether the section holds null-terminated texts that have no symbols."""
        return ".str1." in self.name

    @property
    def is_constant(self) -> bool:
        return self.name.startswith(".rodata")


def read_symbols(text: str) -> tuple[Symbol, ...]:
    """Parse a part of /proc/kallsyms."""
    return tuple(
        Symbol(int(at, 16), kind, name, owner or "") for at, kind, name, owner in SYMBOL.findall(text)
    )


def read_sections(text: str) -> tuple[Section, ...]:
    """Parse lines like ``/sys/module/NAME/sections/.text 0x..``.

    Omit what is freed after init, because another module may be there by then: init sections, and the symbol
    table that the file has (layout_symtab() in kernel/module/kallsyms.c).
    """
    found = (Section(int(at, 16), name, owner) for owner, name, at in SECTION.findall(text))
    return tuple(section for section in found if not section.name.startswith(FREED))


def read_replaced(text: str, module: str) -> dict[str, str]:
    """Parse paths of /sys/kernel/livepatch. Return, by function of ``module``, the patch that replaces it."""
    return {name: patch for patch, owner, name in REPLACED.findall(text) if owner == module}


class Names:
    """The kernel's own symbols. They are the same in each guest of a kernel, as nothing shuffles them."""

    def __init__(self, symbols: Sequence[Symbol]) -> None:
        ordered = sorted((each.address, each.name) for each in symbols)
        self._addresses = [address for address, _name in ordered]
        self._names = [name for _address, name in ordered]

    @property
    def last(self) -> int:
        """The address of the kernel's last symbol."""
        return self._addresses[-1]

    def name_of(self, address: int) -> str:
        place = bisect.bisect_right(self._addresses, address) - 1
        if place < 0:
            return hex(address)
        start = self._addresses[place]
        # If there are several names for one address, always take the same.
        place = bisect.bisect_left(self._addresses, start)
        return self._names[place] + (f"+{address - start:#x}" if address != start else "")


@dataclass(frozen=True)
class Picture:
    """A snapshot of a guest's modules.

    ``symbols`` and ``sections`` are those of the guest's modules. ``replaced`` maps a function to the patch
    that replaces it. ``pages`` maps the address of each page that was read to its content.
    """

    symbols: tuple[Symbol, ...]
    sections: tuple[Section, ...]
    replaced: Mapping[str, str]
    pages: Mapping[int, bytes]

    @cached_property
    def by_place(self) -> list[tuple[int, Symbol]]:
        # Sort symbols with the same address so that the name of code or data is last, and found first.
        ordered = sorted(self.symbols, key=lambda each: (each.address, each.name))
        return [(each.address, each) for each in ordered]

    @cached_property
    def sections_by_place(self) -> list[tuple[int, Section]]:
        ordered = sorted(self.sections, key=lambda each: each.address)
        return [(each.address, each) for each in ordered]

    def section_at(self, address: int) -> Section | None:
        """Return the section that contains an address, or None if it is in no module that was read."""
        place = bisect.bisect_right(self.sections_by_place, address, key=lambda each: each[0]) - 1
        return self.sections_by_place[place][1] if place >= 0 and address & -PAGE in self.pages else None

    def symbol_at(self, address: int, within: Section) -> Symbol | None:
        """Return the nearest symbol at or before an address in the same section."""
        place = bisect.bisect_right(self.by_place, address, key=lambda each: each[0]) - 1
        if place < 0 or self.by_place[place][0] < within.address:
            return None
        return self.by_place[place][1]

    def name_elsewhere(self, address: int) -> str | None:
        """Return the name of an address in a module whose memory was not read. None: it is in no module."""
        place = bisect.bisect_right(self.by_place, address, key=lambda each: each[0]) - 1
        if place < 0 or address - self.by_place[place][0] >= LARGEST:
            return None
        start, symbol = self.by_place[place]
        return symbol.name + (f"+{address - start:#x}" if address != start else "")

    def end_of(self, address: int) -> int:
        """Return the address where the next symbol or section begins, at most 16 pages on."""
        after = bisect.bisect_right(self.by_place, address, key=lambda each: each[0])
        next_symbol = self.by_place[after][0] if after < len(self.by_place) else address + PAGE
        after = bisect.bisect_right(self.sections_by_place, address, key=lambda each: each[0])
        places = self.sections_by_place
        next_section = places[after][0] if after < len(places) else address + PAGE
        return min(next_symbol, next_section, address + 16 * PAGE)

    def bytes_at(self, address: int, size: int) -> bytes:
        """Return the memory at an address, up to the first page that was not read."""
        found = b""
        while size > 0:
            page, start = address & -PAGE, address & (PAGE - 1)
            piece = self.pages.get(page, b"")[start : start + size]
            if not piece:
                break
            found, address, size = found + piece, address + len(piece), size - len(piece)
        return found

    def running(self, module: str) -> dict[str, list[int]]:
        """Return the addresses of the functions that run for the module, by name.

        Several functions may have the same name. A patch has copies of functions that the kernel cannot
        redirect, for its own code.
        """
        places: dict[str, list[int]] = {}
        for each in self.symbols:
            if each.is_code and (each.owner == module or each.owner.startswith(OURS)):
                places.setdefault(each.name, []).append(each.address)
        for name, patch in self._replaced_with_children(places).items():
            new = [each.address for each in self.symbols if each.name == name and each.owner == patch]
            base = [each for each in self.symbols if each.name == name and each.owner == module]
            if new and len(base) < 2:
                places[name] = new
        return places

    def _replaced_with_children(self, names: Iterable[str]) -> dict[str, str]:
        """Return ``replaced`` with the parts that gcc split off a function (``foo.cold``) added.

        The kernel does not list them, but they are replaced with their function.
        """
        parents = {name: name.partition(".cold")[0] for name in names}
        children = {
            name: self.replaced[parent] for name, parent in parents.items() if parent in self.replaced
        }
        return {**children, **self.replaced}


@dataclass
class Reading:
    """What was read of a module.

    ``functions``: the code of each function of a name. ``constants``: the content of each constant of a name.
    """

    functions: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    constants: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)


class Reader:
    """Reads the modules of one Picture."""

    def __init__(self, picture: Picture, names: Names) -> None:
        import capstone

        self._picture = picture
        self._names = names
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._due: dict[str, set[int]] = {}

    def read(self, module: str) -> Reading:
        """Read all functions that run for a module, and the constants that they reach."""
        reading = Reading()
        for name, places in self._picture.running(module).items():
            reading.functions[name] = sorted({self.code_at(place) for place in places})
        done: set[tuple[str, int]] = set()
        while todo := {(name, at) for name, places in self._due.items() for at in places} - done:
            for name, place in sorted(todo):
                reading.constants.setdefault(name, set()).add(self._constant_at(place))
            done |= todo
        return reading

    def code_at(self, start: int) -> tuple[str, ...]:
        """Return the instructions of a function as lines of text, without the padding behind it."""
        content = self._picture.bytes_at(start, self._picture.end_of(start) - start)
        if content.startswith(LANDINGS):
            content, start = content[4:], start + 4
        decoded = list(self._decoder.disasm_lite(content, start))
        while decoded and PADDING.match(f"{decoded[-1][2]} {decoded[-1][3]}"):
            decoded.pop()
        ordinals = {address: number for number, (address, *_rest) in enumerate(decoded)}
        lines = []
        for number, (address, size, mnemonic, operands) in enumerate(decoded):
            if number == 0 and size == 5 and mnemonic in ("nop", "call"):
                lines.append("fentry")
            else:
                # On one processor the kernel replaces LOCK by DS (alternatives_smp_unlock() in
                # arch/x86/kernel/alternative.c).
                mnemonic, operands = mnemonic.removeprefix("lock "), operands.replace("ds:[", "[")
                lines.append(f"{mnemonic} {self._named(operands, address + size, ordinals)}".strip())
        return tuple(lines)

    def _named(self, operands: str, after: int, ordinals: Mapping[int, int]) -> str:
        def name(match: re.Match[str]) -> str:
            sign, offset, negative, plain = match.groups()
            if offset:
                address = after + int(sign + "1") * int(offset, 0)
            elif negative:
                address = (1 << 64) - int(negative, 16)
            else:
                address = int(plain, 16)
            if address in ordinals:
                return f"<{ordinals[address]}>"
            return f"<{self.name_of(address)}>" if address >= KERNEL else match[0]

        return ADDRESS.sub(name, operands)

    def name_of(self, address: int) -> str:
        """Return what an address refers to: a name, or the content of what has no name."""
        section = self._picture.section_at(address)
        if section is None:
            # A patch module also lists the symbols of the kernel that it uses. These are below all modules.
            of_module = self._picture.name_elsewhere(address) if address > self._names.last else None
            return of_module or self._names.name_of(address)
        symbol = self._picture.symbol_at(address, section)
        if section.is_text or (section.is_constant and (symbol is None or not _is_named(symbol, address))):
            # A patch has its texts between its other constants. A symbol like __func__.3 ends with its text.
            text = self._picture.bytes_at(address, TEXT_AHEAD).partition(b"\0")[0]
            if section.is_text or TEXT.fullmatch(text):
                return repr(text.decode(errors="replace"))
        if section.is_constant and (symbol is None or NUMBERED.search(symbol.name) or symbol.name[0] == "."):
            start = symbol.address if symbol else address
            offset = address - start
            return f"constant {' '.join(self._constant_at(start))}" + (f"+{offset}" if offset else "")
        if symbol is None:
            return f"{section.name}+{address - section.address:#x}"
        if section.is_constant:
            self._due.setdefault(symbol.name, set()).add(symbol.address)
        offset = address - symbol.address
        within = f"+{offset:#x}" if offset and not symbol.is_code else "+" * bool(offset)
        return NUMBERED.sub("", symbol.name) + within

    def _constant_at(self, start: int) -> tuple[str, ...]:
        """Return the words of a constant. Trailing zeros are removed, because padding may follow it."""
        size = min(self._picture.end_of(start) - start, CONSTANT_LIMIT)
        content = self._picture.bytes_at(start, size).rstrip(b"\0")
        content += bytes(-len(content) % 8)
        return tuple(self._words(content))

    def _words(self, content: bytes) -> Iterator[str]:
        for place in range(0, len(content), 8):
            word = int.from_bytes(content[place : place + 8], "little")
            inside = self._picture.section_at(word) is not None if word >= KERNEL else False
            known = inside or KERNEL <= word < 0xFFFF_FFFF_FFFF_0000
            yield self.name_of(word) if known else content[place : place + 8].hex()


def _is_named(symbol: Symbol, address: int) -> bool:
    """Return whether the symbol is exactly at the address, and its name has no number of the compiler."""
    return symbol.address == address and not NUMBERED.search(symbol.name)


NO_LINES: Final = Lines({})


def told_renames(text: str) -> dict[str, str]:
    """Return the functions that a report says go on under other names: the old name -> the new one."""
    found = {old: new for new, old in TOOK_PLACE.findall(text)}
    return found | dict(RENAMED.findall(text))


def renamed(live: Reading, names: Mapping[str, str]) -> Reading:
    """Return a reading with the new names of functions: old name -> new name."""
    code = re.compile("|".join(rf"<{re.escape(old)}(?=[>+])" for old in names) or "(?!)")

    def now(line: str) -> str:
        return code.sub(lambda found: f"<{names[found[0][1:]]}", line)

    functions: dict[str, list[tuple[str, ...]]] = {}
    for name, codes in live.functions.items():
        functions.setdefault(names.get(name, name), []).extend(tuple(map(now, each)) for each in codes)
    return Reading(functions, live.constants)


def differences(fresh: Reading, live: Reading, lines: Lines = NO_LINES) -> list[str]:
    """Return the differences of a reloaded guest from a freshly booted one, one line each."""
    told = []
    for name, wanted in sorted(fresh.functions.items()):
        seen = live.functions.get(name)
        if seen is None:
            told.append(f"{name} is not in the guest")
        elif odd := [code for code in wanted if not any(_same_code(code, other, lines) for other in seen)]:
            told.append(f"{name}: {_first(odd[0], seen[0], lines)}")
    for name, contents in sorted(fresh.constants.items()):
        found = live.constants.get(name)
        if found is None:
            continue
        if odd := [
            each for each in sorted(contents) if not any(_begins_with(other, each) for other in found)
        ]:
            told.append(f"{name}: {_first(odd[0], min(found))}")
    return told


def _begins_with(content: Sequence[str], start: Sequence[str]) -> bool:
    """Return whether a constant contains another one. In a patch, other constants may follow it."""
    return tuple(content[: len(start)]) == tuple(start)


def _same_code(one: Sequence[str], other: Sequence[str], lines: Lines) -> bool:
    return len(one) == len(other) and all(
        a == b or lines.differ_alone(a, b) for a, b in zip(one, other, strict=True)
    )


def _first(one: Sequence[str], other: Sequence[str], lines: Lines = NO_LINES) -> str:
    """Describe the first line in which two pieces of code differ."""
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b and not lines.differ_alone(a, b):
            return f"{number}: fresh {a!r}, here {b!r}"
    return f"{len(one)} lines freshly booted, {len(other)} here"
