# SPDX-License-Identifier: MIT
"""Edits of two units that are right by themselves, but not for the objects that the other one has made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import ObjectPair
from hotreload.compared import Compared, Original
from hotreload.diff.unit_diff import unit_object_of
from hotreload.elf.reader import read_object
from hotreload.objects_across import recast_across_units, unset_members_across_units
from tests.objects.compiling import compiled
from tests.objects.test_unset_members import HEAD, MAKE, USE, WAIT, WAKE, sources
from tests.objects.test_variables import DEBUG, compared

JOINED = {"drv": frozenset(("drv",))}
Units = dict[Path, Compared]


def units(folder: Path, **edits: tuple[str, str]) -> Units:
    """The edited units of a module: name -> its text before and after."""
    folder.mkdir()

    def unit(name: str, before: str, after: str) -> Compared:
        base = unit_object_of(read_object(compiled(before, folder / f"{name}.base", *DEBUG)))
        original = cast("Original", SimpleNamespace(base=base))
        of = cast("TranslationUnit", SimpleNamespace(source=Path(f"{name}.c"), module="drv"))
        return Compared(ObjectPair(of, Path(), Path()), original, compared(folder / name, before, after))

    return {Path(name): unit(name, *texts) for name, texts in edits.items()}


def test_a_member_that_another_unit_sets_up(tmp_path: Path) -> None:
    def refused(folder: str, makes: str, uses: str) -> list[tuple[str, str]]:
        make, use = HEAD + MAKE, HEAD + USE
        edited = units(
            tmp_path / folder,
            a=(sources(text=make), sources(makes, "", make)),
            b=(sources(text=use), sources("", uses, use)),
        )
        return [(obstacle.code, obstacle.where) for obstacle in unset_members_across_units(edited, JOINED)]

    assert refused("both", WAIT, WAKE) == [("HR2211", "b.c")]
    assert refused("one", WAIT, "") == []
    # A static variable of another file is another one.
    assert refused("static", *(text.replace("o->wait", "idle") for text in (WAIT, WAKE))) == []


def test_objects_that_both_units_take_for_another_struct(tmp_path: Path) -> None:
    head = "struct file { void *private; }; struct a { int x, y; }; struct b { long n; int x; };"
    writes = head + " void f(struct file *f, int x) { struct a *p = f->private; p->x = x; }"
    reads = head + " int g(struct file *f) { struct a *p = f->private; return p->x; }"
    edit = [(text, text.replace("struct a *p", "struct b *p")) for text in (writes, reads)]
    both = recast_across_units(units(tmp_path / "both", a=edit[0], b=edit[1]), JOINED)
    assert [(each.code, each.symbol) for each in both] == [("HR2101", "struct b")]
    same = (reads, reads.replace("p->x;", "p->x + 1;"))
    one = units(tmp_path / "one", a=edit[0], b=same)
    assert list(recast_across_units(one, JOINED)) == []
    assert all(unit.diff.verdict == "patchable" for unit in one.values())
