# SPDX-License-Identifier: MIT
"""What changed between two objects of one unit: the differ's list of passes.

Read ``diff_objects`` first. Every pass says one thing about the pair and collects what it refuses, so that an
author learns all reasons at once. The rule behind them all: every byte and relocation that the kernel
may look at is either the same, or explained by a change that a patch can carry, or an obstacle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hotreload.diff.compare import Comparison
from hotreload.diff.correlate import (
    base_name,
    correlate,
    is_child,
    is_constant,
    is_place_static,
    parent_name,
)
from hotreload.diff.obstacles import RELOAD_MODULE, Note, Obstacle
from hotreload.diff.special_sections import (
    AUXILIARY,
    Entry,
    EntryTable,
    is_entry_section,
    is_inert,
    is_init,
    is_ordinary,
    read_entries,
)
from hotreload.elf.constants import SHF_MERGE, STB_WEAK
from hotreload.elf.model import ObjectFile, Relocation, Section, Symbol, SymbolRef
from hotreload.elf.references import points_at_start, takes_address

# How far a change may climb from a function that cannot be traced to callers that can.
PROMOTION_BOUND = 16


@dataclass(frozen=True, slots=True)
class Twins:
    """A function on both sides."""

    original: Symbol
    patched: Symbol


@dataclass(frozen=True, slots=True)
class ObjectDiff:
    """What a patch of one object has to do.

    ``changed``           functions to redirect; ``new_functions`` and ``removed_functions`` have no twin
    ``carried``           the patched symbols that travel in the patch, functions and data, in file order
    ``original_of``       patched symbol -> the one that the running kernel has
    ``entries``           the special-section entries that travel with a carried symbol
    ``callers_promoted``  functions that did not change themselves, and why they travel
    """

    changed: tuple[Twins, ...]
    new_functions: tuple[Symbol, ...]
    removed_functions: tuple[Symbol, ...]
    new_data: tuple[Symbol, ...]
    carried: tuple[Symbol, ...]
    original_of: Mapping[Symbol, Symbol]
    entries: Mapping[Symbol, tuple[Entry, ...]]
    callers_promoted: Mapping[str, str]
    notes: tuple[Note, ...]
    obstacles: tuple[Obstacle, ...]

    @property
    def verdict(self) -> str:
        """unchanged, patchable or refused."""
        if self.obstacles:
            return "refused"
        return "patchable" if self.changed else "unchanged"

    @property
    def changed_functions(self) -> tuple[str, ...]:
        """Names as the source has them: a part that gcc split off counts as its parent."""
        return _names(parent_name(twins.original.name) for twins in self.changed)


@dataclass(slots=True)
class _Work:
    """What the passes fill in."""

    changed: dict[Symbol, Symbol] = field(default_factory=dict)  # patched function -> original
    copied: set[Symbol] = field(default_factory=set)  # changed, but reached through callers only
    promoted: dict[str, str] = field(default_factory=dict)
    init_changed: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)

    def refuse(self, code: str, symbol: str, message: str, hint: str = RELOAD_MODULE) -> None:
        self.obstacles.append(Obstacle(code, symbol, message, hint))


class _Differ:
    """Two objects, how their symbols correspond, and what was found so far."""

    def __init__(self, original: ObjectFile, patched: ObjectFile) -> None:
        self.original, self.patched = original, patched
        self.before, self.after = read_entries(original), read_entries(patched)
        self.correlation = correlate(original, patched)
        self.comparison = Comparison(self.correlation, self.before, self.after)
        self.work = _Work()

    # --- passes, in order ---

    def take_over_doubts(self) -> None:
        """What correlation and the reading of special sections could not decide is an obstacle."""
        self.work.obstacles += [*self.correlation.obstacles, *self.before.obstacles, *self.after.obstacles]

    def let_constants_travel(self) -> None:
        """A changed constant that only code reads is another one now: its readers change, and bring it."""
        before, after = _referrers(self.original), _referrers(self.patched)
        for original, patched in list(self.correlation.patched_of.items()):
            if not is_constant(original):
                continue
            readers = before[original] | after[patched]
            if all(_is_running_code(reader) for reader in readers) and (
                not is_constant(patched)
                or (not self.comparison.same(original, patched) and not _is_registered(original, before))
            ):
                self.correlation.unpair(original)
        self.comparison = Comparison(self.correlation, self.before, self.after)

    def find_changed_functions(self) -> None:
        """A function whose code, or whose entries in special sections, differ is changed."""
        for patched, original in self.correlation.original_of.items():
            if original.is_function and not self.comparison.same(original, patched):
                if _is_init(original) or _is_init(patched):
                    self.work.init_changed.append(original.name)
                else:
                    self.work.changed[patched] = original

    def join_children(self) -> None:
        """A part that gcc split off cannot be redirected by itself: its parent changes with it."""
        parents = {symbol.name: symbol for symbol in self.patched.functions}
        for child in [symbol for symbol in self.work.changed if is_child(symbol)]:
            original = self.work.changed.pop(child)
            parent = parents.get(child.name[: child.name.index(".cold")])
            if parent is None or parent not in self.correlation.original_of:
                self.work.refuse("HR2202", original.name, f"the parent of {original.name} was not found")
            else:
                self.work.changed[parent] = self.correlation.original_of[parent]

    def promote_callers(self) -> None:
        """A function without an ftrace site cannot be redirected: its callers are, and call the new one."""
        callers = _referrers(self.patched)
        for owner, target in self._called_by_entries():
            callers[target].add(owner)
        for _ in range(PROMOTION_BOUND):
            stuck = [
                p
                for p, o in self.work.changed.items()
                if p not in self.work.copied and not self._is_traceable(o)
            ]
            if not stuck:
                return
            for patched in stuck:
                self._promote(patched, self.work.changed[patched], callers[patched])
        for patched, original in self.work.changed.items():
            if patched not in self.work.copied and not self._is_traceable(original):
                self._refuse_untraceable(original, "the chain of its callers is too long")

    def _promote(self, patched: Symbol, original: Symbol, callers: set[Symbol]) -> None:
        self.work.copied.add(patched)
        twins = self.correlation.original_of
        outside = [c for c in callers if not c.is_function or c.section is None or not is_ordinary(c.section)]
        if (
            not original.is_local
            or not callers - {patched}
            or outside
            or any(_takes_address(c, patched) for c in callers)
        ):
            self._refuse_untraceable(original, "and not all of its callers are known")
            return
        for caller in callers:
            if caller in twins and caller not in self.work.changed:
                self.work.changed[caller] = twins[caller]
                self.work.promoted[parent_name(twins[caller].name)] = (
                    f"calls {original.name}, which is not traceable"
                )

    def _called_by_entries(self) -> Iterator[tuple[Symbol, Symbol]]:
        """Each function that an alternative or the like calls for another one."""
        for owner, entries in self.after.of.items():
            for target in {target for entry in entries for target in _entry_targets(entry)} - {owner}:
                if target.is_function:
                    yield owner, target

    def _is_traceable(self, original: Symbol) -> bool:
        """Whether ftrace can redirect a function: it begins with a call of __fentry__, or a note of one."""
        if any(entry.row.name == "__mcount_loc" for entry in self.before.of.get(original, ())):
            return True
        # Behind ENDBR64 with IBT. Objects that recordmcount is still to see have the call and no note.
        return any(
            isinstance(r.target, SymbolRef) and r.target.symbol.name == "__fentry__" and r.offset <= 5
            for r in original.relocations[:1]
        )

    def _refuse_untraceable(self, original: Symbol, why: str) -> None:
        self.work.refuse(
            "HR2202", original.name, f"{original.name} cannot be traced (it has no __fentry__ call), {why}"
        )

    def bring_labels(self) -> None:
        """What holds places inside of a changed function, as a computed goto does, means the new one's."""
        readers = _referrers(self.patched)
        for patched, original in list(self.correlation.original_of.items()):
            if (
                patched in self.work.changed
                or is_child(patched)
                or _is_init(patched)
                or not any(
                    isinstance(r.target, SymbolRef)
                    and r.target.symbol in self.work.changed
                    and not points_at_start(patched, r)
                    for r in patched.relocations
                )
            ):
                continue
            if is_constant(original) and all(reader in self.work.changed for reader in readers[patched]):
                self.correlation.unpair(original)
            else:
                message = f"{original.name} refers to places inside of a function that changed"
                self.work.refuse("HR2103", original.name, message)

    def refuse_other_names(self) -> None:
        """Two names of one function or variable that part or join: users of one would need the other."""
        ours, theirs = _by_name(self.original), _by_name(self.patched)
        for patched, original in self.correlation.original_of.items():
            if not original.aliases and not patched.aliases:
                continue
            before, after = {original.name, *original.aliases}, {patched.name, *patched.aliases}
            parted = [n for n in sorted(before - after) if n in theirs]
            joined = [n for n in sorted(after - before) if n in ours]
            for name in (*parted, *joined):
                message = f"'{original.name}' and '{name}' are one on one side of the edit only"
                self.work.refuse("HR2208", original.name, message)

    def refuse_weak(self) -> None:
        """Another file's function of the same name may have taken a weak one's place."""
        for patched, original in self.work.changed.items():
            if STB_WEAK in (original.binding, patched.binding):
                message = f"{original.name} is weak, and another file may define the one that runs"
                self.work.refuse("HR2202", original.name, message)

    def refuse_changed_data(self) -> None:
        """Data that the running kernel holds stays: another size or initial value cannot be brought."""
        self._refuse_changed_common()
        for patched, original in self.correlation.original_of.items():
            if not original.is_object or self._is_skipped(original):
                continue
            if _memory(original) != _memory(patched):
                assert original.section is not None
                assert patched.section is not None
                message = f"'{original.name}' moved from {original.section.name} to {patched.section.name}"
                self.work.refuse("HR2105", original.name, message)
            elif original.size != patched.size:
                message = f"'{original.name}' changed its size from {original.size} to {patched.size} bytes"
                self.work.refuse("HR2101", original.name, message)
            elif _alignment(original) < _alignment(patched):
                message = f"'{original.name}' needs another alignment: {_alignment(patched)} bytes"
                self.work.refuse("HR2101", original.name, message)
            elif _is_init(original):
                if not self.comparison.same(original, patched):
                    self.work.init_changed.append(original.name)
            elif not self.comparison.same(original, patched):
                what = self._difference(original, patched)
                self.work.refuse(
                    "HR2103", original.name, f"the initial value of '{original.name}' changed{what}"
                )

    def _refuse_changed_common(self) -> None:
        """A variable that the linker allots (-fcommon) has a size, and no section."""
        sizes = {s.name: s.size for s in self.original.symbols if not s.is_defined}
        for symbol in self.patched.symbols:
            if not symbol.is_defined and sizes.get(symbol.name, symbol.size) != symbol.size:
                was = sizes[symbol.name]
                message = f"'{symbol.name}' changed its size from {was} to {symbol.size} bytes"
                self.work.refuse("HR2101", symbol.name, message)

    def _difference(self, original: Symbol, patched: Symbol) -> str:
        """Where two objects of one size first differ, for a message."""
        if original.content != patched.content:
            at = next(
                i for i, (a, b) in enumerate(zip(original.content, patched.content, strict=True)) if a != b
            )
            start = at - at % 4
            was, now = (int.from_bytes(s.content[start : start + 4], "little") for s in (original, patched))
            return f" at offset {start}: {was:#x} -> {now:#x}"
        for one, other in zip(original.relocations, patched.relocations, strict=False):
            if not self.comparison.same_relocations([one], [other]):
                return f" at offset {one.offset}: {_described(one)} -> {_described(other)}"
        return ""

    def refuse_new_data_out_of_place(self) -> None:
        """A new symbol whose section the kernel reads only while it loads a module would have no effect."""
        for symbol in self.patched.symbols:
            section = symbol.section
            if (
                symbol in self.correlation.original_of
                or section is None
                or not symbol.size
                or symbol.anonymous
            ):
                continue
            if self._is_skipped(symbol) or is_ordinary(section):
                continue
            if _is_init(symbol):
                self.work.init_changed.append(symbol.name)
            else:
                self.work.refuse("HR2105", symbol.name, f"'{symbol.name}' is new in {section.name}")
        for symbol in self.original.symbols:
            section = symbol.section
            if (
                symbol in self.correlation.patched_of
                or section is None
                or not symbol.size
                or symbol.anonymous
            ):
                continue
            if self._is_skipped(symbol) or is_ordinary(section) or _is_init(symbol):
                continue
            self.work.refuse("HR2105", symbol.name, f"'{symbol.name}' is gone from {section.name}")

    def explain_other_sections(self) -> None:
        """Sections without symbols that no table explains must say the same on both sides."""
        ours = _other_sections(self.original, self.before)
        theirs = _other_sections(self.patched, self.after)
        for name in sorted(ours.keys() | theirs.keys()):
            if self._same_stretches(ours.get(name, []), theirs.get(name, [])):
                continue
            if name == ".modinfo":
                message = (
                    "the module's description changed; modinfo shows it after the next load of the module"
                )
                self.work.notes.append(Note("HR2105", name, message))
            elif is_init((ours.get(name) or theirs[name])[0].section):  # type: ignore[arg-type]
                self.work.init_changed.append(name)
            else:
                self.work.refuse("HR2208", name, f"section {name} changed, and what it means is not known")

    def _same_stretches(self, ours: list[Symbol], theirs: list[Symbol]) -> bool:
        if ours and theirs and ours[0].section is not None and ours[0].section.name == ".modinfo":
            return sorted(_strings(ours)) == sorted(_strings(theirs))
        return len(ours) == len(theirs) and all(
            self.comparison.same(one, other) for one, other in zip(ours, theirs, strict=True)
        )

    def explain_stray_entries(self) -> None:
        """Entries of special sections that belong to no function must be the same."""
        ours = [
            (s, e)
            for s, entries in self.before.of.items()
            if not s.is_function
            for e in entries
            if e.row.compared
        ]
        theirs = [
            (s, e)
            for s, entries in self.after.of.items()
            if not s.is_function
            for e in entries
            if e.row.compared
        ]
        counts = [defaultdict[str, int](int), defaultdict[str, int](int)]
        for side, found in zip(counts, (ours, theirs), strict=True):
            for _, entry in found:
                side[entry.row.name] += 1
        for name in counts[0].keys() | counts[1].keys():
            if counts[0][name] != counts[1][name]:
                self.work.refuse("HR2208", name, f"entries of {name} that belong to no function changed")

    def weigh_init(self) -> None:
        """Code for loading and unloading runs once: beside other changes it waits, alone it is refused."""
        for name in _names(self.work.init_changed):
            message = f"{name} runs when the module is loaded or unloaded; its change waits for the next load"
            if self.work.changed:
                self.work.notes.append(Note("HR2201", name, message))
            else:
                self.work.refuse("HR2201", name, f"only code for loading or unloading changed: {name}")

    # --- the result ---

    def result(self) -> ObjectDiff:
        new_functions = [
            symbol
            for symbol in self.patched.functions
            if symbol not in self.correlation.original_of and not _is_init(symbol) and not is_child(symbol)
        ]
        removed = [
            symbol
            for symbol in self.original.functions
            if symbol not in self.correlation.patched_of and not _is_init(symbol) and not is_child(symbol)
        ]
        carried = self._carried(new_functions)
        self._refuse_shifted_neighbours(carried)
        order = {symbol: number for number, symbol in enumerate(self.patched.symbols)}
        travelling = sorted(carried, key=lambda symbol: order[symbol])
        new_data = [
            s
            for s in travelling
            if s.is_object and not is_place_static(s) and s not in self.correlation.original_of
        ]
        self._tell_lost_statics()
        redirected = sorted(
            (p for p in self.work.changed if p not in self.work.copied), key=lambda symbol: order[symbol]
        )
        return ObjectDiff(
            changed=tuple(Twins(self.work.changed[patched], patched) for patched in redirected),
            new_functions=tuple(new_functions),
            removed_functions=tuple(removed),
            new_data=tuple(new_data),
            carried=tuple(travelling),
            original_of=self.correlation.original_of,
            entries={symbol: tuple(self.after.of.get(symbol, ())) for symbol in travelling},
            callers_promoted=self.work.promoted,
            notes=tuple(self.work.notes),
            obstacles=tuple(dict.fromkeys(self.work.obstacles)),
        )

    def _carried(self, new_functions: Iterable[Symbol]) -> set[Symbol]:
        """What travels: the changed functions, and all that is new or has no identity and that they reach."""
        # New global functions and variables travel alone, too: another unit's change may be to use them.
        new = [*new_functions, *self._new_globals()]
        if not self.work.changed and all(symbol.is_local for symbol in new):
            return set()
        carried: set[Symbol] = set()
        todo = [*self.work.changed, *new]
        while todo:
            symbol = todo.pop()
            if symbol in carried:
                continue
            carried.add(symbol)
            for target in self._targets(symbol):
                if target not in carried and self._must_travel(target):
                    todo.append(target)
        return carried

    def _new_globals(self) -> Iterator[Symbol]:
        for symbol in self.patched.symbols:
            section = symbol.section
            if section is None or not symbol.is_object or symbol.is_local or not is_ordinary(section):
                continue
            if symbol not in self.correlation.original_of:
                yield symbol

    def _refuse_shifted_neighbours(self, carried: Iterable[Symbol]) -> None:
        """Where variables share a section, ``a[-1]`` and the end of ``a`` are places in a neighbour.

        That does not matter as long as the neighbours are the same ones.
        """
        shifted = {
            section
            for section in self.patched.sections
            if section.is_writable and not is_entry_section(section) and self._has_new_neighbours(section)
        }
        used = {target.section for symbol in carried for target in self._targets(symbol)}
        for section in (section for section in shifted if section in used):
            message = f"the variables that share section {section.name} are not the same ones any more"
            self.work.refuse("HR2105", section.name, message)

    def _has_new_neighbours(self, section: Section) -> bool:
        original = self.original.section(section.name)
        after = [s for s in section.symbols if s.is_object]
        before = [s for s in original.symbols if s.is_object] if original is not None else []
        if len(after) < 2 or all(is_place_static(symbol) for symbol in after):
            return False
        twins = self.correlation.original_of
        # The statics of macros have no twins, and nothing is counted from them.
        ours: list[object] = [base_name(s.name) if is_place_static(s) else s for s in before]
        theirs = [base_name(s.name) if is_place_static(s) else twins.get(s) for s in after]
        places = [s.value for s in before] == [s.value for s in after]
        return bool(before) and not (places and ours == theirs)

    def _targets(self, symbol: Symbol) -> Iterator[Symbol]:
        """The defined symbols that a symbol, or an entry of it, refers to."""
        yield from _defined_targets(symbol.relocations)
        for entry in self.after.of.get(symbol, ()):
            yield from _entry_targets(entry)

    def _must_travel(self, target: Symbol) -> bool:
        if is_child(target):
            return True
        if target in self.correlation.original_of:
            return target in self.work.changed
        section = target.section
        assert section is not None
        if _is_init(target):
            self.work.refuse(
                "HR2201", target.name, f"running code refers to {target.name}, which is freed after init"
            )
            return False
        if target.anonymous and section.is_writable:
            message = (
                f"changed code uses data of {section.name} that has no symbol, and may have a value by now"
            )
            self.work.refuse("HR2105", target.name, message)
            return False
        if not is_ordinary(section) and not (target.anonymous and section.is_code):
            known = {obstacle.symbol for obstacle in self.work.obstacles}
            if target.name not in known:
                self.work.refuse(
                    "HR2105", target.name, f"changed code needs '{target.name}' of {section.name}"
                )
            return False
        return True

    def _tell_lost_statics(self) -> None:
        for symbol in self.original.symbols:
            if (
                symbol.is_defined
                and symbol not in self.correlation.patched_of
                and symbol.is_object
                and symbol.section is not None
                and symbol.section.is_writable
                and not self._is_skipped(symbol)
                and self.work.changed
            ):
                name = base_name(symbol.name)
                message = f"the variable '{name}' is not there any more; its value stays behind"
                self.work.notes.append(Note("HR2104", name, message))

    def _is_skipped(self, symbol: Symbol) -> bool:
        section = symbol.section
        return section is None or is_inert(section) or is_entry_section(section) or is_place_static(symbol)


def diff_objects(original: ObjectFile, patched: ObjectFile) -> ObjectDiff:
    """Compare the object the guest booted with the one of the source as it is now. Pure."""
    differ = _Differ(original, patched)

    # What could not be read or paired without doubt stops everything that would build on it.
    differ.take_over_doubts()

    # Constants have no identity: a table that only code reads changes with its readers.
    differ.let_constants_travel()

    # Functions: what differs, what belongs to it, and how it can be reached.
    differ.find_changed_functions()
    differ.join_children()
    differ.promote_callers()
    differ.bring_labels()
    differ.refuse_weak()
    differ.refuse_other_names()

    # Data: what the running kernel holds must stay as it is.
    differ.refuse_changed_data()
    differ.refuse_new_data_out_of_place()

    # All the rest must be explained.
    differ.explain_other_sections()
    differ.explain_stray_entries()
    differ.weigh_init()

    return differ.result()


def _takes_address(referrer: Symbol, target: Symbol) -> bool:
    """Whether a symbol uses the address of a function for more than to call it."""
    return any(
        isinstance(relocation.target, SymbolRef)
        and relocation.target.symbol is target
        and takes_address(referrer, relocation)
        for relocation in referrer.relocations
    )


def _referrers(obj: ObjectFile) -> dict[Symbol, set[Symbol]]:
    """Which symbols refer to each symbol; entries and what the kernel never looks at do not count."""
    found: dict[Symbol, set[Symbol]] = defaultdict(set)
    for symbol in obj.symbols:
        section = symbol.section
        if section is None or is_inert(section) or is_entry_section(section):
            continue
        for relocation in symbol.relocations:
            if isinstance(relocation.target, SymbolRef):
                found[relocation.target.symbol].add(symbol)
    return found


def _defined_targets(relocations: Iterable[Relocation]) -> Iterator[Symbol]:
    for relocation in relocations:
        if isinstance(relocation.target, SymbolRef) and relocation.target.symbol.is_defined:
            yield relocation.target.symbol


def _entry_targets(entry: Entry) -> Iterator[Symbol]:
    return _defined_targets(entry.relocations if entry.replacement is None else entry.replacement[1])


def _by_name(obj: ObjectFile) -> dict[str, Symbol]:
    """Functions and data by each of their names."""
    return {
        name: symbol
        for symbol in obj.symbols
        if symbol.is_defined and (symbol.is_function or symbol.is_object)
        for name in (symbol.name, *symbol.aliases)
    }


def _is_registered(constant: Symbol, referrers: Mapping[Symbol, set[Symbol]]) -> bool:
    """Whether code may have handed a table of functions to the kernel, which goes on to use the old one."""
    return any(target.is_function for target in _defined_targets(constant.relocations)) and any(
        _takes_address(reader, constant) for reader in referrers[constant]
    )


def _memory(symbol: Symbol) -> object:
    """What kind of memory holds a variable: a section of its own kind counts by its name."""
    section = symbol.section
    assert section is not None
    return section.is_writable if is_ordinary(section) else section.name


def _alignment(symbol: Symbol) -> int:
    """The alignment in bytes that a variable asks for; 1 where it shares its section, and that is unknown."""
    section = symbol.section
    return section.align if section is not None and section.symbols == [symbol] else 1


def _is_running_code(symbol: Symbol) -> bool:
    return symbol.is_function and not _is_init(symbol)


def _is_init(symbol: Symbol) -> bool:
    return symbol.section is not None and is_init(symbol.section)


def _other_sections(obj: ObjectFile, entries: EntryTable) -> dict[str, list[Symbol]]:
    """The anonymous stretches of sections that are neither inert nor entries.

    In ordinary sections only those that nothing refers to: the others count with their referrers.
    """
    found: dict[str, list[Symbol]] = {}
    used = {symbol for symbol, referrers in _referrers(obj).items() if referrers}
    used |= {target for group in entries.of.values() for entry in group for target in _entry_targets(entry)}
    for section in obj.sections:
        if is_inert(section) or is_entry_section(section) or not section.size or _is_merged(section):
            continue
        explained = is_ordinary(section) or section.name == AUXILIARY
        stretches = [s for s in section.symbols if s.anonymous and not (explained and s in used)]
        if stretches:
            found.setdefault(section.name, []).extend(stretches)
    return found


def _is_merged(section: Section) -> bool:
    return section.flags & SHF_MERGE != 0


def _strings(stretches: Iterable[Symbol]) -> list[bytes]:
    return [text for symbol in stretches for text in symbol.content.split(b"\0") if text]


def _described(relocation: Relocation) -> str:
    target = relocation.target
    if isinstance(target, SymbolRef):
        return target.symbol.name + (f"+{relocation.addend:#x}" if relocation.addend > 0 else "")
    return (
        repr(getattr(target, "text", b"").decode(errors="replace"))
        if hasattr(target, "text")
        else "a constant"
    )


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
