# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""``hotreload diff -o``: an object of what a patch would carry, as binutils and our own reader see it."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from hotreload.cli.main import main
from hotreload.diff.object_diff import diff_objects
from hotreload.elf.model import ConstRef, ObjectFile, StringRef, Symbol, SymbolRef
from hotreload.elf.reader import parse_object, read_object
from hotreload.patch.excerpt import write_excerpt
from tests.objects.compiling import assembled, compiled, run
from tests.objects.test_corpus import NAMES, sides

SOURCE = """
int ext(int);
static int count = 3;
static noinline int helper(int i) { static int count = 7; return ext(count += i); }
int f(int i) { printk("value %d\\n", i); count += helper(i); return i + OLD; }
static noinline int same(int i) { return ext(i) + 3; }
int g(int i) { return same(i) + count; }
"""


def excerpt_of(tmp_path: Path, before: str, after: str, *flags: str) -> tuple[Path, ObjectFile]:
    """The file, and the patched object that it is of."""
    original = read_object(compiled(before, tmp_path / "before", *flags))
    patched = read_object(compiled(after, tmp_path / "after", *flags))
    return written(tmp_path, original, patched), patched


def written(tmp_path: Path, original: ObjectFile, patched: ObjectFile) -> Path:
    diff = diff_objects(original, patched)
    assert diff.verdict == "patchable", diff.obstacles
    out = tmp_path / "out.o"
    out.write_bytes(write_excerpt(diff, patched))
    done = subprocess.run(["readelf", "--lint", "-aW", out], capture_output=True, text=True, check=True)
    assert "arning" not in done.stderr
    assert done.stderr == ""
    return out


def edit(source: str, *, added: str = "") -> tuple[str, str]:
    return source.replace("OLD", "1"), added + source.replace("OLD", "2")


def symbols(out: Path) -> dict[str, str]:
    """What nm calls them: T and D are global, t and d local, U undefined."""
    listing = run(["nm", str(out)], out.parent)
    return {name: kind for kind, name in re.findall(r"([a-zA-Z]) (\S+)$", listing, re.MULTILINE)}


def code(file: Path, function: str) -> str:
    """What objdump shows of a function, addresses and relocations included."""
    listing = run(["objdump", "-dr", f"-j.text.{function}", str(file)], file.parent)
    return listing.partition(f"<{function}>:\n")[2]


def symbol(obj: ObjectFile, name: str) -> Symbol:
    (found,) = [s for s in obj.symbols if s.name == name and s.is_defined]
    return found


def test_a_changed_function_is_there_with_its_code_and_all_else_by_name(tmp_path: Path) -> None:
    out, _patched = excerpt_of(tmp_path, *edit(SOURCE))
    shown, wanted = (re.sub(r"\.LC\d+", ".LC", code(f, "f")) for f in (out, tmp_path / "after/unit.o"))
    # The patched object names what it defines by its section or by its symbol; we always by its symbol.
    assert re.sub(r"R_X86_64.*", "", shown) == re.sub(r"R_X86_64.*", "", wanted)
    assert re.findall(r"R_X86_64_\w+\s+(\S+)", shown) == [
        "__fentry__-0x4", ".LC", "printk-0x4", "helper-0x4", "count-0x4",
    ]  # fmt: skip
    assert symbols(out) == {
        "f": "t", ".LC0": "r", "__fentry__": "U", "printk": "U", "helper": "U", "count": "U",
    }  # fmt: skip


def test_our_own_reader_finds_the_same_content_and_strings(tmp_path: Path) -> None:
    source = SOURCE.replace("return i + OLD", "return i * 3 + OLD; } double k(double d) { return d + OLD.5")
    out, patched = excerpt_of(tmp_path, *edit(source), "-msse2")
    again = parse_object(out.read_bytes(), "out.o")
    for name in ("f", "k"):
        mine, theirs = symbol(again, name), symbol(patched, name)
        assert mine.content == theirs.content
        for one, other in zip(mine.relocations, theirs.relocations, strict=True):
            assert (one.offset, one.type, one.addend) == (other.offset, other.type, other.addend)
            if isinstance(other.target, StringRef | ConstRef):
                assert one.target == other.target
            else:
                assert isinstance(one.target, SymbolRef)
                assert one.target.symbol.name == other.target.symbol.name
    assert any(isinstance(r.target, ConstRef) for r in symbol(again, "k").relocations)


def test_what_is_new_travels_under_its_own_binding(tmp_path: Path) -> None:
    added = "int fresh = 5; static noinline int inner(int i) { return i * fresh; } int outer(int i) { return inner(i); }"
    out, _ = excerpt_of(tmp_path, *edit(SOURCE, added=added))
    found = symbols(out)
    assert (found["fresh"], found["outer"], found["inner"]) == ("D", "T", "t")
    assert found["f"] == "t"


def test_a_static_local_is_named_as_in_the_original_object(tmp_path: Path) -> None:
    before = "int f(int i) { static int n; return n += i; }"
    after = "int f(int i) { static int n; return n += i + 1; } int other(void) { static int n; return ++n; }"
    out, patched = excerpt_of(tmp_path, before, after)

    def used(obj: ObjectFile) -> str:
        """The variable that f uses."""
        (name,) = {
            r.target.symbol.name for r in symbol(obj, "f").relocations if isinstance(r.target, SymbolRef)
        } - {"__fentry__"}
        return name

    original = read_object(tmp_path / "before/unit.o")
    assert used(original) != used(patched)
    assert used(parse_object(out.read_bytes(), "out.o")) == used(original)


def test_the_address_of_a_changed_function_is_the_original_ones(tmp_path: Path) -> None:
    source = "int f(void) { return OLD; } void keep(int (*)(void)); void g(void) { keep(f); ext(OLD); } int h(void) { return f() + OLD; }"
    out, _ = excerpt_of(tmp_path, *edit(f"void ext(int); {source}"), "-fno-inline")
    again = parse_object(out.read_bytes(), "out.o")

    def reached(name: str) -> list[bool]:
        return [
            r.target.symbol.is_defined
            for r in symbol(again, name).relocations
            if isinstance(r.target, SymbolRef) and r.target.symbol.name == "f"
        ]

    assert reached("g") == [False]
    assert reached("h") == [True]


def test_a_callback_of_the_author_travels_with_the_pointer_to_it(tmp_path: Path) -> None:
    added = 'static void done(void *o) { ext(7); } static void (*__hook)(void *) __attribute__((used)) __section(".hotreload.callbacks.post_patch") = done;'
    out, _ = excerpt_of(
        tmp_path, *edit("int ext(int); int f(void) { return OLD; }", added="int ext(int); " + added)
    )
    section = parse_object(out.read_bytes(), "out.o").section(".hotreload.callbacks.post_patch")
    assert section
    (pointer,) = section.relocations
    assert isinstance(pointer.target, SymbolRef)
    assert (section.size, pointer.target.symbol.name) == (8, "done")


ALTERNATIVE = """
    .macro func name, value
    .section .text.\\name,"ax",@progbits
    .globl \\name
    .type \\name,@function
\\name:
    call __fentry__
    movl $\\value, %eax
661: nop
    nop
    nop
    nop
    nop
662: ret
    .size \\name, . - \\name
    .section .altinstructions,"a"
    .long 661b - ., 663f - .
    .word 7
    .byte 662b - 661b, 664f - 663f
    .section .altinstr_replacement,"ax"
663: call helper_\\name
664:
    .endm
"""


def test_an_alternative_travels_with_its_function_and_its_replacement(tmp_path: Path) -> None:
    one, two = (
        read_object(assembled(f"{ALTERNATIVE}\nfunc kept, 1\nfunc edited, {value}\n", tmp_path / str(value)))
        for value in (1, 2)
    )
    again = parse_object(written(tmp_path, one, two).read_bytes(), "out.o")
    entries, replacements = again.section(".altinstructions"), again.section(".altinstr_replacement")
    assert entries
    assert replacements
    assert (entries.size, replacements.size) == (12, 5)
    place, replacement = entries.relocations
    assert isinstance(place.target, SymbolRef)
    assert (place.target.symbol.name, place.addend) == ("edited", 10)
    assert isinstance(replacement.target, SymbolRef)
    assert (replacement.target.symbol.section, replacement.addend) == (replacements, 0)
    (call,) = replacements.relocations
    assert isinstance(call.target, SymbolRef)
    assert call.target.symbol.name == "helper_edited"


def test_a_linker_merges_constants_and_each_use_still_finds_its_own(tmp_path: Path) -> None:
    source = "double k(double d) { return (d + 3.25) * OLD.5; }"
    out, _ = excerpt_of(tmp_path, *edit(source), "-msse2")
    run(["ld", "-o", "linked", "--unresolved-symbols=ignore-all", "-e", "0", str(out)], tmp_path)
    listing = run(["objdump", "-d", "linked"], tmp_path)
    with (tmp_path / "linked").open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".rodata")
        used = [int(place, 16) - table["sh_addr"] for place in re.findall(r"sd .*# (\w+)", listing)]
        values = [struct.unpack_from("<d", table.data(), place)[0] for place in used]
    assert values == [3.25, 2.5]


@pytest.mark.parametrize("name", NAMES)
def test_of_real_kernel_units_all_that_travels_is_there_and_linkers_take_it(
    name: str, tmp_path: Path
) -> None:
    original, patched = sides(name)
    diff = diff_objects(original, patched)
    if diff.verdict != "patchable":
        return
    out = written(tmp_path, original, patched)
    run(["ld", "-r", "-o", "linked.o", str(out)], tmp_path)
    again = parse_object(out.read_bytes(), "out.o")
    for carried in (s for s in diff.carried if not s.anonymous):
        found = [s for s in again.symbols if s.name == carried.name and s.is_defined]
        assert carried.content in [s.content for s in found]
        shown = [[(r.offset, r.type) for r in s.relocations] for s in (*found, carried)]
        assert shown[-1] in shown[:-1]


# --- the command ---


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    before, after = edit(SOURCE)
    return str(compiled(before, tmp_path / "before")), str(compiled(after, tmp_path / "after"))


def test_the_command_writes_the_object_that_is_asked_for(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.o"
    assert main(["diff", *pair, "-o", str(out)]) == 0
    assert capsys.readouterr().out.startswith("patchable\n")
    assert symbols(out)["f"] == "t"
    assert not list(tmp_path.glob(".hotreload*"))


@pytest.mark.parametrize(("refused", "status"), [(False, 0), (True, 4)])
def test_where_there_is_nothing_to_carry_there_is_no_file(
    refused: bool, status: int, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.o"
    out.write_text("of an earlier run")
    other = shutil.copy(pair[0], tmp_path / "other.o")
    if refused:
        changed = SOURCE.replace("OLD", "1").replace("static int count = 3", "static long count = 3")
        other = compiled(changed, tmp_path / "other")
    assert main(["diff", pair[0], str(other), "-o", str(out)]) == status
    assert not out.exists()
    said = capsys.readouterr()
    assert f"so {out} was not written" in said.err
    assert said.out.startswith("refused" if refused else "unchanged")


def test_a_folder_an_input_and_a_place_that_is_not_there_are_no_outputs(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(pair[1]).read_bytes()
    for place, fact in (
        (tmp_path, "is a folder"),
        (pair[1], "is an input file"),
        (tmp_path / "no/out.o", "no folder"),
    ):
        assert main(["diff", *pair, "-o", str(place)]) == 2
        assert fact in capsys.readouterr().err
    assert Path(pair[1]).read_bytes() == before
    assert os.path.isdir(tmp_path)
