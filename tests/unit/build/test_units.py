# SPDX-License-Identifier: MIT
"""From changed files to units."""

from __future__ import annotations

from pathlib import Path

from hotreload.build.built import Build, BuiltModule, UnitInputs
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import patched_object
from hotreload.build.kernel_tree import KernelTree
from hotreload.build.units import units_for

TREE = KernelTree("6", "x86_64", Path("/k"), Path("/k"), Path("/i"), None, Path("/c"), Path("/s"))


def unit(source: Path) -> TranslationUnit:
    return TranslationUnit(source, source.with_suffix(".o"), "gcc -c", Path("/k"), "m")


def module(folder: Path, includes: dict[str, tuple[str, ...]]) -> Build:
    units = tuple(unit(folder / source) for source in includes)
    inputs = {
        each.object: (each.source, *(folder / name for name in includes[each.source.name])) for each in units
    }
    built = BuiltModule("m", folder / "m.ko", units)
    return Build(folder, TREE, (built,), (folder / "Kbuild",), UnitInputs(inputs), {}, ())


def test_a_source_touches_its_unit_and_a_header_every_unit_that_includes_it(tmp_path: Path) -> None:
    driver = module(tmp_path, {"a.c": ("ab.h", "all.h"), "b.c": ("ab.h", "all.h"), "c.c": ("all.h",)})

    def touched(*names: str) -> list[str]:
        return [each.source.name for each in units_for([tmp_path / name for name in names], driver).units]

    assert touched("a.c") == ["a.c"]
    assert touched("ab.h") == ["a.c", "b.c"]
    assert touched("all.h") == ["a.c", "b.c", "c.c"]
    assert touched("c.c", "ab.h") == ["a.c", "b.c", "c.c"]


def test_a_header_reached_through_dots_is_known_by_its_plain_name(tmp_path: Path) -> None:
    driver = module(tmp_path, {"a.c": ("sub/../x.h",)})
    assert len(units_for([tmp_path / "x.h"], driver).units) == 1


def test_a_header_that_is_a_link_is_known_by_the_file_behind_it(tmp_path: Path) -> None:
    (tmp_path / "real.h").write_text("")
    (tmp_path / "link.h").symlink_to("real.h")
    driver = module(tmp_path, {"a.c": ("link.h",)})
    assert len(units_for([tmp_path / "real.h"], driver).units) == 1
    assert len(units_for([tmp_path / "link.h"], driver).units) == 1


def test_an_include_that_an_edit_added_is_known_from_our_own_compile(tmp_path: Path) -> None:
    driver = module(tmp_path, {"a.c": ()})
    assert units_for([tmp_path / "new.h"], driver).not_part_of_build == (tmp_path / "new.h",)
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    notes = patched_object(driver.units[0], compiled).with_suffix(".d")
    notes.write_text(f"x.o: {tmp_path}/a.c {tmp_path}/new.h include/linux/module.h\n")
    selection = units_for([tmp_path / "new.h"], driver, compiled)
    assert selection.units == driver.units
    assert selection.not_part_of_build == ()


def test_makefiles_and_strangers_are_told_apart_from_units(tmp_path: Path) -> None:
    driver = module(tmp_path, {"a.c": ()})
    changed = [tmp_path / name for name in ("Kbuild", "new.c", "a.c", "sub/Makefile")]
    selection = units_for(changed, driver)
    assert selection.units == driver.units
    assert selection.makefiles_changed == (tmp_path / "Kbuild", tmp_path / "sub/Makefile")
    assert selection.not_part_of_build == (tmp_path / "new.c",)
