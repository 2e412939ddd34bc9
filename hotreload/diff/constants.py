# SPDX-License-Identifier: MIT
"""Passes over constants: decide how a changed constant reaches code that uses the old one.

A constant has no identity of its own. If nothing holds its address, its readers count as changed and bring
the new constant with them. If something may hold its address, there must be a single copy, as with a
variable, and the new value is written in place (data.py). A second copy that live objects do not see is never
made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hotreload.diff.correlate import base_name, is_constant, is_function_name, is_literal, is_place_static
from hotreload.diff.holders import (
    has_labels,
    who_compares_string,
    who_copies,
    who_holds,
    who_holds_label,
    who_tells_strings,
)
from hotreload.diff.init_reads import Uses, uses_of_init
from hotreload.diff.pair import Pair, is_for_init, referrers_of
from hotreload.diff.registered import called_back_at_load
from hotreload.diff.special_sections import is_ordinary
from hotreload.elf.copied_pointers import who_copies_through
from hotreload.elf.model import Relocation, StringRef, Symbol, SymbolRef

EARLIER_EDIT = "an earlier edit passed it on"


def let_constants_travel(pair: Pair) -> None:
    """Unpair each changed constant whose address nobody holds.

    Then its readers count as changed and bring the new one. The same is done with a table that grew, if only
    variables point at it: their pointers change.
    """
    before, after = referrers_of(pair.original), referrers_of(pair.patched)
    at_load = _ReadAtLoad(pair)
    for original, patched in list(pair.correlation.patched_of.items()):
        if not is_constant(original) or _is_read_at_load(original):
            continue
        if is_constant(patched) and pair.comparison.same(original, patched):
            continue
        readers = before[original] | after[patched]
        if is_constant(patched) and at_load.has_read(original, patched):
            continue
        if all(reader.is_function and not is_for_init(reader) for reader in readers):
            how = EARLIER_EDIT if original.name in pair.handed else None
            how = how or who_holds(pair.flow_before, original, before[original])
            how = how or who_holds(pair.flow_after, patched, after[patched])
            if how is None and _memory_stays(original, patched):
                how = who_tells_strings(pair.flow_before, original, before[original])
        elif is_constant(patched) and all(map(_can_be_rewritten, readers)) and _continues(original, patched):
            copies = (_who_copies(pair, r, original, before[r]) for r in before[original])
            how = next((copy for copy in copies if copy), None)
        else:
            continue
        if how is None:
            pair.correlation.unpair(original)
        else:
            pair.held[original] = how
    pair.compare_anew()


def _who_copies(pair: Pair, holder: Symbol, constant: Symbol, users: set[Symbol]) -> str | None:
    """Return who may have copied a pointer to a table that ``holder`` contains.

    The pointer may have been read from ``holder`` itself or through another pointer.
    """
    if how := who_copies(pair.flow_before, holder, constant, users):
        return how
    places = [r.offset for r in holder.relocations if r.target == SymbolRef(constant)]
    shape = pair.layouts.shapes.get(holder.name) if pair.layouts is not None else None
    element = pair.layouts.size(shape[2]) if pair.layouts and shape and shape[0] == "[]" else 0
    return who_copies_through(pair.original.symbols, holder, places, element)


@dataclass(slots=True)
class _ReadAtLoad:
    """The parts of constants that load-time code has used, computed on first use."""

    pair: Pair
    _uses: Uses[int] | None = None

    def has_read(self, original: Symbol, patched: Symbol) -> bool:
        """Return whether load-time code has used a number that differs in the patched constant.

        Strings and functions do not count, because they are looked up again when they are needed.
        """
        bytes_of_both = enumerate(zip(original.content, patched.content, strict=False))
        differing = [offset for offset, (one, other) in bytes_of_both if one != other]
        if not differing:
            return False
        if self._uses is None:
            also = called_back_at_load(self.pair.original, self.pair.layouts)
            self._uses = uses_of_init({0: self.pair.original}, also=[(0, f) for f in also])
        uses = self._uses.get((0, original.name), [])
        return any(use.start <= offset < use.end for use in uses for offset in differing)


def refuse_gone_constants(pair: Pair) -> None:
    """Refuse to remove a constant whose address something may hold.

    The holder would go on with a value that no source contains any more.
    """
    if pair.layouts is None or pair.types is None:
        return
    declared = {one.symbol: (one.function, one.name) for one in pair.layouts.declared}
    # A constant that no code needs has no storage, but the old one stays as it was for its holders.
    still = {(one.function, one.name) for one in pair.types.declared}
    users = None
    for original in pair.original.symbols:
        if original in pair.correlation.patched_of or not is_constant(original):
            continue
        if _is_read_at_load(original) or not (original in declared or is_literal(original)):
            continue
        if declared.get(original) in still:
            continue
        users = users or referrers_of(pair.original)
        if how := _who_has(pair, original, users):
            message = (
                f"'{base_name(original.name)}' was removed, and something may still hold its address: {how}"
            )
            pair.refuse("HR2103", original.name, message)


def _who_has(pair: Pair, constant: Symbol, users: Mapping[Symbol, set[Symbol]]) -> str | None:
    """Return who may have the address of a constant, from code or from data that points at it.

    ``users``: the symbols of the original that refer to each symbol.
    """
    if constant.name in pair.handed:
        return EARLIER_EDIT
    functions = {user for user in users[constant] if user.is_function}
    if how := who_holds(pair.flow_before, constant, functions):
        return how
    for holder in users[constant] - functions:
        if how := who_copies(pair.flow_before, holder, constant, users[holder]):
            return how
    return None


def _memory_stays(original: Symbol, patched: Symbol) -> bool:
    """Return whether the new value fits where the old one is."""
    return is_constant(patched) and original.size == patched.size


def _is_read_at_load(symbol: Symbol) -> bool:
    # The description of a module parameter is constant too, but the kernel has read it at load.
    section = symbol.section
    return section is None or is_place_static(symbol) or not is_ordinary(section)


def _can_be_rewritten(reader: Symbol) -> bool:
    section = reader.section
    return reader.is_object and section is not None and is_ordinary(section)


def _continues(original: Symbol, patched: Symbol) -> bool:
    """Return whether a table only grew at its end.

    Then whoever has a copy of the pointer still finds the old entries unchanged. The zeros that terminate the
    old table are where the new entries begin.
    """
    if patched.size <= original.size:
        return False
    kept = len(original.content.rstrip(b"\0"))
    ours, theirs = _pointers(original), _pointers(patched)
    kept = max([kept, *(offset + 8 for offset in ours)])
    return original.content[:kept] == patched.content[:kept] and all(
        _means_the_same(relocation, theirs.get(offset)) for offset, relocation in ours.items()
    )


def _pointers(symbol: Symbol) -> dict[int, Relocation]:
    return {relocation.offset: relocation for relocation in symbol.relocations}


def _means_the_same(one: Relocation, other: Relocation | None) -> bool:
    """Return whether two pointers are the same as far as names can tell."""
    return other is not None and repr((one.type, one.target, one.addend)) == repr(
        (other.type, other.target, other.addend)
    )


def keep_names_that_are_held(pair: Pair) -> None:
    """Let changed functions use the running kernel's ``__func__`` if something may hold its address.

    Otherwise a copy travels, because then the kernel need not look up a symbol.
    """
    readers = None
    twins = pair.correlation.original_of
    for patched in pair.changed:
        for target in {t for t in pair.targets(patched) if is_function_name(t) and t in twins}:
            readers = readers or (referrers_of(pair.original), referrers_of(pair.patched))
            original = twins[target]
            held = who_holds(pair.flow_before, original, readers[0][original])
            if not held and not who_holds(pair.flow_after, target, readers[1][target]):
                pair.correlation.unpair(original)


def refuse_compared_strings(pair: Pair) -> None:
    """Refuse code that recognizes a string by its address.

    A patch has its own copies of strings, so the comparison would fail with the pointers that live objects
    have.
    """
    for function in (*pair.changed, *pair.new_functions):
        texts = {r.target for r in function.relocations if isinstance(r.target, StringRef)}
        for text in sorted(texts, key=lambda text: text.text):
            if how := who_compares_string(pair.flow_after, text, function):
                said = repr(text.text.decode(errors="replace"))
                message = f"the string {said} has a different address in a patch: {how}"
                pair.refuse("HR2103", function.name, message)


def refuse_held_labels(pair: Pair) -> None:
    """Refuse to change a function if something may hold the address of a label in it.

    The holder would continue in the old function, because the label has no counterpart in the new one.
    """
    users = None
    for patched, original in pair.changed.items():
        if not has_labels(original):
            continue
        users = users or referrers_of(pair.original)
        how = who_holds_label(pair.flow_before, original, users)
        if how is not None:
            message = (
                f"{base_name(patched.name)} changed, and something keeps the address of a label in it: {how}"
            )
            pair.refuse("HR2103", original.name, message)
