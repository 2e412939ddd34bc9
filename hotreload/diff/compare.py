# SPDX-License-Identifier: MIT
"""Compare the content of two symbols, independent of where the compiler put them and how it named them.

The bytes must be equal. Each relocation must have the same type, offset and addend, and a target that means
the same: the same undefined name, a twin, or a string or constant with the same content. Symbols without an
identity of their own (anonymous data, the statics of macros, constants) are the same when their content is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from hotreload.diff.correlate import base_name, is_constant, is_place_static
from hotreload.diff.correlation import Correlation
from hotreload.diff.special_sections import UBSAN_RECORD, Entry, EntryTable
from hotreload.elf.model import Relocation, StringRef, Symbol, SymbolRef, Target


class Comparison:
    """Compares symbols of two objects under a correlation, and caches the results."""

    def __init__(self, correlation: Correlation, before: EntryTable, after: EntryTable) -> None:
        self.correlation = correlation
        self.before = before
        self.after = after
        self._known: dict[tuple[Symbol, Symbol], bool] = {}

    def same(self, original: Symbol, patched: Symbol) -> bool:
        """Return whether two symbols have the same content and the same special-section entries."""
        key = original, patched
        if key not in self._known:
            # Data may refer to itself in a cycle, so assume equality until a difference is found.
            before = len(self._known)
            self._known[key] = True
            if not self._same(original, patched):
                # Drop results that may rest on this assumption.
                for later in list(self._known)[before:]:
                    if self._known[later]:
                        del self._known[later]
                self._known[key] = False
        return self._known[key]

    def _same(self, original: Symbol, patched: Symbol) -> bool:
        if original.size != patched.size or original.content != patched.content:
            return False
        skipped = 1 if _name_one_file(original, patched) else 0
        if not self.same_relocations(original.relocations[skipped:], patched.relocations[skipped:]):
            return False
        ours = [entry for entry in self.before.of.get(original, ()) if entry.row.compared]
        theirs = [entry for entry in self.after.of.get(patched, ()) if entry.row.compared]
        return all(
            one is not None and other is not None and self._same_entry(one, other)
            for one, other in zip_longest(ours, theirs)
        )

    def same_relocations(self, ours: Sequence[Relocation], theirs: Sequence[Relocation]) -> bool:
        """Return whether two lists of relocations are the same, one by one."""
        return len(ours) == len(theirs) and all(
            one.offset == other.offset
            and one.type == other.type
            and one.addend == other.addend
            and self.same_target(one.target, other.target)
            for one, other in zip(ours, theirs, strict=True)
        )

    def same_target(self, ours: Target, theirs: Target) -> bool:
        """Return whether two relocations refer to the same thing."""
        if not isinstance(ours, SymbolRef) or not isinstance(theirs, SymbolRef):
            if isinstance(ours, StringRef) and isinstance(theirs, StringRef):
                return ours.text == theirs.text
            return ours == theirs
        one, other = ours.symbol, theirs.symbol
        if not one.is_defined or not other.is_defined:
            # An absolute symbol is identified by its value, one in common storage by its size and alignment.
            return (
                not one.is_defined
                and not other.is_defined
                and (self.correlation.known.get(one.name, one.name), one.index, one.value, one.size)
                == (other.name, other.index, other.value, other.size)
            )
        twin = self.correlation.original_of.get(other)
        if twin is not None or one in self.correlation.patched_of:
            return twin is one
        return self._has_no_identity(one, other) and self.same(one, other)

    def _has_no_identity(self, one: Symbol, other: Symbol) -> bool:
        if one.anonymous or other.anonymous:
            return one.anonymous and other.anonymous
        if base_name(one.name) != base_name(other.name):
            return False
        return (is_place_static(one) and is_place_static(other)) or (is_constant(one) and is_constant(other))

    def _same_entry(self, one: Entry, other: Entry) -> bool:
        if one.row is not other.row or one.content != other.content:
            return False
        if one.replacement is None or other.replacement is None:
            return self.same_relocations(one.relocations, other.relocations)
        # The offset of the replacement in its section does not matter; its content does.
        return (
            self.same_relocations(one.relocations[:1], other.relocations[:1])
            and one.relocations[1].type == other.relocations[1].type
            and one.replacement[0] == other.replacement[0]
            and self.same_relocations(one.replacement[1], other.replacement[1])
        )


def _name_one_file(original: Symbol, patched: Symbol) -> bool:
    """Return whether two UBSAN records begin with the name of the same file.

    gcc writes the path that it was given into them. If it compiled our copy of the file, that is the path of
    the copy, and -fmacro-prefix-map does not change it (gcc 12). Only UBSAN's reports show it.
    """
    names = [_file_of_record(symbol) for symbol in (original, patched)]
    return names[0] is not None and names[0] == names[1]


def _file_of_record(symbol: Symbol) -> bytes | None:
    if symbol.section is None or not symbol.section.name.startswith(UBSAN_RECORD) or not symbol.relocations:
        return None
    first = symbol.relocations[0]
    # struct source_location begins with the name and is the first member of each record (lib/ubsan.h).
    if first.offset != 0 or not isinstance(first.target, StringRef):
        return None
    return first.target.text.rpartition(b"/")[2]
