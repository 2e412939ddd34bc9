# SPDX-License-Identifier: MIT
"""Pair variables by what the source says of them: function, name, type and place of the declaration.

Static locals keep their values with their twins, and a wrong pair would mix up two variables. So both sides
need the same function, the same name, and a type whose bytes mean the same. If a function has several
variables of one name, each in its own block or from a macro, the line decides, because unchanged lines keep
their numbers (build/lines.py). A variable that moved between a function and the file keeps its value if it is
the only one of that name. What remains ambiguous is an obstacle: nothing is guessed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from hotreload.diff.correlation import Correlation
from hotreload.diff.layouts import Layouts
from hotreload.diff.obstacles import RELOAD_MODULE, Note, Obstacle
from hotreload.diff.spelling import spelled
from hotreload.diff.type_pair import Kinship, TypePair
from hotreload.diff.variables import Variable
from hotreload.elf.model import Symbol

# A macro's flag on which more depends than whether something is reported again.
_ONCE_FLAG: Final = "___done"
DOUBT: Final = "give the variables different names, or reload the module"


@dataclass(frozen=True, slots=True)
class EarlierNames:
    """What earlier edits have done to variables.

    ``renamed``  variables of the original that were renamed, or whose function was: (function, name) now ->
                 (function, name) in the original
    ``added``    (function, name) of added variables, which have values of their own
    ``is_gone``  whether the sources no longer contain a word; a variable that nothing uses may still be
                 declared, but has no debugging information
    """

    renamed: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    added: Collection[tuple[str, str]] = ()
    is_gone: Callable[[str], bool] = lambda _name: False


NO_EARLIER_NAMES: Final = EarlierNames()


@dataclass(slots=True)
class VariablePairing:
    """The state of the pass.

    ``is_place``   whether a macro made a variable for one place in the source
    ``functions``  the function that declares a variable in the original, under its name there
    """

    correlation: Correlation
    types: TypePair
    is_place: Callable[[Symbol], bool]
    are_used_alike: Callable[[Symbol, Symbol], bool]
    known: EarlierNames
    functions: Mapping[Symbol, str]
    refused: set[str] = field(default_factory=set)

    def run(self, ours: Sequence[Variable], theirs: Sequence[Variable]) -> None:
        before, after = _by_declaration(ours), _by_declaration(theirs)
        for key in before.keys() & after.keys():
            self._pair_group(before[key], after[key])
        self._pair_known(ours, theirs)
        self._pair_moved(ours, theirs)
        while self._pair_renamed(ours, theirs):
            pass

    # --- variables of one function and name ---

    def _pair_group(self, ours: list[Variable], theirs: list[Variable]) -> None:
        ours, theirs = self._still_free(ours, theirs)
        if _places(ours) != _places(theirs) and self._is_told_by_place(ours, theirs):
            self._pair_by_place(ours, theirs)
            ours, theirs = self._still_free(ours, theirs)
        if self._are_in_order(ours, theirs):
            for one, other in zip(ours, theirs, strict=True):
                self._pair(one, other)
        elif ours and theirs:
            self._leave_open(ours[0])

    def _is_told_by_place(self, ours: list[Variable], theirs: list[Variable]) -> bool:
        """Return whether a line that did not change identifies a variable.

        If a single variable got a namesake in its function, the line alone is no proof, because the lines of
        both read the same. It is used all the same if starting over does no harm.
        """
        return len(ours) > 1 or (len(theirs) > 1 and bool(ours) and self._is_told_again(ours[0]))

    def _are_in_order(self, ours: list[Variable], theirs: list[Variable]) -> bool:
        """Return whether the variables of both sides correspond one by one.

        They do if nothing moved, if the whole function moved, or if each is used by the same code.
        """
        if len(ours) != len(theirs):
            return False
        if len(ours) == 1 or _places(ours) == _places(theirs):
            return True
        if all(self._is_told_again(one) for one in ours) and _distances(ours) == _distances(theirs):
            return True
        return all(
            one.symbol and other.symbol and self.are_used_alike(one.symbol, other.symbol)
            for one, other in zip(ours, theirs, strict=True)
        )

    def _leave_open(self, one: Variable) -> None:
        """Report several variables of one name that nothing tells apart."""
        where = one.function or "the file"
        if not self._is_told_again(one):
            why = f"{where} has several static variables of that name"
            message = f"cannot tell which static variable '{one.name}' keeps which value: {why}"
            self._refuse(one.name, message, DOUBT)
        elif one.symbol and _is_writable(one.symbol):
            what = (
                f"{where} has several WARN_ON_ONCE() or similar macros that moved: each may report once more"
            )
            self.correlation.notes.append(Note("HR2104", one.name, what))

    def _pair_by_place(self, ours: Sequence[Variable], theirs: Sequence[Variable]) -> None:
        before, after = _once_there(ours), _once_there(theirs)
        for place in before.keys() & after.keys():
            self._pair(before[place], after[place])

    def _pair(self, one: Variable, other: Variable) -> None:
        assert one.symbol is not None
        assert other.symbol is not None
        if self._mean_the_same(one, other):
            self.correlation.pair(one.symbol, other.symbol)
        elif _is_writable(one.symbol) and not self.is_place(one.symbol):
            where = f"of {one.function} " if one.function else ""
            was, now = spelled(one.shape), spelled(other.shape)
            how = f"from {was} to {now}" if was != now else f"to another {now}"
            self._refuse(one.name, f"the static variable '{one.name}' {where}changed its type {how}", None)

    def _mean_the_same(self, one: Variable, other: Variable) -> bool:
        assert one.symbol is not None
        assert other.symbol is not None
        if one.symbol.size != other.symbol.size:
            return False
        return self.types.kinship(one.shape, other.shape) is not Kinship.DIFFERENT

    # --- moved variables ---

    def _pair_moved(self, ours: Sequence[Variable], theirs: Sequence[Variable]) -> None:
        before = _by_name(self._left(ours, self.correlation.patched_of))
        after = _by_name(self._left(theirs, self.correlation.original_of))
        self._pair_moved_constants(ours, theirs)
        declared = set(self.types.patched.functions)
        for name in before.keys() & after.keys() - self.refused:
            gone, come = before[name], after[name]
            if len(gone) == len(come) == 1:
                self._weigh_move(gone[0], come[0], declared)
            elif any(not one.function for one in (*gone, *come)):
                self._refuse(name, f"cannot tell which variable '{name}' keeps which value: one moved,"
                             " and several have that name", DOUBT)  # fmt: skip

    def _pair_moved_constants(self, ours: Sequence[Variable], theirs: Sequence[Variable]) -> None:
        """Pair constants by name, whichever function declares them.

        Whoever has the address of such a constant finds it where it was.
        """
        before = _by_name(v for v in self._free(ours, self.correlation.patched_of) if self._is_constant(v))
        after = _by_name(v for v in self._free(theirs, self.correlation.original_of) if self._is_constant(v))
        for name in before.keys() & after.keys():
            (one, *others), (other, *more) = before[name], after[name]
            if not others and not more and self._mean_the_same(one, other):
                assert one.symbol is not None
                assert other.symbol is not None
                self.correlation.pair(one.symbol, other.symbol)

    def _is_constant(self, one: Variable) -> bool:
        assert one.symbol is not None
        return not _is_writable(one.symbol) and not self.is_place(one.symbol)

    def _weigh_move(self, one: Variable, other: Variable, declared: set[str]) -> None:
        assert one.symbol is not None
        assert other.symbol is not None
        if one.function and other.function:
            # A variable of another function is another variable, unless that function was split off the first
            # one, or is the first one renamed.
            if one.function in declared:
                places = f"from {one.function} to {other.function}"
                self._refuse(one.name, f"the static variable '{one.name}' moved {places}: cannot tell"
                             " whether it is the same one", DOUBT)  # fmt: skip
            elif self._mean_the_same(one, other) and self.are_used_alike(one.symbol, other.symbol):
                self.correlation.pair(one.symbol, other.symbol)
                self._note_renamed(one, other)
                self._tell(one, f"of {other.function}, and keeps its value: the code is the same")
        elif self._mean_the_same(one, other):
            self.correlation.pair(one.symbol, other.symbol)
            where = f"of {other.function}" if other.function else "of the file"
            self._tell(one, f"{where}, and keeps its value")
        else:
            self._refuse(one.name, f"'{one.name}' moved between a function and the file, and changed its type"
                         f" from {spelled(one.shape)} to {spelled(other.shape)}", None)  # fmt: skip

    # --- renamed variables ---

    def _pair_known(self, ours: Sequence[Variable], theirs: Sequence[Variable]) -> None:
        """Pair variables that an earlier edit renamed: they keep their values even if other things change."""
        for other in self._left(theirs, self.correlation.original_of):
            was = self.known.renamed.get((other.function, other.name))
            for one in ours if was is not None else ():
                if one.symbol is None or self._declared(one) != was:
                    continue
                if one.symbol in self.correlation.patched_of:
                    message = f"'{one.name}' and '{other.name}' are now two variables, and were one before"
                    self._refuse(other.name, f"{message}: cannot tell which of them keeps the value", None)
                else:
                    self._pair(one, other)
                    self._note_renamed(one, other)

    def _note_renamed(self, one: Variable, other: Variable) -> None:
        self.correlation.renamed_variables[other.function, other.name] = self._declared(one)

    def _declared(self, one: Variable) -> tuple[str, str]:
        """Return the function and the name of a variable of the original."""
        assert one.symbol is not None
        return self.functions[one.symbol], one.name

    def _pair_renamed(self, ours: Sequence[Variable], theirs: Sequence[Variable]) -> bool:
        """Pair one static variable that was renamed, with the same initial value and the same code using it.

        Return whether one was found. If so, another one that points at it may be found next.
        """
        gone = self._of_one_side(ours, theirs, self.correlation.patched_of)
        come = self._of_one_side(theirs, ours, self.correlation.original_of)
        for one in gone:
            alike = [other for other in come if other.function == one.function and self._goes_on(one, other)]
            if alike and not self.known.is_gone(one.name):
                continue
            if len(alike) == 1 and one.symbol is not None and alike[0].symbol is not None:
                self.correlation.pair(one.symbol, alike[0].symbol)
                how = f"is now called '{alike[0].name}', and keeps its value: the code is the same"
                self.correlation.notes.append(Note("HR2104", one.name, f"'{one.name}' {how}"))
                self._note_renamed(one, alike[0])
                return True
        return False

    def _of_one_side(
        self, ours: Sequence[Variable], theirs: Sequence[Variable], paired: dict[Symbol, Symbol]
    ) -> list[Variable]:
        """Return the unpaired static variables of one side whose names do not occur on the other side."""
        others = {one.name for one in theirs} | self.refused
        left = self._left(ours, paired)
        return [
            v
            for v in left
            if v.symbol and v.symbol.is_local and v.name not in others
            if (v.function, v.name) not in self.known.added
        ]

    def _goes_on(self, one: Variable, other: Variable) -> bool:
        assert one.symbol is not None
        assert other.symbol is not None
        return (
            self._mean_the_same(one, other)
            and one.symbol.content == other.symbol.content
            and self.are_used_alike(one.symbol, other.symbol)
        )

    # --- helpers ---

    def _tell(self, one: Variable, what: str) -> None:
        self.correlation.notes.append(Note("HR2104", one.name, f"'{one.name}' is now a variable {what}"))

    def _left(self, variables: Iterable[Variable], paired: dict[Symbol, Symbol]) -> list[Variable]:
        """Return the variables that have a value to keep and no twin."""
        free = self._free(variables, paired)
        return [v for v in free if v.symbol and _is_writable(v.symbol) and not self.is_place(v.symbol)]

    def _free(self, variables: Iterable[Variable], paired: dict[Symbol, Symbol]) -> list[Variable]:
        return [one for one in variables if one.symbol is not None and one.symbol not in paired]

    def _still_free(
        self, ours: list[Variable], theirs: list[Variable]
    ) -> tuple[list[Variable], list[Variable]]:
        return self._free(ours, self.correlation.patched_of), self._free(theirs, self.correlation.original_of)

    def _is_told_again(self, one: Variable) -> bool:
        """Return whether starting over does no harm: a warning is reported once more."""
        assert one.symbol is not None
        return not _is_writable(one.symbol) or (self.is_place(one.symbol) and one.name != _ONCE_FLAG)

    def _refuse(self, name: str, message: str, hint: str | None) -> None:
        self.refused.add(name)
        self.correlation.obstacles.append(Obstacle("HR2104", name, message, hint or RELOAD_MODULE))


def pair_variables(
    correlation: Correlation,
    before: Layouts,
    after: Layouts,
    is_place: Callable[[Symbol], bool],
    may_have_twin: Callable[[Symbol], bool],
    are_used_alike: Callable[[Symbol, Symbol], bool],
    known: EarlierNames = NO_EARLIER_NAMES,
) -> None:
    """Pair the variables of functions, and those that moved.

    Other variables of the file are paired by their names.
    """

    def chosen(layouts: Layouts) -> list[Variable]:
        return [v for v in layouts.declared if v.symbol and may_have_twin(v.symbol)]

    names = {one.name: other.name for one, other in correlation.renamed.items()}
    functions = {v.symbol: v.function for v in chosen(before) if v.symbol}
    ours = [replace(v, function=names.get(v.function, v.function)) for v in chosen(before)]
    pairing = VariablePairing(
        correlation, TypePair(before, after), is_place, are_used_alike, known, functions
    )
    pairing.run(ours, chosen(after))


def _by_declaration(variables: Iterable[Variable]) -> dict[tuple[str, str], list[Variable]]:
    found: dict[tuple[str, str], list[Variable]] = defaultdict(list)
    for one in sorted(variables, key=lambda one: one.place):
        if one.function:
            found[one.function, one.name].append(one)
    return found


def _by_name(variables: Iterable[Variable]) -> dict[str, list[Variable]]:
    found: dict[str, list[Variable]] = defaultdict(list)
    for one in variables:
        found[one.name].append(one)
    return found


def _places(variables: Sequence[Variable]) -> list[tuple[int, int]]:
    return [one.place for one in variables]


def _distances(variables: Sequence[Variable]) -> list[tuple[int, int]]:
    """Return how many lines below the first variable each one is, and its column."""
    return [(line - variables[0].place[0], column) for line, column in _places(variables)]


def _once_there(variables: Sequence[Variable]) -> dict[tuple[int, int], Variable]:
    """Return the variables that share their place with no other, by place."""
    count = Counter(_places(variables))
    return {one.place: one for one in variables if count[one.place] == 1 and one.place[0]}


def _is_writable(symbol: Symbol) -> bool:
    return symbol.section is not None and symbol.section.is_writable
