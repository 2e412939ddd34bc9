# SPDX-License-Identifier: MIT
"""Pair the symbols of the original object with those of the patched object: find the twins.

Functions carry no state, so any one-to-one pairing of them is safe: references to a function are compared
through its twin, and a caller whose bytes did not change was compiled for the callee that it calls in the
patched object. Data is state, and a wrong pair would mix up two variables. So data is paired only where a
single answer is possible: by its exact name, which C makes unique in a file. A static local, whose number gcc
assigns anew each time (``count.3``), is paired by the twins that refer to it, in the order in which they do.
What remains ambiguous is reported, never guessed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hotreload.diff.correlation import Correlation
from hotreload.diff.layouts import Layouts
from hotreload.diff.obstacles import Obstacle
from hotreload.diff.pair_variables import NO_EARLIER_NAMES, EarlierNames, pair_variables
from hotreload.diff.renames import Renames
from hotreload.diff.special_sections import LOADED, is_entry_section, is_inert, is_init
from hotreload.elf.model import ObjectFile, StringRef, Symbol, SymbolRef

# Statics that macros create, one for each place in the source. They describe the place, or hold once-only or
# debugging state. They are declared inside functions, so gcc numbers them. A driver may give its own
# variables such names, so the other properties of what the macros create are checked as well.
_CONSTANTS_OF_PLACES: Final = frozenset(
    "__func__ __FUNCTION__ __PRETTY_FUNCTION__ CSWTCH _entry _entry_ptr __msg".split()
)
# Flags of WARN_ON_ONCE(), pr_info_once(), DO_ONCE() and RCU_LOCKDEP_WARN(): one byte in a section for flags
# (include/linux/once_lite.h, once.h, rcupdate.h; .data..once since v6.13).
_FLAGS_OF_PLACES: Final = frozenset(
    "__already_done __warned __print_once __print_deferred_once ___done".split()
)
_FLAG_SECTIONS: Final = (".data.once", ".data..once", ".data.unlikely")
# The key of DO_ONCE() (include/linux/once.h). Code in a patch cannot refer to a key of a module. A copy works
# as well, as long as the flag beside it, ___done, is the original's.
ONCE_KEY: Final = "___once_key"
# The key by which mutex_init() and the like (include/linux/mutex.h) tell lockdep the class of a lock. It goes
# with the string that is the name of the class: lockdep warns if a class comes with another pointer to its
# name (look_up_lock_class() in kernel/locking/lockdep.c), and the string of a patch is another one. So a
# patch has its own class.
LOCK_KEY: Final = "__key"
# Minimum sizes of struct ratelimit_state and struct lock_class_key. The latter is empty without lockdep.
_STATES_OF_PLACES: Final = {"_rs": 16, LOCK_KEY: 8, ONCE_KEY: 8}
# gcc's name for an object without a name in the source.
COMPOUND_LITERAL: Final = "__compound_literal"
# The name of the enclosing function, which C declares once per function (C11 6.4.2.2).
_FUNCTION_NAMES: Final = frozenset(("__func__", "__FUNCTION__", "__PRETTY_FUNCTION__"))
# The section of tracepoint_string() (include/linux/tracepoint.h).
TRACE_STRINGS: Final = "__tracepoint_str"
# The kernel reads these sections only once. The second is printk()'s (include/linux/printk.h).
_POINTERS_OF_PLACES: Final = (TRACE_STRINGS, ".printk_index")
_NUMBER: Final = re.compile(r"\.\d+")
_UNIQUE: Final = re.compile(r"(__UNIQUE_ID_\w*?)\d+\b")
# gcc's numbers for the clones of a function: foo.isra.0, foo.constprop.1, foo.part.0, foo.cold
_CHILD: Final = re.compile(r"\.(cold|part)\b.*")


def base_name(name: str) -> str:
    """Return a name without the compiler's numbers: ``count.3`` -> ``count``, ``f.isra.0`` -> ``f.isra``."""
    if name.startswith("__UNIQUE_ID_"):
        name = _UNIQUE.sub(r"\1", name)
    return _NUMBER.sub("", name)


def source_name(name: str) -> str:
    """Return the source function that a clone or a child was made from: ``foo.isra.0.cold`` -> ``foo``."""
    return name.partition(".")[0] or name


def parent_name(name: str) -> str:
    """Return the function that a child belongs to: ``foo.cold``, ``foo.part.0`` -> ``foo``."""
    return _CHILD.sub("", name)


def is_child(symbol: Symbol) -> bool:
    """Return whether a function is a part that gcc split off another one (``foo.cold``)."""
    return symbol.is_function and ".cold" in symbol.name


def is_place_static(symbol: Symbol) -> bool:
    """Return whether a macro created this variable for one place in the source."""
    if symbol.section is not None and symbol.section.name in LOADED:
        return True
    if not symbol.is_local or not symbol.is_object:
        return False
    return symbol.name.startswith("__UNIQUE_ID_") or (is_static_local(symbol) and _has_form(symbol))


def is_flag_of_place(symbol: Symbol) -> bool:
    """Return whether this is the flag by which WARN_ON_ONCE() or the like remembers that it fired."""
    return base_name(symbol.name) in _FLAGS_OF_PLACES and is_place_static(symbol)


def is_lock_key(symbol: Symbol) -> bool:
    """Return whether this is the lock_class_key that mutex_init() or the like creates, with lockdep."""
    return base_name(symbol.name) == LOCK_KEY and symbol.size > 0 and is_place_static(symbol)


def _has_form(symbol: Symbol) -> bool:
    """Return whether a static local looks like one that a kernel macro creates, by more than its name."""
    name, section = base_name(symbol.name), symbol.section
    if section is None:
        return False
    if section.name in _POINTERS_OF_PLACES:
        return True
    if name in _CONSTANTS_OF_PLACES:
        return not section.is_writable
    if name in _FLAGS_OF_PLACES:
        return symbol.size == 1 and section.name.startswith(_FLAG_SECTIONS)
    least = _STATES_OF_PLACES.get(name)
    return least is not None and (symbol.size >= least or not symbol.size)


def is_static_local(symbol: Symbol) -> bool:
    """Return whether this is a static variable of a function (``count.3``)."""
    return symbol.is_object and symbol.is_local and _NUMBER.search(symbol.name) is not None


def is_constant(symbol: Symbol) -> bool:
    """Return whether a local object can never be written, so that its content is all that matters."""
    section = symbol.section
    return section is not None and symbol.is_object and symbol.is_local and not section.is_writable


def correlate(
    original: ObjectFile,
    patched: ObjectFile,
    before: Layouts | None = None,
    after: Layouts | None = None,
    renames: Mapping[str, str] | None = None,
    earlier: EarlierNames = NO_EARLIER_NAMES,
) -> Correlation:
    """Pair the defined functions and objects of two objects.

    ``before``, ``after``  what their debugging information says
    ``renames``            global functions that were renamed, as all units of the module together tell
    ``earlier``            what earlier edits have done to variables
    """
    result = Correlation(known=renames or {})
    renamed = Renames(result, original, patched, before, after)
    pair_by_name(result, original, patched)
    renamed.pair_by_hint()
    renamed.pair_by_places()
    renamed.refuse_other_meanings()
    renamed.pair_by_code()
    pair_trace_strings(result, original, patched)
    declared: set[Symbol] = set()
    if before is not None and after is not None:
        are_used_alike = _UsedAlike(result, original, patched)
        pair_variables(result, before, after, is_place_static, _may_have_twin, are_used_alike, earlier)
        declared = {one.symbol for one in (*before.declared, *after.declared) if one.symbol is not None}
    pair_function_names(result, original, patched)
    pair_static_locals(result, original, patched, declared)
    pair_constants(result, original, patched, declared)
    # A static local may be a table of functions, so try again with the static locals paired.
    renamed.pair_by_places()
    return result


def pair_by_name(result: Correlation, original: ObjectFile, patched: ObjectFile) -> None:
    """Pair symbols by their unique names.

    Then pair functions whose names differ only in the compiler's numbers.
    """
    for key in (_exact_key, _numberless_key):
        before = _unique_by(key, (s for s in original.symbols if s not in result.patched_of and _is_named(s)))
        after = _unique_by(key, (s for s in patched.symbols if s not in result.original_of and _is_named(s)))
        for name, symbol in after.items():
            if name in before:
                result.pair(before[name], symbol)


def _may_have_twin(symbol: Symbol) -> bool:
    """Return whether patched code can continue to use a variable of the original, wherever it is."""
    section = symbol.section
    if base_name(symbol.name) == ONCE_KEY or is_lock_key(symbol):
        return False
    return (
        section is not None
        and section.name not in (*LOADED, *_POINTERS_OF_PLACES)
        and not (is_inert(section) or is_entry_section(section))
    )


def pair_trace_strings(result: Correlation, original: ObjectFile, patched: ObjectFile) -> None:
    """Pair the pointers that tracepoint_string() creates by their texts, because nothing ever writes to them.

    The kernel prints its own strings of this kind, but would warn about one in a patch (trace_safe_str() in
    kernel/trace/trace.c).
    """
    known: dict[object, list[Symbol]] = defaultdict(list)
    for symbol in original.symbols:
        if (text := _traced_text(symbol)) is not None:
            known[text].append(symbol)
    for symbol in patched.symbols:
        if (text := _traced_text(symbol)) is not None and known[text]:
            result.pair(known[text].pop(0), symbol)


@dataclass(frozen=True, slots=True)
class _UsedAlike:
    """Tells whether two variables are used by the same code.

    That is by twins, or by functions that have no twin because they were renamed, and have the same code.
    """

    result: Correlation
    original: ObjectFile
    patched: ObjectFile

    def __call__(self, one: Symbol, other: Symbol) -> bool:
        # Treat the two as twins, because the head of a list points at itself.
        twins = {**self.result.patched_of, one: other}
        known = {other, *self.result.original_of}
        before = {(twins.get(user) or self._renamed(user), *use) for user, *use in _uses(self.original, one)}
        after = {
            (user if user in known else self._renamed(user), *use)
            for user, *use in _uses(self.patched, other)
        }
        return bool(before) and before == after

    @staticmethod
    def _renamed(user: Symbol) -> object:
        """Return what stands for a renamed global function. Static ones have been paired by their code."""
        return "function" if user.is_function and not user.is_local else user


def _uses(obj: ObjectFile, variable: Symbol) -> Iterator[tuple[Symbol, bytes, int, int]]:
    """Yield each reference to a variable: the referring symbol, its content, the offset and the addend."""
    for symbol in obj.symbols:
        section = symbol.section
        for relocation in symbol.relocations if section is not None and section.is_allocated else ():
            if relocation.target == SymbolRef(variable):
                yield symbol, symbol.content, relocation.offset, relocation.addend


def pair_constants(
    result: Correlation, original: ObjectFile, patched: ObjectFile, declared: Collection[Symbol]
) -> None:
    """Pair constants that only have another name or another enclosing function."""

    def key(symbol: Symbol) -> tuple[object, ...] | None:
        if symbol not in declared or not is_constant(symbol) or is_place_static(symbol):
            return None
        to = [(r.offset, r.type, r.addend, _meant(r.target, result.original_of)) for r in symbol.relocations]
        return symbol.content, tuple(to)

    before = _unique_by(key, [s for s in original.symbols if s not in result.patched_of])
    after = _unique_by(key, [s for s in patched.symbols if s not in result.original_of])
    for content in before.keys() & after.keys():
        result.pair(before[content], after[content])


def _meant(target: object, original_of: Mapping[Symbol, Symbol]) -> object:
    return original_of.get(target.symbol, target.symbol) if isinstance(target, SymbolRef) else target


def pair_function_names(result: Correlation, original: ObjectFile, patched: ObjectFile) -> None:
    """Pair each ``__func__`` by its text, if only one on each side has that text."""
    before = _unique_by(_function_name, [s for s in original.symbols if s not in result.patched_of])
    after = _unique_by(_function_name, [s for s in patched.symbols if s not in result.original_of])
    for name in before.keys() & after.keys():
        result.pair(before[name], after[name])


def is_function_name(symbol: Symbol) -> bool:
    """Return whether this is the ``__func__`` of a function."""
    return base_name(symbol.name) in _FUNCTION_NAMES and is_static_local(symbol) and is_constant(symbol)


def _function_name(symbol: Symbol) -> tuple[str, bytes] | None:
    return (base_name(symbol.name), symbol.content) if is_function_name(symbol) else None


def _traced_text(symbol: Symbol) -> bytes | None:
    section = symbol.section
    if section is None or section.name != TRACE_STRINGS or not symbol.is_object:
        return None
    targets = [relocation.target for relocation in symbol.relocations]
    return targets[0].text if len(targets) == 1 and isinstance(targets[0], StringRef) else None


def _is_named(symbol: Symbol) -> bool:
    section = symbol.section
    if section is None or symbol.anonymous or not (symbol.is_function or symbol.is_object):
        return False
    if is_inert(section) or is_entry_section(section):
        return False
    return symbol.is_function or not (is_static_local(symbol) or is_place_static(symbol))


def _exact_key(symbol: Symbol) -> tuple[str, int, bool]:
    # Init code that became normal code has no twin, because the kernel has freed it.
    gone = symbol.is_function and symbol.section is not None and is_init(symbol.section)
    return symbol.name, symbol.kind, gone


def _numberless_key(symbol: Symbol) -> tuple[str, int, bool] | None:
    if not symbol.is_function:
        return None
    _, kind, gone = _exact_key(symbol)
    return base_name(symbol.name), kind, gone


def _unique_by(key: object, symbols: Iterable[Symbol]) -> dict[object, Symbol]:
    assert callable(key)
    found: dict[object, list[Symbol]] = defaultdict(list)
    for symbol in symbols:
        name = key(symbol)
        if name is not None:
            found[name].append(symbol)
    return {name: group[0] for name, group in found.items() if len(group) == 1}


def pair_static_locals(
    result: Correlation, original: ObjectFile, patched: ObjectFile, declared: Collection[Symbol] = ()
) -> None:
    """Pair static locals by the twins that refer to them, until no more pairs are found. Report doubts.

    Variables that are ``declared`` in the debugging information are settled. What is left has no declaration:
    compound literals, and everything in an object without debugging information.
    """
    referrers = list(result.original_of.items())
    doubtful: dict[str, str] = {}
    disputed: dict[str, str] = {}
    # A constant without a name is recognized by its content, or by its place if the content changed.
    _pair_by_content(result, original, patched, declared, is_constant)
    numbers = [
        sum(is_literal(s) and is_constant(s) and s not in paired for s in obj.symbols)
        for obj, paired in ((original, result.patched_of), (patched, result.original_of))
    ]
    while referrers:
        found: list[tuple[Symbol, Symbol]] = []
        for after, before in referrers:
            have_places = numbers[0] == numbers[1] or (before.is_object and before.size == after.size)
            found += _pairs_below(result, before, after, doubtful, disputed, declared, have_places)
        referrers = [(after, before) for before, after in found]
    _pair_by_content(result, original, patched, declared, lambda _: True)
    result.obstacles += [_doubt(name, why) for name, why in disputed.items()]
    for name, why in doubtful.items():
        open_before = [s for s in original.symbols if _is_open(s, name, result.patched_of, declared)]
        open_after = [s for s in patched.symbols if _is_open(s, name, result.original_of, declared)]
        if open_before and open_after:
            result.obstacles.append(_doubt(name, why))
    _tell_moved(result, original, patched, declared)


def _pair_by_content(
    result: Correlation,
    original: ObjectFile,
    patched: ObjectFile,
    declared: Collection[Symbol],
    counts: Callable[[Symbol], bool],
) -> None:
    """Pair the remaining compound literals by their initial values, where each value is unique."""
    keys = [
        _unique_by(
            _content_key, [s for s in obj.symbols if s not in paired and s not in declared and counts(s)]
        )
        for obj, paired in ((original, result.patched_of), (patched, result.original_of))
    ]
    for key in keys[0].keys() & keys[1].keys():
        result.pair(keys[0][key], keys[1][key])


def is_literal(symbol: Symbol) -> bool:
    return symbol.is_defined and base_name(symbol.name) == COMPOUND_LITERAL


def _content_key(symbol: Symbol) -> tuple[object, ...] | None:
    if not is_literal(symbol):
        return None
    pointers = [
        (r.offset, r.addend, r.target.symbol.name if isinstance(r.target, SymbolRef) else r.target)
        for r in symbol.relocations
    ]
    return symbol.content, tuple(pointers)


def _pairs_below(
    result: Correlation,
    before: Symbol,
    after: Symbol,
    doubtful: dict[str, str],
    disputed: dict[str, str],
    declared: Collection[Symbol],
    have_places: bool,
) -> list[tuple[Symbol, Symbol]]:
    """Return the new pairs among the static locals that two twins refer to.

    ``doubtful``     names that other twins may still settle
    ``disputed``     names on which two pairs of twins disagree, so that at least one pair is wrong
    ``have_places``  whether the place of a reference identifies a constant without a name
    """
    found = []
    ours, theirs = _locals_of(before, declared), _locals_of(after, declared)
    for name in ours.keys() & theirs.keys():
        left, right = ours[name], theirs[name]
        if len(left) != len(right) or (len(left) > 1 and not _same_order(before, after, left, right)):
            doubtful[name] = f"{parent_name(before.name)} has several static variables of that name"
            continue
        for one, other in zip(left, right, strict=True):
            known = result.patched_of.get(one)
            if known is other or (not have_places and is_literal(one) and is_constant(one)):
                continue
            if known is not None or other in result.original_of:
                if not (is_constant(one) and is_constant(other)):
                    why = f"{parent_name(before.name)} and another function match it with different variables"
                    disputed[name] = why
                continue
            result.pair(one, other)
            found.append((one, other))
    return found


def _same_order(before: Symbol, after: Symbol, left: list[Symbol], right: list[Symbol]) -> bool:
    """Return whether two functions refer to several variables of one name in the same order.

    The code must be the same except for its references, and the numbers, which gcc assigns in source order,
    must give the same order, because two similar inlined functions may have changed places.
    """
    return before.content == after.content and _ranks(left) == _ranks(right)


def _ranks(symbols: list[Symbol]) -> list[int]:
    numbers = [[int(number) for number in re.findall(r"\.(\d+)", symbol.name)] for symbol in symbols]
    return [sorted(numbers).index(number) for number in numbers]


def _locals_of(symbol: Symbol, declared: Collection[Symbol]) -> dict[str, list[Symbol]]:
    """Return the unpaired static locals that a symbol refers to.

    They are grouped by name, in the order of the first reference.
    """
    found: dict[str, dict[Symbol, None]] = defaultdict(dict)
    for relocation in symbol.relocations:
        if isinstance(relocation.target, SymbolRef):
            target = relocation.target.symbol
            if (
                target.is_defined
                and target not in declared
                and is_static_local(target)
                and not is_place_static(target)
            ):
                found[base_name(target.name)][target] = None
    return {name: list(symbols) for name, symbols in found.items()}


def _is_open(symbol: Symbol, name: str, paired: dict[Symbol, Symbol], declared: Collection[Symbol]) -> bool:
    # An empty variable (a lock_class_key without lockdep) has no value to keep.
    return (
        symbol.is_defined
        and symbol.size > 0
        and symbol not in paired
        and symbol not in declared
        and is_static_local(symbol)
        and not is_place_static(symbol)
        and not is_constant(symbol)
        and base_name(symbol.name) == name
    )


def _tell_moved(
    result: Correlation, original: ObjectFile, patched: ObjectFile, declared: Collection[Symbol]
) -> None:
    """Report each static local whose name is on both sides, but whose users are not twins.

    It may be the same variable or another one.
    """
    told = {obstacle.symbol for obstacle in result.obstacles}
    for symbol in original.symbols:
        name = base_name(symbol.name)
        if name in told or not _is_open(symbol, name, result.patched_of, declared):
            continue
        if any(_is_open(other, name, result.original_of, declared) for other in patched.symbols):
            told.add(name)
            result.obstacles.append(_doubt(name, "other functions use it now"))


def _doubt(name: str, why: str) -> Obstacle:
    return Obstacle(
        "HR2104", name, f"cannot tell which static variable '{name}' keeps which value: {why}",
        "give the variables different names, or reload the module",
    )  # fmt: skip
