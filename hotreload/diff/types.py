# SPDX-License-Identifier: MIT
"""Check whether the data of the running kernel still has the layout that patched code expects. Pure.

The problem: a live patch replaces code, but objects that were allocated before stay as they are. If a struct
grew, a member moved, or an enum constant has another value, the new code would read garbage, and nothing at
run time would report it. So both objects of a unit are compiled with debugging information, and their types
are compared.

The choice: types become shapes (layouts.py). Unchanged types are equal tuples, so most edits take no more
time than comparing these. The rest is compared member by member (members.py), which gives a reason to report.
Rejected: comparing code instead of types. A function that stores a pointer for another one to follow shows no
difference when the struct grows.

Debugging information does not tell the values behind #define. Static locals are compared where they are
paired (correlate.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from hotreload.diff.definitions import find_definition
from hotreload.diff.layouts import Layout, Layouts, Shape
from hotreload.diff.members import explain
from hotreload.diff.obstacles import Note, Obstacle
from hotreload.diff.spelling import resized, spelled
from hotreload.diff.successors import successors
from hotreload.diff.type_pair import Kinship, LayoutDiff, TypePair
from hotreload.elf.model import ObjectFile

NO_SOURCES: Final[Mapping[str, str]] = MappingProxyType({})


def compare(
    original: Layouts,
    patched: Layouts,
    global_functions: Collection[str] = (),
    sources: Mapping[str, str] = NO_SOURCES,
) -> LayoutDiff:
    """Compare the types of a unit's two objects.

    ``global_functions``  those that other units can call
    ``sources``           the patched texts by name; they tell whether a type is gone or only unused
    """
    pair = TypePair(original, patched)
    compare_successors(pair, sources)
    compare_aggregates(pair)
    compare_locals(pair, sources)
    compare_variables(pair)
    compare_constants(pair)
    compare_enum_sizes(pair)
    compare_prototypes(pair, global_functions)
    return pair.result()


def compare_layouts(
    original: Layouts | None,
    patched: Layouts | None,
    global_functions: Collection[str] = (),
    sources: Mapping[str, str] = NO_SOURCES,
) -> LayoutDiff:
    """Compare the types of two objects, None for one without debugging information. See compare."""
    if original is None or patched is None:
        return _not_compared("an object has no debugging information; gcc -g writes it")
    return compare(original, patched, global_functions, sources)


def global_functions(obj: ObjectFile) -> frozenset[str]:
    """Return the functions that other units can call, including their aliases."""
    found = [symbol for symbol in obj.functions if not symbol.is_local]
    return frozenset(name for symbol in found for name in (symbol.name, *symbol.aliases))


def _not_compared(why: str) -> LayoutDiff:
    note = Note("HR2101", ".debug_info", f"the layouts of types could not be compared: {why}")
    return LayoutDiff(notes=(note,), compared=False)


def compare_aggregates(pair: TypePair) -> None:
    """Compare structs and unions: live objects keep their size and the offsets of their members."""
    theirs = pair.patched.aggregates
    for shape, ours in pair.original.aggregates.items():
        gone, new = _unmatched(ours, theirs.get(shape, ours))
        if len(gone) == len(new) == 1:
            explain(pair, spelled(shape), gone[0], new[0])
        elif gone and new:
            _refuse_unpaired(pair, "HR2101", spelled(shape))


def compare_successors(pair: TypePair, sources: Mapping[str, str]) -> None:
    """Compare renamed structs with their successors.

    Live objects of the old struct are used as objects of the successor.
    """
    ours, theirs = pair.original.aggregates, pair.patched.aggregates
    pair.renamed = {
        was: now
        for was, now in successors(pair.original, pair.patched)
        if not sources or (_is_defined(now, sources) and not _is_defined(was, sources))
    }
    for was, now in pair.renamed.items():
        before, after = ours[was], theirs[now]
        pair.notes.append(Note("HR2101", spelled(now), f"{spelled(was)} is now called {spelled(now)}"))
        if len(before) == len(after) == 1:
            explain(pair, spelled(now), before[0], after[0])
        else:
            _refuse_unpaired(pair, "HR2101", spelled(now))


def compare_locals(pair: TypePair, sources: Mapping[str, str]) -> None:
    """Refuse several functions that take their objects for another struct than before.

    ``struct a *p = file->private_data`` became ``struct b *p`` in ``open`` and in ``read``. C checks no type
    there, and a file that was opened before has a ``struct a``. One function alone does not agree with the
    others on the new struct, whatever the guest has booted; but a function of another unit may.
    """
    functions: dict[tuple[Shape, Shape], set[str]] = defaultdict(set)
    for key in pair.original.locals & pair.patched.locals:
        was, now = pair.original.holders[key], pair.patched.holders[key]
        if was != now and pair.renamed.get(was) != now:
            functions[was, now].add(key[0])
    for (was, now), names in functions.items():
        is_own = not sources or _is_defined(was, sources) or _is_defined(now, sources)
        if is_own and pair.kinship(was, now) is Kinship.DIFFERENT:
            pair.recast[was, now] = frozenset(names)
            if len(names) > 1:
                pair.obstacles.append(recast_obstacle(was, now, names))


def recast_obstacle(was: Shape, now: Shape, functions: Collection[str]) -> Obstacle:
    """Return why functions that take their objects for another struct are refused."""
    who = " and ".join(sorted(functions)[:2]) + (" and others" if len(functions) > 2 else "")
    message = f"{who} use {spelled(now)} where they used {spelled(was)}: objects of that may be left"
    return Obstacle("HR2101", spelled(now), message)


def _is_defined(shape: Shape, sources: Mapping[str, str]) -> bool:
    """Return whether the author's files define a struct. Types of the kernel's headers do not come and go."""
    return find_definition(spelled(shape), sources) is not None


def compare_variables(pair: TypePair) -> None:
    """Compare the types of variables that kept their size, because they keep their values."""
    for name, ours in pair.original.variables.items():
        gone, new = _unmatched(ours, pair.patched.variables.get(name, ours))
        if not gone or not new:
            continue
        if len(gone) > 1 or len(new) > 1:
            _refuse_unpaired(pair, "HR2101", f"'{name}'")
            continue
        was, now = gone[0], new[0]
        if pair.original.size(was) != pair.patched.size(now):
            continue  # the passes over data compare sizes, and know which data may change its size
        if was[0] == now[0] == "{}":
            explain(pair, f"the struct of '{name}'", Layout(*was[1:]), Layout(*now[1:]))
            continue
        kinship = pair.kinship(was, now)
        if kinship is Kinship.DIFFERENT:
            message = f"'{name}' changed its type from {spelled(was)} to {spelled(now)}"
            pair.refuse("HR2101", name, message)
        elif kinship is Kinship.RETYPED:
            message = f"'{name}' is now {spelled(now)}, was {spelled(was)}"
            pair.notes.append(Note("HR2101", name, message))


def compare_constants(pair: TypePair) -> None:
    """Compare enum constants: a value in live data must keep its meaning."""
    ours, theirs = pair.original.constants, pair.patched.constants
    if ours.keys() == theirs.keys():
        return
    gone, new = _by_name(ours.keys() - theirs.keys()), _by_name(theirs.keys() - ours.keys())
    told = {ours[name, gone[name]] for name in gone.keys() & new.keys()}
    for enum in sorted(told):
        changed = [n for n in gone if n in new and ours[n, gone[n]] == enum]
        changed.sort(key=lambda name: gone[name])
        first = changed[0]
        more = f" (and {len(changed) - 1} more)" if changed[1:] else ""
        message = f"{enum}: '{first}' changed its value from {gone[first]} to {new[first]}{more}"
        pair.members[enum] = first
        pair.refuse("HR2102", enum, message)
    _note_constants(pair, new, theirs, {*ours.values()} - told, "was added")
    _note_constants(pair, gone, ours, {*theirs.values()} - told, "was removed; live data may hold it")


def _note_constants(
    pair: TypePair,
    names: Mapping[str, int],
    of: Mapping[tuple[str, int], str],
    enums: Collection[str],
    text: str,
) -> None:
    for name, value in sorted(names.items(), key=lambda item: item[1]):
        enum = of[name, value]
        if enum in enums:
            pair.notes.append(Note("HR2102", enum, f"{enum}: '{name}' = {value} {text}"))


def compare_enum_sizes(pair: TypePair) -> None:
    """Refuse enums that changed their size in memory."""
    for shape, size in pair.original.enums.items():
        now = pair.patched.enums.get(shape, size)
        if now != size and len(shape) == 2:
            message = f"{spelled(shape)} {resized(size, now)}"
            pair.refuse("HR2102", spelled(shape), message)


def compare_prototypes(pair: TypePair, global_functions: Collection[str]) -> None:
    """Compare prototypes of global functions: other code calls them as declared when the guest booted."""
    for name, ours in pair.original.functions.items():
        if name not in global_functions:
            continue
        gone, new = _unmatched(ours, pair.patched.functions.get(name, ours))
        if gone and new and pair.kinship(gone[0], new[0]) is Kinship.DIFFERENT:
            message = f"{name}() changed its prototype from {spelled(gone[0])} to {spelled(new[0])}"
            hint = "reload the module: other units call it with the old prototype"
            pair.obstacles.append(Obstacle("HR2205", name, message, hint))


def _refuse_unpaired(pair: TypePair, code: str, name: str) -> None:
    message = f"one of the types of {name} changed: cannot tell which one, because several have this name"
    pair.refuse(code, name, message)


def _unmatched(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return what is only on the one side and only on the other. Several types of one name are a multiset."""
    if ours == theirs:
        return (), ()
    if len(ours) == len(theirs) == 1:
        return ours, theirs
    mine, yours = Counter(ours), Counter(theirs)
    return tuple((mine - yours).elements()), tuple((yours - mine).elements())


def _by_name(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    return dict(sorted(pairs))
