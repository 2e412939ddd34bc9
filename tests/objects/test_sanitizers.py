# SPDX-License-Identifier: MIT
"""Units of a kernel that checks itself: KASAN and UBSAN add calls and data of their own to each."""

from __future__ import annotations

from pathlib import Path

from hotreload.build.replay import SECTION_FLAGS, replayed
from hotreload.diff.object_diff import ObjectDiff, diff_objects
from hotreload.diff.running_code import made_alike, match_running
from hotreload.elf.model import ObjectFile
from hotreload.elf.reader import read_object
from tests.objects.compiling import FLAGS, run

# As kbuild sets them with KASAN_OUTLINE, KASAN_STACK and UBSAN (scripts/Makefile.kasan, Makefile.ubsan).
CHECKS = """-fsanitize=kernel-address --param asan-globals=1 --param asan-instrument-allocas=1
    --param asan-instrumentation-with-call-threshold=0 --param asan-stack=1
    -fsanitize=bounds -fsanitize=shift -fsanitize=bool -fsanitize=enum""".split()

SOURCE = """
    static int table[8];
    static const char *const names[] = { "a", "b" };
    static struct { int a; const char *name; } settings = { 3, "three" };
    int at(int i, int by) { table[i] += 1 << by; printk("at %d", table[i]); return table[i]; }
    const char *name(int i) { char buffer[20]; take(buffer); return names[i & 1]; }
    const char *of_settings(void) { return settings.name; }
"""


def as_replayed(tmp_path: Path, text: str, *, absolute: bool = False) -> ObjectFile:
    """Compiled as a replay compiles it; ``absolute``: by the whole name of the file."""
    source = tmp_path / "unit.c"
    source.write_text("int printk(const char *, ...); void take(void *);\n" + text)
    target = tmp_path / "replayed.o"
    argv = replayed(
        ("gcc", *FLAGS, *CHECKS, "-c", str(source) if absolute else source.name),
        output=target,
        dependencies=tmp_path / "d",
        debug=(),
    )
    run(list(argv), tmp_path)
    return read_object(target)


def difference(tmp_path: Path, before: str, after: str) -> ObjectDiff:
    return diff_objects(as_replayed(tmp_path, before), as_replayed(tmp_path, after))


def as_kbuild(tmp_path: Path, text: str, *, absolute: bool = False) -> ObjectFile:
    """Compiled with its strings and variables side by side."""
    source = tmp_path / "unit.c"
    source.write_text("int printk(const char *, ...); void take(void *);\n" + text)
    flags = [flag for flag in FLAGS if flag not in SECTION_FLAGS]
    run(["gcc", *flags, *CHECKS, "-c", str(source) if absolute else source.name, "-o", "kbuild.o"], tmp_path)
    return read_object(tmp_path / "kbuild.o")


def told(diff: ObjectDiff) -> str:
    return "\n".join(map(str, diff.obstacles))


def test_a_unit_with_checks_compiled_twice_is_unchanged(tmp_path: Path) -> None:
    diff = difference(tmp_path, SOURCE, SOURCE)
    assert (diff.verdict, told(diff)) == ("unchanged", "")


def test_an_edited_text_is_no_change_of_the_variables_beside_it(tmp_path: Path) -> None:
    diff = difference(tmp_path, SOURCE, SOURCE.replace('"at %d"', '"at place %d"'))
    assert (told(diff), diff.changed_functions) == ("", ("at",))


def test_the_record_of_a_check_travels_with_the_code_that_hands_it_over(tmp_path: Path) -> None:
    diff = difference(tmp_path, SOURCE, SOURCE.replace("1 << by", "3 << by"))
    sections = sorted({s.section.name for s in diff.carried if s.section and "ubsan" in s.section.name})
    assert (told(diff), diff.changed_functions) == ("", ("at",))
    assert {name.rstrip("0123456789") for name in sections} == {".data..Lubsan_data", ".data..Lubsan_type"}


def test_a_record_that_nobody_refers_to_is_no_change(tmp_path: Path) -> None:
    # gcc leaves such records where it finds out late that a check is not needed.
    record = '__asm__(".pushsection .data..Lubsan_data900, \\"aw\\"\\n .long LINE, 7, 0, 0\\n .popsection");'
    diff = difference(tmp_path, SOURCE + record.replace("LINE", "12"), SOURCE + record.replace("LINE", "13"))
    assert (told(diff), diff.verdict) == ("", "unchanged")


def test_a_new_check_is_a_change_of_its_function_only(tmp_path: Path) -> None:
    diff = difference(tmp_path, SOURCE, SOURCE.replace("names[i & 1]", "names[i & 1] + table[i + 1]"))
    assert (told(diff), diff.changed_functions) == ("", ("name",))


def test_a_new_variable_brings_no_constructor(tmp_path: Path) -> None:
    after = SOURCE.replace("int at(", "static int calls[4]; int at(")
    after = after.replace("return table", "calls[i & 3]++; return table", 1)
    diff = difference(tmp_path, SOURCE, after)
    assert (told(diff), diff.changed_functions) == ("", ("at",))
    assert sorted(symbol.name for symbol in diff.carried if not symbol.anonymous) == [
        "at",
        "at.cold",
        "calls",
    ]


def test_the_code_that_runs_is_known_though_its_strings_stand_elsewhere(tmp_path: Path) -> None:
    running = match_running(as_kbuild(tmp_path, SOURCE), as_replayed(tmp_path, SOURCE))
    assert [symbol.name for symbol in running.different] == []


def test_code_with_another_string_or_another_record_is_other_code(tmp_path: Path) -> None:
    for edit in (('"at %d"', '"to %d"'), ("table[8]", "table[9]")):
        running = match_running(as_kbuild(tmp_path, SOURCE), as_replayed(tmp_path, SOURCE.replace(*edit)))
        assert "at" in {symbol.name.removesuffix(".cold") for symbol in running.different}


# KASAN looks at accesses to another file's variables only where variables have red zones.
OTHERS = "extern int others; int f(int i) { return others + i; } int g(int i) { return i * 3; }"


def test_code_that_our_flags_change_is_proved_by_the_flags_of_kbuild(tmp_path: Path) -> None:
    plain, base = as_kbuild(tmp_path, OTHERS), as_replayed(tmp_path, OTHERS)
    different = match_running(plain, base).different
    assert {symbol.name for symbol in different} == {"f"}  # else this proves nothing
    assert made_alike(plain, as_kbuild(tmp_path, OTHERS)) == {"f", "g"}
    assert made_alike(plain, as_kbuild(tmp_path, OTHERS.replace("+ i", "- i"))) == {"g"}


def test_the_name_of_the_file_in_a_record_says_nothing_of_the_code(tmp_path: Path) -> None:
    """The base is compiled from a copy in a folder of ours, and its records name that."""
    copy = tmp_path / "shadow" / str(tmp_path).removeprefix("/")
    copy.mkdir(parents=True)
    here, there = as_replayed(tmp_path, SOURCE, absolute=True), as_replayed(copy, SOURCE, absolute=True)
    assert diff_objects(there, here).verdict == "unchanged"
    plain = as_kbuild(tmp_path, SOURCE, absolute=True)
    assert not match_running(plain, there).different
    assert made_alike(plain, as_kbuild(copy, SOURCE, absolute=True)) >= {"at", "at.cold", "name"}
