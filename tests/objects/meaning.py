# SPDX-License-Identifier: MIT
"""Whether a patch module means what the patched objects mean: an oracle that reads files, and nothing else.

pyelftools reads them, objdump says where instructions end. The walk starts at the module's table of
functions, and compares each function with the one of the patched object: its bytes, and what each relocation
leads to, by name or by content. What a relocation leads to inside the module is compared in the same way, and
so are the entries of special sections. No code of the package is used. Each complaint begins with the name of
its check.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.objects.elf_file import ALLOC, EXEC, LIVEPATCH, MERGE, STRINGS, WRITE, File, Rel, Sym

WIDTH: Final = {1: 8, 24: 8}  # bytes that a relocation writes; 4 for all others

# How large an entry may be, and how many relocations it has, in the order to try.
ENTRIES: Final = {
    ".altinstructions": ((14, 2), (13, 2), (12, 2)),
    "__bug_table": ((12, 2), (16, 2), (8, 1)),
    "__ex_table": ((12, 2), (12, 3)),
    "__jump_table": ((16, 3), (24, 3)),
    ".static_call_sites": ((8, 2),),
    ".parainstructions": ((16, 1),),
    ".smp_locks": ((4, 1),),
    ".retpoline_sites": ((4, 1),),
    ".return_sites": ((4, 1),),
    ".call_sites": ((4, 1),),
    "__mcount_loc": ((8, 1),),
    ".orc_unwind_ip": ((4, 1),),
}
# Who refers to a function from here does not run it.
SILENT: Final = (
    *ENTRIES,
    ".orc_",
    ".debug",
    ".discard.",
    "___ksymtab",
    "__ksymtab",
    ".BTF",
    ".init.",
    ".exit.",
)
# Of these each place in the source has its own, which holds no state worth keeping.
PLACES: Final = re.compile(
    r"(__key|__warned|__already_done|__func__|__FUNCTION__|__PRETTY_FUNCTION__|_rs|CSWTCH|_entry|__UNIQUE_ID_\w*"
    r"|__print_once|___done|descriptor|___tp_str|__msg)\b"
)


def plain(name: str) -> str:
    """A name without the compiler's numbers."""
    return re.sub(r"\.\d+", "", name)


Entry = tuple[int, int, int, list[Rel]]  # section, place, size, relocations


@dataclass(frozen=True)
class Unit:
    """One unit of the patched module: its source's name, and its objects before and after the edit."""

    source: str
    original: File
    patched: File


@dataclass
class Checker:
    """``running``: the file of the loaded module, ``exports``: CRCs of vmlinux' exports, ``template``: the
    module that a patch is made from."""

    module: str
    running: File
    units: Sequence[Unit]
    exports: Mapping[str, int]
    template: File
    patch: File
    complaints: list[str] = field(default_factory=list)
    known: dict[tuple[int, int, int], tuple[int, int]] = field(
        default_factory=dict
    )  # place -> place in patch
    taken: dict[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict)  # and back
    ranks: dict[tuple[int, int | str, int], int] = field(default_factory=dict)  # place -> running symbol
    replaced: set[tuple[int, int | str, int]] = field(default_factory=set)  # places of functions
    carried: set[tuple[int, int | str, int]] = field(default_factory=set)
    needed: set[tuple[int, int | str, int]] = field(default_factory=set)  # reached through their callers
    asked_for: list[tuple[tuple[int, int | str, int], str]] = field(default_factory=list)
    claimed: dict[int, set[int]] = field(default_factory=dict)  # section of the patch -> entries' offsets

    def say(self, check: str, text: str) -> None:
        self.complaints.append(f"{check}: {text}")

    def run(self) -> list[str]:
        self.check_form()
        self.check_imports()
        self.check_table()
        for number in range(len(self.units)):
            self.check_all_changes_arrive(number)
        self.check_no_entry_is_strange()
        return list(dict.fromkeys(self.complaints))

    # --- the form of the file, as the module loader and the livepatch core want it ---

    def check_form(self) -> None:
        patch = self.patch
        bindings = [s.binding != "STB_LOCAL" for s in patch.symbols]
        if bindings != sorted(bindings) or patch.first_global != bindings.index(True):
            self.say("symbol order", "local symbols do not all stand before global ones")
        for index, relocations in patch.relocations.items():
            name, data = patch.names[index], patch.data[index]
            places = [r.offset for r in relocations if r.type]
            if len(places) != len(set(places)):
                self.say("one relocation a place", name)
            for r in relocations:
                if r.offset + WIDTH.get(r.type, 4) > len(data):
                    self.say("relocation inside", f"{name}+{r.offset:#x}")
                elif r.type and any(data[r.offset : r.offset + WIDTH.get(r.type, 4)]):
                    self.say("zero before relocation", f"{name}+{r.offset:#x}")
                self.check_kind_of_relocation(name, r)
        for index, header in enumerate(patch.sections):
            if patch.names[index].startswith(".klp.rela."):
                target = patch.names[header["sh_info"]]
                flags = header["sh_flags"]
                if (
                    not patch.names[index].endswith(f".{target}")
                    or flags & (LIVEPATCH | ALLOC) != LIVEPATCH | ALLOC
                ):
                    self.say("livepatch section", f"{patch.names[index]} for {target}, flags {flags:#x}")
                if patch.names[index].split(".")[3] not in (self.module, "vmlinux"):
                    self.say("livepatch section", f"{patch.names[index]} waits for another object")

    def check_kind_of_relocation(self, section: str, r: Rel) -> None:
        livepatch = r.symbol.section == "SHN_LIVEPATCH"
        if livepatch != r.table.startswith(".klp.rela."):
            self.say("livepatch relocation", f"{r.table}+{r.offset:#x} names {r.symbol.name or 'no symbol'}")
        if livepatch and not r.symbol.name.startswith(".klp.sym."):
            self.say("livepatch relocation", r.symbol.name)
        if r.type not in (0, 1, 2, 4, 10, 11, 24):
            self.say("relocation type", f"{section}+{r.offset:#x} has type {r.type}")

    def check_imports(self) -> None:
        ours = {s.name for s in self.patch.symbols if s.section == "SHN_UNDEF" and s.name}
        theirs = {s.name for s in self.template.symbols if s.section == "SHN_UNDEF"}
        for name in sorted(ours - theirs - self.exports.keys()):
            self.say("import", f"{name} is exported by nobody")
        if "__versions" in self.patch.names:
            data = self.patch.data[self.patch.names.index("__versions")]
            rows = {name.rstrip(b"\0").decode(): crc for crc, name in struct.iter_unpack("<Q56s", data)}
            for name in sorted(ours & self.exports.keys() - theirs):
                if rows.get(name) != self.exports[name]:
                    self.say("version", f"{name} has {rows.get(name)}, and {self.exports[name]} is exported")

    # --- the table of functions ---

    def check_table(self) -> None:
        patch = self.patch
        table, funcs = patch.names.index(".hotreload.table"), patch.names.index(".hotreload.funcs")
        (count,) = struct.unpack_from("<Q", patch.data[table], 8)
        if count * 32 != len(patch.data[funcs]):
            self.say("table", f"{count} functions are counted in {len(patch.data[funcs])} bytes")
        for start in range(0, len(patch.data[funcs]), 32):
            pointers = {r.offset - start: r for r in patch.within(funcs, start, start + 32)}
            if 8 not in pointers:
                continue  # an object of which only data changes
            texts = {at: self.text_at(pointers[at]) for at in (0, 8) if at in pointers}
            (rank,) = struct.unpack_from("<Q", patch.data[funcs], start + 24)
            if texts.get(0, "vmlinux") != self.module:
                self.say("table", f"{texts.get(8)} of object {texts.get(0)}")
            elif 16 not in pointers:
                self.say("table", f"{texts[8]} is replaced by nothing")
            else:
                self.check_function(texts[8], rank, pointers[16])

    def text_at(self, r: Rel) -> str:
        assert isinstance(r.symbol.section, int)
        return self.patch.text(r.symbol.section, r.symbol.value + r.addend).decode(errors="replace")

    def check_function(self, name: str, rank: int, new: Rel) -> None:
        running = self.by_rank(name, rank)
        if running is None or running.kind != "STT_FUNC":
            self.say("rank", f"the module has no function {name} of rank {rank}")
            return
        number = self.unit_of(running)
        found = [] if number is None else self.like(self.units[number].patched.functions, name)
        if number is None or not found:
            self.say("rank", f"{name} of rank {rank} is in no unit that changed")
            return
        assert isinstance(new.symbol.section, int)
        place = new.symbol.section, new.symbol.value + new.addend
        if new.symbol.kind != "STT_FUNC" or new.symbol.size != found[0].size:
            self.say(
                "size", f"{name} is replaced by {new.symbol.name or 'a place'} of {new.symbol.size} bytes"
            )
        self.replaced.add((number, found[0].section, found[0].value))
        self.check_same(number, found[0], place)

    def by_rank(self, name: str, rank: int) -> Sym | None:
        """What kallsyms shows of the loaded module, in the order of its table (kernel/livepatch/core.c)."""
        running = self.running
        shown = [
            s
            for s in running.symbols
            if s.name == name
            and isinstance(s.section, int)
            and running.sections[s.section]["sh_flags"] & ALLOC
            and not running.names[s.section].startswith(".init")
        ]
        if rank == 0:
            return shown[0] if len(shown) == 1 else None
        return shown[rank - 1] if rank <= len(shown) else None

    def unit_of(self, running: Sym) -> int | None:
        """The unit of a running symbol; a global one is in the unit that defines it."""
        for number, unit in enumerate(self.units):
            if running.file >= 0:
                if self.running.files[running.file] == unit.source:
                    return number
            elif any(s.name == running.name and s.binding != "STB_LOCAL" for s in unit.original.named):
                return number
        return None

    @staticmethod
    def like(symbols: Sequence[Sym], name: str) -> list[Sym]:
        """Those of that name; else the only one of that name without its numbers."""
        exact = [s for s in symbols if s.name == name]
        similar = [s for s in symbols if plain(s.name) == plain(name)]
        return exact or (similar if len(similar) == 1 else [])

    # --- two stretches that must say the same ---

    def check_same(self, number: int, symbol: Sym, at: tuple[int, int]) -> None:
        """A function or object of the patched object, and what stands for it in the patch."""
        unit = self.units[number]
        assert isinstance(symbol.section, int)
        if not self.note_place(number, symbol.section, symbol.value, at, symbol.name):
            return
        self.carried.add((number, symbol.section, symbol.value))
        theirs = self.patch.holder(*at)
        if theirs is None or theirs.value != at[1] or plain(theirs.name) != plain(symbol.name):
            self.say("name", f"{symbol.name} is called {theirs.name if theirs else 'nothing'} in the patch")
        self.check_state(number, symbol)
        self.check_stretch(number, symbol.section, symbol.value, symbol.size, at, symbol.name)
        if unit.patched.sections[symbol.section]["sh_flags"] & EXEC:
            self.check_entries(number, symbol, at)

    def note_place(self, number: int, section: int, place: int, at: tuple[int, int], name: str) -> bool:
        """Remember what stands for what; False when it is known, or cannot be."""
        key = number, section, place
        if self.known.get(key, at) != at or self.taken.get(at, key) != key:
            self.say("identity", f"{name} is in the patch twice, or shares its place")
            return False
        if key in self.known:
            return False
        self.known[key], self.taken[at] = at, key
        if not 0 <= at[1] <= len(self.patch.data[at[0]]):
            self.say("identity", f"{name} is outside of {self.patch.names[at[0]]}")
            return False
        return True

    def check_state(self, number: int, symbol: Sym) -> None:
        """What the running kernel has a value of must not be there a second time."""
        unit = self.units[number]
        assert isinstance(symbol.section, int)
        if symbol.kind != "STT_OBJECT" or not unit.patched.sections[symbol.section]["sh_flags"] & WRITE:
            return
        # A name with a number is one of several places' in the source, unless no other has that name.
        if PLACES.match(symbol.name) or unit.patched.names[symbol.section] == "__dyndbg":
            return
        if self.like([s for s in unit.original.named if s.kind == "STT_OBJECT"], symbol.name):
            self.say("state", f"{symbol.name} has a value in the running kernel, and is in the patch again")

    def check_stretch(
        self, number: int, section: int, start: int, size: int, at: tuple[int, int], name: str
    ) -> None:
        ours, patch = self.units[number].patched, self.patch
        if ours.data[section][start : start + size] != patch.data[at[0]][at[1] : at[1] + size]:
            self.say("bytes", f"{name} has other bytes")
        flags, theirs = ours.sections[section]["sh_flags"], patch.sections[at[0]]["sh_flags"]
        if (flags ^ theirs) & (WRITE | ALLOC | EXEC):
            self.say("section flags", f"{name} is in {patch.names[at[0]]}, whose flags are {theirs:#x}")
        self.check_alignment(ours.sections[section]["sh_addralign"], start, at, name)
        self.check_relocations(number, section, start, size, at, name)

    def check_alignment(self, align: int, place: int, at: tuple[int, int], name: str) -> None:
        wanted = min(align or 1, place & -place or align or 1)
        if at[1] % wanted or (self.patch.sections[at[0]]["sh_addralign"] or 1) < wanted:
            self.say("alignment", f"{name} is not at a multiple of {wanted}")

    def check_relocations(
        self, number: int, section: int, start: int, size: int, at: tuple[int, int], name: str
    ) -> None:
        ours = [r for r in self.units[number].patched.within(section, start, start + size) if r.type]
        theirs = [r for r in self.patch.within(at[0], at[1], at[1] + size) if r.type]
        places = [(r.offset - start, r.type) for r in ours]
        if places != [(r.offset - at[1], r.type) for r in theirs]:
            self.say("relocations", f"{name} has others, or in other places")
            return
        for one, other in zip(ours, theirs, strict=True):
            self.check_target(number, section, one, other, f"{name}+{one.offset - start:#x}")

    # --- what a relocation leads to ---

    def check_target(self, number: int, section: int, one: Rel, other: Rel, where: str) -> None:
        ours, symbol = self.units[number].patched, one.symbol
        if not isinstance(symbol.section, int):
            self.check_undefined(number, one, other, where)
            return
        after = ours.to_end(section, one)
        place = symbol.value + one.addend + after
        flags = ours.sections[symbol.section]["sh_flags"]
        if flags & MERGE:
            # A label stands where its string or constant begins; a section's symbol says a place itself.
            start = symbol.value if symbol.kind != "STT_SECTION" else place
            self.check_content(ours, symbol.section, start, other, after - (place - start), where)
            return
        named = symbol if symbol.kind in ("STT_FUNC", "STT_OBJECT") else ours.holder(symbol.section, place)
        named = named or ours.last(symbol.section, place)
        if named is None:
            start, end = ours.stretch(symbol.section, place)
            self.check_nameless(number, symbol.section, (start, end), other, after - (place - start), where)
            return
        inside = place - named.value
        if isinstance(other.symbol.section, int):
            self.check_address_taken(number, section, one, named, inside, where)
            self.check_same(number, named, self.place_of(other, after - inside))
        else:
            self.check_running(number, named, one.addend + symbol.value - named.value, other, where)

    def place_of(self, r: Rel, further: int) -> tuple[int, int]:
        assert isinstance(r.symbol.section, int)
        return r.symbol.section, r.symbol.value + r.addend + further

    def check_undefined(self, number: int, one: Rel, other: Rel, where: str) -> None:
        name = one.symbol.name
        if isinstance(other.symbol.section, int):
            for sibling, unit in enumerate(self.units):
                for symbol in unit.patched.named:
                    if symbol.name == name and symbol.binding != "STB_LOCAL" and sibling != number:
                        further = -one.addend
                        self.check_same(sibling, symbol, self.place_of(other, further))
                        return
            self.say("target", f"{where} leads into the patch instead of to {name}")
            return
        theirs = other.symbol.name
        if theirs.startswith(".klp.sym."):
            obj, theirs, rank = self.parts(theirs)
            if obj == self.module and self.by_rank(theirs, rank) is None:
                self.say("rank", f"{where}: {other.symbol.name} is nothing")
            elif obj == "vmlinux":
                self.say("livepatch relocation", f"{where} for an export of vmlinux")
        if (theirs, other.addend) != (name, one.addend):
            self.say(
                "target", f"{where} leads to {theirs}+{other.addend:#x} instead of {name}+{one.addend:#x}"
            )

    @staticmethod
    def parts(symbol: str) -> tuple[str, str, int]:
        """The object, name and rank of ``.klp.sym.OBJECT.NAME,RANK``."""
        obj, _, rest = symbol.removeprefix(".klp.sym.").partition(".")
        name, _, rank = rest.rpartition(",")
        return obj, name, int(rank)

    def check_running(self, number: int, named: Sym, addend: int, other: Rel, where: str) -> None:
        """A reference to what the running kernel has."""
        if not other.symbol.name.startswith(".klp.sym."):
            self.say(
                "target", f"{where} leads to {other.symbol.name or 'an address'} instead of {named.name}"
            )
            return
        obj, name, rank = self.parts(other.symbol.name)
        running = self.by_rank(name, rank) if obj == self.module else None
        if running is None:
            self.say("rank", f"{where}: the module has no {name} of rank {rank}")
            return
        if plain(name) != plain(named.name) or self.unit_of(running) != number:
            self.say("target", f"{where} leads to {name} of rank {rank} instead of {named.name}")
        if other.addend != addend:
            self.say("addend", f"{where} leads to {name}+{other.addend:#x} instead of +{addend:#x}")
        key = number, named.section, named.value
        if self.ranks.setdefault(key, id(running)) != id(running):
            self.say("identity", f"{named.name} is more than one symbol of the running module")
        self.asked_for.append((key, where))

    def check_address_taken(
        self, number: int, section: int, one: Rel, named: Sym, inside: int, where: str
    ) -> None:
        """A kept address of a function outlives the patch: it must be the running one's."""
        unit = self.units[number]
        if named.kind != "STT_FUNC" or inside or unit.patched.is_branch(section, one):
            return
        if unit.patched.names[section] in ENTRIES or ".cold" in named.name:
            return
        if self.like(unit.original.functions, named.name):
            self.say("address taken", f"{where} takes the address of the new {named.name}")

    def check_content(
        self, ours: File, section: int, start: int, other: Rel, further: int, where: str
    ) -> None:
        """A string or constant: what it says, and that it is aligned as before."""
        if not isinstance(other.symbol.section, int):
            self.say("content", f"{where} leads to {other.symbol.name}")
            return
        at, place = self.place_of(other, further)
        header, data = ours.sections[section], ours.data[section]
        if header["sh_flags"] & STRINGS:
            size = len(ours.text(section, start)) + 1
            begins = start == 0 or data[start - 1] == 0
        else:
            size = header["sh_entsize"] or 1
            place, start = place - start % size, start - start % size
            begins = True
        if place < 0 or data[start : start + size] != self.patch.data[at][place : place + size]:
            self.say("content", f"{where}: {data[start : start + size][:30]!r} is not there")
        elif begins:
            self.check_alignment(header["sh_addralign"], start, (at, place), where)
        if self.patch.sections[at]["sh_flags"] & WRITE:
            self.say("section flags", f"{where}: a constant can be written to")
        if self.patch.within(at, place, place + size):
            self.say("content", f"{where}: a relocation writes into it")

    def check_nameless(
        self, number: int, section: int, ends: tuple[int, int], other: Rel, further: int, where: str
    ) -> None:
        """Data or code without a symbol: the whole stretch must be there."""
        if not isinstance(other.symbol.section, int):
            self.say("target", f"{where} leads to {other.symbol.name}")
            return
        at = self.place_of(other, further)
        start, end = ends
        if self.note_place(number, section, start, at, where):
            name = f"what {where} leads to"
            self.check_stretch(number, section, start, end - start, at, name)
            if self.units[number].patched.sections[section]["sh_flags"] & EXEC:
                stretch = Sym(name, "STT_NOTYPE", "STB_LOCAL", section, start, end - start, 0)
                self.check_entries(number, stretch, at)

    # --- special sections ---

    def entries(self, file: File, name: str) -> Iterator[Entry]:
        """The entries of a special section."""
        for section, known in enumerate(file.names):
            if known != name or not file.data[section]:
                continue
            for size, count in ENTRIES[name]:
                rows = [
                    (section, start, size, [r for r in file.within(section, start, start + size) if r.type])
                    for start in range(0, len(file.data[section]), size)
                ]
                if all(len(row[3]) == count and row[3][0].offset == row[1] for row in rows):
                    yield from rows
                    break
            else:
                self.say("entries", f"{name} has no known form")

    def check_entries(self, number: int, symbol: Sym, at: tuple[int, int]) -> None:
        ours = self.units[number].patched
        for name in ENTRIES:
            mine = [
                entry
                for entry in self.entries(ours, name)
                if self.is_about(ours, entry[3][0], symbol.section, symbol.value, symbol.size)
            ]
            theirs = [
                entry
                for entry in self.entries(self.patch, name)
                if entry[1] >= self.of_template(name)
                and self.is_about(self.patch, entry[3][0], *at, symbol.size)
            ]
            if len(mine) != len(theirs):
                self.say("entries", f"{symbol.name} has {len(theirs)} in {name} instead of {len(mine)}")
                continue
            for one, other in zip(mine, theirs, strict=True):
                self.claimed.setdefault(other[0], set()).add(other[1])
                self.check_entry(number, name, one, other, f"{name} of {symbol.name}")

    def of_template(self, name: str) -> int:
        """How many bytes of a section the template has; those of the patch stand behind them."""
        names = self.template.names
        return len(self.template.data[names.index(name)]) if name in names else 0

    @staticmethod
    def is_about(file: File, r: Rel, section: int | str, start: int, size: int) -> bool:
        """Whether an entry is about a function, or about its end, where another one may begin."""
        if r.symbol.section != section:
            return False
        place = r.symbol.value + r.addend
        if r.symbol.kind == "STT_FUNC":
            return r.symbol.value == start
        assert isinstance(section, int)
        return start <= place < start + size or (place == start + size and not file.holder(section, place))

    def check_entry(self, number: int, name: str, one: Entry, other: Entry, where: str) -> None:
        ours, (section, start, size, mine), (at, place, _, theirs) = self.units[number].patched, one, other
        content = ours.data[section][start : start + size]
        if content.ljust(size, b"\0") != self.patch.data[at][place : place + size].ljust(size, b"\0"):
            self.say("entries", f"{where} has other bytes")
        flags = ours.sections[section]["sh_flags"], self.patch.sections[at]["sh_flags"]
        if (flags[0] ^ flags[1]) & (ALLOC | EXEC) or (flags[0] & WRITE and not flags[1] & WRITE):
            self.say("section flags", f"{name} has {flags[1]:#x}")
        if [(r.offset - start, r.type) for r in mine] != [(r.offset - place, r.type) for r in theirs]:
            self.say("entries", f"{where} has relocations in other places")
            return
        for index, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            if name == ".altinstructions" and index == 1 and isinstance(a.symbol.section, int):
                length = content[13] if size == 14 else content[11]
                self.check_replacement(number, a, b, length, where)
            else:
                self.check_target(number, section, a, b, where)
        if name == ".orc_unwind_ip":
            self.check_companion(ours, (start // 4, place // 4), where)

    def check_replacement(self, number: int, one: Rel, other: Rel, length: int, where: str) -> None:
        assert isinstance(one.symbol.section, int)
        start = one.symbol.value + one.addend
        if not isinstance(other.symbol.section, int):
            self.say("entries", f"{where} has no replacement")
            return
        at = self.place_of(other, 0)
        self.check_stretch(number, one.symbol.section, start, length, at, f"replacement in {where}")

    def check_companion(self, ours: File, rows: tuple[int, int], where: str) -> None:
        files = ours, self.patch
        width = [len(f.data[f.names.index(".orc_unwind_ip")]) // 4 for f in files]
        data = [f.data[f.names.index(".orc_unwind")] for f in files]
        sizes = [len(d) // w for d, w in zip(data, width, strict=True)]
        cut = [d[row * s : (row + 1) * s] for d, row, s in zip(data, rows, sizes, strict=True)]
        if cut[0] != cut[1]:
            self.say("entries", f"{where} unwinds otherwise")

    def check_no_entry_is_strange(self) -> None:
        """Every entry that the template does not have belongs to a function that was found."""
        for name in ENTRIES:
            if name in self.patch.names:
                for section, start, _, _ in self.entries(self.patch, name):
                    if start >= self.of_template(name) and start not in self.claimed.get(section, set()):
                        self.say("entries", f"{name}+{start:#x} belongs to no function of the patch")

    # --- nothing is left behind ---

    def check_all_changes_arrive(self, number: int) -> None:
        """Each function that differs is replaced, or all who use it are; nobody goes to the old one."""
        unit = self.units[number]
        changed = {
            (number, function.section, function.value): function
            for function in unit.patched.functions
            if self.differs(unit, function)
        }
        for function in changed.values():
            if not self.is_covered(number, function, set()):
                self.say("arrival", f"{function.name} changed, and who uses it goes on to use the old one")
        for place, where in self.asked_for:
            if place in self.needed and place not in self.replaced:
                self.say(
                    "arrival", f"{where} leads to the old code, and only a caller can lead to the new one"
                )

    def is_covered(self, number: int, function: Sym, seen: set[Sym]) -> bool:
        place = number, function.section, function.value
        if place in self.replaced or function in seen:
            return True
        self.needed.add(place)
        if place not in self.carried:
            return False
        users = self.users(number, function)
        return bool(users) and all(
            user and self.is_covered(number, user, {*seen, function}) for user in users
        )

    def users(self, number: int, function: Sym) -> set[Sym | None]:
        """The functions that refer to one; None for something else that does."""
        file = self.units[number].patched
        found: set[Sym | None] = set()
        for section, relocations in file.relocations.items():
            if file.names[section].startswith(SILENT) or not file.sections[section]["sh_flags"] & ALLOC:
                continue
            for r in relocations:
                place = r.symbol.value + r.addend + file.to_end(section, r)
                inside = r.symbol.section == function.section and 0 <= place - function.value < function.size
                if r.symbol == function or inside:
                    user = file.holder(section, r.offset)
                    found.add(user if user and user.kind == "STT_FUNC" else None)
        return {
            user
            for user in found
            if user is None or user.value != function.value or user.section != function.section
        }

    def differs(self, unit: Unit, function: Sym) -> bool:
        """Whether a function says something else than before, as far as bytes and names tell."""
        before = self.like(unit.original.functions, function.name)
        assert isinstance(function.section, int)
        if not before or unit.patched.names[function.section].startswith((".init.", ".exit.")):
            return False
        return self.meaning(unit.original, before[0]) != self.meaning(unit.patched, function)

    @staticmethod
    def meaning(file: File, function: Sym) -> object:
        section = function.section
        assert isinstance(section, int)
        end = function.value + function.size
        told: list[object] = [file.data[section][function.value : end]]
        for r in file.within(section, function.value, end):
            where, after = r.symbol.section, file.to_end(section, r)
            place = r.symbol.value + r.addend + after
            target: object = r.symbol.name, r.addend
            if isinstance(where, int):
                holder = file.holder(where, place)
                if file.sections[where]["sh_flags"] & MERGE:
                    place = r.symbol.value if r.symbol.kind != "STT_SECTION" else place
                    strings = file.sections[where]["sh_flags"] & STRINGS
                    target = file.text(where, place) if strings else file.data[where][place : place + 4]
                elif holder is not None:
                    target = plain(holder.name), place - holder.value
                else:
                    target = None  # of what has no name nothing is asked here
            told.append((r.offset - function.value, r.type, target))
        return told


def complaints(
    module: str, running: Path, units: Sequence[tuple[str, Path, Path]], exports: Mapping[str, int],
    template: bytes, patch: bytes,
) -> list[str]:  # fmt: skip
    """What is wrong with a patch for ``units`` (source, object before, object after) of a loaded module."""
    read = [Unit(source, File(a.read_bytes(), a), File(b.read_bytes(), b)) for source, a, b in units]
    running_file = File(running.read_bytes(), running)
    return Checker(module, running_file, read, exports, File(template), File(patch)).run()
