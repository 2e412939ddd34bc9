# SPDX-License-Identifier: MIT
"""A guest's base in parts: a module that was loaded anew has a later one than the rest."""

from __future__ import annotations

from pathlib import Path

from hotreload.build.base import Base
from hotreload.build.built import Build, BuiltModule, UnitInputs, sha256
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.guest_base import GuestBase
from hotreload.build.kernel_tree import KernelTree

TREE = KernelTree("6", "x86_64", Path("/k"), Path("/k"), Path("/i"), None, Path("/c"), Path("/s"))


def built(folder: Path, name: str) -> tuple[Build, Base]:
    """Modules one and two, as one.c, two.c and both.h are now; their base is called ``name``."""
    units = [TranslationUnit(folder / f"{m}.c", folder / f"{m}.o", "gcc", folder, m) for m in ("one", "two")]
    inputs = UnitInputs({unit.object: (unit.source, folder / "both.h") for unit in units})
    digests = {file: sha256(file) for file in inputs.files}
    modules = tuple(BuiltModule(unit.module, folder / name / f"{unit.module}.ko", (unit,)) for unit in units)
    build = Build(folder, TREE, modules, (), inputs, digests, ())
    return build, Base(folder / name, TREE, folder, modules, inputs, digests, {}, "")


def reloaded(folder: Path) -> tuple[GuestBase, GuestBase]:
    """Both.h is edited, and then module two is loaded anew: the guest's base before and after."""
    for name in ("one.c", "two.c", "both.h"):
        (folder / name).write_text("as it was\n")
    before = GuestBase.booted(*built(folder, "first"))
    (folder / "both.h").write_text("edited\n")
    return before, before.with_anew(*built(folder, "second"), ["two"])


def test_each_module_is_of_its_own_part(tmp_path: Path) -> None:
    _before, after = reloaded(tmp_path)
    assert [(each.name, each.ko.parent.name) for each in after.modules] == [
        ("one", "first"),
        ("two", "second"),
    ]
    assert [after.of(unit).id for unit in after.units] == ["first", "second"]


def test_a_header_that_two_parts_were_made_of_differs_for_the_older_one_alone(tmp_path: Path) -> None:
    before, after = reloaded(tmp_path)
    assert before.differing() == after.differing() == (tmp_path / "both.h",)
    one, two = after.parts
    assert one.digests[tmp_path / "both.h"] != sha256(tmp_path / "both.h") == two.digests[tmp_path / "both.h"]
    assert set(two.digests) == {tmp_path / "two.c", tmp_path / "both.h"}


def test_the_modules_that_are_of_another_part_now_are_named(tmp_path: Path) -> None:
    before, after = reloaded(tmp_path)
    assert after.anew_since(before) == before.anew_since(after) == {"two"}
    assert after.anew_since(after) == frozenset()


def test_a_base_that_is_new_as_a_whole_has_one_part(tmp_path: Path) -> None:
    before, _after = reloaded(tmp_path)
    whole = before.with_anew(*built(tmp_path, "third"), ["one", "two"])
    assert [part.id for part in whole.parts] == ["third"]
    assert whole.differing() == ()
