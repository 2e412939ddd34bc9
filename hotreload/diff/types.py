# SPDX-License-Identifier: MIT
"""Whether the data that the running kernel holds still looks as the patched code expects it. Pure.

The problem: a live patch replaces code, and the objects that were allocated before it stay as they are. A
struct that grew, a member that moved, an enum constant with another value: the new code would read garbage,
and nothing at run time says so. Both objects of a unit are compiled with -gbtf: their types can be compared.

The choice: every type becomes a *shape*, a tuple without numbers of the type table, in which a pointer's
target is its name only (what it points to is compared on its own). Types that did not change are equal
tuples, and that is all the time most edits take; what is left is compared member by member, for a reason that
can be told. Rejected: comparing code instead of types. A function that stores a pointer for another one to
follow shows no difference when the struct grows.

What BTF of gcc 12 cannot tell: types of static locals and of structs defined in a function that are used by
value there, 64-bit enum constants, the linkage of functions (symbols do), and values behind #define.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Final, NamedTuple

from hotreload.diff.obstacles import Note, Obstacle
from hotreload.elf import btf
from hotreload.elf.model import ObjectFile

# ("int", size, encoding) ("float", size) ("void",) ("*", target) ("[]", length, element)
# ("()", result, parameters)
# ("struct" | "union" | "enum" | "typedef", name): a typedef only where what it names has no name of its own;
# ("enum", "", size)  ("{}", size, fields): without any name.
Shape = tuple[Any, ...]

VOID: Final[Shape] = ("void",)
_POINTER_SIZE: Final = 8
_TRANSPARENT: Final = frozenset((btf.TYPEDEF, btf.CONST, btf.VOLATILE, btf.RESTRICT, btf.TYPE_TAG))
_QUALIFIERS: Final = _TRANSPARENT - {btf.TYPEDEF}
_INTEGERS: Final = {1: "char", 2: "short", 4: "int", 8: "long", 16: "__int128"}
_SIGNED, _BOOL = 1 << 24, 4 << 24


class Field(NamedTuple):
    """A member, those of nested nameless structs among their parent's: ``u.x`` (offset and width in bits).

    ``bits`` is the width of a bit-field and 0 for all others.
    """

    name: str
    offset: int
    bits: int
    shape: Shape


class Layout(NamedTuple):
    """A struct or union of ``size`` bytes."""

    size: int
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Layouts:
    """The types of one object, by name. A name may stand for several types, each local to a function.

    ``constants`` are the (name, value) of all enums, with the enum they belong to: in C they share one scope.
    """

    aggregates: Mapping[Shape, tuple[Layout, ...]]
    enums: Mapping[Shape, int]
    constants: Mapping[tuple[str, int], str]
    functions: Mapping[str, tuple[Shape, ...]]
    exported: frozenset[str]
    variables: Mapping[str, tuple[Shape, ...]]
    settled: btf.Settled

    def size(self, shape: Shape) -> int:
        """The bytes that a value takes; 0 where that is not known."""
        kind = shape[0]
        if kind in ("int", "float", "{}"):
            return int(shape[1])
        if kind == "*":
            return _POINTER_SIZE
        if kind == "[]":
            return int(shape[1]) * self.size(shape[2])
        if kind == "enum":
            return int(shape[2]) if len(shape) > 2 else self.enums.get(shape, 0)
        return max((layout.size for layout in self.aggregates.get(shape, ())), default=0)

    def width(self, field: Field) -> int:
        """The bits that a field takes."""
        return field.bits or self.size(field.shape) * 8


@dataclass(frozen=True, slots=True)
class LayoutDiff:
    """What the types of two objects say about a patch. ``members``: obstacle's symbol -> member.

    ``compared`` is False where one of the objects has no types; there is no obstacle then, and a note.
    """

    obstacles: tuple[Obstacle, ...] = ()
    notes: tuple[Note, ...] = ()
    members: Mapping[str, str] = field(default_factory=dict)
    compared: bool = True


# --- from a table of types to shapes ---


class _Reader:
    """Gives each type of a table its shape, once."""

    def __init__(self, table: btf.TypeTable) -> None:
        self.table = table
        self.known: dict[int, Shape] = {0: VOID}

    def shape(self, number: int) -> Shape:
        found = self.known.get(number)
        if found is None:
            self.known[number] = (
                VOID  # what contains itself without a name is no C; do not follow it for ever
            )
            found = self.known[number] = self._shape(self.table[number])
        return found

    def _shape(self, of: btf.Type) -> Shape:
        kind = of.kind
        if kind == btf.PTR:
            return ("*", self.shape(of.size))
        if kind in (btf.STRUCT, btf.UNION):
            word = "struct" if kind == btf.STRUCT else "union"
            return (word, of.name) if of.name else ("{}", *self.layout(of))
        if kind in _TRANSPARENT:
            if kind == btf.TYPEDEF and self._is_nameless(of.size):
                return ("typedef", of.name)
            return self.shape(of.size)
        if kind == btf.INT:
            return ("int", of.size, of.tail[0])
        if kind == btf.ARRAY:
            element, length = self.table.array(of)
            return ("[]", length, self.shape(element))
        if kind in (btf.ENUM, btf.ENUM64):
            return ("enum", of.name) if of.name else ("enum", "", of.size)
        if kind == btf.FWD:
            return ("union" if of.flag else "struct", of.name)
        if kind == btf.FUNC_PROTO:
            return ("()", self.shape(of.size), tuple(self.shape(t) for _, t in self.table.parameters(of)))
        if kind == btf.FLOAT:
            return ("float", of.size)
        return VOID

    def _is_nameless(self, number: int) -> bool:
        of = self._unqualified(number)
        return of.kind in (btf.STRUCT, btf.UNION) and not of.name

    def _unqualified(self, number: int) -> btf.Type:
        of = self.table[number]
        for _ in range(8):
            if of.kind not in _QUALIFIERS:
                break
            of = self.table[of.size]
        return of

    def layout(self, of: btf.Type) -> Layout:
        return Layout(of.size, tuple(self._fields(of, "", 0)))

    def _fields(self, of: btf.Type, prefix: str, base: int) -> Iterator[Field]:
        known, make = self.known, tuple.__new__
        for name, number, offset, bits in self.table.members(of):
            shape = known.get(number) or self.shape(number)
            if shape[0] == "{}":
                inner = prefix + name + "." if name else prefix
                for part in shape[2]:
                    yield Field(inner + part.name, base + offset + part.offset, part.bits, part.shape)
            else:
                yield make(Field, (prefix + name, base + offset, bits, shape))

    def is_constant(self, number: int) -> bool:
        """Whether a variable of this type cannot be written."""
        of = self.table[number]
        for _ in range(len(self.table)):  # a type of a broken table may be an alias of itself
            if of.kind == btf.ARRAY:
                of = self.table[of.tail[0]]
            elif of.kind in _TRANSPARENT and of.kind != btf.CONST:
                of = self.table[of.size]
            else:
                break
        return of.kind == btf.CONST


def parse(data: bytes) -> Layouts:
    """The layouts of a raw ``.BTF`` section. Raises btf.BtfError."""
    table = btf.parse_btf(data)
    reader = _Reader(table)
    aggregates: dict[Shape, list[Layout]] = {}
    functions: dict[str, list[Shape]] = {}
    variables: dict[str, list[Shape]] = {}
    enums: dict[Shape, int] = {}
    constants: dict[tuple[str, int], str] = {}
    exported: set[str] = set()
    try:
        for number, of in enumerate(table.types):
            kind = of.kind
            if kind in (btf.STRUCT, btf.UNION):
                if of.name:
                    aggregates.setdefault(reader.shape(number), []).append(reader.layout(of))
            elif kind == btf.TYPEDEF:
                if (shape := reader.shape(number)) == ("typedef", of.name):
                    aggregates.setdefault(shape, []).append(reader.layout(reader._unqualified(of.size)))
            elif kind in (btf.ENUM, btf.ENUM64):
                pairs = table.constants(of)
                enums[reader.shape(number)] = of.size
                label = f"enum {of.name}" if of.name else f"the enum of {pairs[0][0]}" if pairs else ""
                constants.update(dict.fromkeys(pairs, label))
            elif kind == btf.FUNC:
                functions.setdefault(of.name, []).append(reader.shape(of.size))
                if of.vlen == btf.GLOBAL:
                    exported.add(of.name)
            elif kind == btf.VAR and of.tail[0] != btf.EXTERN and not reader.is_constant(of.size):
                variables.setdefault(of.name, []).append(reader.shape(of.size))
    except RecursionError:
        raise btf.BtfError("the types are nested without end") from None
    return Layouts(
        {shape: tuple(found) for shape, found in aggregates.items()},
        enums,
        constants,
        {name: tuple(found) for name, found in functions.items() if name},
        frozenset(exported),
        {name: tuple(found) for name, found in variables.items() if name},
        table.settled,
    )


# --- comparing ---


class Kinship(IntEnum):
    """How two shapes relate: RETYPED values mean the same bytes, but the source calls them something else."""

    SAME = 0
    RETYPED = 1
    DIFFERENT = 2


class _Comparison:
    """The types of a unit before and after an edit, and what was found between them."""

    def __init__(self, original: Layouts, patched: Layouts) -> None:
        self.original, self.patched = original, patched
        self.obstacles: list[Obstacle] = []
        self.consequences: list[Obstacle] = []
        self.notes: list[Note] = []
        self.members: dict[str, str] = {}

    # --- passes, in order ---

    def compare_aggregates(self) -> None:
        """Live objects keep their size and the places of their members."""
        theirs = self.patched.aggregates
        for shape, ours in self.original.aggregates.items():
            gone, new = _unmatched(ours, theirs.get(shape, ours))
            if len(gone) == len(new) == 1:
                self._explain(spelled(shape), gone[0], new[0])
            elif gone and new:
                self._refuse_unpaired("HR2101", spelled(shape))

    def compare_variables(self) -> None:
        """A variable that kept its size keeps its value: the type of it must be the same."""
        for name, ours in self.original.variables.items():
            gone, new = _unmatched(ours, self.patched.variables.get(name, ours))
            if not gone or not new:
                continue
            if len(gone) > 1 or len(new) > 1:
                self._refuse_unpaired("HR2101", f"'{name}'")
                continue
            was, now = gone[0], new[0]
            if self.original.size(was) != self.patched.size(now):
                continue  # the differ compares sizes of data, and knows which data may change it
            if was[0] == now[0] == "{}":
                self._explain(f"the struct of '{name}'", Layout(*was[1:]), Layout(*now[1:]))
            elif self.kinship(was, now) is Kinship.DIFFERENT:
                message = f"'{name}' changed its type from {spelled(was)} to {spelled(now)}"
                self.obstacles.append(Obstacle("HR2101", name, message))

    def compare_constants(self) -> None:
        """A value that live data holds keeps its meaning."""
        ours, theirs = self.original.constants, self.patched.constants
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
            self.members[enum] = first
            self.obstacles.append(Obstacle("HR2102", enum, message))
        self._note_constants(new, theirs, {*ours.values()} - told, "is new")
        self._note_constants(gone, ours, {*theirs.values()} - told, "is gone; live data may hold it")

    def _note_constants(
        self, names: Mapping[str, int], of: Mapping[tuple[str, int], str], enums: Collection[str], text: str
    ) -> None:
        for name, value in sorted(names.items(), key=lambda item: item[1]):
            enum = of[name, value]
            if enum in enums:
                self.notes.append(Note("HR2102", enum, f"{enum}: '{name}' = {value} {text}"))

    def compare_enum_sizes(self) -> None:
        """An enum that needs more bytes is another type in memory."""
        for shape, size in self.original.enums.items():
            now = self.patched.enums.get(shape, size)
            if now != size and len(shape) == 2:
                message = f"{spelled(shape)} {_resized(size, now)}"
                self.obstacles.append(Obstacle("HR2102", spelled(shape), message))

    def compare_prototypes(self, global_functions: Collection[str]) -> None:
        """Code elsewhere calls a global function as it was declared when the guest booted."""
        for name, ours in self.original.functions.items():
            if name not in global_functions and name not in self.original.exported:
                continue
            gone, new = _unmatched(ours, self.patched.functions.get(name, ours))
            if gone and new and self.kinship(gone[0], new[0]) is Kinship.DIFFERENT:
                message = f"{name}() changed its prototype from {spelled(gone[0])} to {spelled(new[0])}"
                hint = "needs a module reload: other units call it with the old one"
                self.obstacles.append(Obstacle("HR2205", name, message, hint))

    # --- one struct or union ---

    def _refuse_unpaired(self, code: str, name: str) -> None:
        message = f"one of the types of {name} changed, and which one cannot be told: several have this name"
        self.obstacles.append(Obstacle(code, name, message))

    def _explain(self, name: str, was: Layout, now: Layout) -> None:
        """Why two layouts differ: an obstacle with the first real cause, or notes."""
        old = {field.name: field for field in was.fields}
        new = {field.name: field for field in now.fields}
        renamed = _renamed(old, new)
        gone = [f for f in was.fields if f.name not in new and f.name not in renamed]
        added = [f for f in now.fields if f.name not in old and f.name not in renamed.values()]
        kept = [(f, new[f.name]) for f in was.fields if f.name in new]

        causes = [*self._changed(kept), *self._misplaced(was, gone, added)]
        moved = next(((a, b) for a, b in kept if a.offset != b.offset), None)
        if was.size != now.size or moved:
            causes += [(f.offset, f.name, f"field '{f.name}' added at offset {_at(f)}") for f in added]
            causes += [(f.offset, f.name, f"field '{f.name}' removed from offset {_at(f)}") for f in gone]
        if causes or was.size != now.size or moved:
            self._refuse(name, was.size, now.size, causes, moved)
            return
        said = [f"field '{a}' is now called '{b}'" for a, b in renamed.items()]
        said += [
            f"field '{a.name}' is now {spelled(b.shape)}, was {spelled(a.shape)}"
            for a, b in kept
            if self.kinship(a.shape, b.shape) is Kinship.RETYPED
        ]
        said += [f"field '{f.name}' is gone" for f in gone]
        said += [self._filled(was, f) for f in added]
        self.notes += [Note("HR2101", name, f"{name}: {text}") for text in said]

    def _changed(self, kept: Iterable[tuple[Field, Field]]) -> Iterator[tuple[int, str, str]]:
        """Members with another type or width, and embedded structs that became larger or smaller."""
        for a, b in kept:
            if a.bits != b.bits:
                text = f"changed its width from {_width(a)} to {_width(b)}"
            elif self._differs(a, b):
                text = f"changed its type from {spelled(a.shape)} to {spelled(b.shape)}"
            elif not a.bits and self.original.size(a.shape) != self.patched.size(b.shape):
                inner = a.shape[2] if a.shape[0] == "[]" else a.shape
                sizes = self.original.size(inner), self.patched.size(inner)
                text = f"contains {spelled(inner)}, which {_resized(*sizes)}"
            else:
                continue
            yield a.offset, a.name, f"field '{a.name}' {text}"

    def _differs(self, a: Field, b: Field) -> bool:
        if a.bits and a.shape[0] == b.shape[0] == "int":
            return bool((a.shape[2] ^ b.shape[2]) & (_SIGNED | _BOOL))  # a bit-field's width is its own
        return self.kinship(a.shape, b.shape) is Kinship.DIFFERENT

    def _misplaced(
        self, was: Layout, gone: list[Field], added: list[Field]
    ) -> Iterator[tuple[int, str, str]]:
        """New members where a live object holds something else, or nothing."""
        for f in added:
            end = f.offset + self.patched.width(f)
            flexible = f.shape[:2] == ("[]", 0)
            if flexible and not any(g.offset == f.offset and g.shape[:2] == ("[]", 0) for g in was.fields):
                yield (
                    f.offset,
                    f.name,
                    f"field '{f.name}' added at offset {_at(f)}, behind the end of live objects",
                )
            for g in gone:
                if f.offset < g.offset + self.original.width(g) and g.offset < end:
                    yield f.offset, f.name, f"field '{f.name}' replaced '{g.name}' at offset {_at(g)}"
                    break

    def _refuse(
        self,
        name: str,
        was: int,
        now: int,
        causes: list[tuple[int, str, str]],
        moved: tuple[Field, Field] | None,
    ) -> None:
        causes.sort(key=lambda cause: cause[0])
        member = text = ""
        if causes:
            _, member, text = causes[0]
        elif moved:
            member = moved[0].name
            text = f"field '{member}' moved from offset {_at(moved[0])} to {_at(moved[1])}"
        if causes and moved and was == now:
            text += f", field '{moved[0].name}' moved from offset {_at(moved[0])} to {_at(moved[1])}"
        fact = _resized(was, now) if was != now else "changed"
        message = f"{name} {fact}: {text}" if text else f"{name} {fact}"
        self.members[name] = member
        chosen = self.consequences if " contains " in text else self.obstacles
        chosen.append(Obstacle("HR2101", name, message))

    def _filled(self, was: Layout, f: Field) -> str:
        end = f.offset + self.patched.width(f)
        if any(f.offset < g.offset + self.original.width(g) and g.offset < end for g in was.fields):
            return f"field '{f.name}' is another view of the bytes at offset {_at(f)}"
        return (
            f"field '{f.name}' was added in padding at offset {_at(f)}: in live objects it holds what the "
            "padding held, 0 where they came from kzalloc or static data"
        )

    # --- shapes ---

    def kinship(self, was: Shape, now: Shape, depth: int = 0) -> Kinship:
        """Whether bytes of one shape can be taken for the other."""
        if was == now:
            return Kinship.SAME
        kinds = was[0], now[0]
        if depth > 16:
            return Kinship.DIFFERENT
        if kinds == ("*", "*"):
            ours, theirs = was[1], now[1]
            if VOID in (ours, theirs) and "()" not in (ours[0], theirs[0]):
                return Kinship.RETYPED
            return self.kinship(ours, theirs, depth + 1)
        if kinds == ("[]", "[]") and was[1] == now[1]:
            return self.kinship(was[2], now[2], depth + 1)
        if kinds == ("()", "()") and len(was[2]) == len(now[2]):
            pairs = [(was[1], now[1]), *zip(was[2], now[2], strict=True)]
            return max(self.kinship(a, b, depth + 1) for a, b in pairs)
        if kinds == ("enum", "enum"):
            # A name given to an enum, or taken away; its constants are compared by theirs.
            nameless = "" in (was[1], now[1])
            same_size = self.original.size(was) == self.patched.size(now)
            return Kinship.RETYPED if nameless and same_size else Kinship.DIFFERENT
        ours, theirs = self._layout(self.original, was), self._layout(self.patched, now)
        if ours is None or theirs is None or ours != theirs:
            return Kinship.DIFFERENT
        return Kinship.RETYPED

    @staticmethod
    def _layout(side: Layouts, shape: Shape) -> Layout | None:
        if shape[0] == "{}":
            return Layout(*shape[1:])
        found = side.aggregates.get(shape, ())
        return found[0] if len(found) == 1 else None

    def result(self) -> LayoutDiff:
        return LayoutDiff((*self.obstacles, *self.consequences), tuple(self.notes), self.members)


def compare(original: Layouts, patched: Layouts, global_functions: Collection[str] = ()) -> LayoutDiff:
    """Compare the types of a unit's two objects; ``global_functions`` are those that other units can call."""
    comparison = _Comparison(original, patched)
    comparison.compare_aggregates()
    comparison.compare_variables()
    comparison.compare_constants()
    comparison.compare_enum_sizes()
    comparison.compare_prototypes(global_functions)
    return comparison.result()


def compare_layouts(
    original: Layouts | bytes | None, patched: bytes | None, global_functions: Collection[str] = ()
) -> LayoutDiff:
    """Compare two raw ``.BTF`` sections; None stands for an object without one.

    The original's may be parsed already, since it stays the same from edit to edit.
    """
    if original is None or patched is None:
        return _not_compared("an object has no .BTF section; gcc 12 or later writes it")
    try:
        before = original if isinstance(original, Layouts) else parse(original)
        if btf.says_the_same(before.settled, patched):
            return LayoutDiff()
        return compare(before, parse(patched), global_functions)
    except btf.BtfError as error:
        return _not_compared(str(error))


def compare_objects(original: ObjectFile, patched: ObjectFile) -> LayoutDiff:
    """Compare the types of a unit's two objects, and the prototypes of its global functions."""
    return compare_layouts(section_of(original), section_of(patched), global_functions(original))


def section_of(obj: ObjectFile) -> bytes | None:
    """The raw ``.BTF`` of an object that has one."""
    section = obj.section(".BTF")
    return section.data if section is not None else None


def global_functions(obj: ObjectFile) -> frozenset[str]:
    """The functions that other units can call, their other names included."""
    found = [symbol for symbol in obj.functions if not symbol.is_local]
    return frozenset(name for symbol in found for name in (symbol.name, *symbol.aliases))


def _not_compared(why: str) -> LayoutDiff:
    note = Note("HR2101", ".BTF", f"the layouts of types could not be compared: {why}")
    return LayoutDiff(notes=(note,), compared=False)


def _unmatched(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What is only on one side and what is only on the other; several types of one name are a multiset."""
    if ours == theirs:
        return (), ()
    if len(ours) == len(theirs) == 1:
        return ours, theirs
    mine, yours = Counter(ours), Counter(theirs)
    return tuple((mine - yours).elements()), tuple((yours - mine).elements())


def _renamed(old: Mapping[str, Field], new: Mapping[str, Field]) -> dict[str, str]:
    """Members that only have another name: the same place, width and shape."""
    arrived = {f[1:]: f.name for f in new.values() if f.name not in old}
    return {f.name: arrived[f[1:]] for f in old.values() if f.name not in new and f[1:] in arrived}


def _by_name(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    return dict(sorted(pairs))


def _at(field: Field) -> str:
    """Bytes, and bits behind a colon where there are any: ``12``, ``12:3``."""
    return f"{field.offset // 8}:{field.offset % 8}" if field.offset % 8 else str(field.offset // 8)


def _width(field: Field) -> str:
    return f"{field.bits} bits" if field.bits else "no bit-field"


def _resized(was: int, now: int) -> str:
    return f"{'grew' if now > was else 'shrank'} {was} -> {now} bytes"


def spelled(shape: Shape) -> str:
    """A shape as C writes it, typedefs resolved: ``struct foo *``, ``int (*)(long int)``, ``char[16]``."""
    kind = shape[0]
    if kind == "int":
        return _integer(shape[1], shape[2])
    if kind == "*":
        target = shape[1]
        if target[0] == "()":
            return f"{spelled(target[1])} (*)({_parameters(target)})"
        return spelled(target) + ("*" if target[0] == "*" else " *")
    if kind == "[]":
        return f"{spelled(shape[2])}[{shape[1] or ''}]"
    if kind == "()":
        return f"{spelled(shape[1])} ({_parameters(shape)})"
    if kind == "{}":
        return f"a struct of {shape[1]} bytes"
    if kind == "enum":
        return f"enum {shape[1]}".rstrip()
    if kind in ("struct", "union"):
        return f"{kind} {shape[1]}"
    if kind == "float":
        return {4: "float", 8: "double"}.get(shape[1], "long double")
    return str(shape[1]) if kind == "typedef" else "void"


def _integer(size: int, encoding: int) -> str:
    if encoding & _BOOL:
        return "bool"
    name = _INTEGERS.get(size, f"{size}-byte integer")
    return name if encoding & _SIGNED else f"unsigned {name}"


def _parameters(prototype: Shape) -> str:
    parameters = prototype[2]
    words = [spelled(p) for p in parameters]
    if parameters and parameters[-1] == VOID:
        words[-1] = "..."
    return ", ".join(words) or "void"


# --- where it is written ---

_COMMENT: Final = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"", re.DOTALL)


def located(diff: LayoutDiff, sources: Mapping[str, str]) -> LayoutDiff:
    """The diff with ``where`` in its obstacles; ``sources`` are the patched texts by name, nearest first."""
    obstacles = tuple(
        o if o.where else replace(o, where=find_definition(o.symbol, sources, diff.members.get(o.symbol, "")))
        for o in diff.obstacles
    )
    return replace(diff, obstacles=obstacles)


def find_definition(name: str, sources: Mapping[str, str], member: str = "") -> str | None:
    """``FILE:LINE`` of a definition: ``struct foo``, ``enum bar``, a typedef's or a function's name.

    The line is that of ``member`` (``u.x`` counts as ``x``) where the definition has it. A search of the
    text, not a parser: None where macros make the definition.
    """
    for file, source in sources.items():
        if name.split()[-1] not in source:
            continue
        text = _COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), source)
        span = _definition(name, member, text)
        if span:
            start, end = span
            word = re.escape(member.rpartition(".")[2])
            inside = re.compile(rf"\b{word}\b\s*[;,:=\[)}}]").search(text, start, end) if word else None
            return f"{file}:{text.count(chr(10), 0, inside.start() if inside else start) + 1}"
    return None


def _definition(name: str, member: str, text: str) -> tuple[int, int] | None:
    """Where a definition begins and ends in a text without comments."""
    word, _, tag = name.partition(" ")
    if word in ("struct", "union", "enum") and tag:
        found = re.search(rf"\b{word}\s+(?:__\w+(?:\([^)]*\))*\s+)*{re.escape(tag)}\s*\{{", text)
        return (found.start(), _closing(text, found.end())) if found else None
    if word == "the":  # "the enum of FIRST": it has no name but those of its constants
        found = re.search(rf"\b{re.escape(member or name.split()[-1])}\b\s*[=,}}]", text)
        return found.span() if found else None
    for found in re.finditer(r"\btypedef\s+(?:struct|union)\b[^;{}]*\{", text):
        end = _closing(text, found.end())
        if re.match(rf"[^;]*\b{re.escape(name)}\s*[;,]", text[end:]):
            return found.start(), end
    found = re.search(
        rf"^[A-Za-z_][^;{{}}=]*\b{re.escape(name)}\s*(?:\([^;{{}}]*\)\s*\{{|[;=\[])", text, re.MULTILINE
    )
    return (found.end() - len(found[0].rpartition(name)[2]), found.end()) if found else None


def _closing(text: str, start: int) -> int:
    """Behind the brace that closes the one before ``start``."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return start + brace.end()
    return len(text)
