# SPDX-License-Identifier: MIT
"""Real kernel units before and after an edit, and what kpatch's create-diff-object found in them.

kpatch is an oracle, not a law: where the answers differ, WIDER says why ours is right.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from hotreload.diff.correlate import base_name, parent_name
from hotreload.diff.object_diff import ObjectDiff, diff_objects
from hotreload.elf.model import ObjectFile
from hotreload.elf.reader import read_object

CORPUS: Final = Path(__file__).parents[3] / "shared" / "corpus" / "objects"
NAMES: Final = sorted(path.name.removesuffix(".ORIG.o") for path in CORPUS.glob("*.ORIG.o"))
pytestmark = pytest.mark.skipif(
    not NAMES, reason="the kernel objects (../shared/corpus) are not beside this checkout"
)

LINES: Final = "WARNs below the edit hold other line numbers, which kpatch takes to be no change"
# More functions travel than kpatch names. That is never wrong, only more.
WIDER: Final = {
    "bug-table-section": LINES,
    "fixup-section": "all functions share one .fixup section, whose places move when one of them changes",
    "gcc-constprop": LINES,
    "new-function": LINES,
    "printk-index-1-issue-1206": LINES,
    "tracepoints-section": LINES,
    "warn-detect": LINES,
}


@cache
def expected() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((CORPUS / "expected.json").read_text())
    return found


def sides(name: str) -> tuple[ObjectFile, ObjectFile]:
    (patched,) = CORPUS.glob(f"{name}.PATCHED*.o")
    return read_object(CORPUS / f"{name}.ORIG.o"), read_object(patched)


def plain(names: list[str] | tuple[str, ...]) -> set[str]:
    return {base_name(parent_name(name)) for name in names}


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_is_kpatchs_or_wider_for_a_reason(name: str) -> None:
    diff, kpatch = diff_objects(*sides(name)), expected()[name]
    changed, theirs = plain(diff.changed_functions), plain(kpatch["changed"])
    if name in WIDER:
        assert diff.verdict == "patchable"
        assert theirs < changed
    else:
        verdict = {0: "patchable", 2: "refused", 3: "unchanged"}[kpatch["exit_status"]]
        assert (diff.verdict, changed) == (verdict, theirs)
    assert plain([symbol.name for symbol in diff.new_functions]) == plain(kpatch["new"])


@pytest.mark.parametrize("name", [name for name in NAMES if name in WIDER])
def test_what_kpatch_does_not_name_differs_in_a_number_at_most(name: str) -> None:
    extra = [
        (twins.original, twins.patched)
        for twins in diff_objects(*sides(name)).changed
        if base_name(twins.original.name) not in plain(expected()[name]["changed"])
    ]
    assert extra
    for one, other in extra:
        different = sum(a != b for a, b in zip(one.content, other.content, strict=True))
        assert (different <= 4, len(one.relocations)) == (True, len(other.relocations)), one.name


@pytest.mark.parametrize("name", NAMES)
def test_an_object_does_not_differ_from_itself(name: str) -> None:
    for one, other in zip(sides(name), sides(name), strict=True):
        diff: ObjectDiff = diff_objects(one, other)
        assert (diff.verdict, diff.obstacles) == ("unchanged", ())
