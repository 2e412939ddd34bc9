# SPDX-License-Identifier: MIT
"""The generated units of `hotreload bench` have the sizes that they stand for, and are compared."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hotreload.demo.generated import SIZES, measure_diffs


def test_generated_units_have_the_size_that_they_stand_for(tmp_path: Path) -> None:
    median, large = asyncio.run(measure_diffs("gcc", tmp_path, runs=1))
    assert [median.name, large.name] == [size.name for size in SIZES]
    assert 550 <= median.symbols <= 650
    assert 10_000 <= large.relocations <= 11_000
    assert [len(times.samples_ms) for times in (median, large)] == [1, 1]
