# SPDX-License-Identifier: MIT
"""``hotreload build -p``: from a driver and a source patch to a module file for the packaged kernel."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotreload.build.kernel_tree import KernelTree
from hotreload.cli.main import main
from hotreload.elf.constants import SHN_LIVEPATCH
from hotreload.elf.reader import parse_object
from hotreload.patch_build import module_name_of
from hotreload.vm.kernel_modules import modinfo

FILES = {
    "Kbuild": "obj-m := pair.o\npair-y := main.o src/help.o\nccflags-y := -I$(src)/inc\n",
    "inc/pair.h": "int twice(int n);\n#define FIRST 1\n",
    "inc/unused.h": "#define UNUSED 5\n",
    "main.c": """\
#include <linux/module.h>
#include <linux/bug.h>
#include <pair.h>

static int calls;

int first(int n);
int first(int n)
{
	WARN_ON(n < 0);
	return n + FIRST;
}

int second(int n);
int second(int n)
{
	WARN_ON(n > 5);
	calls++;
	return twice(n) + calls;
}
MODULE_LICENSE("GPL");
""",
    "src/help.c": """\
#include <linux/kernel.h>
#include "../inc/pair.h"

int twice(int n)
{
	return 2 * n;
}
""",
    "debug.c": "int debug;\n",
    "README": "a driver\n",
}

Built = tuple[int, Any, str]
Build = Callable[..., Built]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / "drv" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "drv" / name).write_text(text)
    return tmp_path / "drv"


@pytest.fixture
def build(
    debian_kernel: KernelTree,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Build:
    """Build patches; the exit status, what JSON said on stdout, and what was told on stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def build(*patches: str, options: tuple[str, ...] = ()) -> Built:
        sources = {file: (folder / file).read_bytes() for file in FILES}
        words = ["build", str(folder), "-K", str(debian_kernel.output), "--json", *options]
        for number, text in enumerate(patches):
            (tmp_path / f"fix-{number}.patch").write_text(text)
            words += ["-p", str(tmp_path / f"fix-{number}.patch")]
        status = main(words)
        said = capsys.readouterr()
        assert {file: (folder / file).read_bytes() for file in FILES} == sources
        assert not [name for name in os.listdir(work) if name.startswith(".")]
        return status, json.loads(said.out), said.err

    return build


def patch(**edits: tuple[str, str]) -> str:
    """A diff of some FILES, by names with ``__`` for ``/`` and ``_`` for ``.``: what is replaced by what."""
    text = ""
    for key, (old, new) in edits.items():
        name = key.replace("__", "/").replace("_", ".")
        before = FILES.get(name, "")
        assert old in before
        after = before.replace(old, new) if old else new
        lines = (before.splitlines(keepends=True), after.splitlines(keepends=True))
        names = f"a/{name}" if before else "/dev/null", f"b/{name}" if after else "/dev/null"
        text += "".join(difflib.unified_diff(*lines, *names))
    return text


def changed(answer: Any) -> dict[str, list[str]]:
    return {name: diff["changed_functions"] for name, diff in answer["objects"].items()}


def test_a_patch_becomes_a_module_that_replaces_what_it_changed(build: Build) -> None:
    status, answer, told = build(patch(main_c=("twice(n) + calls", "twice(n) - calls")))
    assert (status, answer["verdict"], answer["module"]) == (0, "patchable", "livepatch-fix-0.ko")
    assert changed(answer) == {"main.o": ["second"]}
    assert "patchable" in told
    content = Path("livepatch-fix-0.ko").read_bytes()
    info = modinfo(content, "")
    assert (info["name"], info["livepatch"], info["license"]) == (["livepatch_fix_0"], ["Y"], ["GPL"])
    module = parse_object(content, "livepatch-fix-0.ko")
    assert module.symbol("second")
    assert module.symbol(".klp.sym.pair.calls,1")
    assert module.symbol("first") is None
    assert SHN_LIVEPATCH.to_bytes(2, "little") in content


def test_a_header_brings_all_units_and_moved_lines_bring_none(build: Build) -> None:
    lines = patch(
        inc__pair_h=("#define FIRST 1", "#define FIRST 2"), main_c=("static int", "/*\n */\nstatic int")
    )
    status, answer, _ = build(lines)
    # Without the base's line numbers the WARN_ON of second() would be another one.
    assert (status, changed(answer)) == (0, {"main.o": ["first"], "src/help.o": []})
    assert answer["objects"]["src/help.o"]["verdict"] == "unchanged"


def test_new_headers_and_headers_that_nobody_used_are_found(build: Build) -> None:
    status, answer, _ = build(
        patch(inc__new_h=("", "#define NEW 7\n")),
        patch(src__help_c=('pair.h"\n', 'pair.h"\n#include "unused.h"\n#include <new.h>\n'))
        + patch(main_c=("n + FIRST", "n + FIRST + FIRST")),
        options=("-o", "my-fix.ko"),
    )
    assert status == 0
    assert (answer["module"], Path("my-fix.ko").is_file()) == ("my-fix.ko", True)
    assert changed(answer) == {"main.o": ["first"], "src/help.o": []}


def test_the_author_of_a_patch_may_want_callbacks(build: Build) -> None:
    function = 'static void here(struct klp_object *object)\n{\n\tpr_info("here\\n");\n}\n'
    hook = f"{function}HOTRELOAD_POST_PATCH(here);\n"
    text = patch(main_c=("<pair.h>\n", f"<pair.h>\n#include <hotreload.h>\n\n{hook}"))
    status, answer, _ = build(text)
    assert (status, changed(answer), answer["objects"]["main.o"]["new_functions"]) == (
        0,
        {"main.o": []},
        ["here"],
    )
    assert parse_object(Path("livepatch-fix-0.ko").read_bytes(), "").symbol("here")


def test_a_header_that_is_used_now_is_part_of_the_build(build: Build) -> None:
    text = patch(inc__unused_h=("5", "6"), main_c=("n + FIRST", "n + UNUSED"))
    status, answer, told = build(text + patch(main_c=("<pair.h>", "<pair.h>\n#include <unused.h>")))
    assert (status, changed(answer)) == (0, {"main.o": ["first"]})
    assert "not part" not in told


def test_a_new_header_that_hides_another_one_changes_units_that_the_patch_does_not_name(
    build: Build, folder: Path
) -> None:
    (folder / "Kbuild").write_text(FILES["Kbuild"].replace("-I", "-I$(src)/early -I"))
    status, answer, _ = build(patch(early__pair_h=("", "int twice(int n);\n#define FIRST 9\n")))
    assert (status, changed(answer)) == (0, {"main.o": ["first"], "src/help.o": []})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the patch changes no file"),
        (patch(main_c=("static int", "/* all of it */ static int")), "the code is the same"),
        (patch(README=("a driver", "the driver")), "not part of the build: README"),
    ],
)
def test_a_patch_that_changes_no_code_makes_no_module(text: str, told: str, build: Build) -> None:
    Path("livepatch-fix-0.ko").write_text("of an earlier run")
    status, answer, said = build(text)
    assert (status, answer["verdict"], answer["module"]) == (0, "unchanged", None)
    assert told in said
    assert not Path("livepatch-fix-0.ko").exists()


def test_a_compile_error_names_the_users_file_and_the_lines_of_the_patch(build: Build, folder: Path) -> None:
    text = patch(main_c=("static int calls;\n", "/*\n*/\nstatic int calls\n"), src__help_c=("2 * n", "2 * m"))
    status, answer, said = build(text)
    assert (status, answer["code"]) == (3, "HR1003")
    assert f"{folder}/main.c:7:17: error:" in said
    assert f"{folder}/src/help.c:6:20: error: ‘m’ undeclared" in said
    assert ".patch-" not in said


def test_sources_that_do_not_compile_without_the_patch_are_told_as_such(build: Build, folder: Path) -> None:
    (folder / "main.c").write_text(FILES["main.c"].replace("static int calls;", "static int call;"))
    status, answer, _ = build(patch(src__help_c=("2 * n", "3 * n")))
    assert (status, answer["code"]) == (3, "HR1003")
    assert answer["message"].startswith(f"the build fails even without the patch: {folder}/main.c:")


def test_every_obstacle_is_told_at_once(build: Build) -> None:
    text = patch(
        main_c=("static int calls;", "static long calls;"),
        src__help_c=("return 2 * n", "extern int nowhere(void);\n\treturn 2 * n + nowhere()"),
        debug_c=("int debug", "int other"),
        more_c=("", "int more;\n"),
    )
    status, answer, said = build(text)
    assert (status, answer["verdict"], answer["module"]) == (4, "refused", None)
    assert [(o["code"], o["symbol"]) for o in answer["obstacles"]] == [
        ("HR1002", "debug.c"),
        ("HR1002", "more.c"),
    ]
    assert answer["objects"]["main.o"]["verdict"] == "refused"
    for word in ("debug.c", "more.c", "calls"):
        assert word in said


def test_what_only_the_plan_finds_stands_with_its_object(build: Build, folder: Path) -> None:
    text = patch(src__help_c=("return 2 * n", "extern int nowhere(void);\n\treturn 2 * n + nowhere()"))
    status, answer, _ = build(text)
    assert (status, answer["verdict"], answer["obstacles"]) == (4, "refused", [])
    (obstacle,) = answer["objects"]["src/help.o"]["obstacles"]
    assert (obstacle["code"], obstacle["symbol"]) == ("HR2209", "nowhere")
    assert (obstacle["file"], obstacle["line"]) == (str(folder / "src/help.c"), None)


@pytest.mark.parametrize(
    "text",
    [
        patch(Kbuild=("-I$(src)/inc", "-I$(src)/inc -DX")),
        patch(Kconfig=("", "config PAIR\n")),
        "--- a/src/help.c\n+++ /dev/null\n@@ -1,7 +0,0 @@\n"
        + "".join(f"-{line}\n" for line in FILES["src/help.c"].splitlines()),
    ],
)
def test_a_patch_of_the_recipe_is_refused(text: str, build: Build) -> None:
    status, answer, _ = build(text)
    assert (status, answer["verdict"]) == (4, "refused")
    assert [o["code"] for o in answer["obstacles"]] == ["HR1004"]


def test_the_driver_itself_is_no_output(build: Build, folder: Path) -> None:
    assert build(patch(src__help_c=("2 * n", "3 * n")))[0] == 0
    driver = (folder / "pair.ko").read_bytes()
    for output in (str(folder / "pair.ko"), "."):
        status, answer, _ = build("", options=("-o", output))
        assert (status, answer["code"]) == (2, "HR1009")
    assert (folder / "pair.ko").read_bytes() == driver


def test_a_patch_module_cannot_have_the_name_of_the_module(build: Build) -> None:
    status, answer, _ = build(patch(src__help_c=("2 * n", "3 * n")), options=("-o", "pair.ko"))
    assert (status, answer["code"]) == (2, "HR1009")
    assert not Path("pair.ko").exists()


def test_headers_that_are_found_through_a_link_are_the_patched_ones(
    build: Build, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "shared").symlink_to(folder / "inc")
    (folder / "Kbuild").write_text(FILES["Kbuild"].replace("-I$(src)/inc", f"-I{tmp_path}/shared"))
    text = patch(inc__pair_h=("#define FIRST 1", '#include "new.h"\n#define FIRST NEW'))
    status, answer, _ = build(text + patch(inc__new_h=("", "#define NEW 7\n")))
    assert (status, changed(answer)) == (0, {"main.o": ["first"], "src/help.o": []})


def test_a_link_that_leads_around_the_patch_is_noticed(build: Build, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/deep").symlink_to(folder / "inc")
    kbuild = FILES["Kbuild"].replace("-I$(src)/inc", f"-I$(src)/inc -I{tmp_path}/other")
    (folder / "Kbuild").write_text(kbuild)
    text = patch(main_c=("<pair.h>", "<deep/unused.h>\n#include <pair.h>"), inc__unused_h=("5", "6"))
    status, answer, _ = build(text)
    assert (status, answer["code"]) == (2, "HR1006")
    assert "deep/unused.h through a symlink that bypasses the patch" in answer["message"]


@pytest.mark.parametrize(
    ("file", "name"),
    [("livepatch-0001-fix.it.ko", "livepatch_0001_fix_it"), ("ä" * 9, "_" * 9), ("x" * 70 + ".ko", "x" * 55)],
)
def test_a_module_is_named_for_its_file_as_the_kernel_allows(file: str, name: str) -> None:
    assert module_name_of(Path("/some/where") / file) == name


def test_a_kernel_that_is_not_built_has_no_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("init/main.c", "Kconfig"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert main(["build", str(tmp_path), "-p", "x.patch"]) == 2
    said = capsys.readouterr().err
    assert f"error[HR1009]: the kernel in {tmp_path} is not built" in said
    assert "hotreload kernel build" in said


def test_of_a_helper_in_another_unit_that_init_has_called_it_is_told(build: Build, folder: Path) -> None:
    main_c, help_c = folder / "main.c", folder / "src/help.c"
    init = (
        "int prepare(void);\nstatic int __init start(void)\n{\n\treturn prepare();\n}\nmodule_init(start);\n"
    )
    main_c.write_text(main_c.read_text() + init)
    helper = """\
#include <linux/slab.h>
void *made;
int prepare(void);
int prepare(void)
{
	made = kmalloc(8, GFP_KERNEL);
	return made ? 0 : -ENOMEM;
}
"""
    before = help_c.read_text() + helper
    help_c.write_text(before)
    after = before.replace("GFP_KERNEL", "GFP_NOWAIT").replace("2 * n", "3 * n")
    lines = (before.splitlines(keepends=True), after.splitlines(keepends=True))
    status, answer, told = build("".join(difflib.unified_diff(*lines, "a/src/help.c", "b/src/help.c")))
    assert (status, answer["verdict"]) == (0, "patchable")
    assert (
        "prepare changed, and is called when the module is loaded: what was made from the old one stays"
        in told
    )
    assert "twice changed, and is called" not in told
