# SPDX-License-Identifier: MIT
"""Which units an edit asks to be compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.build.base import Base
from hotreload.build.built import Build, BuiltModule, UnitInputs, sha256
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.guest_base import GuestBase
from hotreload.build.kernel_tree import KernelTree
from hotreload.diff.obstacles import NotPatchableError
from hotreload.edited_units import EditedUnits


class Sources:
    """A folder with units a, b and c, which all include all.h; a and b include ab.h. Its base is recorded."""

    def __init__(
        self, folder: Path, max_units: int = 100, kernel: Path = Path("/k"), also: str = "all.h"
    ) -> None:
        self.folder = folder
        tree = KernelTree("6", "x86_64", kernel, kernel, Path("/i"), None, Path("/c"), Path("/s"))
        includes = {"a.c": ("ab.h", "all.h"), "b.c": ("ab.h", "all.h"), "c.c": ("all.h",)}
        for name in (*includes, "ab.h", "all.h", also, "Kbuild"):
            (folder / name).write_text("as it was\n")
        units = tuple(
            TranslationUnit(folder / name, folder / f"{name[0]}.o", "gcc -c", folder, "m")
            for name in includes
        )
        inputs = UnitInputs(
            {u.object: (u.source, *(folder / h for h in (*includes[u.source.name], also))) for u in units}
        )
        digests = {file: sha256(file) for file in inputs.files}
        makefiles = {folder / "Kbuild": sha256(folder / "Kbuild")}
        modules = (BuiltModule("m", folder / "m.ko", units),)
        build = Build(folder, tree, modules, tuple(makefiles), inputs, digests, ())
        base = Base(folder / "base", tree, folder, modules, inputs, digests, makefiles, "")
        self.units = EditedUnits(GuestBase.booted(build, base), folder / "objects", max_units)

    def save(self, text: str, *names: str) -> list[str]:
        """The units that this save asks for, by source."""
        for name in names:
            (self.folder / name).write_text(text)
        return [unit.source.name for unit in self.units.of(tuple(self.folder / name for name in names))]

    def compile(self) -> None:
        self.units.are_compiled(self.units.of(()))


def test_a_save_asks_for_the_units_that_include_the_file(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    assert sources.save("new\n", "ab.h") == ["a.c", "b.c"]


def test_a_file_that_says_what_it_said_asks_for_nothing(tmp_path: Path) -> None:
    assert Sources(tmp_path).save("as it was\n", "all.h") == []


def test_a_unit_whose_files_are_all_as_they_were_is_at_its_base_without_a_compile(
    tmp_path: Path,
) -> None:
    sources = Sources(tmp_path)
    sources.save("new\n", "c.c", "ab.h")
    sources.compile()
    assert sources.units.back_at_base() == set()
    assert sources.save("as it was\n", "c.c") == []
    assert sources.units.back_at_base() == {tmp_path / "c.o"}
    assert sources.units.compiled == {tmp_path / "a.o", tmp_path / "b.o"}


def test_what_failed_to_compile_is_tried_with_the_next_save_unless_it_was_taken_back(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    assert sources.save("broken\n", "a.c") == ["a.c"]
    assert sources.save("new\n", "c.c") == ["a.c", "c.c"]
    assert sources.save("as it was\n", "a.c") == ["c.c"]


def test_what_a_source_patch_brought_stays_until_its_file_is_saved(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    units, pushed = sources.units, {tmp_path / "c.o"}
    units.compiled |= pushed
    units.pushed |= pushed
    assert sources.save("new\n", "a.c") == ["a.c"]
    assert units.back_at_base() == set()
    (tmp_path / "c.c").write_text("new\n")
    assert sources.save("as it was\n", "c.c") == ["a.c"]
    assert units.back_at_base() == pushed


def test_a_source_patch_that_was_dropped_leaves_what_the_files_say(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    sources.save("new\n", "a.c")
    sources.compile()
    units, pushed = sources.units, {tmp_path / "a.o", tmp_path / "c.o"}
    units.compiled |= pushed
    units.pushed |= pushed
    assert units.drop_pushed() == pushed
    assert sources.save("new\n", "b.c") == ["a.c", "b.c"]
    assert units.back_at_base() == set()


def test_more_units_than_the_bound_are_refused_and_not_forgotten(tmp_path: Path) -> None:
    sources = Sources(tmp_path, max_units=2)
    with pytest.raises(NotPatchableError, match=r"all\.h: 3 units would have to be compiled, the limit is 2"):
        sources.save("new\n", "all.h")
    with pytest.raises(NotPatchableError, match="3 units"):
        sources.save("new\n", "c.c")
    sources.units.max_units = 3
    assert [unit.source.name for unit in sources.units.of(())] == ["a.c", "b.c", "c.c"]


def test_a_refused_header_that_is_taken_back_is_no_obstacle_any_more(tmp_path: Path) -> None:
    sources = Sources(tmp_path, max_units=2)
    with pytest.raises(NotPatchableError):
        sources.save("new\n", "all.h")
    assert sources.save("as it was\n", "all.h") == []
    assert sources.save("new\n", "c.c") == ["c.c"]


def test_a_source_saved_together_with_a_makefile_comes_with_the_next_save(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    with pytest.raises(NotPatchableError) as refused:
        sources.save("new\n", "Kbuild", "a.c")
    assert [obstacle.code for obstacle in refused.value.obstacles] == ["HR1004"]
    assert sources.save("new\n", "c.c") == ["a.c", "c.c"]


def test_a_recipe_is_refused_once_and_once_more_when_its_build_has_failed(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    (tmp_path / "Kbuild").write_text("new\n")
    with pytest.raises(NotPatchableError, match="Kbuild changed"):
        sources.units.of(())
    assert sources.units.of(()) == []
    sources.units.refuse_again()
    with pytest.raises(NotPatchableError, match="Kbuild changed"):
        sources.units.of(())


def test_what_no_unit_names_is_read_with_the_next_save_if_an_error_came_first(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    kbuild, new, unit, notes = (tmp_path / name for name in ("Kbuild", "new.c", "a.c", "notes"))
    sources.units.leave_unread((kbuild, new, unit, notes))
    assert sources.units.with_unread((unit,)) == (unit, kbuild, new)
    assert sources.units.with_unread((unit,)) == (unit,)


def test_a_file_of_no_unit_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotPatchableError, match=r"other\.c is not part of this build"):
        Sources(tmp_path).save("new\n", "other.c")


@pytest.mark.parametrize("is_kernel", [False, True])
def test_a_file_that_no_unit_is_made_of_is_told_with_the_way_out_of_a_module_or_a_kernel(
    tmp_path: Path, is_kernel: bool
) -> None:
    sources = Sources(tmp_path, kernel=tmp_path if is_kernel else Path("/k"))
    with pytest.raises(NotPatchableError) as refused:
        sources.save("new\n", "vgetcpu.c")
    [obstacle] = refused.value.obstacles
    assert (obstacle.code, obstacle.symbol) == ("HR1002", "vgetcpu.c")
    assert ("hotreload kernel build" in obstacle.hint) is is_kernel
    assert ("the module's Makefile" in obstacle.hint) is not is_kernel


def test_another_name_for_the_next_build_is_no_edit(tmp_path: Path) -> None:
    (tmp_path / "include/generated").mkdir(parents=True)
    sources = Sources(tmp_path, also="include/generated/utsrelease.h")
    assert sources.save('#define UTS_RELEASE "6.1.170+"\n', "include/generated/utsrelease.h") == []
    assert sources.save("new\n", "c.c") == ["c.c"]
    assert sources.units.differing == {tmp_path / "c.c"}


def test_a_unit_that_did_not_compile_is_due_again_and_those_beside_it_are_not(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    sources.save("new\n", "a.c", "b.c")
    a, b = sources.units.of(())
    sources.units.are_compiled([a], failed=[b])
    assert sources.save("new\n", "c.c") == ["b.c", "c.c"]


def test_only_a_unit_whose_source_alone_was_edited_is_independent_of_others(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    sources.save("new\n", "a.c", "all.h")
    units = {unit.source.name: unit for unit in sources.units.of(())}
    assert not sources.units.is_edited_alone(units["a.c"])
    sources.save("as it was\n", "all.h")
    assert sources.units.is_edited_alone(units["a.c"])


def test_a_changed_makefile_is_refused_once_by_a_push(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    (tmp_path / "Kbuild").write_text("new\n")
    with pytest.raises(NotPatchableError) as refused:
        sources.units.of(())
    assert [obstacle.code for obstacle in refused.value.obstacles] == ["HR1004"]
    assert sources.units.of(()) == []
