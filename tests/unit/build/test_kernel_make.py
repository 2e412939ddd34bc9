# SPDX-License-Identifier: MIT
"""Where a kernel is built, with what, and what is told when it is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hotreload.build import kernel_make
from hotreload.build.kernel_make import diagnostics, find_source, missing_packages, release_words
from hotreload.errors import InputError


def sources(folder: Path) -> Path:
    (folder / "init").mkdir(parents=True)
    for name in ("Kconfig", "Makefile", "init/main.c"):
        (folder / name).touch()
    return folder


def test_a_tree_is_built_in_place_or_where_asked_for(tmp_path: Path) -> None:
    tree = sources(tmp_path / "linux")
    assert find_source(tree) == (tree, tree)
    assert find_source(tree, tmp_path / "built") == (tree, tmp_path / "built")


def test_an_output_folder_is_built_again_from_its_sources(tmp_path: Path) -> None:
    tree, built = sources(tmp_path / "linux"), tmp_path / "built"
    built.mkdir()
    (built / "source").symlink_to(tree)
    assert find_source(built) == (tree, built)


def test_a_folder_without_sources_is_no_place_to_build(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path} does not contain kernel sources")) as raised:
        find_source(tmp_path)
    assert "apt-get install linux-source" in (raised.value.hint or "")


@pytest.mark.parametrize("name", ["a tree", "a:tree"])
def test_a_path_that_make_takes_apart_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no space or colon"):
        find_source(sources(tmp_path / name))
    with pytest.raises(InputError, match="no space or colon"):
        find_source(sources(tmp_path / "linux"), tmp_path / name)


def test_sources_that_were_built_in_place_are_built_nowhere_else(tmp_path: Path) -> None:
    tree = sources(tmp_path / "linux")
    (tree / ".config").touch()
    with pytest.raises(InputError, match="was built in place"):
        find_source(tree, tmp_path / "built")


def test_only_what_a_configuration_needs_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kernel_make,
        "PROGRAMS",
        (
            ("", "sh", "dash"),
            ("", "no-such-program", "always-needed"),
            ("", "/no/such/header.h", "libheader-dev"),
            ("KERNEL_XZ", "no-such-program", "xz-utils"),
            ("KERNEL_ZSTD", "no-such-program", "zstd"),
        ),
    )
    found = list(missing_packages({"KERNEL_XZ": "y", "KERNEL_ZSTD": "n"}))
    assert found == ["always-needed", "libheader-dev", "xz-utils"]


def test_a_failure_is_told_in_the_compilers_own_lines() -> None:
    error = "fs/a.c:1:5: error: expected ';'\n    1 | int a\n      |     ^\n"
    assert diagnostics(error + "make[3]: *** [fs/a.o] Error 1\nmake: *** [all] Error 2\n") == error
    assert diagnostics("make: *** No rule to make target 'x'.\n") == "make: *** No rule to make target 'x'.\n"


def test_git_never_adds_to_the_release_but_who_names_a_version_keeps_it() -> None:
    assert release_words({}) == ["LOCALVERSION="]
    assert release_words({"LOCALVERSION": "-mine"}) == []
