# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hotreload.build.cmd_files import split_command
from hotreload.survey.answers import Answer, with_source
from hotreload.survey.command import parse_options, print_answer, print_counts, spread, write_json
from hotreload.survey.kernel_build import BuiltKernel, listed_versions, read_unit
from hotreload.survey.real_fixes import fixed_units, share
from hotreload.survey.self_check import with_a_comment

NOTES = """savedcmd_net/core/dev.o := gcc -I../include -DBASE='"dev"' -c -o net/core/dev.o {source} \\
  ; ./tools/objtool/objtool --mcount net/core/dev.o
source_net/core/dev.o := {source}
deps_net/core/dev.o := \\
  include/linux/module.h \\
"""


def answer(unit: str, verdict: str, *obstacles: str) -> Answer:
    return Answer(unit, verdict, obstacles=tuple((code, "f", "why") for code in obstacles))


@pytest.fixture
def kernel(tmp_path: Path) -> BuiltKernel:
    source, output = tmp_path / "linux", tmp_path / "built"
    for folder in (source, output):
        (folder / "net/core").mkdir(parents=True)
    (source / "net/core/dev.c").write_text("int f(void);\n")
    (output / "net/core/.dev.o.cmd").write_text(NOTES.format(source=source / "net/core/dev.c"))
    unit = read_unit(output, output / "net/core/dev.o")
    assert unit is not None
    return BuiltKernel(source, output, (unit,))


def test_a_unit_is_read_from_kbuilds_notes_and_named_as_in_the_kernel(kernel: BuiltKernel) -> None:
    (unit,) = kernel.units
    assert (unit.source, unit.cwd, unit.module) == (
        kernel.source / "net/core/dev.c", kernel.output, "vmlinux",
    )  # fmt: skip
    assert kernel.name_of(unit) == "net/core/dev.c"


@pytest.mark.parametrize("name", ["nothing.o", "entry.o", "built-in.o"])
def test_what_is_not_compiled_from_c_is_no_unit(name: str, tmp_path: Path) -> None:
    (tmp_path / ".entry.o.cmd").write_text(
        "savedcmd_entry.o := gcc -c -o entry.o entry.S\nsource_entry.o := entry.S\n"
    )
    (tmp_path / ".built-in.o.cmd").write_text("savedcmd_built-in.o := ld -r -o built-in.o a.o b.o\n")
    assert read_unit(tmp_path, tmp_path / name) is None


def test_another_text_is_compiled_with_the_headers_beside_the_original(kernel: BuiltKernel) -> None:
    unit = with_source(kernel.units[0], Path("/fixed/dev.c"))
    recorded = split_command(unit.command)
    assert recorded.compile == (
        "gcc", "-iquote", str(kernel.source / "net/core"), "-I../include", '-DBASE="dev"',
        "-c", "-o", "net/core/dev.o", "/fixed/dev.c",
    )  # fmt: skip
    assert recorded.after == (("./tools/objtool/objtool", "--mcount", "net/core/dev.o"),)
    assert unit.object == kernel.units[0].object


def test_a_source_spelled_with_a_step_up_is_found_in_its_command(kernel: BuiltKernel) -> None:
    (unit,) = kernel.units
    spelled = unit.command.replace("/linux/net/core/dev.c", "/linux/net/ipv4/../core/dev.c")
    changed = with_source(replace(unit, command=spelled), Path("/fixed/dev.c"))
    assert split_command(changed.command).compile[-1] == "/fixed/dev.c"


def test_only_sources_that_say_something_else_are_fixes(kernel: BuiltKernel, tmp_path: Path) -> None:
    new = tmp_path / "new"
    assert fixed_units(kernel, new) == []
    (new / "net/core").mkdir(parents=True)
    (new / "net/core/dev.c").write_text("int f(void);\n")
    assert fixed_units(kernel, new) == []
    (new / "net/core/dev.c").write_text("int f(int);\n")
    assert fixed_units(kernel, new) == list(kernel.units)


def test_the_comment_of_the_self_check_moves_every_line(kernel: BuiltKernel) -> None:
    assert with_a_comment(kernel.units[0]).splitlines()[1:] == ["int f(void);"]


def test_the_share_leaves_out_what_changes_no_code_or_does_not_compile(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = [
        answer("a.c", "patchable"), answer("b.c", "refused", "HR2101"), answer("c.c", "unchanged"),
        answer("d.c", "failed", "HR1003"), answer("e.c", "broken", "HR0000"), answer("f.c", "patchable"),
    ]  # fmt: skip
    assert share(answers) == 50.0
    assert capsys.readouterr().out == "2 of 4 pairs that change code are patchable: 50.0 %\n"


def test_the_end_counts_refusals_by_code_and_tells_the_longest(capsys: pytest.CaptureFixture[str]) -> None:
    long = Answer("x.c", "patchable", ("f",), seconds=0.25, size=(600, 9000))
    both = answer("b.c", "refused", "HR2101", "HR2101", "HR2105")
    print_counts([long, both, answer("c.c", "refused", "HR2101")])
    assert capsys.readouterr().out.splitlines() == [
        "     1 patchable",
        "     2 refused",
        "            2 for HR2101",
        "            1 for HR2105",
        "differ: median 250 ms, longest 250 ms (x.c: 600 symbols, 9000 relocations)",
    ]


def test_each_pair_is_a_line_with_its_reasons_below(capsys: pytest.CaptureFixture[str]) -> None:
    print_answer(Answer("x.c", "refused", ("f", "g"), obstacles=(("HR2101", "s", "struct s grew"),)))
    assert capsys.readouterr().out.splitlines() == [
        "refused    x.c  2 functions changed",
        "           HR2101 struct s grew",
    ]


def test_a_limit_takes_pairs_evenly() -> None:
    assert (spread(range(10), 5), spread([1, 2], 5), spread("abc", None)) == ([0, 2, 4, 6, 8], [1, 2], "abc")


def test_answers_are_written_in_the_order_of_their_units(tmp_path: Path) -> None:
    answers = [answer("b.c", "patchable"), answer("a.c", "refused", "HR2101")]
    write_json(answers, tmp_path / "all.json", {"b.c": {"reached": "undone"}})
    rows = json.loads((tmp_path / "all.json").read_text())
    assert [(row["unit"], row["verdict"]) for row in rows] == [("a.c", "refused"), ("b.c", "patchable")]
    assert [row.get("guest") for row in rows] == [None, {"reached": "undone"}]


def test_the_configuration_is_the_wide_one() -> None:
    options = parse_options("", ["--limit", "3"], new=True)
    assert (options.config, options.limit, options.old, options.new) == ("virtio", 3, None, None)


def test_the_newest_version_that_apt_lists_is_its_first() -> None:
    text = (
        " linux-source-6.1 |  6.1.192-2 | http://deb.example/debian bookworm/main amd64 Packages\n"
        "linux-source-6.1 | 6.1.176-1 | http://deb.example/debian bookworm/main amd64 Packages\n"
    )
    assert (listed_versions(text), listed_versions("")) == (["6.1.192-2", "6.1.176-1"], [])


@pytest.mark.parametrize("argument", ["0", "-2", "many"])
def test_nothing_at_a_time_is_no_answer(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options("", ["--jobs", argument])
    assert f"invalid _count value: '{argument}'" in capsys.readouterr().err
