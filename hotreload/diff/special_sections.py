# SPDX-License-Identifier: MIT
"""The table of special sections: arrays of entries that describe places in code.

An entry belongs to the function that its code relocation points into, and travels with it. Entry sizes differ
between kernel versions, so none is written here. The meaning of an entry fixes its number of relocations, and
their distance gives the size. An array whose entries do not all have their relocations at the same offsets is
not understood (HR2208).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hotreload.diff.obstacles import Obstacle
from hotreload.elf.constants import SHT_NOTE
from hotreload.elf.model import ObjectFile, Relocation, Section, Symbol, SymbolRef, relocations_between


@dataclass(frozen=True, slots=True)
class SpecialSection:
    """A kind of special section.

    ``per_entry``  how many relocations an entry may have, most likely number first; the first relocation of
                   an entry refers to the code
    ``companion``  a section with data for the same entries
    ``compared``   whether functions with different entries are different
    ``carried``    whether an entry travels with its code
    """

    name: str
    per_entry: tuple[int, ...]
    companion: str | None = None
    compared: bool = True
    carried: bool = True


TABLE: Final = (
    # struct alt_instr { s32 instr_offset, repl_offset; ... } of arch/x86/include/asm/alternative.h
    SpecialSection(".altinstructions", (2,)),
    # struct bug_entry: address, and the file's name with CONFIG_DEBUG_BUGVERBOSE (include/asm-generic/bug.h)
    SpecialSection("__bug_table", (2, 1)),
    # struct exception_table_entry { int insn, fixup, data; }; before commit 46d28947d987 ("x86/extable:
    # Rework the exception table mechanics") (in v5.16), data was a third relocation
    SpecialSection("__ex_table", (2, 3)),
    # struct jump_entry { s32 code, target; long key; } (include/linux/jump_label.h)
    SpecialSection("__jump_table", (3,)),
    # struct static_call_site { s32 addr, key; } (include/linux/static_call_types.h)
    SpecialSection(".static_call_sites", (2,)),
    # struct paravirt_patch_site { u8 *instr; u8 type, len; } up to v6.7; the last entry lacks its padding
    SpecialSection(".parainstructions", (1,)),
    # One place each, which the kernel rewrites at boot or module load.
    SpecialSection(".smp_locks", (1,)),
    SpecialSection(".retpoline_sites", (1,)),
    SpecialSection(".return_sites", (1,)),
    SpecialSection(".call_sites", (1,)),
    # Functions whose address this unit does not take. Another one may take it; keeping the ENDBR64 is safe.
    SpecialSection(".ibt_endbr_seal", (1,), compared=False, carried=False),
    SpecialSection("__mcount_loc", (1,)),
    # Where the NOPs before a function begin (-fpatchable-function-entry=16,16). x86 uses __mcount_loc.
    SpecialSection("__patchable_function_entries", (1,), compared=False, carried=False),
    # Unwind data by instruction (arch/x86/include/asm/orc_types.h). Not compared, since it follows from the
    # code.
    SpecialSection(".orc_unwind_ip", (1,), companion=".orc_unwind", compared=False),
)
_BY_NAME: Final = {row.name: row for row in TABLE}
_COMPANIONS: Final = frozenset(row.companion for row in TABLE if row.companion)

REPLACEMENTS: Final = ".altinstr_replacement"
# Out-of-line code that a feature test jumps through (_static_cpu_has). It has no symbols.
AUXILIARY: Final = ".altinstr_aux"
# Descriptors of pr_debug(); named __verbose before commit e5ebffe18e5a ("dyndbg: rename __verbose section
# to __dyndbg") (in v5.9).
DYNAMIC_DEBUG: Final = frozenset(("__dyndbg", "__verbose"))
# Pointers to the formats of trace_printk(), one each (include/linux/kernel.h). When a module is loaded, the
# kernel copies the formats and redirects the pointers to the copies (kernel/trace/trace_printk.c).
TRACE_FORMATS: Final = "__trace_printk_fmt"
# Pointers to functions that the patch's author wants called (build/include/hotreload.h); the kind follows.
CALLBACKS: Final = ".hotreload.callbacks."
# Variables that macros make for one place in the source, in sections that the module loader looks for.
LOADED: Final = DYNAMIC_DEBUG | {TRACE_FORMATS}
# Descriptions of places in code for UBSAN's handlers: struct source_location and the types in question
# (lib/ubsan.h), one section each under -fdata-sections. They are written to only so that each place is
# reported once.
UBSAN_RECORD: Final = ".data..Lubsan_"


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One entry. ``replacement`` is the replacement code of an alternative, with its relocations."""

    row: SpecialSection
    content: bytes
    relocations: tuple[Relocation, ...]
    align: int
    companion: bytes = b""
    replacement: tuple[bytes, tuple[Relocation, ...]] | None = None

    @property
    def code(self) -> Relocation:
        return self.relocations[0]


@dataclass(frozen=True, slots=True)
class EntryTable:
    """The entries of an object by the symbol that they belong to. Obstacles name sections not understood."""

    of: dict[Symbol, list[Entry]]
    obstacles: tuple[Obstacle, ...]


def read_entries(obj: ObjectFile) -> EntryTable:
    """Return all entries of all special sections of an object."""
    of: dict[Symbol, list[Entry]] = {}
    obstacles = []
    # Use the table's order. The order in the file depends on which function has the first entry.
    order = {row.name: number for number, row in enumerate(TABLE)}
    for section in sorted(obj.sections, key=lambda section: order.get(section.name, -1)):
        row = _BY_NAME.get(section.name)
        if row is None or not section.size:
            continue
        entries = list(_entries(obj, row, section))
        if not entries:
            obstacles.append(
                Obstacle("HR2208", section.name, f"the entries of {section.name} are not understood")
            )
        for entry in entries:
            assert isinstance(entry.code.target, SymbolRef)
            of.setdefault(entry.code.target.symbol, []).append(entry)
    return EntryTable(of, tuple(obstacles))


def _entries(obj: ObjectFile, row: SpecialSection, section: Section) -> Iterator[Entry]:
    """Cut a section into entries. Yield none if it does not have the form that its row describes."""
    for per_entry in row.per_entry:
        size = _entry_size(section, per_entry)
        if size:
            break
    else:
        return
    companion = obj.section(row.companion) if row.companion else None
    for number, start in enumerate(range(0, section.size, size)):
        end = min(start + size, section.size)
        own = section.relocations[number * per_entry : (number + 1) * per_entry]
        relocations = tuple(Relocation(r.offset - start, r.type, r.target, r.addend) for r in own)
        content = section.data[start:end].ljust(size, b"\0")
        beside = b""
        if companion is not None:
            width = companion.size // (section.size // size)
            beside = companion.data[number * width : (number + 1) * width]
        replacement = _replacement(content, relocations) if row.name == ".altinstructions" else None
        yield Entry(row, content, relocations, section.align, beside, replacement)


def _entry_size(section: Section, per_entry: int) -> int:
    """Return the size of an entry with ``per_entry`` relocations, or 0 if the section has another form."""
    offsets = [relocation.offset for relocation in section.relocations]
    if not offsets or len(offsets) % per_entry or offsets[0] != 0:
        return 0
    count = len(offsets) // per_entry
    # One entry: the whole section. Several: the distance of the first two, because the last may be short.
    size = offsets[per_entry] if count > 1 else section.size
    if size <= 0 or -(-section.size // size) != count:
        return 0
    for number, offset in enumerate(offsets):
        entry, place = divmod(number, per_entry)
        if offset != entry * size + offsets[place]:
            return 0
    if any(not isinstance(r.target, SymbolRef) for r in section.relocations[::per_entry]):
        return 0
    return size


def _replacement(
    content: bytes, relocations: tuple[Relocation, ...]
) -> tuple[bytes, tuple[Relocation, ...]] | None:
    """Return an alternative's replacement code and its relocations.

    The code is the ``replacementlen`` bytes that the second relocation points at. The result is None for code
    of another object: the thunks of retpolines from v5.13 to v5.15.
    """
    # { s32 instr, repl; u16 cpuid; u8 instrlen, replacementlen; } is 12 bytes. Since v6.2 it is 14 with a u32
    # of flags in place of cpuid. Before v5.13 it was 13 with a padlen at the end.
    length = content[11] if len(content) != 14 else content[13]
    target = relocations[1].target
    if not isinstance(target, SymbolRef) or target.symbol.section is None:
        return None
    section = target.symbol.section
    start = target.symbol.value + relocations[1].addend
    return section.data[start : start + length], relocations_between(section, start, start + length)


def is_entry_section(section: Section) -> bool:
    """Return whether a section contains entries, or data that only entries refer to."""
    return section.name in _BY_NAME or section.name in _COMPANIONS or section.name == REPLACEMENTS


# What EXPORT_SYMBOL creates (include/asm-generic/export.h, include/linux/export.h). Up to v6.4, it is a
# section for each export, named after the table that it goes to. Later, it is a label for each export in one
# section, which modpost reads and which is not in the kernel (Linux commit ddb5cdbafaaa "kbuild: generate
# KSYMTAB entries by modpost", in v6.5).
_EXPORT_TABLE = re.compile(r"__ksymtab_strings$|___?k(?:symtab|crctab)|\.export_symbol$")


def is_export_table(name: str) -> bool:
    """Return whether a section of this name tells the loader what other modules may use."""
    return _EXPORT_TABLE.match(name) is not None


def is_inert(section: Section) -> bool:
    """Return whether the kernel never looks at a section: debugging data, notes, what modpost discards."""
    return (
        not section.is_allocated
        or section.type == SHT_NOTE
        or section.name.startswith((".discard.", ".debug", ".BTF", ".note", ".comment", ".llvm"))
        or section.name == ".orc_header"
    )


def is_init(section: Section) -> bool:
    """Return whether a section contains code or data only for loading and unloading."""
    return section.name.startswith((".init.", ".exit.", ".initcall", ".con_initcall", ".ref.text.init"))


def is_ordinary(section: Section) -> bool:
    """Return whether a new symbol of this section can live in a patch module."""
    if section.is_code:
        return not is_init(section) and section.name not in (REPLACEMENTS, AUXILIARY, ".static_call.text")
    if section.name in LOADED:
        return True
    if section.name.startswith((".data..percpu", ".data..ro_after_init", ".data..init")):
        return False
    return section.name in (".data", ".bss", ".rodata", ".data.once") or section.name.startswith(
        (".data.", ".bss.", ".rodata.")
    )


def is_explained_elsewhere(section: Section) -> bool:
    """Return whether a section contains entries, which count with their code, or is never looked at."""
    return is_inert(section) or is_entry_section(section) or section.name.startswith(CALLBACKS)
