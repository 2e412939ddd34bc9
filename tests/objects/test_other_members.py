# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""Changed callbacks that are registered with another member of the object that they find."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.diff.unit_diff import diff_unit, unit_object_of
from hotreload.elf.reader import read_object
from tests.objects.compiling import compiled

HEAD = """
#define container_of(p, t, m) ((t *)((char *)(p) - __builtin_offsetof(t, m)))
struct timer { void (*fn)(struct timer *); long when; };
struct dev { int id; struct timer a; int hits; struct timer b; };
void init_timer(struct timer *, void (*)(struct timer *), int); void add(struct timer *); struct dev *find(int); struct dev fixed;
"""
CALLBACK = "static void tick(struct timer *t) { struct dev *d = container_of(t, struct dev, A); d->hits++; add(&d->A); }"
SET_UPS = {
    "a call": "void start(int i) { struct dev *d = find(i); if (d) init_timer(&d->A, tick, i); }",
    "a call before others": "void start(int i) { struct dev *d = find(i); find(2); init_timer(&d->A, tick, 0); add(&d->A); }",
    "a store": "void start(int i) { struct dev *d = find(i); d->A.fn = tick; add(&d->A); }",
    "an object of its own": "void start(int i) { init_timer(&fixed.A, tick, 0); add(&fixed.A); }",
}


def codes(tmp_path: Path, before: str, after: str) -> list[tuple[str, str]]:
    objects = (
        unit_object_of(read_object(compiled(HEAD + text, tmp_path / name, "-g")))
        for name, text in (("before", before), ("after", after))
    )
    return [(o.code, o.symbol) for o in diff_unit(*objects, {}).obstacles]


@pytest.mark.parametrize("how", SET_UPS)
def test_a_callback_that_takes_another_member_for_its_own_is_refused(how: str, tmp_path: Path) -> None:
    source = CALLBACK + SET_UPS[how]
    assert codes(tmp_path, source.replace("A", "a"), source.replace("A", "b")) == [("HR2207", "tick")]


@pytest.mark.parametrize("how", SET_UPS)
def test_a_callback_that_changes_otherwise_is_live(how: str, tmp_path: Path) -> None:
    before = (CALLBACK + SET_UPS[how]).replace("A", "a")
    after = before.replace("d->hits++", "d->hits += 2").replace("find(i);", "find(i + 1); if (i > 7) return;")
    assert codes(tmp_path, before, after) == []


def test_a_second_member_may_be_registered_too(tmp_path: Path) -> None:
    before = (CALLBACK + SET_UPS["a call"]).replace("A", "a")
    after = before.replace("d->hits++", "d->hits += 2").replace(
        "tick, i);", "tick, i), init_timer(&d->b, tick, i);"
    )
    assert codes(tmp_path, before, after) == []


def test_a_callback_that_stays_as_it_is_may_be_registered_elsewhere(tmp_path: Path) -> None:
    callback = "static void tick(struct timer *t) { t->when++; add(t); }"
    source = callback + SET_UPS["a call"]
    assert codes(tmp_path, source.replace("A", "a"), source.replace("A", "b")) == []
