# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - a table whose rows stand on one line each reads better.
"""Defects of the emitter, one a row of DEFECTS: what a planner or a writer with that defect would hand on.

There are four seams: the difference that a plan is made from, the plan, the sections that the writer of modules
hands to the writer of files, and the file. A defect of what comes before a seam is another value there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from hotreload.diff.object_diff import ObjectDiff
from hotreload.elf.writer import OutputSection, OutputSymbol
from hotreload.patch.model import Import, PatchPlan, Piece, PieceRef, PlannedRelocation, UnitDiff
from hotreload.patch.symbols import SymbolPosition

Sections = list[OutputSection]


def _same(plan: PatchPlan) -> PatchPlan:
    return plan


def _untouched(_sections: Sections, _symbols: list[OutputSymbol]) -> None:
    pass


def _unread(_image: bytearray) -> None:
    pass


def _undivided(units: tuple[UnitDiff, ...]) -> tuple[UnitDiff, ...]:
    return units


@dataclass(frozen=True)
class Defect:
    """A defect, the pair that shows it, and the check that must catch it."""

    pair: str
    caught_by: str
    in_plan: Callable[[PatchPlan], PatchPlan] = _same
    in_file: Callable[[Sections, list[OutputSymbol]], None] = _untouched
    in_image: Callable[[bytearray], None] = _unread
    in_diff: Callable[[tuple[UnitDiff, ...]], tuple[UnitDiff, ...]] = _undivided


def piece_number(plan: PatchPlan, name: str) -> int:
    return next(number for number, piece in enumerate(plan.pieces) if name in (piece.name, piece.section))


def with_piece(name: str, change: Callable[[PatchPlan, Piece], Piece]) -> Callable[[PatchPlan], PatchPlan]:
    """The first piece of that name, or in the section of that name, is another one."""

    def defect(plan: PatchPlan) -> PatchPlan:
        number = piece_number(plan, name)
        pieces = list(plan.pieces)
        pieces[number] = change(plan, pieces[number])
        assert pieces[number] != plan.pieces[number]
        return replace(plan, pieces=tuple(pieces))

    return defect


def with_relocation(
    name: str, target: str, change: Callable[[PatchPlan, PlannedRelocation], PlannedRelocation | None]
) -> Callable[[PatchPlan], PatchPlan]:
    """The first relocation of a piece that leads to something of that name or kind is another one."""

    def changed(plan: PatchPlan, piece: Piece) -> Piece:
        index = next(n for n, r in enumerate(piece.relocations) if target in called(plan, r))
        other = change(plan, piece.relocations[index])
        others = () if other is None else (other,)
        return replace(
            piece, relocations=(*piece.relocations[:index], *others, *piece.relocations[index + 1 :])
        )

    return with_piece(name, changed)


def called(plan: PatchPlan, relocation: PlannedRelocation) -> tuple[str, ...]:
    """What a relocation leads to: the name, if it has one, and the kind."""
    target = relocation.target
    name = plan.pieces[target.number].name if isinstance(target, PieceRef) else getattr(target, "name", "")
    return (name or "-", type(target).__name__)


def further(by: int) -> Callable[[PatchPlan, PlannedRelocation], PlannedRelocation]:
    return lambda _, relocation: replace(relocation, addend=relocation.addend + by)


def leading_to(name: str) -> Callable[[PatchPlan, PlannedRelocation], PlannedRelocation]:
    return lambda plan, relocation: replace(relocation, target=PieceRef(piece_number(plan, name)))


def of_rank(by: int) -> Callable[[PatchPlan, PlannedRelocation], PlannedRelocation]:
    def changed(_: PatchPlan, relocation: PlannedRelocation) -> PlannedRelocation:
        assert isinstance(relocation.target, SymbolPosition)
        return replace(relocation, target=replace(relocation.target, sympos=relocation.target.sympos + by))

    return changed


def swapped(values: str) -> Callable[[PatchPlan, Piece], Piece]:
    """The addends, or targets, of the first two relocations of a piece that differ in them change places."""

    def changed(_: PatchPlan, piece: Piece) -> Piece:
        rows = list(piece.relocations)
        one, other = next(
            (a, b)
            for a in range(len(rows))
            for b in range(a + 1, len(rows))
            if getattr(rows[a], values) != getattr(rows[b], values) and rows[a].type == rows[b].type
        )
        was, now = getattr(rows[one], values), getattr(rows[other], values)
        rows[one], rows[other] = replace(rows[one], **{values: now}), replace(rows[other], **{values: was})
        return replace(piece, relocations=tuple(rows))

    return changed


def with_functions(change: Callable[[int, object], object]) -> Callable[[PatchPlan], PatchPlan]:
    """Each function of the table, with its number, is another one, or (None) is not there."""

    def defect(plan: PatchPlan) -> PatchPlan:
        return replace(
            plan,
            objects=tuple(
                replace(obj, funcs=tuple(f for n, func in enumerate(obj.funcs) if (f := change(n, func))))
                for obj in plan.objects
            ),
        )

    return defect


def without_promoted(units: tuple[UnitDiff, ...]) -> tuple[UnitDiff, ...]:
    """The difference, with one of the callers forgotten that must travel with what they call."""

    def without(diff: ObjectDiff) -> ObjectDiff:
        (name, *_) = [n for n in diff.callers_promoted if n in {t.original.name for t in diff.changed}]
        return replace(
            diff,
            changed=tuple(twins for twins in diff.changed if twins.original.name != name),
            carried=tuple(symbol for symbol in diff.carried if symbol.name != name),
        )

    return tuple(replace(unit, diff=without(unit.diff)) for unit in units)


def without_entry(section: str) -> Callable[[tuple[UnitDiff, ...]], tuple[UnitDiff, ...]]:
    def dropped(units: tuple[UnitDiff, ...]) -> tuple[UnitDiff, ...]:
        (unit,) = units
        entries = {
            owner: tuple(e for e in rows if e.row.name != section)
            for owner, rows in unit.diff.entries.items()
        }
        assert entries != dict(unit.diff.entries)
        return (replace(unit, diff=replace(unit.diff, entries=entries)),)

    return dropped


def section(sections: Sections, name: str) -> OutputSection:
    return next(s for s in sections if s.name == name)


def flagged(name: str, flags: int) -> Callable[[Sections, list[OutputSymbol]], None]:
    """A section with other flags than it must have."""

    def defect(sections: Sections, _symbols: list[OutputSymbol]) -> None:
        section(sections, name).flags ^= flags

    return defect


def without_alignment(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    for each in sections:
        each.align = 1


def klp_as_ordinary(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    for each in sections:
        for entries in each.livepatch.values():
            each.relocations += entries
        each.livepatch.clear()


def klp_without_flag(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    for each in sections:
        each.livepatch_flags &= ~0x100000


def klp_of_another_section(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    text = section(sections, ".text")
    text.livepatch[".klp.rela.drv..data"] = text.livepatch.pop(".klp.rela.drv..text")


def klp_of_another_object(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    text = section(sections, ".text")
    text.livepatch[".klp.rela.ext4..text"] = text.livepatch.pop(".klp.rela.drv..text")


def twice(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    text = section(sections, ".text")
    text.relocations.append(text.relocations[-1])


def value_left_behind(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    text = section(sections, ".text")
    text.data[text.relocations[-1].offset] = 1


def new_data_zeroed(sections: Sections, symbols: list[OutputSymbol]) -> None:
    data = section(sections, ".data")
    (fresh,) = [s for s in symbols if s.name == "fresh"]
    data.data[fresh.value : fresh.value + 4] = bytes(4)


def without_size(_sections: Sections, symbols: list[OutputSymbol]) -> None:
    for symbol in symbols:
        if symbol.name == "f":
            symbol.size = 0


def truncated_addend(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    for each in sections:
        for relocation in each.relocations:
            relocation.addend &= 0xFFFFFFFF


def header_of(image: bytearray, name: str) -> int:
    """Where the header of a section stands in a file."""
    (table,) = struct.unpack_from("<Q", image, 40)
    count, names = struct.unpack_from("<HH", image, 60)
    (texts,) = struct.unpack_from("<Q", image, table + 64 * names + 24)
    for at in range(table, table + 64 * count, 64):
        start = texts + struct.unpack_from("<I", image, at)[0]
        if image[start:].startswith(name.encode() + b"\0"):
            return at
    raise LookupError(name)


def first_global_moved(image: bytearray) -> None:
    at = header_of(image, ".symtab") + 44
    struct.pack_into("<I", image, at, struct.unpack_from("<I", image, at)[0] + 1)


def symbol_numbers_moved(image: bytearray) -> None:
    start, size = struct.unpack_from("<QQ", image, header_of(image, ".rela.text") + 24)
    for row in range(start, start + size, 24):
        struct.pack_into("<I", image, row + 12, struct.unpack_from("<I", image, row + 12)[0] + 1)


def relocations_of_another_section(image: bytearray) -> None:
    one, other = (header_of(image, name) + 44 for name in (".rela.text", ".rela.rodata"))
    image[one : one + 4], image[other : other + 4] = image[other : other + 4], image[one : one + 4]


def cut_strings(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    rodata = section(sections, ".rodata")
    at = rodata.data.index(b"text\0")
    rodata.data[at + 3] = 0


def merged_constants(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    """Two strings that begin alike are taken for one: references to the longer go to the shorter."""
    rodata = section(sections, ".rodata")
    short, long = rodata.data.index(b"text\0"), rodata.data.index(b"text that goes on\0")
    for relocation in section(sections, ".text").relocations:
        if relocation.addend == long and relocation.symbol.section is rodata:
            relocation.addend = short


def wrong_crc(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    versions = section(sections, "__versions")
    struct.pack_into("<Q", versions.data, len(versions.data) - 64, 1)


def one_function_less(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    table = section(sections, ".hotreload.table")
    (count,) = struct.unpack_from("<Q", table.data, 8)
    struct.pack_into("<Q", table.data, 8, count - 1)


def entry_of_nobody(sections: Sections, _symbols: list[OutputSymbol]) -> None:
    locks = section(sections, ".smp_locks")
    text = section(sections, ".text")
    for relocation in locks.relocations:
        relocation.addend = 0
        relocation.symbol = next(r.symbol for r in text.relocations if r.symbol.section is not None)


DEFECTS: Final[dict[str, Defect]] = {
    "an addend of 1 more": Defect("calls", "addend", with_relocation("f", "SymbolPosition", further(1))),
    "an addend of 4 less": Defect("calls", "addend", with_relocation("f", "many", further(-4))),
    "an addend of 4 more in a call": Defect("calls", "identity", with_relocation("f", "first", further(4))),
    "an addend of 1 more to an export": Defect("calls", "target", with_relocation("first", "printk", further(1))),
    "an addend of 1 more to a string": Defect("calls", "content", with_relocation("first", "StringRef", further(1))),
    "addends swapped": Defect("calls", "addend", with_piece("f", swapped("addend"))),
    "targets swapped": Defect("calls", "identity", with_piece("f", swapped("target"))),
    "a call redirected to a neighbour": Defect("calls", "identity", with_relocation("f", "first", leading_to("second"))),
    "a call redirected to itself": Defect("calls", "identity", with_relocation("f", "first", leading_to("f"))),
    "a variable taken for another": Defect("calls", "target", with_relocation("f", "n", lambda _, r: replace(r, target=SymbolPosition("drv", "many", 1)))),
    "an export taken for another": Defect("calls", "target", with_relocation("first", "printk", lambda _, r: replace(r, target=Import("memcpy", 0x1005)))),
    "an import that nobody exports": Defect("calls", "import", with_relocation("first", "printk", lambda _, r: replace(r, target=Import("printj", 0)))),
    "a relocation dropped": Defect("calls", "relocations", with_relocation("f", "n", lambda _plan, _r: None)),
    "a relocation moved": Defect("calls", "relocations", with_relocation("f", "first", lambda _, r: replace(r, offset=r.offset + 1))),
    "a relocation of another type": Defect("calls", "relocations", with_relocation("first", "StringRef", lambda _, r: replace(r, type=10))),
    "a relocation that no loader knows": Defect("calls", "relocation type", with_relocation("first", "StringRef", lambda _, r: replace(r, type=15))),
    "a byte of code changed": Defect("calls", "bytes", with_piece("f", lambda _, p: replace(p, content=p.content[:-1] + b"\xcc"))),
    "code cut short": Defect("calls", "size", with_piece("f", lambda _, p: replace(p, content=p.content[:-1]))),
    "a variable brought a second time": Defect("new", "state", with_relocation("f", "SymbolPosition", leading_to("fresh"))),
    "data of a new variable lost": Defect("new", "bytes", in_file=new_data_zeroed),
    "data in another order": Defect("new", "bytes", with_piece("more", lambda _, p: replace(p, content=p.content[8:] + p.content[:8]))),
    "alignment of a variable lost": Defect("new", "alignment", with_piece("room", lambda _, p: replace(p, align=1)) ),
    "alignment of all sections lost": Defect("constants", "alignment", in_file=without_alignment),
    "variables in constant memory": Defect("new", "section flags", with_piece("fresh", lambda _, p: replace(p, section=".rodata"))),
    "constants in writable memory": Defect("constants", "section flags", with_piece("table", lambda _, p: replace(p, section=".data"))),
    "code that cannot run": Defect("calls", "section flags", in_file=flagged(".text", 0x4)),
    "code that can be written to": Defect("calls", "section flags", in_file=flagged(".text", 0x1)),
    "data that is not loaded": Defect("new", "section flags", in_file=flagged(".data", 0x2)),
    "a string cut": Defect("constants", "content", in_file=cut_strings),
    "a string merged with one that begins alike": Defect("constants", "content", in_file=merged_constants),
    "a constant table merged with another": Defect("constants", "name", with_relocation("f", "odd", leading_to("even"))),
    "addends of 32 bits": Defect("calls", "target", in_file=truncated_addend),
    "the address of the new function": Defect("addresses", "address taken", with_relocation("f", "SymbolPosition", leading_to("work"))),
    "a caller dropped": Defect("callers", "arrival", with_functions(lambda n, func: None if n == 0 else func)),
    "a promoted caller forgotten": Defect("callers", "arrival", in_diff=without_promoted),
    "a call into the old code": Defect("callers", "arrival", with_relocation("f", "middle", lambda _, r: replace(r, target=SymbolPosition("drv", "middle", 1)))),
    "the rank of a function": Defect("ranks", "target", with_functions(lambda _, func: replace(func, old_sympos=func.old_sympos % 2 + 1) if func.old_name == "same" else func)),
    "the rank of a function that is not there": Defect("calls", "rank", with_functions(lambda _, func: replace(func, old_sympos=2))),
    "the rank of a variable": Defect("ranks", "target", with_relocation("same", "n", of_rank(1))),
    "the rank of a variable that is not there": Defect("calls", "rank", with_relocation("f", "n", of_rank(1))),
    "names in the table swapped": Defect("calls", "name", with_functions(lambda _, func: replace(func, old_name={"first": "second", "second": "first"}.get(func.old_name, func.old_name)))),
    "another object in the table": Defect("calls", "table", lambda plan: replace(plan, objects=tuple(replace(obj, name="vmlinux2") for obj in plan.objects))),
    "a livepatch relocation made ordinary": Defect("calls", "livepatch relocation", in_file=klp_as_ordinary),
    "a livepatch relocation without its flag": Defect("calls", "livepatch section", in_file=klp_without_flag),
    "a livepatch section of another section's name": Defect("calls", "livepatch section", in_file=klp_of_another_section),
    "a livepatch section of another object's name": Defect("calls", "livepatch section", in_file=klp_of_another_object),
    "two relocations in one place": Defect("calls", "one relocation a place", in_file=twice),
    "a value where a relocation writes": Defect("calls", "zero before relocation", in_file=value_left_behind),
    "a function without size": Defect("calls", "size", in_file=without_size),
    "a count of local symbols that is wrong": Defect("calls", "symbol order", in_image=first_global_moved),
    "numbers of symbols one too high": Defect("calls", "target", in_image=symbol_numbers_moved),
    "relocations of another section": Defect("constants", "relocations", in_image=relocations_of_another_section),
    "the CRC of an import": Defect("calls", "version", in_file=wrong_crc),
    "a count that is one too low": Defect("calls", "table", in_file=one_function_less),
    "a sibling's function taken from elsewhere": Defect("siblings", "target", with_relocation("f", "helper", lambda _, r: replace(r, target=Import("printk", 0x1000)))),
    "a place of a switch's table": Defect("switch", "identity", with_piece(".rodata", swapped("addend"))),
    "an entry of the bug table dropped": Defect("entries", "entries", in_diff=without_entry("__bug_table")),
    "an entry of the exception table dropped": Defect("entries", "entries", in_diff=without_entry("__ex_table")),
    "an alternative dropped": Defect("entries", "entries", in_diff=without_entry(".altinstructions")),
    "a lock dropped": Defect("entries", "entries", in_diff=without_entry(".smp_locks")),
    "a jump label dropped": Defect("entries", "entries", in_diff=without_entry("__jump_table")),
    "an ftrace site dropped": Defect("entries", "entries", in_diff=without_entry("__mcount_loc")),
    "an entry of nobody": Defect("entries", "entries", in_file=entry_of_nobody),
    "the replacement of another alternative": Defect("entries", "bytes", with_piece(".altinstructions", lambda plan, p: replace(p, relocations=(p.relocations[0], replace(p.relocations[1], target=PieceRef(max(n for n, q in enumerate(plan.pieces) if q.section == ".altinstr_replacement"))))))),
    "a fixup elsewhere": Defect("entries", "identity", with_piece("__ex_table", lambda _, p: replace(p, relocations=(p.relocations[0], replace(p.relocations[1], addend=p.relocations[1].addend + 1))))),
    "another line in the bug table": Defect("entries", "entries", with_piece("__bug_table", lambda _, p: replace(p, content=p.content[:8] + b"\x09\x00" + p.content[10:]))),
    "another key of a jump label": Defect("entries", "target", with_relocation("__jump_table", "key", lambda _, r: replace(r, target=Import("printk", 0x1000)))),
    "a cold part of nobody": Defect("cold", "identity", with_relocation("f", "f.cold", leading_to("f"))),
}  # fmt: skip
