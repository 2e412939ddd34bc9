# SPDX-License-Identifier: MIT
"""Passes over functions: find those that changed, and how their new code can be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from hotreload.diff.correlate import is_child, is_constant, parent_name
from hotreload.diff.holders import who_holds
from hotreload.diff.load_time import written_name
from hotreload.diff.pair import (
    Pair,
    defined_targets,
    entry_targets,
    is_exit_code,
    is_for_init,
    referrers_of,
    takes_address_of,
)
from hotreload.diff.rewrites import Rewrite
from hotreload.diff.special_sections import CALLBACKS, is_export_table, is_ordinary
from hotreload.elf.model import ObjectFile, Symbol, SymbolRef
from hotreload.elf.references import points_at_start

# struct klp_callbacks (include/linux/livepatch.h)
CALLBACK_KINDS: Final = ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")
# How many levels of callers a change may climb from a function that cannot be traced.
PROMOTION_BOUND: Final = 16


def find_changed_functions(pair: Pair) -> None:
    """Collect the functions whose code, or whose entries in special sections, differ."""
    for patched, original in pair.correlation.original_of.items():
        if original.is_function and not pair.comparison.same(original, patched):
            if is_exit_code(original) and is_exit_code(patched):
                pair.exit_changed[patched] = original
            elif is_for_init(original) or is_for_init(patched):
                pair.init_changed.append(written_name(original))
            else:
                pair.changed[patched] = original


def join_children(pair: Pair) -> None:
    """Replace changed children by their parents, because ftrace cannot redirect a part that gcc split off.

    A child of init code may lie among normal code. It counts as its parent does.
    """
    twins = pair.correlation.original_of
    parents = {name: symbol for symbol in pair.patched.functions for name in (symbol.name, *symbol.aliases)}
    for child in [symbol for symbol in pair.changed if is_child(symbol)]:
        original = pair.changed.pop(child)
        parent = parents.get(child.name[: child.name.index(".cold")])
        if parent is None or parent not in twins:
            pair.refuse(
                "HR2202", original.name, f"the function that {original.name} belongs to was not found"
            )
        elif is_for_init(parent):
            pair.init_changed.append(written_name(twins[parent]))
        else:
            pair.changed[parent] = twins[parent]


def promote_callers(pair: Pair) -> None:
    """Let the callers of a changed function travel if ftrace cannot redirect it: they call the new one."""
    callers = referrers_of(pair.patched)
    for owner, target in _called_by_entries(pair):
        callers[target].add(owner)
    for _ in range(PROMOTION_BOUND):
        stuck = _out_of_reach(pair)
        if not stuck:
            return
        for patched in stuck:
            _promote(pair, patched, callers[patched])
    for patched in _out_of_reach(pair):
        _refuse_untraceable(pair, pair.changed[patched], "and the chain of its callers is too long")


def find_callbacks(pair: Pair) -> None:
    """Collect the functions that the author wants the livepatch core to call.

    The base of a patch calls none.
    """
    for section in pair.patched.sections:
        if not section.name.startswith(CALLBACKS):
            continue
        kind = section.name.removeprefix(CALLBACKS)
        for function in defined_targets(section.relocations):
            if kind in CALLBACK_KINDS and function.is_function and not is_for_init(function):
                pair.callbacks.append((kind, function))
            else:
                pair.refuse("HR2208", function.name, f"{function.name} cannot be a callback of kind '{kind}'")


def _called_by_entries(pair: Pair) -> Iterator[tuple[Symbol, Symbol]]:
    """Yield (owner, function) for each function that an alternative or the like of the owner calls."""
    for owner, entries in pair.after.of.items():
        for target in {target for entry in entries for target in entry_targets(entry)} - {owner}:
            if target.is_function:
                yield owner, target


def _out_of_reach(pair: Pair) -> list[Symbol]:
    """Return the changed functions that neither ftrace nor their callers lead to yet."""
    return [p for p, o in pair.changed.items() if p not in pair.copied and not _is_traceable(pair, o)]


def _is_traceable(pair: Pair, original: Symbol) -> bool:
    """Return whether ftrace can redirect a function: it has an __mcount_loc entry or a call of __fentry__."""
    if any(entry.row.name == "__mcount_loc" for entry in pair.before.of.get(original, ())):
        return True
    # With IBT the call comes after ENDBR64. Before recordmcount runs, objects have the call but no entry.
    return any(
        isinstance(r.target, SymbolRef) and r.target.symbol.name == "__fentry__" and r.offset <= 5
        for r in original.relocations[:1]
    )


def _promote(pair: Pair, patched: Symbol, callers: set[Symbol]) -> None:
    """Let the callers of a changed function travel with it, if all of them are known."""
    original = pair.changed[patched]
    pair.copied.add(patched)
    if (
        not original.is_local
        or not callers - {patched}
        or any(not _is_plain_code(caller) or takes_address_of(caller, patched) for caller in callers)
    ):
        _refuse_untraceable(pair, original, "and not all of its callers are known")
        return
    twins = pair.correlation.original_of
    for caller in callers:
        if caller in twins and caller not in pair.changed:
            pair.changed[caller] = twins[caller]
            name = parent_name(twins[caller].name)
            pair.promoted[name] = f"calls {original.name}, which is not traceable"


def _is_plain_code(symbol: Symbol) -> bool:
    return symbol.is_function and symbol.section is not None and is_ordinary(symbol.section)


def _refuse_untraceable(pair: Pair, original: Symbol, why: str) -> None:
    name = original.name
    pair.refuse("HR2202", name, f"{name} cannot be traced (it has no __fentry__ call), {why}")


def bring_labels(pair: Pair) -> None:
    """Let tables of labels in a changed function, as computed gotos use them, travel with it.

    Refuse other data that refers to places inside of a changed function.
    """
    readers = referrers_of(pair.patched)
    for patched, original in list(pair.correlation.original_of.items()):
        if patched in pair.changed or is_child(patched) or is_for_init(patched):
            continue
        if not _holds_labels(pair, patched):
            continue
        if is_constant(original) and all(reader in pair.changed for reader in readers[patched]):
            pair.correlation.unpair(original)
        else:
            message = f"{original.name} refers to places inside a function that changed"
            pair.refuse("HR2103", original.name, message)


def _holds_labels(pair: Pair, patched: Symbol) -> bool:
    return any(
        isinstance(r.target, SymbolRef)
        and r.target.symbol in pair.changed
        and not points_at_start(patched, r)
        for r in patched.relocations
    )


def refuse_gone(pair: Pair, with_looked_up: Callable[[Rewrite], Rewrite]) -> None:
    """Refuse to remove a function whose address something may hold.

    The holder would run the old code for ever. Nobody holds the address if only tables had it, the kernel
    looks at their slots each time, and these slots are written.
    """
    referrers = referrers_of(pair.original)
    written = {each.original: with_looked_up(each).looked_up for each in pair.rewrites}

    def may_hold(holder: Symbol, function: Symbol) -> bool:
        # An export makes the name available to others; the linker and modpost report who uses it.
        is_export = holder.section is not None and is_export_table(holder.section.name)
        if is_export or not takes_address_of(holder, function):
            return False
        slots = {r.offset for r in holder.relocations if r.target == SymbolRef(function)}
        return not slots <= written.get(holder, frozenset())

    for function in pair.removed_functions:
        if function.name in pair.handed or any(may_hold(each, function) for each in referrers[function]):
            message = gone_message(function.name)
            pair.refuse("HR2207", function.name, message)


def refuse_other_parameters(pair: Pair) -> None:
    """Refuse other parameters of a function whose address was given out by an earlier edit.

    Whoever has that address calls the function as it was declared then.
    """
    if pair.layouts is None or pair.types is None or not pair.handed:
        return
    for patched, original in pair.changed.items():
        if original.name not in pair.handed:
            continue
        before, after = pair.layouts.functions.get(original.name), pair.types.functions.get(patched.name)
        if before is not None and after is not None and before != after:
            message = f"the parameters of {original.name} changed, and something may still hold its address"
            pair.refuse("HR2207", original.name, message)


def handed_out(pair: Pair) -> Iterator[str]:
    """Yield the functions and constants of the original, by name, whose address new code may give away."""
    twins = pair.correlation.original_of
    code = {*pair.changed, *pair.new_functions}
    users: Mapping[Symbol, set[Symbol]] | None = None
    tables = {s for s in pair.patched.symbols if s.is_object and s not in twins} if code else set()
    for holder in (*code, *tables, *(rewrite.patched for rewrite in pair.rewrites)):
        for target in set(defined_targets(holder.relocations)) & twins.keys():
            original = twins[target]
            if not takes_address_of(holder, target):
                continue
            if target.is_function:
                # If the original gives the address away as well, that is already known.
                users = referrers_of(pair.original) if users is None else users
                is_new = not any(takes_address_of(user, original) for user in users.get(original, ()))
            else:
                is_new = is_constant(target) and _gets_away(pair, target, holder)
            if is_new:
                yield original.name


def _gets_away(pair: Pair, constant: Symbol, holder: Symbol) -> bool:
    return not holder.is_function or who_holds(pair.flow_after, constant, [holder]) is not None


def gone_message(name: str) -> str:
    return f"{name} no longer exists, but something may still hold its address and run the old code"


def held_elsewhere(pair: Pair) -> frozenset[str]:
    """Return the names of other units' symbols whose address only the original takes."""
    still = {symbol.name for symbol in pair.patched.symbols}
    foreign = {
        symbol for symbol in pair.original.symbols if not symbol.is_defined and symbol.name not in still
    }
    if not foreign:
        return frozenset()
    referrers = referrers_of(pair.original)
    return frozenset(
        symbol.name for symbol in foreign if any(takes_address_of(r, symbol) for r in referrers[symbol])
    )


def tell_renamed(pair: Pair) -> None:
    """Note each renamed function that takes the place of the old one."""
    for original, patched in pair.correlation.renamed.items():
        message = (
            f"{patched.name} takes the place of {original.name}:"
            f" anything that holds {original.name} runs {patched.name}"
        )
        pair.tell("HR2207", original.name, message)


def refuse_other_names(pair: Pair) -> None:
    """Refuse names that start or stop being one function or variable.

    Users of one name would need the other. gcc folds identical static functions whose addresses nobody takes.
    Their callers are compiled with the edit and travel, so this is harmless. The same holds for readers of
    two tables that were identical.
    """
    ours, theirs = _names_of(pair.original), _names_of(pair.patched)
    taken: list[Mapping[Symbol, set[Symbol]]] = []
    for patched, original in pair.correlation.original_of.items():
        if not original.aliases and not patched.aliases:
            continue
        before, after = {original.name, *original.aliases}, {patched.name, *patched.aliases}
        parted = sorted((before - after) & theirs)
        joined = sorted((after - before) & ours)
        if not parted and not joined:
            continue
        taken = taken or [referrers_of(pair.original), referrers_of(pair.patched)]
        if all(map(_is_only_called, (original, patched), taken)):
            continue
        if not joined and _is_only_read(pair, original, taken[0]):
            continue
        for name in (*parted, *joined):
            message = f"'{original.name}' and '{name}' are the same symbol only before or only after the edit"
            pair.refuse("HR2208", original.name, message)


def _is_only_called(symbol: Symbol, referrers: Mapping[Symbol, set[Symbol]]) -> bool:
    """Return whether nobody has the address of a function, so that all its callers are in this object."""
    users = referrers.get(symbol, set())
    return (
        symbol.is_function and symbol.is_local and not any(takes_address_of(user, symbol) for user in users)
    )


def _is_only_read(pair: Pair, symbol: Symbol, referrers: Mapping[Symbol, set[Symbol]]) -> bool:
    """Return whether only functions of this object read a constant, and nobody has its address."""
    users = referrers.get(symbol, set())
    return (
        symbol.is_local
        and is_constant(symbol)
        and symbol.name not in pair.handed
        and all(user.is_function for user in users)
        and who_holds(pair.flow_before, symbol, users) is None
    )


def _names_of(obj: ObjectFile) -> set[str]:
    """Return all names of functions and data."""
    return {
        name
        for symbol in obj.symbols
        if symbol.is_defined and (symbol.is_function or symbol.is_object)
        for name in (symbol.name, *symbol.aliases)
    }
