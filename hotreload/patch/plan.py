# SPDX-License-Identifier: MIT
"""Plan what a patch carries: pieces of code and data, and the target of each of their relocations. Pure.

There are two kinds of relocations:

    to what the patch carries, to strings, to exports of vmlinux          ordinary
    to what only the patched module knows, to exports of other modules    livepatch (applied when that
                                                                          module is loaded; pins nothing)

Where code takes the address of a changed function instead of calling it, it gets the *original's* address.
The address may be stored and used after the patch is gone (kpatch issue 755), and it must compare equal to
what is stored already. What the patch itself adds has no original. Later patches recognize it by its
*identity* (homes.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import gcd
from pathlib import Path

from hotreload.diff.correlate import (
    base_name,
    is_child,
    is_constant,
    is_lock_key,
    is_place_static,
)
from hotreload.diff.load_time import written_name
from hotreload.diff.object_diff import ObjectDiff, Twins
from hotreload.diff.obstacles import BUILD_KERNEL, RELOAD_MODULE, NotPatchableError, Obstacle
from hotreload.diff.rewrites import Rewrite
from hotreload.diff.rewrites import Value as RewrittenValue
from hotreload.diff.special_sections import LOADED, REPLACEMENTS, Entry
from hotreload.elf.constants import LOADER_RELOCATIONS, R_X86_64_NONE, STB_WEAK
from hotreload.elf.model import Relocation, StringRef, Symbol, SymbolRef
from hotreload.elf.references import points_at_start, takes_address
from hotreload.patch.escapes import Escapes, escapes_of
from hotreload.patch.far_jumps import far_jumps
from hotreload.patch.identity import dormant, identities
from hotreload.patch.kernel_symbols import KernelSymbols, own_names
from hotreload.patch.linked import is_linked_from
from hotreload.patch.model import (
    Callback,
    Identity,
    Import,
    KlpFunc,
    KlpObject,
    PatchPlan,
    Piece,
    PieceRef,
    PlannedRelocation,
    PlannedTarget,
    Pointer,
    Text,
    UnitDiff,
    Value,
    Write,
)
from hotreload.patch.moved import moved_variables
from hotreload.patch.never_left import NEVER_LEFT
from hotreload.patch.symbols import VMLINUX, SymbolPosition

# The symbol of a module's struct module (scripts/mod/modpost.c).
THIS_MODULE = "__this_module"


def plan_patch(
    units: Sequence[UnitDiff], symbols: KernelSymbols, elsewhere: Collection[tuple[str, str]] = ()
) -> PatchPlan:
    """Plan one patch for all units that differ from what the guest booted. Raises NotPatchableError.

    ``elsewhere``: (module, name) of global definitions that moved to another unit and stayed the same. The
    guest has them at their old places.
    """
    planner = _Planner(units, symbols, elsewhere)
    pieces = tuple(planner.pieces())
    objects = tuple(planner.objects())
    writes = tuple(planner.writes())
    if planner.obstacles:
        raise NotPatchableError(planner.obstacles)
    escaped = {planner.numbers[symbol] for symbol in planner.escaped}
    held = {planner.numbers[symbol] for symbol in planner.held}
    pieces = tuple(
        replace(p, escapes=True, is_held=n in held) if n in escaped else p for n, p in enumerate(pieces)
    )
    callbacks = tuple(
        Callback(unit.module, kind, planner.numbers[function])
        for unit in units
        for kind, function in unit.diff.callbacks
    )
    strings = tuple(dict.fromkeys(planner.strings))
    moved = frozenset(base_name(symbol.name) for symbol in planner.moved) | {name for _, name in elsewhere}
    return PatchPlan(pieces, objects, strings, writes, callbacks, dormant(units), moved)


@dataclass(slots=True)
class _Planner:
    units: Sequence[UnitDiff]
    symbols: KernelSymbols
    elsewhere: Collection[tuple[str, str]]
    obstacles: list[Obstacle] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    escaped: set[Symbol] = field(default_factory=set)
    held: set[Symbol] = field(default_factory=set)
    looked_up: dict[Symbol, frozenset[int]] = field(default_factory=dict)  # by patched table
    identities: Mapping[Symbol, Identity] = field(default_factory=dict)
    numbers: dict[Symbol, int] = field(default_factory=dict)  # a carried symbol -> its piece
    globals: dict[tuple[str, str], Symbol] = field(default_factory=dict)  # (module, name) -> carried symbol
    exported: dict[str, tuple[UnitDiff, Symbol]] = field(default_factory=dict)  # names that an edit exports
    # (module, name) -> the unit and its symbol
    renamed: dict[tuple[str, str], tuple[UnitDiff, Symbol]] = field(default_factory=dict)
    unit_of: dict[Symbol, UnitDiff] = field(default_factory=dict)
    moved: Mapping[Symbol, tuple[UnitDiff, Symbol]] = field(default_factory=dict)  # from moved_variables()
    escapes: dict[int, Escapes] = field(default_factory=dict)  # keyed by id() of a unit
    at_work: UnitDiff | None = None  # the unit that obstacles are reported for

    def __post_init__(self) -> None:
        self.moved = moved_variables(self.units)
        for unit in self.units:
            self.looked_up |= {each.patched: each.looked_up for each in unit.diff.rewrites}
            for symbol in unit.diff.carried:
                if self._is_elsewhere(unit, symbol):
                    continue
                if symbol not in self.moved:
                    self.numbers[symbol] = len(self.numbers)
                self.unit_of[symbol] = unit
                if not symbol.is_local:
                    self._refuse_second(unit, symbol)
                    self.globals[unit.module, symbol.name] = symbol
            for symbol in unit.diff.now_global:
                self.globals.setdefault((unit.module, symbol.name), symbol)
                self.unit_of.setdefault(symbol, unit)
            for symbol in {*unit.diff.carried, *unit.diff.original_of}:
                if symbol.name in unit.diff.new_exports:
                    self.exported[symbol.name] = unit, symbol
            names = {*unit.diff.renamed.values(), *unit.diff.renamed_by_others.values()}
            for symbol in unit.diff.original_of if names else ():
                if symbol.name in names and not symbol.is_local:
                    self.renamed[unit.module, symbol.name] = unit, symbol
        self.identities = identities(self.units)

    def pieces(self) -> Iterator[Piece]:
        """Yield the carried symbols in the order of ``numbers``, then the entries of special sections."""
        for symbol in self.numbers:
            yield self._piece(symbol)
        number = len(self.numbers)
        for symbol in self.numbers:
            for entry in self.unit_of[symbol].diff.entries.get(symbol, ()):
                if not entry.row.carried:
                    continue
                for piece in self._entry_pieces(symbol, entry, number):
                    number += 1
                    yield replace(piece, owner=self.numbers[symbol])

    def objects(self) -> Iterator[KlpObject]:
        for module in dict.fromkeys(unit.module for unit in self.units):
            funcs: list[KlpFunc] = []
            for unit in self.units:
                if unit.module != module:
                    continue
                self.at_work = unit
                for twins in unit.diff.changed:
                    if twins.original in unit.running.different:
                        self._refuse_other_build(unit, twins.original)
                    self._refuse_copies(unit, twins.original)
                    self._refuse_weak(unit, twins.original, twins.patched, "HR2202")
                    position = self._original(unit, twins.original, is_replaced=True)
                    if position is not None:
                        self._refuse_never_left(unit, position.name)
                        funcs.append(KlpFunc(position.name, position.sympos, self.numbers[twins.patched]))
            # The kernel applies a module's livepatch relocations with its klp_object, so carried pieces need
            # one.
            travels = module != VMLINUX and any(self.unit_of[s].module == module for s in self.numbers)
            if funcs or travels or any(_has_other(u.diff) for u in self.units if u.module == module):
                yield KlpObject(None if module == VMLINUX else module, tuple(funcs))

    def writes(self) -> Iterator[Write]:
        """Yield the values to write in place, unit by unit."""
        groups = count(1)
        for unit in self.units:
            self.at_work = unit
            for rewrite in unit.diff.rewrites:
                self._refuse_weak(unit, rewrite.original, rewrite.patched, "HR2103")
                place = self._original(unit, rewrite.original, is_replaced=True)
                if place is not None:
                    for value in rewrite.values:
                        group = next(groups) if len(value.places) > 1 else 0
                        yield from self._written(unit, rewrite, place, value, group)

            if unit.diff.exit is not None and (write := self._exit_write(unit, unit.diff.exit)):
                yield write

    def _exit_write(self, unit: UnitDiff, exit: Twins) -> Write | None:
        """Return the write to struct module, where the kernel finds a module's exit function."""
        module = self.symbols.modules[unit.module]
        offset, place = module.exit_pointer(), module.position(THIS_MODULE, None)
        before = self._original(unit, exit.original, is_replaced=True)
        name = written_name(exit.original)
        if offset is None or place is None or before is None:
            self._refuse(
                "HR2201", name, f"hotreload does not know where the kernel keeps the address of {name}"
            )
            return None
        after = Pointer(PieceRef(self.numbers[exit.patched]), 0)
        return Write(unit.module, place, offset, 8, Pointer(before, 0), after, f"the address of {name}")

    # --- values ---

    def _written(
        self, unit: UnitDiff, rewrite: Rewrite, at: SymbolPosition, value: RewrittenValue, group: int
    ) -> Iterator[Write]:
        name = base_name(rewrite.original.name)
        told = f"{name}+{value.start}" if value.start else name
        for offset, size in value.places:
            before = self._value_before(unit, rewrite.original, offset, size)
            after = self._value_after(unit, rewrite, offset, size)
            if after is None:
                after = before
            yield Write(unit.module, at, offset, size, before, after, told, group, rewrite.is_parameter)

    def _value_before(self, unit: UnitDiff, variable: Symbol, offset: int, size: int) -> Value:
        """Return a value as the running kernel has it. A pointer points at the original symbol."""
        relocation = _relocation_at(variable, offset)
        if relocation is None:
            return int.from_bytes(variable.content[offset : offset + size], "little")
        if isinstance(relocation.target, StringRef):
            return Text(relocation.target.text[relocation.addend :])
        assert isinstance(relocation.target, SymbolRef), "rewrites.py lets nothing else pass"
        symbol = relocation.target.symbol
        if symbol.is_defined:
            return Pointer(self._original_or_refuse(unit, symbol), relocation.addend)
        module = self.symbols.modules[unit.module]
        position = module.position(symbol.name, None) if module.has_global(symbol.name) else None
        return Pointer(position or self._undefined(unit, None, relocation, symbol), relocation.addend)

    def _value_after(self, unit: UnitDiff, rewrite: Rewrite, offset: int, size: int) -> Value | None:
        """Return the new value; None for a pointer that stays the same."""
        relocation = _relocation_at(rewrite.patched, offset)
        if relocation is None:
            return int.from_bytes(rewrite.patched.content[offset : offset + size], "little")
        old = _relocation_at(rewrite.original, offset)
        if old is not None and isinstance(relocation.target, SymbolRef) and old.addend == relocation.addend:
            twin = unit.diff.original_of.get(relocation.target.symbol)
            if twin is not None and old.target == SymbolRef(twin):
                return None
        return Pointer(self._target(unit, rewrite.patched, relocation), relocation.addend)

    # --- pieces ---

    def _piece(self, symbol: Symbol) -> Piece:
        section = symbol.section
        assert section is not None
        unit = self.at_work = self.unit_of[symbol]
        self._refuse_moved(unit, symbol)
        content, own, behind = far_jumps(symbol)
        relocations = (
            *(self._relocation(unit, symbol, relocation) for relocation in own),
            *(self._planned(relocation, self._target(unit, None, relocation)) for relocation in behind),
        )
        # A symbol in the middle of a section is aligned as its offset is, but at most as the section.
        align = gcd(section.align, symbol.value) if symbol.value else section.align
        return Piece(
            symbol.name,
            symbol.kind,
            _output_section(symbol),
            align,
            content,
            relocations,
            unit.module,
            identity=self.identities.get(symbol),
            type=unit.diff.types.get(symbol.name, ""),
        )

    def _refuse_second(self, unit: UnitDiff, symbol: Symbol) -> None:
        """Refuse a second definition of a name.

        A linker would refuse it, too; here each file would use its own.
        """
        other = self.globals.get((unit.module, symbol.name))
        if other is not None and STB_WEAK not in (symbol.binding, other.binding):
            files = f"{Path(self.unit_of[other].source).name} and {Path(unit.source).name}"
            message = f"'{symbol.name}' is defined in {files}: the module would not link"
            self._refuse(
                "HR2208", symbol.name, message, "define it in one of them, and declare it in the other"
            )

    def _is_elsewhere(self, unit: UnitDiff, symbol: Symbol) -> bool:
        return not symbol.is_local and (unit.module, symbol.name) in self.elsewhere

    def _refuse_moved(self, unit: UnitDiff, symbol: Symbol) -> None:
        """Refuse a symbol that is new in this file, but that the module has from another file.

        Code that is not in the patch would keep using that one.
        """
        module = self.symbols.modules[unit.module]
        if symbol not in unit.diff.original_of and not symbol.is_local and module.has_global(symbol.name):
            message = f"{symbol.name} moved here from another file of module {unit.module}"
            self._refuse("HR2207" if symbol.is_function else "HR2104", symbol.name, message)

    def _entry_pieces(self, owner: Symbol, entry: Entry, number: int) -> Iterator[Piece]:
        unit = self.at_work = self.unit_of[owner]
        row = entry.row
        place = f"{row.name} of {owner.name}"
        relocations: list[PlannedRelocation] = []
        for relocation in entry.relocations:
            if entry.replacement is not None and relocation is entry.relocations[1]:
                # The replacement is carried as the piece before its entry.
                content, inner = entry.replacement
                moved = tuple(self._entry_relocation(unit, place, one) for one in inner)
                yield Piece("", 0, REPLACEMENTS, 1, content, moved, unit.module)
                relocations.append(PlannedRelocation(relocation.offset, relocation.type, PieceRef(number), 0))
            else:
                relocations.append(self._entry_relocation(unit, place, relocation))
        yield Piece("", 0, row.name, entry.align, entry.content, tuple(relocations), unit.module)
        if row.companion:
            yield Piece("", 0, row.companion, 1, entry.companion, (), unit.module)

    # --- relocations ---

    def _relocation(self, unit: UnitDiff, holder: Symbol, relocation: Relocation) -> PlannedRelocation:
        if relocation.type not in LOADER_RELOCATIONS:
            message = (
                f"{holder.name} has a relocation of type {relocation.type}, which no module loader applies"
            )
            self._refuse("HR2208", holder.name, message)
        target = self._target(unit, holder, relocation)
        if isinstance(target, SymbolPosition) and unit.module == VMLINUX:
            self._refuse_freed(unit, holder, target)
        return self._planned(relocation, target)

    def _entry_relocation(self, unit: UnitDiff, place: str, relocation: Relocation) -> PlannedRelocation:
        """Plan a relocation of an entry.

        Unlike other relocations, it cannot be a livepatch one of a module, because the kernel reads the
        entries before it applies these.
        """
        target = self._target(unit, None, relocation)
        if isinstance(target, SymbolPosition) and unit.module != VMLINUX:
            message = (
                f"{place} needs {target.name} of module {target.object} before the kernel can resolve it"
            )
            self._refuse("HR2204", target.name, message)
        return self._planned(relocation, target)

    def _planned(self, relocation: Relocation, target: PlannedTarget) -> PlannedRelocation:
        return PlannedRelocation(relocation.offset, relocation.type, target, relocation.addend)

    def _target(self, unit: UnitDiff, holder: Symbol | None, relocation: Relocation) -> PlannedTarget:
        if not isinstance(relocation.target, SymbolRef):
            if holder is not None and takes_address(holder, relocation):
                kind = "string" if isinstance(relocation.target, StringRef) else "constant"
                told = f"a {kind} of {holder.name}"
                if told not in self.strings and self._escapes(unit, holder, relocation):
                    self.strings.append(told)
            return relocation.target
        symbol = relocation.target.symbol
        if not symbol.is_defined:
            return self._undefined(unit, holder, relocation, symbol)
        return self._defined(unit, holder, relocation, symbol)

    def _defined(
        self, unit: UnitDiff, holder: Symbol | None, relocation: Relocation, symbol: Symbol
    ) -> PlannedTarget:
        if symbol in self.moved:
            return self._original_or_refuse(*self.moved[symbol])
        if self._is_elsewhere(unit, symbol):
            position = self.symbols.modules[unit.module].position(symbol.name, None)
            return position or self._undefined(unit, holder, relocation, symbol)
        original = self.unit_of.get(symbol, unit).diff.original_of.get(symbol)
        if symbol in self.numbers:
            if holder is not None and takes_address(holder, relocation):
                if original is None:
                    self._note_address(unit, symbol, holder, relocation)
                    kept = symbol.is_function and points_at_start(holder, relocation)
                    return PieceRef(self.numbers[symbol], kept)
                # A place inside a function (for a switch table or a computed goto) is in the new function.
                if symbol.is_function and points_at_start(holder, relocation):
                    return self._original_or_refuse(unit, original)
            return PieceRef(self.numbers[symbol])
        if original is None:
            self._refuse("HR2208", symbol.name, f"the patch refers to {symbol.name}, but does not contain it")
            return PieceRef(0)
        return self._original_or_refuse(unit, original)

    def _undefined(
        self, unit: UnitDiff, holder: Symbol | None, relocation: Relocation, symbol: Symbol
    ) -> PlannedTarget:
        sibling = self.globals.get((unit.module, symbol.name))
        if sibling is not None:
            return self._defined(self.unit_of[sibling], holder, relocation, sibling)
        if (unit.module, symbol.name) in self.renamed:
            definer, found = self.renamed[unit.module, symbol.name]
            return self._defined(definer, holder, relocation, found)
        module = self.symbols.modules.get(unit.module)
        own_export = unit.module == VMLINUX and symbol.name in self.symbols.exports
        if module is not None and not own_export and module.has_global(symbol.name):
            position = module.position(symbol.name, None)
            if position is not None:
                return position
        if symbol.name in self.exported:
            # The kernel does not know this export, but code in the same patch can refer to it.
            exporter, found = self.exported[symbol.name]
            return self._defined(exporter, holder, relocation, found)
        export = self.symbols.exports.get(symbol.name)
        if export is None:
            if relocation.type != R_X86_64_NONE:
                self._refuse_unknown(unit, symbol)
            return Import(symbol.name, 0)
        if export.module == VMLINUX:
            return Import(symbol.name, export.crc, export.namespace)
        return SymbolPosition(export.module, symbol.name, 0)

    def _refuse_unknown(self, unit: UnitDiff, symbol: Symbol) -> None:
        message = f"{symbol.name} is not exported, so no module can refer to it"
        hint = "use an exported function, or define it"
        if unit.module == VMLINUX:
            message = f"{symbol.name} is defined neither in the guest's kernel nor in this edit"
            hint = f"define it in a file that is already built; or {BUILD_KERNEL}"
        self._refuse("HR2209", symbol.name, message, hint)

    def _original_or_refuse(self, unit: UnitDiff, original: Symbol) -> PlannedTarget:
        return self._original(unit, original) or PieceRef(0)

    def _original(
        self, unit: UnitDiff, original: Symbol, *, is_replaced: bool = False
    ) -> SymbolPosition | None:
        """Return where the running kernel has a symbol of the original object, or refuse the edit.

        A reference to a weak symbol means the definition that the linker chose, of any size.
        """
        module = self.symbols.modules[unit.module]
        running = unit.running.symbol_of.get(original)
        if running is not None:
            block = unit.block if running.is_local else None
            if block is not None or not running.is_local:
                any_size = original.binding == STB_WEAK and not is_replaced
                position = module.position(running.name, block, None if any_size else running.size)
                if position is not None:
                    return position
        self._refuse_other_build(unit, original)
        return None

    def _refuse_other_build(self, unit: UnitDiff, original: Symbol) -> None:
        message = (
            f"{original.name} of module {unit.module} in the guest differs from a build of its source here"
        )
        self._refuse(
            "HR3101",
            original.name,
            message,
            "end hotreload and start it again: the guest then boots what was built",
        )

    def _refuse_copies(self, unit: UnitDiff, original: Symbol) -> None:
        """Refuse a function that other functions of the guest may contain a copy of.

        In our base object they call it, but the guest's code differs.
        """
        replaced = {twins.original for twins in unit.diff.changed}
        for holder in sorted(
            unit.running.holders.get(original, frozenset()) - replaced, key=lambda s: s.name
        ):
            message = f"{holder.name} in the guest may contain a copy of {original.name}, which changed"
            hint = f"change {holder.name}, too, or build it without the debugging checks"
            self._refuse("HR2202", original.name, message, hint)

    def _refuse_freed(self, unit: UnitDiff, holder: Symbol, target: SymbolPosition) -> None:
        """Refuse a new reference to init code, which is freed after boot.

        A holder that referred to it before the edit is taken to use it in time.
        """
        original = unit.diff.original_of.get(holder)
        known = (
            {r.target.symbol.name for r in original.relocations if isinstance(r.target, SymbolRef)}
            if original
            else ()
        )
        if target.name not in known and self.symbols.modules[VMLINUX].is_freed(target):
            message = f"{holder.name} refers to {target.name}, whose memory was freed after boot"
            self._refuse("HR2201", holder.name, message, "use something that still exists after boot")

    def _refuse_weak(self, unit: UnitDiff, original: Symbol, patched: Symbol, code: str) -> None:
        """Refuse a weak symbol if another file may define the function or variable that is in use."""
        if STB_WEAK not in (original.binding, patched.binding):
            return
        module = self.symbols.modules[unit.module]
        if patched.binding == STB_WEAK != original.binding or not is_linked_from(unit, original, module):
            message = f"{original.name} is weak, and another file may define the one that is in use"
            self._refuse(code, original.name, message)

    def _refuse_never_left(self, unit: UnitDiff, name: str) -> None:
        if unit.module == VMLINUX and name in NEVER_LEFT:
            hint = "build the kernel (hotreload kernel build) and restart the guest"
            self._refuse("HR2210", name, f"{name} cannot be replaced while it runs: {NEVER_LEFT[name]}", hint)

    def _note_address(self, unit: UnitDiff, symbol: Symbol, holder: Symbol, relocation: Relocation) -> None:
        """Note that the kernel may keep the address of something new: its module must then stay loaded."""
        is_state = is_place_static(symbol) and not is_constant(symbol)
        if is_child(symbol) or (is_state and not is_lock_key(symbol)):
            return  # nobody keeps the address of cold code, or of a flag or a rate limit
        is_content = symbol.anonymous or is_constant(symbol)
        is_open = symbol not in self.held and not self._is_looked_up(holder, relocation)
        if is_open and (symbol.is_function or self._is_held(unit, holder, relocation)):
            self.held.add(symbol)
        if not is_content or symbol in self.held or self._escapes(unit, holder, relocation):
            self.escaped.add(symbol)

    def _is_looked_up(self, holder: Symbol, relocation: Relocation) -> bool:
        """Return whether the kernel looks at this place at each call, so that nobody keeps its old value."""
        return relocation.offset in self.looked_up.get(holder, ())

    def _escapes(self, unit: UnitDiff, holder: Symbol, relocation: Relocation) -> bool:
        return self._escapes_of(unit).escapes(holder, relocation)

    def _is_held(self, unit: UnitDiff, holder: Symbol, relocation: Relocation) -> bool:
        """Return whether something keeps an address that does not start over together with its target."""
        if holder.is_object and not is_constant(holder) and holder in self.numbers:
            return self._escapes_of(unit).is_shown(holder)
        return self._escapes(unit, holder, relocation)

    def _escapes_of(self, unit: UnitDiff) -> Escapes:
        if id(unit) not in self.escapes:
            self.escapes[id(unit)] = escapes_of(unit.diff, own_names(self.symbols, unit.module))
        return self.escapes[id(unit)]

    def _refuse(self, code: str, symbol: str, message: str, hint: str | None = None) -> None:
        where = self.at_work.source if self.at_work else None
        self.obstacles.append(Obstacle(code, symbol, message, hint or RELOAD_MODULE, where))


def _has_other(diff: ObjectDiff) -> bool:
    """Return whether a patch does more for this unit than redirect functions."""
    return bool(diff.rewrites or diff.callbacks or diff.exit)


def _relocation_at(symbol: Symbol, offset: int) -> Relocation | None:
    return next((r for r in symbol.relocations if r.offset == offset), None)


def _output_section(symbol: Symbol) -> str:
    """Return the section of the patch module for a carried symbol. Few sections load faster than many."""
    section = symbol.section
    assert section is not None
    if section.name in LOADED:
        return section.name
    if section.is_code:
        return ".text"
    if not section.is_writable:
        return ".rodata"
    return ".bss" if section.is_zero else ".data"
