# SPDX-License-Identifier: MIT
"""The tables that the template's code (csource/) reads: functions, values to write, callbacks."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hotreload.diff.functions import CALLBACK_KINDS
from hotreload.elf.constants import R_X86_64_64
from hotreload.elf.model import StringRef
from hotreload.elf.writer import OutputRelocation, OutputSection, OutputSymbol
from hotreload.patch.assembly import ModuleFile, PlacedAt
from hotreload.patch.glue import (
    CALLBACK_ENTRY_SIZE,
    CALLBACK_FUNC,
    CALLBACK_KIND,
    CALLBACK_OBJECT,
    FUNC_NEW_FUNC,
    FUNC_OBJECT,
    FUNC_OLD_NAME,
    FUNC_OLD_SYMPOS,
    FUNC_SIZE,
    TABLE_CALLBACK_COUNT,
    TABLE_CALLBACKS,
    TABLE_COUNT,
    TABLE_FUNCS,
    TABLE_SECTION,
    TABLE_TRANSITION_PATCH,
    TABLE_TRANSITION_WORK,
    TABLE_WRITE_COUNT,
    TABLE_WRITES,
    WRITE_BASE,
    WRITE_CHECK,
    WRITE_ENTRY_SIZE,
    WRITE_EXPECTED,
    WRITE_GROUP,
    WRITE_LENIENT,
    WRITE_NAME,
    WRITE_OBJECT,
    WRITE_PLACE,
    WRITE_SIZE,
    WRITE_VALUE,
)
from hotreload.patch.model import Callback, KlpObject, PieceRef, PlannedRelocation, Pointer, Value
from hotreload.patch.symbols import VMLINUX, SymbolPosition
from hotreload.patch.writes import PendingWrite


@dataclass(frozen=True, slots=True)
class ModuleGlue:
    """The template for a kernel, and where that kernel keeps what finishes a transition (None: unknown)."""

    template: bytes
    transition_work: SymbolPosition | None
    transition_patch: SymbolPosition | None


def add_functions(module: ModuleFile, objects: Iterable[KlpObject]) -> None:
    """Add the functions that are replaced, by object. An object without any gets an entry of its own."""
    funcs = module.section(".hotreload.funcs")
    count = 0
    for obj in objects:
        for func in obj.funcs or (None,):
            start = funcs.append(bytes(FUNC_SIZE), 8)
            place = PlacedAt(funcs, start)
            _point_at_object(module, place, FUNC_OBJECT, obj.name)
            if func is not None:
                struct.pack_into("<Q", funcs.data, start + FUNC_OLD_SYMPOS, func.old_sympos)
                _point(place, FUNC_OLD_NAME, _text(module, func.old_name))
                _point(place, FUNC_NEW_FUNC, module.resolve(PieceRef(func.new_func)))
            count += 1
    _hang_in(module, funcs, TABLE_FUNCS, TABLE_COUNT, count)


def add_transition(module: ModuleFile, glue: ModuleGlue) -> None:
    """Add where the kernel keeps what finishes a transition."""
    table = module.sections[TABLE_SECTION]
    for offset, position in (
        (TABLE_TRANSITION_WORK, glue.transition_work),
        (TABLE_TRANSITION_PATCH, glue.transition_patch),
    ):
        if position is not None:
            symbol, addend = module.resolve(position)
            module.livepatch(table, VMLINUX, OutputRelocation(offset, R_X86_64_64, symbol, addend))


def _hang_in(module: ModuleFile, array: OutputSection, at: int, count_at: int, count: int) -> None:
    """Make the table point at an array of ``count`` entries."""
    table = module.sections[TABLE_SECTION]
    struct.pack_into("<Q", table.data, count_at, count)
    _point(PlacedAt(table, 0), at, (module.section_symbol(array), 0))


def _point(place: PlacedAt, offset: int, to: tuple[OutputSymbol, int]) -> None:
    symbol, addend = to
    place.section.relocations.append(OutputRelocation(place.offset + offset, R_X86_64_64, symbol, addend))


def _point_at_object(module: ModuleFile, place: PlacedAt, offset: int, name: str | None) -> None:
    """Point at the name of a module. For vmlinux, the pointer stays NULL."""
    if name not in (None, VMLINUX):
        _point(place, offset, _text(module, str(name)))


def _text(module: ModuleFile, text: str) -> tuple[OutputSymbol, int]:
    return module.constant(text.encode() + b"\0", 1)


def add_writes(module: ModuleFile, writes: tuple[PendingWrite, ...]) -> None:
    """Add the values that are written in place."""
    if not writes:
        return
    section = module.section(".hotreload.writes")
    for each in writes:
        write = each.write
        place = PlacedAt(section, section.append(bytes(WRITE_ENTRY_SIZE), 8))
        _point_at_object(module, place, WRITE_OBJECT, write.object)
        _point(place, WRITE_NAME, _text(module, write.name))
        _put_value(module, place, WRITE_PLACE, Pointer(write.place, write.offset), write.object)
        _put_value(module, place, WRITE_SIZE, write.size, write.object)
        _put_value(module, place, WRITE_BASE, each.base, write.object)
        _put_value(module, place, WRITE_EXPECTED, each.expected, write.object)
        _put_value(module, place, WRITE_VALUE, each.value, write.object)
        _put_value(module, place, WRITE_LENIENT, int(each.lenient), write.object)
        _put_value(module, place, WRITE_GROUP, each.group, write.object)
        _put_value(module, place, WRITE_CHECK, int(each.check), write.object)
    _hang_in(module, section, TABLE_WRITES, TABLE_WRITE_COUNT, len(writes))


def add_callbacks(module: ModuleFile, callbacks: tuple[Callback, ...]) -> None:
    """Add the functions that the author wants called with an object."""
    if not callbacks:
        return
    section = module.section(".hotreload.callbacks")
    for callback in callbacks:
        place = PlacedAt(section, section.append(bytes(CALLBACK_ENTRY_SIZE), 8))
        _point_at_object(module, place, CALLBACK_OBJECT, callback.object)
        _put_value(module, place, CALLBACK_KIND, CALLBACK_KINDS.index(callback.kind), callback.object)
        _point(place, CALLBACK_FUNC, module.resolve(PieceRef(callback.func)))
    _hang_in(module, section, TABLE_CALLBACKS, TABLE_CALLBACK_COUNT, len(callbacks))


def _put_value(module: ModuleFile, place: PlacedAt, offset: int, value: Value, obj: str) -> None:
    if isinstance(value, Pointer):
        module.relocate(place, obj, PlannedRelocation(offset, R_X86_64_64, value.target, value.addend))
    else:
        assert isinstance(value, int), "what a text's address is was found out"
        struct.pack_into("<Q", place.section.data, place.offset + offset, value)


def pointed_at(
    module: ModuleFile, writes: tuple[PendingWrite, ...]
) -> Iterator[tuple[Value, tuple[str, int]]]:
    """Yield where in this module the targets of written pointers are: the value, then section and offset."""
    for each in writes:
        if isinstance(each.value, Pointer) and isinstance(each.value.target, PieceRef | StringRef):
            symbol, addend = module.resolve(each.value.target)
            assert symbol.section is not None, "absolute where its home is elsewhere"
            yield each.value, (symbol.section.name, symbol.value + addend + each.value.addend)
