# SPDX-License-Identifier: MIT
"""How far a build is, by kbuild's own lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.build.kernel_progress import Meter, Step, now_and_then


def texts(meter: Meter, *lines: str) -> list[str]:
    """What is told for lines that come a second apart."""
    steps = [meter.read(line, now) for now, line in enumerate(lines)]
    return [step.text for step in steps if step]


def test_units_are_counted_and_nothing_else_that_is_compiled(tmp_path: Path) -> None:
    meter = Meter({"kernel/fork.o", "drivers/net/dummy.o"}, tmp_path)
    said = texts(
        meter,
        "  HOSTCC  scripts/kallsyms",
        "  CC      kernel/bounds.s",
        "  CC      arch/x86/entry/vdso/vgetcpu.o",
        "  CC      kernel/fork.o",
        "  AR      kernel/built-in.a",
        "  LD      arch/x86/entry/vdso/vdso64.so.dbg",
        "  CC [M]  drivers/net/dummy.o",
        "  LD      vmlinux.o",
        "kernel/fork.c:1: warning: so it goes",
    )
    assert said == ["1 of 2 units", "2 of 2 units", "linking vmlinux.o"]


def test_the_time_left_is_told_once_enough_is_known(tmp_path: Path) -> None:
    names = [f"fs/{number}.o" for number in range(100)]
    said = texts(Meter(names, tmp_path), *(f"  CC      {name}" for name in names[:25]))
    assert said[18:20] == ["19 of 100 units", "20 of 100 units, 76 s left"]


def test_an_object_that_is_there_counts_when_it_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "a.o").touch()
    meter = Meter({"a.o", "b.o"}, tmp_path)
    assert meter.read("  CC      b.o", 0) == Step("1 of 1 units", 1, 1)
    assert meter.read("  CC      a.o", 1) == Step("2 of 2 units", 2, 2)


@pytest.mark.parametrize("expected", [{"a.o"}, set()], ids=["all are there", "nobody knows which there are"])
def test_how_many_a_later_build_makes_only_make_knows(expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "a.o").touch()
    assert Meter(expected, tmp_path).read("  CC      a.o", 0) == Step("1 unit compiled")


def test_a_log_gets_a_line_now_and_then() -> None:
    said: list[str] = []
    for pause in (0.0, 3600.0):
        tell = now_and_then(said.append, pause)
        tell(Step("one"))
        tell(Step("two"))
    assert said == ["one", "two"]
