# SPDX-License-Identifier: MIT
"""Passes over what is neither a function nor a variable: it must be the same, or explained."""

from __future__ import annotations

import re
from collections import Counter

from hotreload.diff.pair import Pair, entry_targets, referrers_of
from hotreload.diff.special_sections import (
    AUXILIARY,
    UBSAN_RECORD,
    EntryTable,
    is_explained_elsewhere,
    is_export_table,
    is_init,
    is_ordinary,
)
from hotreload.elf.constants import SHF_MERGE
from hotreload.elf.model import ObjectFile, Section, StringRef, Symbol

DESCRIPTION = ".modinfo"
# How the sections and labels of is_export_table() name an exported symbol.
EXPORT = re.compile(r"___ksymtab(?:_gpl)?\+(\w+)$")
EXPORT_LABEL = "__export_symbol_"


def explain_other_sections(pair: Pair) -> None:
    """Refuse differences in sections without symbols that no table explains."""
    ours = _other_sections(pair.original, pair.before)
    theirs = _other_sections(pair.patched, pair.after)
    for name in sorted(ours.keys() | theirs.keys()):
        before, after = ours.get(name, []), theirs.get(name, [])
        if name == DESCRIPTION or _same_stretches(pair, before, after):
            continue
        section = (before or after)[0].section
        if section is not None and is_init(section):
            pair.init_changed.append(name)
        elif not is_export_table(name):
            pair.refuse("HR2208", name, f"section {name} changed, and hotreload does not know what it means")


def tell_description(pair: Pair) -> None:
    """Note changes of the module's description (version, parameter texts), which is read at load."""
    before, after = _described(pair.original), _described(pair.patched)
    came, gone = sorted(after - before), sorted(before - after)
    there = {text.partition("=")[0] for text in came}
    told = [*came, *(f"no {text}" for text in gone if text.partition("=")[0] not in there)]
    if told:
        pair.tell("HR2105", DESCRIPTION, f"what modinfo shows waits for the next load: {', '.join(told)}")


def _described(obj: ObjectFile) -> set[str]:
    """Return the texts of a module's description, ``KEY=VALUE``."""
    sections = [section for section in obj.sections if section.name == DESCRIPTION]
    texts = {text for section in sections for text in section.data.split(b"\0") if text}
    return {text.decode(errors="replace") for text in texts}


def _other_sections(obj: ObjectFile, entries: EntryTable) -> dict[str, list[Symbol]]:
    """Return the anonymous stretches of sections that are neither inert nor entries, by section name.

    In ordinary sections, only those without referrers are returned; the others are compared with their
    referrers. UBSAN's records are left out: gcc leaves those of checks that it has proved to be needless, and
    nobody refers to them.
    """
    found: dict[str, list[Symbol]] = {}
    used = {symbol for symbol, referrers in referrers_of(obj).items() if referrers}
    used |= {target for group in entries.of.values() for entry in group for target in entry_targets(entry)}
    for section in obj.sections:
        if is_explained_elsewhere(section) or not section.size or _is_merged(section):
            continue
        if section.name.startswith(UBSAN_RECORD):
            continue
        explained = is_ordinary(section) or section.name == AUXILIARY
        stretches = [s for s in section.symbols if s.anonymous and not (explained and s in used)]
        if stretches:
            found.setdefault(section.name, []).extend(stretches)
    return found


def weigh_exports(pair: Pair) -> None:
    """Note new exports, which wait for the next load, and removed ones.

    The diff cannot know whether others use a removed export.
    """
    before, after = _exports(pair.original), _exports(pair.patched)
    pair.new_exports = frozenset(after.keys() - before.keys())
    for name in sorted(pair.new_exports):
        message = f"{name} is now exported; other modules see it after the next load or boot"
        pair.tell("HR2105", name, message)
    pair.gone_exports = frozenset(before.keys() - after.keys())
    for name in sorted(pair.gone_exports):
        message = (
            f"{name} is no longer exported; modules that were built elsewhere and use it continue to do so"
        )
        pair.tell("HR2105", name, message)
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            message = (
                f"{name} is exported to other modules than before; this takes effect at the next load or boot"
            )
            pair.tell("HR2105", name, message)


def _exports(obj: ObjectFile) -> dict[str, object]:
    """Return what an object exports, and to whom: to all or only GPL modules, and in which namespace."""
    found: dict[str, object] = {}
    for section in obj.sections:
        if export := EXPORT.match(section.name):
            texts = [r.target.text for r in section.relocations if isinstance(r.target, StringRef)]
            found[export[1]] = section.name.partition("+")[0], texts
    for label in obj.symbols:
        if label.name.startswith(EXPORT_LABEL) and label.section is not None:
            texts = label.section.data[label.value :].split(b"\0", 2)[:2]
            found[label.name.removeprefix(EXPORT_LABEL)] = label.section.name, texts
    return found


def _is_merged(section: Section) -> bool:
    return section.flags & SHF_MERGE != 0


def _same_stretches(pair: Pair, ours: list[Symbol], theirs: list[Symbol]) -> bool:
    return len(ours) == len(theirs) and all(map(pair.comparison.same, ours, theirs))


def explain_stray_entries(pair: Pair) -> None:
    """Refuse differences in special-section entries that belong to no function."""
    ours, theirs = _stray_entries(pair.before), _stray_entries(pair.after)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours[name] != theirs[name]:
            pair.refuse("HR2208", name, f"entries of {name} that belong to no function changed")


def _stray_entries(table: EntryTable) -> Counter[str]:
    """Return how many entries of each special section belong to something other than a function."""
    return Counter(
        entry.row.name
        for symbol, entries in table.of.items()
        if not symbol.is_function
        for entry in entries
        if entry.row.compared
    )
