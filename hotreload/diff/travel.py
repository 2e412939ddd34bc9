# SPDX-License-Identifier: MIT
"""Passes over what the patch carries, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from hotreload.diff.correlate import base_name, is_child
from hotreload.diff.pair import Pair, defined_targets, is_bystander, is_exit_code, is_for_init
from hotreload.diff.special_sections import UBSAN_RECORD, is_ordinary
from hotreload.elf.model import ObjectFile, Symbol


def collect_carried(pair: Pair) -> None:
    """Collect the changed functions, and everything they reach that is new or has no identity."""
    # New global functions and variables travel even alone, because a change of another unit may use them.
    new = [*pair.new_functions, *_new_globals(pair)]
    if not pair.is_patch and all(symbol.is_local for symbol in new):
        return
    todo = [*pair.changed, *new, *(function for _, function in pair.callbacks)]
    todo += [pair.exit[1]] if pair.exit else []
    # The new target of a rewritten pointer travels as well. The variable itself stays where it is.
    todo += [target for target in _newly_pointed_at(pair) if _must_travel(pair, target)]
    while todo:
        symbol = todo.pop()
        if symbol in pair.carried:
            continue
        pair.carried.add(symbol)
        for target in pair.targets(symbol):
            if target not in pair.carried and _must_travel(pair, target):
                todo.append(target)


def _newly_pointed_at(pair: Pair) -> Iterator[Symbol]:
    for rewrite in pair.rewrites:
        places = {offset for offset, _ in rewrite.changed_places}
        yield from defined_targets(r for r in rewrite.patched.relocations if r.offset in places)


def _new_globals(pair: Pair) -> Iterator[Symbol]:
    for symbol in pair.patched.symbols:
        section = symbol.section
        if section is None or not symbol.is_object or symbol.is_local or not is_ordinary(section):
            continue
        if symbol not in pair.correlation.original_of:
            yield symbol


def _must_travel(pair: Pair, target: Symbol) -> bool:
    """Return whether the running kernel lacks a symbol that changed code refers to.

    If such a symbol cannot be carried, refuse it and return False.
    """
    if is_child(target):
        return True
    if pair.exit is not None and is_exit_code(target):
        return True  # exit code has no state, so a copy is as good
    if target in pair.correlation.original_of:
        return target in pair.changed
    section = target.section
    assert section is not None
    name = target.name
    if is_for_init(target):
        pair.refuse("HR2201", name, f"running code refers to {name}, which is freed after init")
    elif target.anonymous and section.is_writable and not section.name.startswith(UBSAN_RECORD):
        what = f"data of {section.name} that has no symbol, and whose value may have changed"
        pair.refuse("HR2105", name, f"changed code uses {what}")
    elif not is_ordinary(section) and not (target.anonymous and section.is_code):
        # A pass over data may have reported this one.
        if all(obstacle.symbol != name for obstacle in pair.obstacles):
            pair.refuse("HR2105", name, f"changed code uses '{name}' of {section.name}")
    else:
        return True
    return False


def tell_lost_statics(pair: Pair) -> None:
    """Note variables that the source no longer has. They keep their values, but no code uses them."""
    if not pair.is_patch:
        return
    begun = {base_name(symbol.name) for symbol in _free(pair.patched, pair.correlation.original_of)}
    for symbol in _free(pair.original, pair.correlation.patched_of):
        name = base_name(symbol.name)
        message = f"the variable '{name}' no longer exists; its value stays behind"
        if name in begun:
            message = f"'{name}' is another variable now: it starts again, and the old value stays behind"
        pair.tell("HR2104", name, message)


def _free(obj: ObjectFile, paired: Collection[Symbol]) -> Iterator[Symbol]:
    """Yield the variables without a twin."""
    for symbol in obj.symbols:
        section = symbol.section
        is_variable = symbol.is_object and section is not None and section.is_writable
        if is_variable and symbol not in paired and not is_bystander(symbol):
            yield symbol
