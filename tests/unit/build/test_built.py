# SPDX-License-Identifier: MIT
"""What kbuild has built."""

from __future__ import annotations

from pathlib import Path

from hotreload.build.built import is_product


def test_a_header_that_kbuild_makes_is_told_from_one_that_somebody_wrote(tmp_path: Path) -> None:
    for name in ("voffset.h", ".voffset.h.cmd", "written.h", ".written.o.cmd"):
        (tmp_path / name).touch()
    assert is_product(tmp_path / "voffset.h")
    assert is_product(tmp_path / "include/generated/utsversion.h")
    assert not is_product(tmp_path / "written.h")
