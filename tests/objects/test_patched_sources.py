# SPDX-License-Identifier: MIT
"""Source patches applied to copies of a module's files by patch(1)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hotreload.build.patched_sources import PatchedSources, apply_patches
from hotreload.build.source_patch import PatchUnfitError
from hotreload.errors import InputError
from tests.conftest import require

M_C = "int one;\nint two;\nint three;\nint four;\nint five;\nint six;\n"
EDIT = "@@ -1,5 +1,5 @@\n int one;\n int two;\n-int three;\n+int THREE;\n int four;\n int five;\n"
EDITED = M_C.replace("three", "THREE")

Apply = Callable[..., PatchedSources]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    require(shutil.which("patch"), "patch", "apt-get install patch")
    drv = tmp_path / "repo/drv"
    (drv / "sub").mkdir(parents=True)
    (drv / "m.c").write_text(M_C)
    (drv / "sub/s.h").write_text(M_C)
    (tmp_path / "repo/outside.c").write_text(M_C)
    return drv


@pytest.fixture
def apply(folder: Path, tmp_path: Path) -> Apply:
    """Apply patches, given as texts, to the folder; whose files stay as they are."""

    def apply(*texts: str | bytes) -> PatchedSources:
        patches = []
        for number, text in enumerate(texts):
            patches.append(tmp_path / f"{number}.patch")
            patches[-1].write_bytes(text if isinstance(text, bytes) else text.encode())
        before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        try:
            return asyncio.run(apply_patches(patches, folder))
        finally:
            assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before

    return apply


def edit(old: str, new: str | None = None, hunk: str = EDIT) -> str:
    return f"--- {old}\n+++ {new or old}\n{hunk}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a/m.c", "b/m.c"),
        ("m.c", "m.c"),
        ("m.c.orig", "m.c"),
        ("drv.old/m.c", "drv/m.c"),
        ("./m.c", "./m.c"),
        ("m.c\t2026-01-01 10:00:00", "m.c\t2026-01-02"),
    ],
)
def test_names_count_from_the_folder_with_and_without_a_prefix(
    old: str, new: str, apply: Apply, folder: Path
) -> None:
    found = apply(edit(old, new))
    assert found.texts == {folder / "m.c": EDITED.encode()}
    assert found.before == {folder / "m.c": M_C.encode()}


def test_names_count_from_the_top_of_a_repository_too(apply: Apply, folder: Path) -> None:
    (folder.parent / ".git").mkdir()
    assert set(apply(edit("a/drv/sub/s.h", "b/drv/sub/s.h")).texts) == {folder / "sub/s.h"}


def test_several_patches_build_on_each_other_and_what_comes_to_nothing_is_none(
    apply: Apply, folder: Path
) -> None:
    back = EDIT.replace("-int three", "-int THREE").replace("+int THREE", "+int three")
    again = EDIT.replace("-int three", "-int THREE").replace("+int THREE", "+int 3")
    assert (
        apply(edit("m.c"), edit("m.c", hunk=again)).texts[folder / "m.c"]
        == M_C.replace("three", "3").encode()
    )
    assert apply(edit("m.c"), edit("m.c", hunk=back)).texts == {}
    assert apply("", "\n").texts == {}


def test_files_come_go_and_get_other_names(apply: Apply, folder: Path) -> None:
    made = "--- /dev/null\n+++ b/inc/n.h\n@@ -0,0 +1 @@\n+int n;\n"
    lines = "".join(f"-{line}\n" for line in M_C.splitlines())
    gone = f"--- a/m.c\n+++ /dev/null\n@@ -1,6 +0,0 @@\n{lines}"
    rename = "diff --git a/{0} b/{1}\nrename from {0}\nrename to {1}\n".format
    moved = rename("sub/s.h", "t.h") + edit("a/sub/s.h", "b/t.h") + rename("sub/r.h", "r.h")
    (folder / "sub/r.h").write_text("int r;\n")
    assert apply(made + gone + moved).texts == {
        folder / "sub/r.h": None,
        folder / "r.h": b"int r;\n",
        folder / "inc/n.h": b"int n;\n",
        folder / "m.c": None,
        folder / "sub/s.h": None,
        folder / "t.h": EDITED.encode(),
    }


def test_a_file_that_a_patch_makes_can_be_changed_by_it(apply: Apply, folder: Path) -> None:
    made = "--- /dev/null\n+++ b/n.h\n@@ -0,0 +1 @@\n+int n;\n"
    later = "--- a/n.h\n+++ b/n.h\n@@ -1 +1,2 @@\n int n;\n+int o;\n"
    assert apply(made + later).texts == {folder / "n.h": b"int n;\nint o;\n"}


def test_a_change_that_has_moved_is_made_there_and_told(apply: Apply, folder: Path) -> None:
    (folder / "m.c").write_text("/* new */\n" + M_C)
    found = apply(edit("a/m.c", "b/m.c"))
    assert found.texts[folder / "m.c"] == ("/* new */\n" + EDITED).encode()
    assert found.notes == ("0.patch: change 1 of b/m.c fits at line 2, 1 lines away",)


@pytest.mark.parametrize("in_file", [False, True])
def test_a_patch_with_other_line_ends_than_it_was_made_with_still_fits(
    in_file: bool, apply: Apply, folder: Path
) -> None:
    end = "\r\n" if in_file else "\n"
    (folder / "m.c").write_bytes(M_C.replace("\n", end).encode())
    found = apply(edit("m.c").replace("\n", "\r\n").encode())
    assert found.texts[folder / "m.c"] == EDITED.replace("\n", end).encode()


def refused(apply: Apply, *texts: str | bytes) -> str:
    with pytest.raises(PatchUnfitError) as caught:
        apply(*texts)
    assert caught.value.hint
    return caught.value.message.partition(".patch ")[2]


def test_every_line_around_a_change_must_match(apply: Apply) -> None:
    # With patch's usual fuzz of 2 this one would fit.
    fact = refused(apply, edit("m.c").replace(" int one;", " int other;"))
    assert fact == "does not fit m.c: change 1, at line 1, finds other lines there"


def test_a_patch_that_is_in_already_is_told_from_one_that_does_not_fit(apply: Apply) -> None:
    assert refused(apply, edit("m.c"), edit("m.c")) == "is already in m.c, or is reversed"
    made = "--- /dev/null\n+++ b/sub/s.h\n@@ -0,0 +1 @@\n+int n;\n"
    assert refused(apply, made) == "creates b/sub/s.h, which already exists"


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside.c", "a/../../outside.c", "a/sub/../../../outside.c", "", '"a/m\\nx.c"'],
)
def test_names_that_lead_out_of_the_folder_are_refused(name: str, apply: Apply) -> None:
    assert refused(apply, edit(name)).startswith("names '")


def test_a_quoted_name_leads_nowhere_else_either(apply: Apply) -> None:
    assert refused(apply, edit('"a/\\056\\056/outside.c"')).startswith("names 'a/../outside.c'")


def test_files_of_the_repository_outside_of_the_folder_are_refused(apply: Apply, folder: Path) -> None:
    (folder.parent / ".git").mkdir()
    fact = refused(apply, edit("a/drv/m.c", "b/drv/m.c") + edit("a/outside.c", "b/outside.c"))
    assert fact == f"also changes {folder.parent}/outside.c, which is outside {folder}"


def test_a_link_that_leads_out_of_the_folder_is_not_followed(apply: Apply, folder: Path) -> None:
    (folder / "link.c").symlink_to("../outside.c")
    assert f"which is outside {folder}" in refused(apply, edit("a/link.c", "b/link.c"))


def test_a_file_that_is_not_there_is_named(apply: Apply, folder: Path) -> None:
    assert refused(apply, edit("m.c") + edit("x.c")) == f"changes x.c, which is not in {folder}"


def test_lines_that_are_added_blindly_are_refused(apply: Apply) -> None:
    fact = refused(apply, edit("m.c", hunk="@@ -2,0 +3 @@\n+int new;\n"))
    assert fact == "adds lines to m.c (line 3) without showing the lines around them"


def test_a_file_is_deleted_only_as_the_patch_shows_it(apply: Apply) -> None:
    gone = "--- a/m.c\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-int one;\n-int two;\n"
    assert refused(apply, gone) == "deletes a/m.c, which contains more than the patch shows"


def test_a_patch_that_is_not_there_is_bad_input(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        asyncio.run(apply_patches([folder / "no.patch"], folder))
    assert caught.value.code == "HR1009"
