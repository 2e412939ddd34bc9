# SPDX-License-Identifier: MIT
"""What changed between two objects of one unit: the differ's list of passes.

Read ``diff_objects`` first. Every pass says one thing about the pair and collects what it refuses, so that an
author learns all reasons at once. The rule behind them all: every byte and relocation that the kernel
may look at is either the same, or explained by a change that a patch can carry, or an obstacle.
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
from hotreload.diff.layouts import Layouts
from hotreload.diff.load_time import exit_code, settle_exit, weigh_init, written_name
from hotreload.diff.obstacles import Note, Obstacle
from hotreload.diff.pair import Pair, is_exit_code, pair_objects
from hotreload.diff.pair_variables import NO_EARLIER_NAMES, EarlierNames
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
    ``rewrites``          variables whose new initial value is written where they are
    ``callbacks``         (kind, patched function) that the livepatch core is to call
    ``new_exports``       names that this unit exports, and did not before
    ``gone_exports``      names that it does not export any more
    ``now_global``        what was static: other units of the module may use it from now on
    ``callers_promoted``  functions that did not change themselves, and why they travel
    ``renamed``           global functions that go on under another name: the old one -> the new one
    ``renamed_by_others`` those of which other units of the module knew
    ``renamed_elsewhere`` the same of what another unit defines, as far as this one can tell
    ``held_elsewhere``    what another unit defines, and only the original takes the address of
    ``handed``            what the guest has, by name, and changed or new code gives somebody the address of
    ``renamed_variables`` static variables that go on under another name (correlation.py)
    ``exit``              the module's exit function, which is exchanged
    ``exit_changed``      what exit runs and differs, whether a patch brings it or not
    ``only_for_exit``     those of these functions that lie in exit code
    ``init_changed``      what differs, and waits for the next load

    What the debugging information tells, where there is some (unit_diff.py):

    ``types``             of new functions and variables, as C spells them
    ``declared_in``       the function that declares a new static local, by symbol
    ``without_storage``   function and name of the variables that gcc has folded away
    ``folded``            those of them that have storage in the guest, and a value
    ``lost``, ``come``    the variables that only one side declares, by function, name and type (layouts.py)
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
    renamed_variables: Mapping[tuple[str, str], str] = field(default_factory=dict)
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

    @property
    def verdict(self) -> str:
        """unchanged, patchable or refused."""
        if self.obstacles:
            return "refused"
        return "patchable" if self.changed or self.rewrites or self.callbacks or self.exit else "unchanged"

    @property
    def changed_functions(self) -> tuple[str, ...]:
        """Names as the source has them: what gcc split off or cloned counts as what it was made of."""
        names = [source_name(twins.original.name) for twins in self.changed]
        return tuple(dict.fromkeys((*names, *self.exit_names)))

    @property
    def exit_names(self) -> tuple[str, ...]:
        """The exit function as the source calls it, if it changed."""
        return (written_name(self.exit.original),) if self.exit else ()

    @property
    def changed_names(self) -> tuple[str, ...]:
        """The changed functions, and the variables whose initial value did."""
        variables = (base_name(rewrite.original.name) for rewrite in self.rewrites)
        return tuple(dict.fromkeys((*self.changed_functions, *variables)))

    @property
    def brings(self) -> bool:
        """Whether anything of it goes into a patch, or is what one of another unit needs."""
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
    """Compare the object the guest booted with the one of the source as it is now. Pure.

    ``before`` and ``after``: the types and variables of both, which tell one variable from another, and where
    in it one value ends and the next begins. ``is_own``: whether another file of the module defines a
    function of that name. ``renames``: global functions of the module that go on under another name, as all
    its units together say. ``handed``: names of the original's symbols that earlier edits have given
    somebody the address of. ``judge_init``: tell of what waits for the next load, and refuse it where it is
    all that changed. ``earlier``: what edits before have made of variables.
    """
    pair = pair_objects(original, patched, before, after, is_own, renames, earlier)
    pair.handed = handed

    # What could not be read or paired without doubt stops everything that would build on it.
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

    # Data: what the running kernel holds must stay as it is.
    refuse_changed_common(pair)
    refuse_changed_data(pair)
    refuse_data_out_of_place(pair)
    refuse_other_sizes(pair)

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

    # Which code is new is settled: what it needs travels with it, and what it drops is told.
    collect_carried(pair)
    refuse_shifted_neighbours(pair)
    tell_lost_statics(pair)

    return _result(pair)


def _other_exit_code(pair: Pair) -> Iterator[str]:
    """The names of what exit runs and differs."""
    run = exit_code(pair.original) if pair.changed or pair.exit_changed else set()
    for original in (*pair.exit_changed.values(), *pair.changed.values()):
        if original in run or is_exit_code(original):
            yield written_name(original)


def weigh_called_back(pair: Pair) -> None:
    """What the kernel has asked a function while init registered something stays as it was answered."""
    told = {obstacle.symbol for obstacle in pair.obstacles}
    changed = frozenset(original for original in pair.changed.values() if original.name not in told)
    for function, slot in asked_once(pair.original, pair.layouts, changed).items():
        name = written_name(function)
        message = f"{name} changed, and the kernel asks {slot} when it is registered: what it answered stays"
        pair.refuse("HR2201", function.name, message)
    for function in constructors(pair.original, changed):
        name = written_name(function)
        message = (
            f"{name} changed, and makes the objects of a cache: those that are free were made by the old one"
        )
        pair.refuse("HR2201", function.name, message)
    bound = binding(pair.original, pair.layouts, changed)
    for function in bound:
        name = written_name(function)
        message = f"{name} changed, and has run for what was there: what was made from the old one stays"
        pair.tell("HR2201", function.name, message)
    makers = [
        original
        for patched, original in pair.changed.items()
        if original in changed and original not in bound
        if may_leave_something(original) or stores_other_values(original, patched)
    ]
    tell_of_makers(pair, makers)


def tell_of_makers(pair: Pair, makers: Collection[Symbol]) -> None:
    """Helpers that changed, and that made something when init or probe called them."""
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


def _without_consequences(obstacles: Collection[Obstacle]) -> Iterator[Obstacle]:
    """Leave out what follows from a new or removed tracepoint, if there is an obstacle for that itself."""
    is_told = any(obstacle.symbol.startswith(TRACEPOINT) for obstacle in obstacles)
    for obstacle in obstacles:
        if not is_told or not obstacle.symbol.startswith(TRACEPOINTS):
            yield obstacle


def take_over_doubts(pair: Pair) -> None:
    """What correlation and the reading of special sections could not decide is an obstacle."""
    pair.obstacles += [*pair.correlation.obstacles, *pair.before.obstacles, *pair.after.obstacles]
    pair.notes += pair.correlation.notes


def _result(pair: Pair) -> ObjectDiff:
    """What the passes found, in the order of the patched object."""
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
