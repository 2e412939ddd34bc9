# SPDX-License-Identifier: MIT
"""The arithmetic and the texts of `hotreload bench`; what it measures is not for a test to say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hotreload.demo.bench import Result, as_object, as_text, copy_twin, edit_of
from hotreload.demo.examples import sources
from hotreload.demo.generated import SIZES, DiffTimes, source_of
from hotreload.demo.idle import Idle, cpu_seconds, descendants, measure_idle, parents, rss_kb, stat_fields

RESULT = Result(
    "6.1.0-56-cloud-amd64",
    "tcg",
    3,
    samples={
        "compile": [300.0, 400.0, 500.0],
        "hotreload": [450.0, 500.0, 900.0],
        "module": [1500.0, 1600.0, 1700.0],
        "reboot": [4000.0],
    },
    stages={"watch": [15.0, 16.0, 17.0], "build": [310.0, 410.0, 510.0]},
    idle=Idle(10.0, 0.1, 58368, 2.6, 235520),
    diffs=(
        DiffTimes("a median unit", 606, 1919, 60.0, (30.0, 31.0, 45.0)),
        DiffTimes("a large unit", 2656, 10066, 600.0, (500.0, 700.0, 800.0)),
    ),
)


def test_medians_ratios_and_what_is_above_the_compile() -> None:
    said = as_object(RESULT)
    assert said["median_ms"] == {"compile": 400.0, "hotreload": 500.0, "module": 1600.0, "reboot": 4000.0}
    assert said["times_compile"] == {"compile": 1.0, "hotreload": 1.25, "module": 4.0, "reboot": 10.0}
    assert said["above_compile_ms"] == 150.0  # of 150, 100 and 400: each round against its own compile
    assert said["stages_median_ms"] == {"watch": 16.0, "build": 410.0}
    assert json.loads(json.dumps(said)) == said


def test_the_text_has_a_row_for_each_way_and_stage() -> None:
    text = as_text(RESULT)
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines() if line}
    assert rows["hotreload: saved to live"][4:9] == ["0.500", "s", "0.450", "s", "0.900"]
    assert "10.0" in rows["stop, make, boot, insmod"]
    assert "above the compile alone: 0.150 s (within the goal of 0.600 s)" in text
    assert "idle: 0.10 % of a core and 57 MB, over 10 s (its guest: 2.6 %, 230 MB)" in text
    assert max(map(len, text.splitlines())) < 100


def test_objects_of_each_size_have_a_row_with_their_goal() -> None:
    rows = {line.strip().split("  ")[0]: line.split() for line in as_text(RESULT).splitlines() if line}
    assert rows["a median unit"][3:] == "0.031 s 0.030 s 0.045 s 606 1919 within: 0.060 s".split()
    assert rows["a large unit"][-3:] == ["MISSED:", "0.600", "s"]
    said = as_object(RESULT)["diffs"]
    assert isinstance(said, list)
    assert said[0] == {
        "unit": "a median unit",
        "symbols": 606,
        "relocations": 1919,
        "goal_ms": 60.0,
        "median_ms": 31.0,
        "samples_ms": [30.0, 31.0, 45.0],
    }


def test_without_objects_there_are_no_rows() -> None:
    bare = Result("6.1", "kvm", 1, samples=RESULT.samples, stages=RESULT.stages)
    assert "objects read" not in as_text(bare)
    assert as_object(bare)["diffs"] == []


def test_the_edit_of_a_generated_unit_is_one_line() -> None:
    for size in SIZES:
        before, after = source_of(size).splitlines(), source_of(size, edited=True).splitlines()
        assert len(before) == len(after)
        assert sum(one != other for one, other in zip(before, after, strict=True)) == 1
        assert source_of(size).count("__attribute__((noinline)) int step_") == size.functions


def test_a_way_that_was_not_gone_has_no_row_and_no_median() -> None:
    short = Result("6.1", "kvm", 1, samples={**RESULT.samples, "reboot": []})
    assert "reboot" not in as_text(short)
    assert "boot" not in as_text(short)
    assert as_object(short)["median_ms"]["reboot"] is None  # type: ignore[index]


def test_a_missed_goal_is_said() -> None:
    slow = Result("6.1", "tcg", 1, samples={**RESULT.samples, "compile": [300.0], "hotreload": [1000.0]})
    assert "0.700 s (MISSED the goal of 0.600 s)" in as_text(slow)


def test_no_two_rounds_make_the_same_edit_and_each_fits() -> None:
    texts = [edit_of(number).applied(sources()[edit_of(number).file]) for number in range(1, 21)]
    assert len(set(texts)) == 20


def test_the_twin_is_the_same_driver_under_another_name(tmp_path: Path) -> None:
    folder = copy_twin(tmp_path)
    assert (folder / "Kbuild").read_text().splitlines()[1:] == [
        "obj-m := tocker.o",
        "tocker-y := main.o stats.o",
    ]
    assert '#define TICKER_NAME "tocker"' in (folder / "ticker.h").read_text()
    assert (folder / "main.c").read_text() == sources()["main.c"]


def test_a_process_name_with_blanks_and_brackets_does_not_shift_the_fields() -> None:
    assert stat_fields("12 (a) b (c)) S 7 12 12") == ["S", "7", "12", "12"]


def test_time_and_memory_are_read_from_proc(tmp_path: Path) -> None:
    (tmp_path / "12").mkdir()
    ticks = os.sysconf("SC_CLK_TCK")
    fields = ["S", "7", *["0"] * 9, str(2 * ticks), str(ticks), "0"]
    (tmp_path / "12" / "stat").write_text(f"12 (qemu (1)) {' '.join(fields)}")
    (tmp_path / "12" / "status").write_text("Name:\tqemu\nVmHWM:\t  9 kB\nVmRSS:\t   4711 kB\n")
    assert cpu_seconds(12, tmp_path) == pytest.approx(3.0)
    assert rss_kb(12, tmp_path) == 4711
    assert parents(tmp_path) == {12: 7}
    assert (cpu_seconds(13, tmp_path), rss_kb(13, tmp_path)) == (0.0, 0)


def test_descendants_are_children_of_children_and_nobody_else() -> None:
    assert descendants(1, {2: 1, 3: 2, 4: 3, 5: 9}) == {2, 3, 4}
    assert descendants(4, {2: 1}) == frozenset()


def test_a_process_that_works_is_seen_to_work() -> None:
    import asyncio

    async def busy() -> Idle:
        measuring = asyncio.create_task(measure_idle(os.getpid(), 0.2))
        while not measuring.done():
            sum(range(20_000))
            await asyncio.sleep(0)
        return measuring.result()

    found = asyncio.run(busy())
    assert found.cpu_percent > 1  # a busy machine gives it little
    assert found.rss_kb > 1000
