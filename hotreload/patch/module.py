# SPDX-License-Identifier: MIT
"""Write a patch module: the kernel's template with a plan's pieces added. Pure, and takes milliseconds.

The template (glue.py) brings what the kernel's headers lay out: struct module, the code that builds struct
klp_patch. What is added here, in the order of ``write_module``:

1. the pieces: code, data and entries go behind what the template has in sections of the same name,
   because the module loader takes one section of each special name; what has its home in an earlier patch
   is an address (homes.py);
2. their relocations: ordinary ones, and for what only the patched object knows ``.klp.rela.OBJECT.SECTION``
   with symbols ``.klp.sym.OBJECT.NAME,SYMPOS`` (Documentation/livepatch/module-elf-format.rst);
3. the table of functions that the template's init reads;
4. the name, a build-id and the CRCs of what is imported.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hotreload.diff.functions import CALLBACK_KINDS
from hotreload.diff.special_sections import LOADED
from hotreload.elf.constants import (
    R_X86_64_64,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_INFO_LINK,
    SHF_RELA_LIVEPATCH,
    SHF_WRITE,
    SHN_ABS,
    SHN_LIVEPATCH,
    SHN_UNDEF,
    SHT_NOBITS,
    SHT_PROGBITS,
    STB_GLOBAL,
    STB_LOCAL,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    STT_SECTION,
)
from hotreload.elf.model import ConstRef, StringRef
from hotreload.elf.writer import OutputRelocation, OutputSection, OutputSymbol, write_object
from hotreload.errors import InputError
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
    TEMPLATE_NAME,
    WRITE_BASE,
    WRITE_ENTRY_SIZE,
    WRITE_EXPECTED,
    WRITE_LENIENT,
    WRITE_NAME,
    WRITE_OBJECT,
    WRITE_PLACE,
    WRITE_SIZE,
    WRITE_VALUE,
)
from hotreload.patch.homes import Home, Settlement, reasons_to_stay, settle
from hotreload.patch.plan import (
    Absolute,
    Callback,
    Identity,
    Import,
    KlpObject,
    PatchPlan,
    Piece,
    PieceRef,
    PlannedRelocation,
    PlannedTarget,
    Pointer,
    Value,
)
from hotreload.patch.symbols import VMLINUX, SymbolPosition
from hotreload.patch.writes import PendingWrite, Place, Written, pending_writes, written

NAME_PREFIX: Final = "hotreload_"
# MODULE_NAME_LEN of include/linux/moduleparam.h is 64 - sizeof(unsigned long) since v2.6.
_NAME_LENGTH: Final = 56
# struct modversion_info { unsigned long crc; char name[MODULE_NAME_LEN]; } (include/linux/module.h)
_VERSION: Final = struct.Struct("<Q56s")
# Sections whose entries the kernel writes to; those of code are executable; all others are read only.
_WRITABLE: Final = frozenset((".data", ".bss", "__bug_table", "__jump_table", ".static_call_sites", *LOADED))
_CODE: Final = frozenset((".text", ".altinstr_replacement"))
_KLP_FLAGS: Final = SHF_ALLOC | SHF_INFO_LINK | SHF_RELA_LIVEPATCH
_INT3: Final = b"\xcc"


@dataclass(frozen=True, slots=True)
class Settler:
    """A function or variable that will have its home in a patch module, and its place there."""

    section: str
    offset: int
    symbol: str
    sympos: int
    meaning: bytes
    type: str


@dataclass(frozen=True, slots=True)
class LivePatch:
    """A patch module, to be loaded as ``name``; ``keep_loaded``: why it must stay when it is replaced.

    ``settlers``: what will have its home there; ``writes``: values that it writes, and ``pointed_at``: where
    it has what these point at.
    """

    name: str
    module: bytes
    settlement: Settlement
    keep_loaded: tuple[str, ...] = ()
    settlers: Mapping[Identity, Settler] = field(default_factory=dict)
    writes: tuple[PendingWrite, ...] = ()
    pointed_at: Mapping[Value, tuple[str, int]] = field(default_factory=dict)

    @property
    def sections_to_tell(self) -> tuple[str, ...]:
        """The sections of the module whose addresses will be asked for."""
        settled = [settler.section for settler in self.settlers.values()]
        return tuple(dict.fromkeys((*settled, *(section for section, _ in self.pointed_at.values()))))

    def written(self, sections: Mapping[str, int]) -> dict[Place, Written]:
        """What stands written in the guest's data once this is live."""

        def address_of(value: Value) -> int | None:
            section, offset = self.pointed_at.get(value, ("", 0))
            return sections[section] + offset if section in sections else None

        return dict(written(self.writes, address_of))

    def homes(self, sections: Mapping[str, int]) -> dict[Identity, Home]:
        """The homes of all that it has once it is loaded, with its ``sections`` at these addresses."""
        return dict(self.settlement.at_home) | {
            identity: Home(
                self.name, sections[settler.section] + settler.offset, settler.symbol, settler.sympos,
                settler.meaning, settler.type,
            )
            for identity, settler in self.settlers.items()
            if sections.get(settler.section)
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModuleGlue:
    """The template of a kernel, and where that kernel keeps what finishes a transition (None: unknown)."""

    template: bytes
    transition_work: SymbolPosition | None
    transition_patch: SymbolPosition | None


# The kernel's own retry of a transition, and the patch that is in one (kernel/livepatch/transition.c).
TRANSITION_SYMBOLS: Final = ("klp_transition_work", "klp_transition_patch")


def read_glue(template: Path, unique: Collection[str]) -> ModuleGlue:
    """Read a template. ``unique``: those of TRANSITION_SYMBOLS that the guest's kallsyms has just once."""
    known = set(TRANSITION_SYMBOLS) <= set(unique)
    work, patch = (SymbolPosition(VMLINUX, name, 1) if known else None for name in TRANSITION_SYMBOLS)
    return ModuleGlue(template.read_bytes(), work, patch)


def write_module(
    plan: PatchPlan,
    name: str,
    glue: ModuleGlue,
    homes: Mapping[Identity, Home] | None = None,
    live_writes: Mapping[Place, Written] | None = None,
) -> LivePatch:
    """The module file of a plan. ``name``: at most 55 bytes, unique among the modules of the guest.

    ``homes``: what earlier patches of the guest brought, and this one refers to where it is;
    ``live_writes``: the values that the patch which is replaced wrote. Raises NotPatchableError (HR2103).
    """
    if len(name) >= _NAME_LENGTH:
        raise ValueError(f"a module's name has at most {_NAME_LENGTH - 1} bytes: {name}")
    settlement = settle(plan, homes or {}, name)
    writes = pending_writes(plan.writes, live_writes or {}, settlement.elsewhere)
    module = _Module(glue.template, settlement.elsewhere)
    module.add_pieces(plan.pieces)
    module.add_relocations(plan.pieces)
    module.add_table(_with_all(plan.objects, settlement.redirected, writes), glue)
    module.add_writes(writes)
    module.add_callbacks(plan.callbacks)
    module.add_versions()
    module.set_name(name)
    module.set_build_id()
    return LivePatch(
        name,
        write_object(list(module.sections.values()), module.symbols),
        settlement,
        reasons_to_stay(plan, settlement),
        dict(module.settlers(plan.pieces, settlement)),
        writes,
        dict(module.pointed_at(writes)),
    )


def _with_all(
    objects: tuple[KlpObject, ...], redirected: tuple[KlpObject, ...], writes: tuple[PendingWrite, ...]
) -> tuple[KlpObject, ...]:
    """The livepatch objects, those included of which only data goes back to what it was."""
    known = {obj.name for obj in objects}
    others = {each.write.object for each in writes} - {VMLINUX if name is None else name for name in known}
    alone = (KlpObject(None if name == VMLINUX else name, ()) for name in sorted(others))
    return (*objects, *alone, *redirected)


@dataclass(slots=True)
class _Place:
    section: OutputSection
    offset: int


@dataclass(slots=True)
class _Module:
    """A module file that is being put together."""

    template: bytes
    elsewhere: Mapping[int, int]  # the addresses of pieces that have their home in an earlier patch
    sections: dict[str, OutputSection] = field(default_factory=dict)
    symbols: list[OutputSymbol] = field(default_factory=list)
    places: dict[int, _Place] = field(default_factory=dict)  # of each piece
    piece_symbols: dict[int, OutputSymbol] = field(default_factory=dict)
    section_symbols: dict[str, OutputSymbol] = field(default_factory=dict)
    named: dict[str, OutputSymbol] = field(default_factory=dict)  # imports and .klp.sym symbols
    constants: dict[tuple[bytes, int], int] = field(
        default_factory=dict
    )  # (content, align) -> place in .rodata
    imports: dict[str, int] = field(default_factory=dict)
    namespaces: dict[str, None] = field(default_factory=dict)  # in the order of their first use
    absolutes: dict[int, OutputSymbol] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _read_template(self)

    # --- 1. pieces ---

    def add_pieces(self, pieces: tuple[Piece, ...]) -> None:
        for number, piece in enumerate(pieces):
            if number in self.elsewhere and piece.kind != STT_FUNC:
                continue
            section = self.section(piece.section)
            filling = _INT3 if piece.section == ".text" else b"\0"
            offset = section.append(piece.content, piece.align, filling)
            self.places[number] = _Place(section, offset)
            if piece.name and piece.kind in (STT_FUNC, STT_OBJECT):
                symbol = OutputSymbol(piece.name, piece.kind, STB_LOCAL, section, offset, len(piece.content))
                self.symbols.append(symbol)
                self.piece_symbols[number] = symbol

    def section(self, name: str) -> OutputSection:
        if name not in self.sections:
            flags = SHF_ALLOC
            flags |= SHF_WRITE if name in _WRITABLE else 0
            flags |= SHF_EXECINSTR if name in _CODE else 0
            kind = SHT_NOBITS if name == ".bss" else SHT_PROGBITS
            self.sections[name] = OutputSection(name, kind, flags)
        return self.sections[name]

    # --- 2. relocations ---

    def add_relocations(self, pieces: tuple[Piece, ...]) -> None:
        for number, place in self.places.items():
            for relocation in pieces[number].relocations:
                self.relocate(place, pieces[number].object, relocation)

    def relocate(self, place: _Place, obj: str, relocation: PlannedRelocation) -> None:
        symbol, addend = self.resolve(relocation.target)
        entry = OutputRelocation(
            place.offset + relocation.offset, relocation.type, symbol, relocation.addend + addend
        )
        if isinstance(relocation.target, SymbolPosition):
            # A relocation of a module's section is applied when that module is there, vmlinux's at once.
            self.livepatch(place.section, obj, entry)
        else:
            place.section.relocations.append(entry)

    def resolve(self, target: PlannedTarget) -> tuple[OutputSymbol, int]:
        """The symbol for a target, and what its place adds to the addend."""
        match target:
            case PieceRef(number, kept):
                if number in self.elsewhere and (kept or number not in self.places):
                    return self.absolute(self.elsewhere[number]), 0
                if number in self.piece_symbols:
                    return self.piece_symbols[number], 0
                place = self.places[number]
                return self.section_symbol(place.section), place.offset
            case SymbolPosition(obj, name, sympos):
                return self.livepatch_symbol(obj, name, sympos), 0
            case Import(name, crc, namespace):
                self.imports[name] = crc
                self.namespaces |= {namespace: None} if namespace else {}
                return self.global_symbol(name, SHN_UNDEF), 0
            case StringRef(text, align):
                return self.constant(text + b"\0", align)
            case ConstRef(content):
                return self.constant(content, len(content))
            case Absolute(address):
                return self.absolute(address), 0

    def livepatch(self, section: OutputSection, obj: str, entry: OutputRelocation) -> None:
        section.livepatch_flags = _KLP_FLAGS
        section.livepatch.setdefault(f".klp.rela.{obj}.{section.name}", []).append(entry)

    def livepatch_symbol(self, obj: str, name: str, sympos: int) -> OutputSymbol:
        return self.global_symbol(f".klp.sym.{obj}.{name},{sympos}", SHN_LIVEPATCH)

    def global_symbol(self, name: str, index: int) -> OutputSymbol:
        if name not in self.named:
            self.named[name] = OutputSymbol(name, STT_NOTYPE, STB_GLOBAL, index=index)
            self.symbols.append(self.named[name])
        return self.named[name]

    def absolute(self, address: int) -> OutputSymbol:
        """A nameless symbol for an address of the running kernel: kallsyms does not show it."""
        if address not in self.absolutes:
            self.absolutes[address] = OutputSymbol("", STT_NOTYPE, STB_LOCAL, value=address, index=SHN_ABS)
            self.symbols.append(self.absolutes[address])
        return self.absolutes[address]

    def section_symbol(self, section: OutputSection) -> OutputSymbol:
        if section.name not in self.section_symbols:
            self.section_symbols[section.name] = OutputSymbol("", STT_SECTION, STB_LOCAL, section)
            self.symbols.append(self.section_symbols[section.name])
        return self.section_symbols[section.name]

    def constant(self, content: bytes, align: int) -> tuple[OutputSymbol, int]:
        section = self.section(".rodata")
        key = content, align
        if key not in self.constants:
            self.constants[key] = section.append(content, align)
        return self.section_symbol(section), self.constants[key]

    # --- 3. the table of functions ---

    def add_table(self, objects: Iterable[KlpObject], glue: ModuleGlue) -> None:
        funcs = self.section(".hotreload.funcs")
        count = 0
        for obj in objects:
            for func in obj.funcs or (None,):
                start = funcs.append(bytes(FUNC_SIZE), 8)
                place = _Place(funcs, start)
                self.point_at_object(place, FUNC_OBJECT, obj.name)
                if func is not None:
                    struct.pack_into("<Q", funcs.data, start + FUNC_OLD_SYMPOS, func.old_sympos)
                    self.point(place, FUNC_OLD_NAME, self.text(func.old_name))
                    self.point(place, FUNC_NEW_FUNC, self.resolve(PieceRef(func.new_func)))
                count += 1
        table = self.sections[TABLE_SECTION]
        self.hang_in(funcs, TABLE_FUNCS, TABLE_COUNT, count)
        for offset, position in (
            (TABLE_TRANSITION_WORK, glue.transition_work),
            (TABLE_TRANSITION_PATCH, glue.transition_patch),
        ):
            if position is not None:
                symbol, addend = self.resolve(position)
                self.livepatch(table, VMLINUX, OutputRelocation(offset, R_X86_64_64, symbol, addend))

    def hang_in(self, array: OutputSection, at: int, count_at: int, count: int) -> None:
        """Let the table point at an array of so many entries."""
        table = self.sections[TABLE_SECTION]
        struct.pack_into("<Q", table.data, count_at, count)
        self.point(_Place(table, 0), at, (self.section_symbol(array), 0))

    def point(self, place: _Place, offset: int, to: tuple[OutputSymbol, int]) -> None:
        symbol, addend = to
        place.section.relocations.append(OutputRelocation(place.offset + offset, R_X86_64_64, symbol, addend))

    def point_at_object(self, place: _Place, offset: int, name: str | None) -> None:
        """Name a module; NULL stands for vmlinux."""
        if name not in (None, VMLINUX):
            self.point(place, offset, self.text(str(name)))

    def text(self, text: str) -> tuple[OutputSymbol, int]:
        return self.constant(text.encode() + b"\0", 1)

    # --- values that are written where they are ---

    def add_writes(self, writes: tuple[PendingWrite, ...]) -> None:
        if not writes:
            return
        section = self.section(".hotreload.writes")
        for each in writes:
            write = each.write
            place = _Place(section, section.append(bytes(WRITE_ENTRY_SIZE), 8))
            self.point_at_object(place, WRITE_OBJECT, write.object)
            self.point(place, WRITE_NAME, self.text(write.name))
            self.put_value(place, WRITE_PLACE, Pointer(write.place, write.offset), write.object)
            self.put_value(place, WRITE_SIZE, write.size, write.object)
            self.put_value(place, WRITE_BASE, each.base, write.object)
            self.put_value(place, WRITE_EXPECTED, each.expected, write.object)
            self.put_value(place, WRITE_VALUE, each.value, write.object)
            self.put_value(place, WRITE_LENIENT, int(each.lenient), write.object)
        self.hang_in(section, TABLE_WRITES, TABLE_WRITE_COUNT, len(writes))

    def add_callbacks(self, callbacks: tuple[Callback, ...]) -> None:
        if not callbacks:
            return
        section = self.section(".hotreload.callbacks")
        for callback in callbacks:
            place = _Place(section, section.append(bytes(CALLBACK_ENTRY_SIZE), 8))
            self.point_at_object(place, CALLBACK_OBJECT, callback.object)
            self.put_value(place, CALLBACK_KIND, CALLBACK_KINDS.index(callback.kind), callback.object)
            self.point(place, CALLBACK_FUNC, self.resolve(PieceRef(callback.func)))
        self.hang_in(section, TABLE_CALLBACKS, TABLE_CALLBACK_COUNT, len(callbacks))

    def put_value(self, place: _Place, offset: int, value: Value, obj: str) -> None:
        if isinstance(value, Pointer):
            self.relocate(place, obj, PlannedRelocation(offset, R_X86_64_64, value.target, value.addend))
        else:
            struct.pack_into("<Q", place.section.data, place.offset + offset, value)

    def pointed_at(self, writes: tuple[PendingWrite, ...]) -> Iterator[tuple[Value, tuple[str, int]]]:
        """Where in this module the targets of written pointers are."""
        for each in writes:
            if isinstance(each.value, Pointer) and isinstance(each.value.target, PieceRef | StringRef):
                symbol, addend = self.resolve(each.value.target)
                assert symbol.section is not None, "absolute where its home is elsewhere"
                yield each.value, (symbol.section.name, symbol.value + addend + each.value.addend)

    def settlers(
        self, pieces: tuple[Piece, ...], settlement: Settlement
    ) -> Iterator[tuple[Identity, Settler]]:
        """What has its home here. Its sympos: the rank among all symbols of its name, locals first."""
        ordered = sorted(self.symbols, key=lambda symbol: symbol.binding != STB_LOCAL)
        for number, meaning in settlement.settling.items():
            identity, place = pieces[number].identity, self.places[number]
            assert identity is not None, "settled by it"
            symbol = self.piece_symbols[number]
            namesakes = [s for s in ordered if s.name == symbol.name and s.kind != STT_SECTION]
            shown = [s for s in namesakes if s.section is not None or s.index != SHN_UNDEF]
            sympos, spelled = shown.index(symbol) + 1, pieces[number].type
            yield (
                identity,
                Settler(place.section.name, place.offset, symbol.name, sympos, meaning, spelled),
            )

    # --- 4. what identifies the module ---

    def add_versions(self) -> None:
        """CRCs of what the pieces import, where the kernel checks them (CONFIG_MODVERSIONS)."""
        versions = self.sections.get("__versions")
        if versions is None:
            return
        known = {name.rstrip(b"\0") for _, name in _VERSION.iter_unpack(bytes(versions.data))}
        for name, crc in self.imports.items():
            if name.encode() not in known:
                versions.append(_VERSION.pack(crc, name.encode()))

    def set_name(self, name: str) -> None:
        """The module's name in both its places, and the namespaces that it imports."""
        module = self.sections[".gnu.linkonce.this_module"]
        old = TEMPLATE_NAME.encode().ljust(_NAME_LENGTH, b"\0")
        at = module.data.find(old)
        info = self.sections[".modinfo"]
        mine = b"name=" + TEMPLATE_NAME.encode() + b"\0"
        # Each other text stays in its place, where a symbol stands; the kernel skips runs of zeros.
        named = bytes(info.data).find(mine)
        if at < 0 or named < 0:
            raise InputError(
                "the patch template has no name to replace", hint="remove the cache folder 'glue'"
            )
        module.data[at : at + _NAME_LENGTH] = name.encode().ljust(_NAME_LENGTH, b"\0")
        info.data[named : named + len(mine)] = bytes(len(mine))
        info.data += b"name=" + name.encode() + b"\0"
        for namespace in self.namespaces:
            info.data += b"import_ns=" + namespace.encode() + b"\0"

    def set_build_id(self) -> None:
        """A build-id of the content: /sys/module/NAME/notes then tells one patch from another."""
        note = self.sections.get(".note.gnu.build-id")
        if note is not None:
            digest = hashlib.sha1(usedforsecurity=False)
            for section in self.sections.values():
                digest.update(section.name.encode() + b"\0" + bytes(section.data))
            note.data[-20:] = digest.digest()


def _read_template(module: _Module) -> None:
    """Take over the sections, symbols and relocations of the template, all but debugging data."""
    import io

    from elftools.elf.elffile import ELFFile
    from elftools.elf.relocation import RelocationSection
    from elftools.elf.sections import SymbolTableSection

    elf = ELFFile(io.BytesIO(module.template))
    numbers: dict[int, OutputSection] = {}
    for number, section in enumerate(elf.iter_sections()):
        header = section.header
        if header["sh_flags"] & SHF_ALLOC and section.name not in (".BTF", ".BTF_ids"):
            zero = header["sh_type"] == "SHT_NOBITS"
            kind = {"SHT_NOBITS": SHT_NOBITS, "SHT_NOTE": 7}.get(header["sh_type"], SHT_PROGBITS)
            copy = OutputSection(
                section.name, kind, header["sh_flags"], header["sh_addralign"] or 1, header["sh_entsize"]
            )
            copy.data = bytearray() if zero else bytearray(section.data())
            copy.zeros = header["sh_size"] if zero else 0
            numbers[number] = module.sections[section.name] = copy
    places: dict[int, OutputSymbol] = {}
    table = elf.get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection), "kbuild made the template"
    for number, symbol in enumerate(table.iter_symbols()):
        copied = _copied_symbol(module, symbol, numbers)
        if copied is not None:
            places[number] = copied
    for section in elf.iter_sections():
        if isinstance(section, RelocationSection) and section.header["sh_info"] in numbers:
            target = numbers[section.header["sh_info"]]
            target.relocations = [
                OutputRelocation(r["r_offset"], r["r_info_type"], places[r["r_info_sym"]], r["r_addend"])
                for r in section.iter_relocations()
            ]


def _copied_symbol(module: _Module, symbol: Any, numbers: dict[int, OutputSection]) -> OutputSymbol | None:
    kinds = {"STT_NOTYPE": STT_NOTYPE, "STT_OBJECT": STT_OBJECT, "STT_FUNC": STT_FUNC}
    kind, binding = symbol["st_info"]["type"], symbol["st_info"]["bind"]
    where = symbol["st_shndx"]
    if kind == "STT_SECTION":
        section = numbers.get(where)
        return module.section_symbol(section) if section is not None else None
    if where == "SHN_UNDEF" and symbol.name:
        return module.global_symbol(symbol.name, SHN_UNDEF)
    if kind not in kinds or where not in numbers:
        return None
    copied = OutputSymbol(
        symbol.name,
        kinds[kind],
        STB_LOCAL if binding == "STB_LOCAL" else STB_GLOBAL,
        numbers[where],
        symbol["st_value"],
        symbol["st_size"],
    )
    module.symbols.append(copied)
    return copied
