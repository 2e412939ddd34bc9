# SPDX-License-Identifier: MIT
"""Compare two objects of one unit: the list of passes.

Read ``diff_objects`` first. Every pass checks one aspect of the pair and collects what it refuses, so that an
author learns all reasons at once. The rule behind all passes: every byte and relocation that the kernel may
look at is either the same, or explained by a change that a patch can carry, or an obstacle.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hotreload.diff.allocations import refuse_other_sizes
from hotreload.diff.constants import (
    keep_names_that_are_held,
    let_constants_travel,
    refuse_compared_strings,
    refuse_gone_constants,
    refuse_held_labels,
)
from hotreload.diff.correlate import base_name, is_place_static, source_name
from hotreload.diff.data import (
    TRACEPOINT,
    TRACEPOINTS,
    refuse_changed_common,
    refuse_changed_data,
    refuse_data_out_of_place,
    refuse_shifted_neighbours,
)
from hotreload.diff.functions import (
    bring_labels,
    find_callbacks,
    find_changed_functions,
    handed_out,
    held_elsewhere,
    join_children,
    promote_callers,
    refuse_gone,
    refuse_other_names,
    refuse_other_parameters,
    tell_renamed,
)
from hotreload.diff.holders import IsOwn, nothing_own
from hotreload.diff.init_reads import (
    LOAD_NAMES,
    may_leave_something,
    ran_at_load,
    ran_message,
    refuse_what_init_read,
    stores_other_values,
)
from hotreload.diff.layouts import Layouts, Member, Shape
from hotreload.diff.load_time import exit_code, settle_exit, weigh_init, written_name
from hotreload.diff.obstacles import Note, Obstacle
from hotreload.diff.pair import Pair, is_exit_code, pair_objects
from hotreload.diff.pair_variables import NO_EARLIER_NAMES, EarlierNames
from hotreload.diff.paired_calls import refuse_new_pairs
from hotreload.diff.registered import asked_once, binding, called_back_at_load, constructors, with_looked_up
from hotreload.diff.rewrites import Rewrite
from hotreload.diff.sections import (
    explain_other_sections,
    explain_stray_entries,
    tell_description,
    weigh_exports,
)
from hotreload.diff.special_sections import Entry
from hotreload.diff.travel import collect_carried, tell_lost_statics
from hotreload.elf.model import ObjectFile, Symbol

Declared = tuple[str, str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Twins:
    """A function in both objects."""

    original: Symbol
    patched: Symbol


@dataclass(frozen=True, slots=True)
class ObjectDiff:
    """What a patch of one object has to do.

    ``changed``           functions to redirect
    ``new_functions``     functions of the patched object without a twin
    ``removed_functions`` functions of the original without a twin
    ``new_data``          variables of ``carried`` without a twin, those that macros made excepted
    ``carried``           the patched symbols that travel in the patch, functions and data, in file order
    ``original_of``       patched symbol -> its twin, which the running kernel has
    ``entries``           the special-section entries that travel with a carried symbol
    ``rewrites``          variables whose new initial value is written in place
    ``callbacks``         (kind, patched function) that the livepatch core is to call
    ``new_exports``       names that only the patched object exports
    ``gone_exports``      names that only the original exports
    ``now_global``        symbols that were static and are global now, so that other units may use them
    ``callers_promoted``  functions that did not change themselves, and why they travel
    ``renamed``           renamed global functions, as this unit tells: old name -> new name
    ``renamed_by_others`` the same for those that other units of the module already told
    ``renamed_elsewhere`` the same for functions of another unit, as far as this one can tell
    ``held_elsewhere``    names of other units' symbols whose address only the original takes
    ``handed``            names of the guest's symbols whose address changed or new code gives to somebody
    ``renamed_variables`` renamed static variables (correlation.py)
    ``exit``              the module's exit function, if it is exchanged
    ``exit_changed``      changed functions that exit runs, whether a patch brings them or not
    ``only_for_exit``     the changed functions that lie in exit code
    ``init_changed``      what differs and waits for the next load

    From the debugging information, if there is any (unit_diff.py):

    ``types``             types of new functions and variables, as C spells them
    ``declared_in``       the function that declares a static local, by symbol
    ``without_storage``   (function, name) of the variables that gcc has optimized away
    ``folded``            those of them that have storage in the guest, and a value
    ``lost``, ``come``    variables that only one side declares, by function, name and type (layouts.py)
    ``set_up``            members that changed and new functions set up (unset_members.py)
    ``relied_on``         members that they rely on
    ``recast``            functions that take objects for another struct than before (types.py)
    """

    changed: tuple[Twins, ...]
    new_functions: tuple[Symbol, ...]
    removed_functions: tuple[Symbol, ...]
    new_data: tuple[Symbol, ...]
    carried: tuple[Symbol, ...]
    original_of: Mapping[Symbol, Symbol]
    entries: Mapping[Symbol, tuple[Entry, ...]]
    rewrites: tuple[Rewrite, ...]
    callbacks: tuple[tuple[str, Symbol], ...]
    new_exports: frozenset[str]
    gone_exports: frozenset[str]
    now_global: tuple[Symbol, ...]
    callers_promoted: Mapping[str, str]
    notes: tuple[Note, ...]
    obstacles: tuple[Obstacle, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    renamed_by_others: Mapping[str, str] = field(default_factory=dict)
    renamed_elsewhere: Mapping[str, str] = field(default_factory=dict)
    held_elsewhere: frozenset[str] = frozenset()
    handed: frozenset[str] = frozenset()
    renamed_variables: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    exit: Twins | None = None
    exit_changed: tuple[str, ...] = ()
    only_for_exit: tuple[Twins, ...] = ()
    init_changed: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    declared_in: Mapping[str, str] = field(default_factory=dict)
    without_storage: frozenset[tuple[str, str]] = frozenset()
    folded: frozenset[tuple[str, str]] = frozenset()
    lost: Mapping[Declared, Symbol] = field(default_factory=dict)
    come: Mapping[Declared, Symbol] = field(default_factory=dict)
    set_up: Mapping[Member, Collection[Symbol]] = field(default_factory=dict)
    relied_on: Mapping[Member, Collection[Symbol]] = field(default_factory=dict)
    recast: Mapping[tuple[Shape, Shape], frozenset[str]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The result in one word: unchanged, patchable or refused."""
        if self.obstacles:
            return "refused"
        return "patchable" if self.changed or self.rewrites or self.callbacks or self.exit else "unchanged"

    @property
    def changed_functions(self) -> tuple[str, ...]:
        """The changed functions by their names in the source.

        Clones and children count as the functions that they were made from.
        """
        names = [source_name(twins.original.name) for twins in self.changed]
        return tuple(dict.fromkeys((*names, *self.exit_names)))

    @property
    def exit_names(self) -> tuple[str, ...]:
        """The name of the exit function in the source, if it changed."""
        return (written_name(self.exit.original),) if self.exit else ()

    @property
    def changed_names(self) -> tuple[str, ...]:
        """The changed functions, and the variables whose initial value changed."""
        variables = (base_name(rewrite.original.name) for rewrite in self.rewrites)
        return tuple(dict.fromkeys((*self.changed_functions, *variables)))

    @property
    def brings(self) -> bool:
        """Whether anything of this goes into a patch, or is needed by one of another unit."""
        needed = (self.new_exports, self.now_global, self.renamed, self.renamed_by_others)
        return bool(self.carried or self.rewrites or self.callbacks or any(needed))


def diff_objects(
    original: ObjectFile,
    patched: ObjectFile,
    before: Layouts | None = None,
    after: Layouts | None = None,
    is_own: IsOwn = nothing_own,
    renames: Mapping[str, str] | None = None,
    *,
    handed: Collection[str] = (),
    judge_init: bool = True,
    earlier: EarlierNames = NO_EARLIER_NAMES,
) -> ObjectDiff:
    """Compare the object that the guest booted with the one of the current source. Pure.

    ``before``, ``after``  the types and variables of both objects; they tell variables apart, and where in a
                           variable one value ends and the next begins
    ``is_own``      whether another file of the module defines a function of that name
    ``renames``     renamed global functions, as all units of the module together tell
    ``handed``      names of the original's symbols whose address earlier edits have given to somebody
    ``judge_init``  note what waits for the next load, and refuse the edit if nothing else changed
    ``earlier``     what earlier edits have done to variables
    """
    pair = pair_objects(original, patched, before, after, is_own, renames, earlier)
    pair.handed = handed

    # Whatever could not be read or paired without doubt blocks everything that builds on it.
    take_over_doubts(pair)

    # Constants have no identity: one that nobody holds changes with its readers.
    refuse_gone_constants(pair)
    let_constants_travel(pair)

    # Functions: what differs, what belongs to it, and how it can be reached.
    find_changed_functions(pair)
    join_children(pair)
    promote_callers(pair)
    keep_names_that_are_held(pair)
    refuse_held_labels(pair)
    refuse_compared_strings(pair)
    bring_labels(pair)
    find_callbacks(pair)
    refuse_other_parameters(pair)
    tell_renamed(pair)
    refuse_other_names(pair)

    # Data: the state of the running kernel must keep its place and size.
    refuse_changed_common(pair)
    refuse_changed_data(pair)
    refuse_data_out_of_place(pair)
    refuse_other_sizes(pair)
    refuse_pairs_of_unit(pair)

    def looked_up(rewrite: Rewrite) -> Rewrite:
        return with_looked_up(rewrite, pair.layouts) if pair.layouts else rewrite

    refuse_gone(pair, looked_up)

    # All the rest must be explained.
    explain_other_sections(pair)
    tell_description(pair)
    explain_stray_entries(pair)
    weigh_exports(pair)
    refuse_what_init_read(pair, lambda: called_back_at_load(pair.original, pair.layouts), looked_up)
    weigh_called_back(pair)
    settle_exit(pair)
    if judge_init:
        weigh_init(pair)

    # New code is known by now: what it needs travels with it, and what it drops is reported.
    collect_carried(pair)
    refuse_shifted_neighbours(pair)
    tell_lost_statics(pair)

    return _result(pair)


def _other_exit_code(pair: Pair) -> Iterator[str]:
    """Yield the names of changed functions that exit runs."""
    run = exit_code(pair.original) if pair.changed or pair.exit_changed else set()
    for original in (*pair.exit_changed.values(), *pair.changed.values()):
        if original in run or is_exit_code(original):
            yield written_name(original)


def weigh_called_back(pair: Pair) -> None:
    """Report changed functions that the kernel called while init registered something: their results stay."""
    told = {obstacle.symbol for obstacle in pair.obstacles}
    changed = frozenset(original for original in pair.changed.values() if original.name not in told)
    for function, slot in asked_once(pair.original, pair.layouts, changed).items():
        name = written_name(function)
        message = f"{name} changed, and the kernel calls {slot} only at registration: the old answer stays"
        pair.refuse("HR2201", function.name, message)
    for function in constructors(pair.original, changed):
        name = written_name(function)
        message = (
            f"{name} changed, and is the constructor of a slab cache:"
            " the old one made the objects that are free"
        )
        pair.refuse("HR2201", function.name, message)
    bound = binding(pair.original, pair.layouts, changed)
    for function in bound:
        name = written_name(function)
        message = (
            f"{name} changed, and has already run for existing objects: what was made from the old one stays"
        )
        pair.tell("HR2201", function.name, message)
    makers = [
        original
        for patched, original in pair.changed.items()
        if original in changed and original not in bound
        if may_leave_something(original) or stores_other_values(original, patched)
    ]
    tell_of_makers(pair, makers)


def tell_of_makers(pair: Pair, makers: Collection[Symbol]) -> None:
    """Note changed helpers that made something when init or probe called them."""
    if not makers:
        return
    one = {0: pair.original}
    at_load = {function for _, function in ran_at_load(one)}
    probes = [(0, function) for function in binding(pair.original, pair.layouts)]
    bound = {function for _, function in ran_at_load(one, also=probes)} if probes else set()
    for function in sorted(makers, key=lambda function: function.value):
        if function not in at_load | bound or LOAD_NAMES & {function.name, *function.aliases}:
            continue
        message = ran_message(function) if function in at_load else ran_message(function, "for each device")
        pair.tell("HR2201", function.name, message)


def refuse_pairs_of_unit(pair: Pair) -> None:
    """Refuse functions of the unit that newly undo what others newly do."""
    changed = [(original, patched) for patched, original in (pair.changed | pair.exit_changed).items()]
    pair.obstacles += refuse_new_pairs(changed, pair.new_functions, pair.removed_functions)


def _without_consequences(obstacles: Collection[Obstacle]) -> Iterator[Obstacle]:
    """Leave out obstacles that only follow from a new or removed tracepoint, if that has its own obstacle."""
    is_told = any(obstacle.symbol.startswith(TRACEPOINT) for obstacle in obstacles)
    for obstacle in obstacles:
        if not is_told or not obstacle.symbol.startswith(TRACEPOINTS):
            yield obstacle


def take_over_doubts(pair: Pair) -> None:
    """Turn what correlation and the reading of special sections could not decide into obstacles."""
    pair.obstacles += [*pair.correlation.obstacles, *pair.before.obstacles, *pair.after.obstacles]
    pair.notes += pair.correlation.notes


def _result(pair: Pair) -> ObjectDiff:
    """Return what the passes found, in the order of the patched object."""
    twins = pair.correlation.original_of
    order = {symbol: number for number, symbol in enumerate(pair.patched.symbols)}
    carried = sorted(pair.carried, key=order.__getitem__)
    redirected = sorted(pair.changed.keys() - pair.copied, key=order.__getitem__)
    new_data = [s for s in carried if s.is_object and not is_place_static(s) and s not in twins]
    return ObjectDiff(
        changed=tuple(Twins(pair.changed[patched], patched) for patched in redirected),
        new_functions=tuple(pair.new_functions),
        removed_functions=tuple(pair.removed_functions),
        new_data=tuple(new_data),
        carried=tuple(carried),
        original_of=twins,
        entries={symbol: tuple(pair.after.of.get(symbol, ())) for symbol in carried},
        rewrites=tuple(pair.rewrites),
        callbacks=tuple(pair.callbacks),
        new_exports=pair.new_exports,
        gone_exports=pair.gone_exports,
        now_global=tuple(p for p, o in twins.items() if o.is_local and not p.is_local),
        callers_promoted=pair.promoted,
        renamed=pair.correlation.renamed_globals(by_hint=False),
        renamed_by_others=pair.correlation.renamed_globals(by_hint=True),
        renamed_elsewhere=pair.correlation.elsewhere,
        held_elsewhere=held_elsewhere(pair),
        handed=frozenset(handed_out(pair)),
        renamed_variables=pair.correlation.renamed_variables,
        notes=tuple(pair.notes),
        obstacles=tuple(_without_consequences(dict.fromkeys(pair.obstacles))),
        exit=Twins(*pair.exit) if pair.exit else None,
        exit_changed=tuple(_other_exit_code(pair)),
        only_for_exit=tuple(Twins(one, other) for other, one in pair.exit_changed.items()),
        init_changed=tuple(dict.fromkeys(pair.init_changed)),
    )
