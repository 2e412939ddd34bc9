# SPDX-License-Identifier: MIT
"""What a plan is made from and of: units that differ; pieces, what they point at, and what else is done."""

from __future__ import annotations

from dataclasses import dataclass, field

from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.running_code import RunningCode
from hotreload.elf.model import ConstRef, StringRef
from hotreload.patch.symbols import SymbolPosition


@dataclass(frozen=True, slots=True)
class Import:
    """An export of vmlinux, which the module loader resolves; ``namespace``: to be imported for it."""

    name: str
    crc: int
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class PieceRef:
    """A piece of this patch, by its number; ``kept``: its address may outlive the patch."""

    number: int
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a function or variable that an edit added the same one in the next patch.

    ``owners``: the functions that use a static local themselves; empty for all else. ``shared``: several have
    it, and nothing tells them apart. ``place``: which of how many flags of WARN_ON_ONCE() or the like its
    owners have got from edits; with another number nobody knows which is which.
    """

    module: str
    source: str
    owners: tuple[str, ...]
    name: str
    shared: bool = False
    place: tuple[int, int] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What namesakes have in common, whoever owns them."""
        return self.module, self.source, self.name


@dataclass(frozen=True, slots=True)
class Absolute:
    """A place in the running kernel, known by its address."""

    address: int


PlannedTarget = PieceRef | Import | SymbolPosition | StringRef | ConstRef | Absolute


@dataclass(frozen=True, slots=True)
class PlannedRelocation:
    offset: int
    type: int
    target: PlannedTarget
    addend: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an output section.

    ``object``    whom its livepatch relocations wait for
    ``owner``     of an entry of a special section: the number of the piece that it says something about
    ``identity``  of what an edit added
    ``type``      of that, where the object tells it
    ``escapes``   whether the kernel may keep its address
    ``is_held``   whether somebody does, as far as the address can be followed
    """

    name: str
    kind: int
    section: str
    align: int
    content: bytes
    relocations: tuple[PlannedRelocation, ...]
    object: str
    owner: int | None = None
    identity: Identity | None = None
    type: str = ""
    escapes: bool = False
    is_held: bool = False


@dataclass(frozen=True, slots=True)
class KlpFunc:
    """struct klp_func: ``old_name`` at ``old_sympos`` is replaced by piece number ``new_func``."""

    old_name: str
    old_sympos: int
    new_func: int


@dataclass(frozen=True, slots=True)
class KlpObject:
    """struct klp_object: the functions of a module, or of vmlinux where ``name`` is None."""

    name: str | None
    funcs: tuple[KlpFunc, ...]


@dataclass(frozen=True, slots=True)
class Pointer:
    """The address of a target, and so many bytes on."""

    target: PlannedTarget
    addend: int


@dataclass(frozen=True, slots=True)
class Text:
    """A pointer to that text in the memory of the object, which only the guest can tell (found_texts.py)."""

    text: bytes


Value = int | Pointer | Text


@dataclass(frozen=True, slots=True)
class Write:
    """A value of data that the running kernel holds: ``size`` bytes at ``place`` + ``offset``.

    ``object``: the module whose data it is; ``before``: what the guest booted with; ``name``: as C calls it.
    ``group``: of those that are one value together, and stand together; 0: none. ``may_differ``: somebody may
    have set another value, and that stays.
    """

    object: str
    place: SymbolPosition
    offset: int
    size: int
    before: Value
    after: Value
    name: str
    group: int = 0
    may_differ: bool = False


@dataclass(frozen=True, slots=True)
class Callback:
    """A piece that the livepatch core calls with ``object``; ``kind``: a member of struct klp_callbacks."""

    object: str
    kind: str
    func: int


@dataclass(frozen=True, slots=True)
class PatchPlan:
    """A whole patch. ``strings``: those that the kernel may keep the address of, told for people.

    ``dormant``: variables that the sources declare, and that no code uses: they keep the values they have.
    ``moved``: the names of those that went to another unit, and are where they were in the guest.
    """

    pieces: tuple[Piece, ...]
    objects: tuple[KlpObject, ...]
    strings: tuple[str, ...] = ()
    writes: tuple[Write, ...] = ()
    callbacks: tuple[Callback, ...] = ()
    dormant: frozenset[Identity] = field(default=frozenset(), compare=False)
    moved: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def changed_objects(self) -> frozenset[str]:
        """The names of what it patches or writes to; vmlinux, which it need not name, may be missing."""
        return frozenset(
            name for name in (*(o.name for o in self.objects), *(w.object for w in self.writes)) if name
        )


@dataclass(frozen=True, slots=True)
class UnitDiff:
    """A unit's difference, and how the unit is found in the guest: the module that it is linked into, the
    number of its block in that module's symbols, and what of its base object the guest runs."""

    module: str
    source: str
    block: int | None
    diff: ObjectDiff
    running: RunningCode
