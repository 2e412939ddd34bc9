# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.source_texts import SourceTexts


def test_texts_come_from_disk_but_for_those_that_are_given(tmp_path: Path) -> None:
    one, two, gone = (tmp_path / name for name in ("one.c", "two.c", "gone.c"))
    one.write_text("on disk")
    two.write_text("on disk")
    texts = SourceTexts((one, two, gone), {two: b"patched", tmp_path / "other.c": b"not asked for"})
    assert dict(texts) == {str(one): "on disk", str(two): "patched", str(gone): ""}
    with pytest.raises(KeyError):
        texts[str(tmp_path / "other.c")]
