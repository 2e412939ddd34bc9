# SPDX-License-Identifier: MIT
"""Two objects of one unit, how their symbols correspond, and what the passes found so far.

The predicates that several passes share are below: who refers to whom, and what a symbol is to the kernel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hotreload.diff.compare import Comparison
from hotreload.diff.correlate import correlate, is_child, is_place_static
from hotreload.diff.correlation import Correlation
from hotreload.diff.holders import IsOwn, address_flow, nothing_own
from hotreload.diff.layouts import Layouts
from hotreload.diff.obstacles import RELOAD_MODULE, Note, Obstacle
from hotreload.diff.pair_variables import NO_EARLIER_NAMES, EarlierNames
from hotreload.diff.rewrites import Rewrite
from hotreload.diff.special_sections import (
    Entry,
    EntryTable,
    is_explained_elsewhere,
    is_init,
    read_entries,
)
from hotreload.elf.address_flow import AddressFlow
from hotreload.elf.model import ObjectFile, Relocation, Symbol, SymbolRef
from hotreload.elf.references import takes_address


@dataclass(slots=True)
class Pair:
    """The state that every pass reads and updates.

    ``before``, ``after``  the special-section entries of the original and of the patched object
    ``layouts``, ``types`` the types of the original and of the patched object, None if unknown
    ``changed``            patched function -> the original that it replaces
    ``copied``             those of ``changed`` that are reached only through their callers
    ``promoted``           functions that did not change themselves, and why they travel
    ``init_changed``       what differs and matters only while the module is loaded or unloaded
    ``exit_changed``       patched exit code -> the original
    ``exit``               the module's exit function, original and patched, if it is to be exchanged
    ``new_exports``        names that other modules may use after the edit
    ``gone_exports``       names that only the original exports
    ``callbacks``          patched functions that the livepatch core is to call, with the kind of call
    ``rewrites``           variables with another initial value, which is to be written in place
    ``held``               changed constants whose address somebody may have, and who
    ``handed``             names of symbols whose address earlier edits have given to somebody
    ``flow_before``, ``flow_after``  where addresses flow in the code of the original and the patched object
    ``carried``            the patched symbols that travel
    """

    original: ObjectFile
    patched: ObjectFile
    before: EntryTable
    after: EntryTable
    correlation: Correlation
    comparison: Comparison
    flow_before: AddressFlow
    flow_after: AddressFlow
    layouts: Layouts | None = None
    types: Layouts | None = None
    changed: dict[Symbol, Symbol] = field(default_factory=dict)
    copied: set[Symbol] = field(default_factory=set)
    promoted: dict[str, str] = field(default_factory=dict)
    init_changed: list[str] = field(default_factory=list)
    exit_changed: dict[Symbol, Symbol] = field(default_factory=dict)
    exit: tuple[Symbol, Symbol] | None = None
    new_exports: frozenset[str] = frozenset()
    gone_exports: frozenset[str] = frozenset()
    callbacks: list[tuple[str, Symbol]] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    held: dict[Symbol, str] = field(default_factory=dict)
    handed: Collection[str] = ()
    carried: set[Symbol] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)

    def refuse(self, code: str, symbol: str, message: str, hint: str = RELOAD_MODULE) -> None:
        self.obstacles.append(Obstacle(code, symbol, message, hint))

    def tell(self, code: str, symbol: str, message: str) -> None:
        self.notes.append(Note(code, symbol, message))

    def compare_anew(self) -> None:
        """Forget which symbols are the same, because that depends on twins, and some have been unpaired."""
        self.comparison = Comparison(self.correlation, self.before, self.after)

    @property
    def is_patch(self) -> bool:
        """Whether the running kernel behaves differently with this change."""
        return bool(self.changed or self.rewrites or self.callbacks or self.exit)

    @property
    def new_functions(self) -> list[Symbol]:
        """Functions of the patched object without a twin, except init and exit code and children."""
        known = self.correlation.original_of
        return [s for s in self.patched.functions if s not in known and _stands_alone(s)]

    @property
    def removed_functions(self) -> list[Symbol]:
        """Functions of the original without a twin, except init and exit code and children."""
        known = self.correlation.patched_of
        return [s for s in self.original.functions if s not in known and _stands_alone(s)]

    def targets(self, patched: Symbol) -> Iterator[Symbol]:
        """Yield the defined symbols that a patched symbol, or one of its entries, refers to."""
        yield from defined_targets(patched.relocations)
        for entry in self.after.of.get(patched, ()):
            yield from entry_targets(entry)


def pair_objects(
    original: ObjectFile,
    patched: ObjectFile,
    layouts: Layouts | None = None,
    types: Layouts | None = None,
    is_own: IsOwn = nothing_own,
    renames: Mapping[str, str] | None = None,
    earlier: EarlierNames = NO_EARLIER_NAMES,
) -> Pair:
    """Read the entries of two objects and correlate their symbols.

    ``layouts``: the types of the original; ``types``: those of the patched object. ``is_own``: see
    address_flow.
    """
    before, after = read_entries(original), read_entries(patched)
    correlation = correlate(original, patched, layouts, types, renames, earlier)
    comparison = Comparison(correlation, before, after)
    flows = (
        address_flow(original.symbols, before.of, is_own, layouts),
        address_flow(patched.symbols, after.of, is_own, types),
    )
    return Pair(original, patched, before, after, correlation, comparison, *flows, layouts, types)


def referrers_of(obj: ObjectFile) -> dict[Symbol, set[Symbol]]:
    """Return the symbols that refer to each symbol.

    Entries, and sections that the kernel never looks at, do not count.
    """
    found: dict[Symbol, set[Symbol]] = defaultdict(set)
    for symbol in obj.symbols:
        section = symbol.section
        if section is None or is_explained_elsewhere(section):
            continue
        for relocation in symbol.relocations:
            if isinstance(relocation.target, SymbolRef):
                found[relocation.target.symbol].add(symbol)
    return found


def reached_from(functions: Iterable[Symbol], within: Collection[Symbol] | None = None) -> set[Symbol]:
    """Return the functions of the object that some functions call, directly or through others of those.

    ``within``: the only functions that count; None for all.
    """
    found: set[Symbol] = set()
    todo = list(functions)
    while todo:
        caller = todo.pop()
        for relocation in caller.relocations:
            target = relocation.target.symbol if isinstance(relocation.target, SymbolRef) else None
            if target is None or not target.is_function or not target.is_defined or target in found:
                continue
            if (within is None or target in within) and not takes_address(caller, relocation):
                found.add(target)
                todo.append(target)
    return found


def defined_targets(relocations: Iterable[Relocation]) -> Iterator[Symbol]:
    for relocation in relocations:
        if isinstance(relocation.target, SymbolRef) and relocation.target.symbol.is_defined:
            yield relocation.target.symbol


def entry_targets(entry: Entry) -> Iterator[Symbol]:
    """Yield the symbols that an entry refers to. For an alternative, those that its replacement refers to."""
    return defined_targets(entry.relocations if entry.replacement is None else entry.replacement[1])


def takes_address_of(referrer: Symbol, target: Symbol) -> bool:
    """Return whether a symbol uses the address of a function for more than calling it."""
    return any(
        isinstance(relocation.target, SymbolRef)
        and relocation.target.symbol is target
        and takes_address(referrer, relocation)
        for relocation in referrer.relocations
    )


def is_for_init(symbol: Symbol) -> bool:
    """Return whether a symbol is only for loading and unloading."""
    return symbol.section is not None and is_init(symbol.section)


def is_exit_code(symbol: Symbol) -> bool:
    """Return whether a symbol is code for unloading only. A module keeps it; built-in code has none."""
    return symbol.section is not None and symbol.is_function and symbol.section.name.startswith(".exit.")


def is_bystander(symbol: Symbol) -> bool:
    """Return whether a variable is no state of the driver.

    It is none if it has no section here, was made by a macro, or is an entry.
    """
    section = symbol.section
    return section is None or is_explained_elsewhere(section) or is_place_static(symbol)


def _stands_alone(function: Symbol) -> bool:
    return not is_for_init(function) and not is_child(function)
