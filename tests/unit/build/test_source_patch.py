# SPDX-License-Identifier: MIT
from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotreload.build.source_patch import FilePatch, PatchUnfitError, parse_patch

HUNK = "@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n"


def parsed(text: str) -> list[tuple[str | None, str | None]]:
    return [(file.old, file.new) for file in parse_patch(text.encode(), "fix.patch")]


def refused(text: str) -> str:
    with pytest.raises(PatchUnfitError) as caught:
        parse_patch(text.encode(), "fix.patch")
    assert (caught.value.code, caught.value.exit_status) == ("HR1010", 2)
    return caught.value.message


def test_a_file_is_its_names_and_its_hunks_and_a_mail_around_them_is_nothing() -> None:
    head = "From: me\n\nMend it\n---\n m.c | 2 +-\n\ndiff --git a/m.c b/m.c\n"
    text = f"{head}--- a/m.c\n+++ b/m.c\n{HUNK}-- \n2.39\n"
    assert parse_patch(text.encode(), "fix.patch") == (
        FilePatch("a/m.c", "b/m.c", f"--- a/m.c\n+++ b/m.c\n{HUNK}".encode()),
    )


def test_a_removed_line_that_looks_like_a_header_is_a_line() -> None:
    text = "--- a/m.c\n+++ b/m.c\n@@ -1,2 +1,1 @@\n--- a/x.c\n one\n--- n.c\n+++ n.c\n" + HUNK
    assert parsed(text) == [("a/m.c", "b/m.c"), ("n.c", "n.c")]


def test_a_file_that_comes_or_goes_has_one_name() -> None:
    made = "--- /dev/null\n+++ b/n.h\n@@ -0,0 +1 @@\n+new\n"
    gone = "--- old/o.h\t2026-01-01\n+++ new/o.h\t1970-01-01 00:00:00.000000000 +0000\n@@ -1 +0,0 @@\n-old\n"
    assert parsed(made + gone) == [(None, "b/n.h"), ("old/o.h", None)]


def test_a_file_that_becomes_empty_is_there() -> None:
    assert parsed("--- a/m.h\n+++ b/m.h\n@@ -1 +0,0 @@\n-old\n") == [("a/m.h", "b/m.h")]


def test_git_tells_of_renamed_and_copied_files_with_and_without_hunks() -> None:
    text = (
        "diff --git a/x.h b/y.h\nsimilarity index 100%\nrename from x.h\nrename to y.h\n"
        f"diff --git a/m.c b/n.c\ncopy from m.c\ncopy to n.c\n--- a/m.c\n+++ b/n.c\n{HUNK}"
        "diff --git p.h q.h\nrename from p.h\nrename to q.h\n"
    )
    files = parse_patch(text.encode(), "fix.patch")
    assert [(f.old, f.new, f.moved, bool(f.text)) for f in files] == [
        ("a/x.h", "b/y.h", "rename", False),
        ("a/m.c", "b/n.c", "copy", True),
        ("p.h", "q.h", "rename", False),
    ]


def test_names_may_be_quoted_and_have_blanks() -> None:
    text = '--- "a/f\\303\\244 \\"x\\".c"\n+++ b/my file.c\t2026-01-01\n' + HUNK
    assert parsed(text) == [('a/fä "x".c', "b/my file.c")]


def test_the_blank_of_an_empty_line_may_be_lost_and_the_last_line_need_not_end() -> None:
    text = "--- a/m.c\n+++ b/m.c\n@@ -1,3 +1,2 @@\n one\n\n-two\n\\ No newline at end of file\n"
    (file,) = parse_patch(text.encode(), "fix.patch")
    assert file.text == text.encode()


def test_a_hunk_that_shows_nothing_around_its_lines_is_marked() -> None:
    (file,) = parse_patch(b"--- a/m.c\n+++ b/m.c\n@@ -7,0 +8 @@\n+new\n", "fix.patch")
    assert file.blind == 3


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_an_empty_patch_has_no_files(text: str) -> None:
    assert parsed(text) == []


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("int x;\n", "fix.patch is not a patch"),
        ("--- a/m.c\n+++ b/m.c\n@@ -1,3 +1,3 @@\n one\n", "line 5: a truncated hunk"),
        ("--- a/m.c\n+++ b/m.c\n@@ -1 +1 @@\n-one\nprose\n", "line 5: a truncated hunk"),
        ("--- a/m.c\n+++ b/m.c\nprose\n", "a file without a hunk"),
        (HUNK, "line 1: a hunk without a file name"),
        ("*** a/m.c\n--- b/m.c\n***************\n", "line 1: a context diff"),
        ("diff --git a/x b/x\nGIT binary patch\nliteral 3\n", "line 2: a binary difference"),
        ("Binary files a/x.o and b/x.o differ\n", "line 1: a binary difference"),
    ],
)
def test_what_is_no_unified_diff_is_refused_with_its_line(text: str, fact: str) -> None:
    assert fact in refused(text)


PIECES = (
    *("--- a/m.c", "+++ b/m.c", "--- /dev/null", '+++ "b/\\303', "--- ", "+++ "),
    *("@@ -1 +1 @@", "@@ -0,0 +9 @@", "@@ -1,2 +1,3 @@ f(", "-one", "+one", " one", "", "\\ No newline"),
    *("diff --git a/m.c b/n.c", "rename from m.c", "rename to n.c", "copy to n.c"),
    *("GIT binary patch", "*** a", "\xff", "\r"),
)


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("\n".join))
def test_whatever_a_patch_says_it_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(PatchUnfitError):
        files = parse_patch(text.encode("latin-1"), "fix.patch")
        assert all(file.text.startswith(b"--- ") or file.moved for file in files)
