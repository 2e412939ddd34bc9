# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.kernel_knowledge import _unique_in_map

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
