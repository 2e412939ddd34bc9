# SPDX-License-Identifier: MIT
"""kbuild's notes, as texts."""

from __future__ import annotations

import pytest

from hotreload.build.cmd_files import (
    dependency_file,
    is_compile,
    late_steps,
    modpost_flags,
    parse_cmd_file,
    parse_dependency_file,
    parse_mod_file,
    parse_modules_order,
    split_command,
    split_late,
    split_link,
)
from hotreload.errors import InputError

CMD_6_1 = r"""cmd_/m/foo.o := gcc-12 -Wp,-MMD,/m/.foo.o.d -I./include -DKBUILD_BASENAME='"foo"' -DCASH='$$' -c -o /m/foo.o /m/foo.c   ; ./tools/objtool/objtool --orc   --module /m/foo.o

source_/m/foo.o := /m/foo.c

deps_/m/foo.o := \
    $(wildcard include/config/FOO) \
  /m/foo.h \
  include/linux/module.h \
    $(wildcard include/config/SMP) \
  include/linux/list.h \

/m/foo.o: $(deps_/m/foo.o)

$(deps_/m/foo.o):

/m/foo.o: $(wildcard ./tools/objtool/objtool)
"""  # noqa: E501


def test_a_cmd_file_tells_command_source_and_dependencies() -> None:
    notes = parse_cmd_file(CMD_6_1)
    assert notes.target == "/m/foo.o"
    assert notes.source == "/m/foo.c"
    assert notes.dependencies == ("/m/foo.h", "include/linux/module.h", "include/linux/list.h")


def test_the_command_is_split_into_compiler_and_objtool_without_makes_escapes() -> None:
    recorded = split_command(parse_cmd_file(CMD_6_1).command)
    assert recorded.compile == (
        *("gcc-12", "-Wp,-MMD,/m/.foo.o.d", "-I./include", '-DKBUILD_BASENAME="foo"', "-DCASH=$"),
        *("-c", "-o", "/m/foo.o", "/m/foo.c"),
    )
    assert recorded.after == (("./tools/objtool/objtool", "--orc", "--module", "/m/foo.o"),)


def test_objtools_call_on_a_linked_module_is_made_on_each_of_its_objects() -> None:
    link = "ld -r -o /m/drv.o @/m/drv.mod  ; ./tools/objtool/objtool --ibt --orc   --link  --module /m/drv.o"
    late = late_steps(link, "/m/foo.o")
    assert split_late(late) == (
        ("./tools/objtool/objtool", "--ibt", "--orc", "--link", "--module", "/m/foo.o"),
    )


@pytest.mark.parametrize("link", ["", "ld -r -o /m/drv.o @/m/drv.mod"])
def test_a_link_that_objtool_does_not_follow_leaves_nothing_to_do(link: str) -> None:
    assert split_late(late_steps(link, "/m/foo.o")) == ()


def test_savedcmd_of_newer_kernels_is_read_and_pound_signs_are_restored() -> None:
    notes = parse_cmd_file("savedcmd_foo.o := gcc -DA='$(pound)1' -DB='\\#2' -c -o foo.o foo.c\n")
    assert split_command(notes.command).compile == ("gcc", "-DA=#1", "-DB=#2", "-c", "-o", "foo.o", "foo.c")


def test_symbol_versions_appended_to_a_cmd_file_do_not_matter() -> None:
    notes = parse_cmd_file(CMD_6_1 + "\n#SYMVER foo 0x12345678\n")
    assert notes.dependencies[-1] == "include/linux/list.h"


def test_a_link_is_not_a_compile_and_has_no_source() -> None:
    notes = parse_cmd_file("cmd_/m/foo.o := ld -m elf_x86_64 -r -o /m/foo.o @/m/foo.mod ;  true\n")
    assert notes.source is None
    assert not is_compile(notes.command)


@pytest.mark.parametrize(
    "command",
    ["ccache gcc-12 -c -o a.o a.c", "x86_64-linux-gnu-gcc-12 -c -o a.o a.c", "/usr/bin/gcc -c -o a.o a.c"],
)
def test_wrapped_and_prefixed_compilers_are_compilers(command: str) -> None:
    assert is_compile(command)
    assert split_command(command).after == ()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("ld -r -o foo.o a.o b.o", "does not begin with gcc"),
        ("clang -c -o foo.o foo.c", "does not begin with gcc"),
        ("gcc -E foo.c", "does not begin with gcc"),
        ("gcc -c -o foo.o foo.c ; true", "continues with true"),
        ("gcc -c -o foo.o foo.c ; ./scripts/recordmcount foo.o", "continues with ./scripts/recordmcount"),
        ("gcc -c -o foo.o foo.c && scripts/basic/fixdep x y z", "continues with scripts/basic/fixdep"),
        ("gcc -c -o foo.o foo.c > log", "needs a shell"),
        ("gcc -DV=`date` -c -o foo.o foo.c", "needs a shell"),
        ("gcc -DV='x -c -o foo.o foo.c", "quotes do not match"),
        ("", "does not begin with gcc"),
    ],
)
def test_a_command_that_is_not_gcc_then_objtool_is_refused(command: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as refused:
        split_command(command)
    assert refused.value.code == "HR1009"


def test_a_file_without_a_command_is_refused() -> None:
    with pytest.raises(InputError, match="no cmd_ line"):
        parse_cmd_file("deps_foo.o := bar.h\n")


def test_a_dependency_file_lists_the_source_first_and_each_file_once() -> None:
    text = "foo.o: /m/foo.c \\\n include/a.h /m/my\\ dir/b.h \\\n include/a.h\n"
    assert parse_dependency_file(text) == ("/m/foo.c", "include/a.h", "/m/my dir/b.h")


def test_a_dependency_file_of_ours_reads_like_gccs() -> None:
    files = ("/m/foo.c", "include/a.h", "/m/my dir/b.h", "/m/$x#y:z.h", "/m/back\\slash.h")
    assert parse_dependency_file(dependency_file("foo.o", files)) == files


@pytest.mark.parametrize("text", ["/m/a.o\n/m/sub/b.o\n", "/m/a.o /m/sub/b.o\n\n"])
def test_objects_of_a_module_are_read_in_the_old_and_the_new_form(text: str) -> None:
    assert parse_mod_file(text) == ("/m/a.o", "/m/sub/b.o")


def test_modules_order_names_modules_by_ko_or_by_o() -> None:
    assert parse_modules_order("/m/a.ko\n/m/sub/b-c.ko\n") == ("/m/a", "/m/sub/b-c")
    assert parse_modules_order("a.o\nsub/b-c.o\n") == ("a", "sub/b-c")
    assert parse_modules_order("") == ()


@pytest.mark.parametrize(
    "command",
    [
        "scripts/mod/modpost -M -m  -E     -o Module.symvers -T modules.order vmlinux.o",
        "sed 's/ko$/o/'  modules.order | scripts/mod/modpost -M -m  -E    -o Module.symvers -T - vmlinux.o",
        "scripts/mod/modpost -M -m -t -u list -i vmlinux.symvers -E -o Module.symvers -T modules.order",
    ],
)
def test_of_a_call_of_modpost_the_flags_are_kept_and_the_files_are_not(command: str) -> None:
    assert modpost_flags(command) == ("-M", "-m", "-E")


def test_what_is_no_call_of_modpost_is_refused() -> None:
    with pytest.raises(InputError, match="does not call modpost"):
        modpost_flags("cp a b")


def test_the_link_of_a_module_is_ld_and_where_kbuild_calls_it_objtool() -> None:
    assert split_link("ld -r -T scripts/module.lds -o a.ko a.o a.mod.o;  true") == (
        ("ld", "-r", "-T", "scripts/module.lds", "-o", "a.ko", "a.o", "a.mod.o"),
    )
    steps = split_link(
        "/usr/bin/x86_64-linux-gnu-ld.bfd -r -o a.o @a.mod ; ./tools/objtool/objtool --ibt a.o"
    )
    assert [step[0].rpartition("/")[2] for step in steps] == ["x86_64-linux-gnu-ld.bfd", "objtool"]
    for other in ("ld -r -o a.o @a.mod ; strip a.o", "true", "gcc -o a.o -c a.c"):
        with pytest.raises(InputError, match="no link"):
            split_link(other)


def test_a_compiler_behind_a_cache_is_run_without_it() -> None:
    recorded = split_command("ccache gcc-12 -O2 -c -o a.o a.c ; ./tools/objtool/objtool --orc a.o")
    assert recorded.compile == ("gcc-12", "-O2", "-c", "-o", "a.o", "a.c")
    assert split_command("/usr/bin/gcc -c -o a.o a.c").compile[0] == "/usr/bin/gcc"
