# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.kernel_knowledge import KernelKnowledge, _unique_in_map
from hotreload.patch.kernel_symbols import KernelSymbols
from hotreload.patch.model import (
    Import,
    KlpFunc,
    KlpObject,
    PatchPlan,
    Piece,
    PlannedRelocation,
    PlannedTarget,
)
from hotreload.patch.module import ModuleGlue
from hotreload.patch.symbols import SymbolPosition

WORK, PATCH = "klp_transition_work", "klp_transition_patch"
LINE = "ffffffff82c0{:04x} d {}\n".format


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["_text", WORK, PATCH, "klp_transition_patch_x"], {WORK, PATCH}),
        ([WORK, PATCH, WORK], {PATCH}),
        (["_text"], set()),
    ],
)
def test_a_system_map_tells_which_names_the_kernel_has_once(
    names: list[str], unique: set[str], tmp_path: Path
) -> None:
    (tmp_path / "System.map").write_text("".join(LINE(n, name) for n, name in enumerate(names)))
    assert _unique_in_map(tmp_path / "System.map") == unique


def test_without_a_real_system_map_none_is_known(tmp_path: Path) -> None:
    stub = tmp_path / "System.map"
    assert _unique_in_map(stub) == frozenset()
    stub.write_text("ffffffffffffffff B The real System.map is in the linux-image-6.1-dbg package\n\n")
    assert _unique_in_map(stub) == frozenset()


class OldKernel:
    """The symbols of a kernel without clear_relocate_add()."""

    def block_of(self, _source: str, _nth: int) -> int | None:
        return None

    def position(self, _name: str, _block: int | None, _size: int | None = None) -> SymbolPosition | None:
        return None

    def has_global(self, _name: str) -> bool:
        return False

    def exit_pointer(self) -> int | None:
        return None

    def is_freed(self, _position: SymbolPosition) -> bool:
        return False


@pytest.mark.parametrize(
    ("target", "told"),
    [(SymbolPosition("vmlinux", "private", 1), ("drv",)), (Import("exported", 1), ())],
)
def test_a_module_whose_patch_the_kernel_fills_in_when_it_loads_cannot_be_loaded_again(
    target: PlannedTarget, told: tuple[str, ...]
) -> None:
    relocation = PlannedRelocation(1, 4, target, -4)
    pieces = (Piece("f", 2, ".text", 16, bytes(8), (relocation,), "drv"),)
    plan = PatchPlan(pieces, (KlpObject("drv", (KlpFunc("f", 1, 0),)),))
    symbols = KernelSymbols({}, {"vmlinux": OldKernel(), "drv": OldKernel()})
    assert KernelKnowledge(symbols, ModuleGlue(b"", None, None)).cannot_load_again(plan) == told
