# SPDX-License-Identifier: MIT
"""The input and the content of a plan: units that differ; pieces, their targets, and what else is done."""

from __future__ import annotations

from dataclasses import dataclass, field

from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.running_code import RunningCode
from hotreload.elf.model import ConstRef, StringRef
from hotreload.patch.symbols import SymbolPosition


@dataclass(frozen=True, slots=True)
class Import:
    """An export of vmlinux, which the module loader resolves.

    ``namespace``: the symbol namespace that the module must import for it, if any.
    """

    name: str
    crc: int
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class PieceRef:
    """A reference to a piece of this patch by its number. ``kept``: its address may outlive the patch."""

    number: int
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """What identifies an added function or variable in the patches to come.

    ``owners``: the functions that use a static local themselves; empty for everything else. ``shared``:
    several symbols have this identity, and nothing tells them apart. ``place``: the rank of a flag of
    WARN_ON_ONCE() or the like, and the number of such flags that edits added to its owners. If the number
    changes, it is not known which flag is which.
    """

    module: str
    source: str
    owners: tuple[str, ...]
    name: str
    shared: bool = False
    place: tuple[int, int] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """The part of the identity that namesakes share even if their owners differ."""
        return self.module, self.source, self.name


@dataclass(frozen=True, slots=True)
class Absolute:
    """A place in the running kernel, given by its address."""

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

    ``object``    the object that must be loaded before the piece's livepatch relocations are applied
    ``owner``     for an entry of a special section: the number of the piece that the entry describes
    ``identity``  for what an edit added
    ``type``      the C type of that, if the object has it
    ``escapes``   whether the kernel may keep its address
    ``is_held``   whether somebody does keep it, as far as the address can be followed
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
    """struct klp_object: the functions of a module, or of vmlinux if ``name`` is None."""

    name: str | None
    funcs: tuple[KlpFunc, ...]


@dataclass(frozen=True, slots=True)
class Pointer:
    """The address of a target, plus ``addend`` bytes."""

    target: PlannedTarget
    addend: int


@dataclass(frozen=True, slots=True)
class Text:
    """A pointer to that text in the memory of the object.

    Only the guest knows its address (found_texts.py).
    """

    text: bytes


Value = int | Pointer | Text


@dataclass(frozen=True, slots=True)
class Write:
    """A new value for data of the running kernel: ``size`` bytes at ``place`` + ``offset``.

    ``object``: the module that has the data. ``before``: the value that the guest booted with. ``name``: the
    name in C. ``group``: the number that the adjacent parts of one value share; 0 for a value of one part.
    ``may_differ``: somebody may have set another value, which then stays.
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
    """A piece that the livepatch core calls with ``object``. ``kind`` is a member of struct klp_callbacks."""

    object: str
    kind: str
    func: int


@dataclass(frozen=True, slots=True)
class PatchPlan:
    """A whole patch.

    ``strings``: descriptions, for the user, of the strings and constants whose address the kernel may keep.
    ``dormant``: variables that the sources declare but no code uses; they keep their values. ``moved``: the
    names of variables that moved to another unit, and that stay where they were in the guest.
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
        """The names of the objects that are patched or written to.

        vmlinux may be missing, because it need not be named.
        """
        return frozenset(
            name for name in (*(o.name for o in self.objects), *(w.object for w in self.writes)) if name
        )


@dataclass(frozen=True, slots=True)
class UnitDiff:
    """The difference of a unit, and how to find the unit in the guest.

    ``module``: the module that it is linked into. ``block``: the number of its block in that module's
    symbols. ``running``: how the guest's code corresponds to the unit's base object.
    """

    module: str
    source: str
    block: int | None
    diff: ObjectDiff
    running: RunningCode
