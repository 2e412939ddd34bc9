# SPDX-License-Identifier: MIT
"""What one save has changed, of all that a plan holds."""

from __future__ import annotations

from pathlib import Path

from hotreload.patch.changed_since import changed_since
from hotreload.patch.model import PatchPlan
from tests.objects.test_module import planned

SOURCE = """
    int printk(const char *text, ...);
    static int n;
    static noinline int deep(int i) { n++; return i * DEEP; }
    int first(int i) { n += FIRST; return i + n; }
    int second(int i) { printk("SAID"); return deep(i) + SECOND; }
"""


def source(first: int, second: int, said: str = "hello", deep: int = 3) -> str:
    words = {"FIRST": str(first), "SECOND": str(second), "SAID": said, "DEEP": str(deep)}
    text = SOURCE
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def plan_of(folder: Path, after: str) -> PatchPlan:
    return planned(folder, {"unit.c": (source(1, 1), after)})


def test_only_what_differs_from_the_plan_before_counts(tmp_path: Path) -> None:
    one = plan_of(tmp_path / "1", source(2, 1))
    both = plan_of(tmp_path / "2", source(2, 5))
    assert changed_since(None, one) == {"first"}
    assert changed_since(one, both) == {"second"}
    assert changed_since(both, one) == set()
    assert changed_since(both, plan_of(tmp_path / "again", source(2, 5))) == set()


def test_a_string_is_of_the_function_that_has_it_and_a_function_of_its_own(tmp_path: Path) -> None:
    both = plan_of(tmp_path / "1", source(2, 5))
    assert changed_since(both, plan_of(tmp_path / "2", source(2, 5, said="bye"))) == {"second"}
    deeper = plan_of(tmp_path / "3", source(2, 5, deep=4))
    assert changed_since(both, deeper) == {"deep"}
