# SPDX-License-Identifier: MIT
"""Write a patch module: the kernel's template with the pieces of a plan added. Pure; takes milliseconds.

The template (glue.py) contains what depends on the kernel's headers: struct module, and the code that builds
struct klp_patch. ``write_module`` adds, in this order: the pieces and their relocations (assembly.py); the
tables that the template's code reads (tables.py); the CRCs of the imports, the name and a build-id. What has
its home in an earlier patch is referred to by address (homes.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hotreload.elf.constants import SHN_UNDEF, STB_LOCAL, STT_SECTION
from hotreload.elf.writer import write_object
from hotreload.patch.assembly import NAME_LENGTH, ModuleFile
from hotreload.patch.homes import Home, Settlement, objects_to_stay_for, reasons_to_stay, settle
from hotreload.patch.model import Identity, KlpObject, PatchPlan, Piece, Value
from hotreload.patch.symbols import VMLINUX, SymbolPosition
from hotreload.patch.tables import (
    ModuleGlue,
    add_callbacks,
    add_functions,
    add_transition,
    add_writes,
    pointed_at,
)
from hotreload.patch.writes import PendingWrite, Place, Written, pending_writes, written

__all__ = [
    "NAME_PREFIX",
    "TRANSITION_SYMBOLS",
    "LivePatch",
    "ModuleGlue",
    "Settler",
    "read_glue",
    "write_module",
]

NAME_PREFIX: Final = "hotreload_"
TEXT: Final = ".text"
# The descriptors of pr_debug() and its relatives. The agent keeps a message switched on if it was.
DESCRIPTORS: Final = "__dyndbg"


@dataclass(frozen=True, slots=True)
class Settler:
    """A function or variable that will have its home in a patch module, and its place there."""

    section: str
    offset: int
    symbol: str
    sympos: int
    meaning: bytes
    type: str
    is_held: bool


@dataclass(frozen=True, slots=True)
class LivePatch:
    """A patch module, to be loaded as ``name``.

    ``keep_loaded``: why it must stay loaded when it is replaced; ``keep_for``: the objects for which it must.
    ``settlers``: what will have its home there. ``writes``: the values that it writes; ``pointed_at``:
    section and offset of what these point at. ``lookups``: how many symbols the kernel looks up to load it.
    ``debugs``: whether it has messages that can be switched on (pr_debug).
    """

    name: str
    module: bytes
    settlement: Settlement
    keep_loaded: tuple[str, ...] = ()
    keep_for: frozenset[str] = frozenset()
    settlers: Mapping[Identity, Settler] = field(default_factory=dict)
    writes: tuple[PendingWrite, ...] = ()
    lookups: int = 0
    pointed_at: Mapping[Value, tuple[str, int]] = field(default_factory=dict)
    debugs: bool = False

    @property
    def sections_to_tell(self) -> tuple[str, ...]:
        """The sections of the module whose addresses are needed.

        The code is always one of them, because it may hang, and the place where it does must be found.
        """
        settled = [settler.section for settler in self.settlers.values()]
        pointed_at = (section for section, _ in self.pointed_at.values())
        debugging = (DESCRIPTORS,) if self.debugs else ()
        return tuple(dict.fromkeys((TEXT, *settled, *pointed_at, *debugging)))

    def written(self, sections: Mapping[str, int]) -> dict[Place, Written]:
        """Return the values that are written in the guest's data when this patch is live.

        ``sections``: the addresses of the module's sections.
        """

        def address_of(value: Value) -> int | None:
            section, offset = self.pointed_at.get(value, ("", 0))
            return sections[section] + offset if section in sections else None

        return dict(written(self.writes, address_of))

    def homes(self, sections: Mapping[str, int]) -> dict[Identity, Home]:
        """Return the homes after this patch is loaded with its ``sections`` at these addresses."""
        return dict(self.settlement.at_home) | {
            identity: Home(
                self.name, sections[settler.section] + settler.offset, settler.symbol, settler.sympos,
                settler.meaning, settler.type, settler.is_held,
            )
            for identity, settler in self.settlers.items()
            if sections.get(settler.section)
        }  # fmt: skip


# The kernel's own retry of a transition, and the patch in transition (kernel/livepatch/transition.c).
TRANSITION_SYMBOLS: Final = ("klp_transition_work", "klp_transition_patch")


def read_glue(template: Path, unique: Collection[str]) -> ModuleGlue:
    """Read a template. ``unique``: those of TRANSITION_SYMBOLS that are unique in the guest's kallsyms."""
    known = set(TRANSITION_SYMBOLS) <= set(unique)
    work, patch = (SymbolPosition(VMLINUX, name, 1) if known else None for name in TRANSITION_SYMBOLS)
    return ModuleGlue(template.read_bytes(), work, patch)


def write_module(
    plan: PatchPlan,
    name: str,
    glue: ModuleGlue,
    homes: Mapping[Identity, Home] | None = None,
    live_writes: Mapping[Place, Written] | None = None,
) -> LivePatch:
    """Return the module file of a plan.

    ``name``: at most 55 bytes, unique among the guest's modules. ``homes``: what earlier patches of the guest
    brought; this patch refers to it there. ``live_writes``: the values that the replaced patch wrote.

    Raises NotPatchableError (HR2103).
    """
    if len(name) >= NAME_LENGTH:
        raise ValueError(f"a module's name has at most {NAME_LENGTH - 1} bytes: {name}")
    settlement = settle(plan, homes or {}, name)
    writes = pending_writes(plan.writes, live_writes or {}, settlement.elsewhere)
    module = ModuleFile(glue.template, settlement.elsewhere)
    module.add_pieces(plan.pieces)
    module.add_relocations(plan.pieces)
    add_functions(module, _with_all(plan.objects, settlement.redirected, writes))
    add_transition(module, glue)
    add_writes(module, writes)
    add_callbacks(module, plan.callbacks)
    module.add_versions()
    module.set_name(name)
    module.set_build_id()
    return LivePatch(
        name,
        write_object(list(module.sections.values()), module.symbols),
        settlement,
        reasons_to_stay(plan, settlement),
        objects_to_stay_for(plan, settlement),
        dict(_settlers(module, plan.pieces, settlement)),
        writes,
        _lookups(module, plan),
        dict(pointed_at(module, writes)),
        any(piece.section == DESCRIPTORS for piece in plan.pieces),
    )


def _lookups(module: ModuleFile, plan: PatchPlan) -> int:
    """Return how many symbols the kernel looks up to load the patch.

    It looks up each replaced function, and the target of each livepatch relocation.
    """
    relocations = (each for section in module.sections.values() for each in section.livepatch.values())
    return sum(len(obj.funcs) for obj in plan.objects) + sum(map(len, relocations))


def _with_all(
    objects: tuple[KlpObject, ...], redirected: tuple[KlpObject, ...], writes: tuple[PendingWrite, ...]
) -> tuple[KlpObject, ...]:
    """Return the livepatch objects, including those of which only data goes back to its old value."""
    known = {obj.name for obj in objects}
    others = {each.write.object for each in writes} - {VMLINUX if name is None else name for name in known}
    alone = (KlpObject(None if name == VMLINUX else name, ()) for name in sorted(others))
    return (*objects, *alone, *redirected)


def _settlers(
    module: ModuleFile, pieces: tuple[Piece, ...], settlement: Settlement
) -> Iterator[tuple[Identity, Settler]]:
    """Yield what has its home here.

    Its sympos is the rank among all symbols of its name, local ones first.
    """
    ordered = sorted(module.symbols, key=lambda symbol: symbol.binding != STB_LOCAL)
    for number, meaning in settlement.settling.items():
        identity, place = pieces[number].identity, module.places[number]
        assert identity is not None, "settled by it"
        symbol = module.piece_symbols[number]
        namesakes = [s for s in ordered if s.name == symbol.name and s.kind != STT_SECTION]
        shown = [s for s in namesakes if s.section is not None or s.index != SHN_UNDEF]
        of = pieces[number]
        sympos = shown.index(symbol) + 1
        yield (
            identity,
            Settler(place.section.name, place.offset, symbol.name, sympos, meaning, of.type, of.is_held),
        )
