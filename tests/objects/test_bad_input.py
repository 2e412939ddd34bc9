# SPDX-License-Identifier: MIT

"""What `hotreload diff` says to files that are no pair of objects: exit status 2, a sentence and a hint."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hotreload.cli.main import main
from tests.conftest import require
from tests.objects.compiling import compiled, run

UNIT = 'static int n = 3; int f(int i) { printk("x %d", i); return n += i; } int g(int i) { return i * OLD; }'
# More than a unit's object ever has, and no byte of it on the disk.
HUGE = 20 << 30

Said = tuple[int, str, str]
Diff = Callable[[Path, Path], Said]


@pytest.fixture
def diff(capsys: pytest.CaptureFixture[str]) -> Diff:
    """`hotreload diff ORIGINAL PATCHED`: exit status, standard output, standard error."""

    def diff(original: Path, patched: Path) -> Said:
        status = main(["diff", str(original), str(patched)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return diff


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return compiled(UNIT.replace("OLD", "77"), tmp_path / "good")


def other(tmp_path: Path, *flags: str) -> Path:
    """The same unit after an edit."""
    return compiled(UNIT.replace("OLD", "78"), tmp_path / "other", *flags)


def sentence(said: Said) -> str:
    """What was said about one bad input: everything about the form of it is checked here."""
    status, out, err = said
    lines = err.splitlines()
    assert (status, out) == (2, "")
    assert len(lines) == 2, err
    assert lines[0].startswith("hotreload: error[HR1009]: ")
    assert lines[1].startswith("  hint: ")
    return lines[0].removeprefix("hotreload: error[HR1009]: ")


def test_a_good_pair_is_compared(diff: Diff, good: Path, tmp_path: Path) -> None:
    status, out, err = diff(good, other(tmp_path))
    assert (status, out.splitlines()[0], err) == (0, "patchable", "")


def with_header(offset: int, layout: str, value: int) -> Callable[[bytes], bytes]:
    """The bytes of an object with one number of its header replaced."""

    def change(image: bytes) -> bytes:
        damaged = bytearray(image)
        struct.pack_into(layout, damaged, offset, value)
        return bytes(damaged)

    return change


BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no byte": (lambda _: b"", "an empty file"),
    "text": (lambda _: b"int main(void) { return 0; }\n", "not an object file (no ELF header)"),
    "a part of the header": (lambda image: image[:40], "truncated in its ELF header, after 40 bytes"),
    "the header alone": (lambda image: image[:64], "but it has 64"),
    "the first half": (lambda image: image[: len(image) // 2], "but it has"),
    "all but the last byte": (lambda image: image[:-1], "its header says"),
    "another machine": (with_header(18, "<H", 183), "an object for AArch64, not for x86-64"),
    "an unheard-of machine": (with_header(18, "<H", 9999), "an object for machine 9999, not for x86-64"),
    "big-endian": (with_header(5, "<B", 2), "an object for a big-endian machine, not for x86-64"),
    "32 bits": (with_header(4, "<B", 1), "a 32-bit object"),
    "a core dump": (with_header(16, "<H", 4), "a core dump, not a relocatable object"),
    "a vmlinux": (with_header(16, "<H", 2), "a linked program, not a relocatable object"),
    "no sections": (with_header(40, "<Q", 0), "an object without sections"),
    "a wrong width": (with_header(58, "<H", 63), "damaged: section headers of 63 bytes"),
    "a table far away": (with_header(40, "<Q", 1 << 63), "truncated"),
    "bitcode": (lambda _: b"BC\xc0\xde" + bytes(100), "LLVM bitcode, without machine code"),
    "a thin archive": (lambda _: b"!<thin>\n" + bytes(100), "an archive of objects"),
}


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("place", ["original", "patched"])
def test_bytes_that_are_no_object_are_told_by_what_they_are(
    kind: str, place: str, diff: Diff, good: Path, tmp_path: Path
) -> None:
    damage, expected = BYTES[kind]
    bad = tmp_path / "bad.o"
    bad.write_bytes(damage(good.read_bytes()))
    said = sentence(diff(bad, good) if place == "original" else diff(good, bad))
    assert said.startswith(f"{bad}: ")
    assert expected in said


def test_what_the_linker_made_is_no_object(diff: Diff, good: Path, tmp_path: Path) -> None:
    (tmp_path / "m.c").write_text("int main(void) { return 0; }")
    for name, flags, expected in (
        ("program", ("-no-pie",), "a linked program"),
        ("pie", ("-pie",), "a shared library or program"),
        ("lib.so", ("-shared", "-fPIC"), "a shared library or program"),
    ):
        run(["gcc", *flags, "m.c", "-o", name], tmp_path)
        assert (
            sentence(diff(tmp_path / name, good))
            == f"{tmp_path / name}: {expected}, not a relocatable object"
        )


def test_an_archive_is_named_as_one(diff: Diff, good: Path, tmp_path: Path) -> None:
    run(["ar", "rcs", str(tmp_path / "lib.a"), str(good)], tmp_path)
    assert sentence(diff(tmp_path / "lib.a", good)).endswith("an archive of objects, not an object file")


@pytest.mark.parametrize("flags", [("-fno-fat-lto-objects",), ("-ffat-lto-objects",)])
def test_with_lto_the_flag_is_named_that_is_in_the_way(
    flags: tuple[str, ...], diff: Diff, good: Path, tmp_path: Path
) -> None:
    lto = other(tmp_path, "-flto", *flags)
    for pair in ((lto, lto), (good, lto), (lto, good)):
        assert "compiled with -flto" in sentence(diff(*pair))


@pytest.mark.parametrize("option", ["--strip-all", "--strip-unneeded"])
def test_an_object_without_the_names_of_its_static_variables_is_stripped(
    option: str, diff: Diff, good: Path, tmp_path: Path
) -> None:
    stripped = tmp_path / "stripped.o"
    run(["strip", option, "-o", str(stripped), str(good)], tmp_path)
    for pair in ((stripped, good), (good, stripped)):
        assert sentence(diff(*pair)).startswith(f"{stripped}: stripped: ")


def test_an_object_without_debugging_data_only_is_as_good_as_another(
    diff: Diff, tmp_path: Path, good: Path
) -> None:
    patched = other(tmp_path, "-g")
    run(["strip", "-g", str(patched)], tmp_path)
    run(["strip", "-g", str(good)], tmp_path)
    status, out, _ = diff(good, patched)
    assert (status, out.splitlines()[:2]) == (0, ["patchable", "  changed           g"])


@pytest.mark.parametrize("make", ["gcc", "as"])
def test_an_object_with_nothing_in_it_is_told(make: str, diff: Diff, good: Path, tmp_path: Path) -> None:
    (tmp_path / "e.c").write_text("/* nothing */\n")
    (tmp_path / "e.s").write_text("")
    run(["gcc", "-c", "e.c"] if make == "gcc" else ["as", "e.s", "-o", "e.o"], tmp_path)
    empty = tmp_path / "e.o"
    for pair in ((empty, empty), (empty, good), (good, empty)):
        assert sentence(diff(*pair)) == f"{empty}: an object with neither code nor data"


def test_objects_of_two_units_are_told_with_both_names(diff: Diff, good: Path, tmp_path: Path) -> None:
    second = compiled("int f(int i) { return i + 1; }", tmp_path / "second", name="second.c")
    said = sentence(diff(good, second))
    assert said.startswith(f"{good} and {second} are objects of two different units")
    assert "the first was compiled from unit.c, the second from second.c" in said


def test_two_files_of_one_name_with_nothing_in_common_are_two_units(
    diff: Diff, good: Path, tmp_path: Path
) -> None:
    second = compiled("static int k; int h(int i) { return k += i; }", tmp_path / "second")
    said = sentence(diff(good, second))
    assert said.startswith(f"{good} and {second} are objects of two different units")


def test_what_cannot_be_opened_is_told(diff: Diff, good: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.o").mkdir()
    (tmp_path / "loop.o").symlink_to("loop.o")
    for name, reason in (
        ("folder.o", "Is a directory"),
        ("missing.o", "No such file or directory"),
        ("loop.o", "Too many levels of symbolic links"),
        ("good/unit.o/x.o", "Not a directory"),
        ("x" * 300, "File name too long"),
    ):
        assert sentence(diff(tmp_path / name, good)) == f"{tmp_path / name}: {reason}"


def test_an_unreadable_file_is_told(good: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.o"
    shutil.copy(good, secret)
    secret.chmod(0)
    # Root may read every file, unless these two capabilities are taken from it.
    without = "-dac_override,-dac_read_search"
    as_anybody = (
        ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}"] if os.geteuid() == 0 else []
    )
    require(not as_anybody or shutil.which("setpriv"), "setpriv", "apt-get install util-linux")
    command = [*as_anybody, sys.executable, "-m", "hotreload", "diff", str(secret), str(good)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert sentence((done.returncode, done.stdout, done.stderr)) == f"{secret}: Permission denied"


def test_a_pipe_or_a_device_is_not_waited_for(good: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.o")
    for place in (tmp_path / "pipe.o", Path("/dev/null"), Path("/dev/zero")):
        command = [sys.executable, "-m", "hotreload", "diff", place, good]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        said = sentence((done.returncode, done.stdout, done.stderr))
        assert said == f"{place}: a device, pipe or socket, not an object file"


def test_a_huge_file_is_not_read_to_its_end(diff: Diff, good: Path, tmp_path: Path) -> None:
    zeros, padded = tmp_path / "zeros.o", tmp_path / "padded.o"
    zeros.touch()
    shutil.copy(good, padded)
    for file in (zeros, padded):
        os.truncate(file, HUGE)
    assert sentence(diff(zeros, good)).endswith("not an object file (no ELF header)")
    assert sentence(diff(padded, good)).endswith("20480 MB is too large for the object of a unit")


def headers_of(image: bytes) -> list[int]:
    """Where each section header stands."""
    (table,) = struct.unpack_from("<Q", image, 40)
    (count,) = struct.unpack_from("<H", image, 60)
    return [table + 64 * number for number in range(count)]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        (32, 1 << 63, "truncated in section"),  # sh_size
        (24, (1 << 63) - 8, "truncated in section"),  # sh_offset
        (48, 1 << 63, "is aligned to 9223372036854775808 bytes"),  # sh_addralign
        (48, 3, "is aligned to 3 bytes"),
        (8, 0x36, "is both code and strings"),  # sh_flags: SHF_ALLOC, EXECINSTR, MERGE, STRINGS
    ],
)
def test_a_number_out_of_all_bounds_is_not_believed(
    field: int, value: int, expected: str, diff: Diff, good: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.o"
    image = bytearray(good.read_bytes())
    struct.pack_into("<Q", image, headers_of(image)[1] + field, value)
    bad.write_bytes(image)
    assert expected in sentence(diff(good, bad))


def table_of(image: bytes, name: str) -> tuple[int, list[int]]:
    """Where the header of a section stands, and each of its rows of 24 bytes."""
    headers = headers_of(image)
    (texts,) = struct.unpack_from("<Q", image, headers[struct.unpack_from("<H", image, 62)[0]] + 24)
    for at in headers:
        start, size = struct.unpack_from("<QQ", image, at + 24)
        if image[texts + struct.unpack_from("<I", image, at)[0] :].startswith(name.encode() + b"\0"):
            return at, list(range(start, start + size - 23, 24))
    raise LookupError(name)


def of_section(name: str, field: int, layout: str, value: int) -> Callable[[bytearray], None]:
    return lambda image: struct.pack_into(layout, image, table_of(image, name)[0] + field, value)


def of_symbol(kind: int, field: int, layout: str, value: int) -> Callable[[bytearray], None]:
    """A number in the last symbol with these four bits of type: 0 is an undefined one, 3 a section's."""

    def change(image: bytearray) -> None:
        rows = [at for at in table_of(image, ".symtab")[1] if image[at + 4] & 0xF == kind]
        struct.pack_into(layout, image, rows[-1] + field, value)

    return change


def onto_each_other(image: bytearray) -> None:
    first, second, *_ = table_of(image, ".rela.text.f")[1]
    struct.pack_into("<Q", image, second, struct.unpack_from("<Q", image, first)[0] + 3)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (of_symbol(0, 6, "<H", 0xFFF8), "has the invalid section index 0xfff8"),
        (of_symbol(0, 6, "<H", 2779), "is in section 2779, which contains no code or data"),
        (of_symbol(3, 8, "<Q", 2), "is a section symbol, but has a value"),
        (of_symbol(2, 16, "<Q", 1 << 63), "reaches past the end of .text.g"),
        (of_section(".symtab", 56, "<Q", 2), ".symtab has entries of 2 bytes"),
        (of_section(".rela.text.f", 44, "<I", 0), "relocates section 0, which contains no code or data"),
        (
            of_section(".rodata.f.str1.1", 8, "<Q", 0x30),
            ".text.f refers to .rodata.f.str1.1, which is not loaded",
        ),
        (of_section(".rela.text.f", 0, "<I", 1 << 31), "a name is outside the string table"),
        (onto_each_other, "two relocations write to .text.f+"),
    ],
)
def test_tables_that_contradict_each_other_are_told(
    damage: Callable[[bytearray], None], expected: str, diff: Diff, good: Path, tmp_path: Path
) -> None:
    image = bytearray(good.read_bytes())
    damage(image)
    bad = tmp_path / "bad.o"
    bad.write_bytes(image)
    said = sentence(diff(good, bad))
    assert said.startswith(f"{bad}: damaged: ")
    assert expected in said


def test_a_symbol_that_became_a_number_is_a_change(diff: Diff, good: Path, tmp_path: Path) -> None:
    image = bytearray(good.read_bytes())
    of_symbol(0, 6, "<H", 0xFFF1)(image)  # SHN_ABS: the function is at address 0 now
    (tmp_path / "unit.o").write_bytes(image)
    assert diff(good, tmp_path / "unit.o")[1].splitlines()[:2] == ["patchable", "  changed           f"]


def test_zeros_without_end_take_no_memory(diff: Diff, tmp_path: Path) -> None:
    good = compiled("static int room[4]; int f(int i) { return room[i]++; }", tmp_path / "good")
    image = bytearray(good.read_bytes())
    (bss,) = [at for at in headers_of(image) if image[at + 4] == 8 and image[at + 32]]
    struct.pack_into("<Q", image, bss + 32, 1 << 62)
    bad = tmp_path / "bad.o"
    bad.write_bytes(image)
    assert "bytes of zeros" in sentence(diff(good, bad))


def test_sections_that_lie_over_each_other_are_not_believed(diff: Diff, good: Path, tmp_path: Path) -> None:
    image = bytearray(good.read_bytes())
    for at in headers_of(image)[1:]:
        if struct.unpack_from("<I", image, at + 4) == (1,):  # SHT_PROGBITS
            struct.pack_into("<QQ", image, at + 24, 0, len(image))
    bad = tmp_path / "bad.o"
    bad.write_bytes(image)
    assert sentence(diff(good, bad)) == f"{bad}: damaged: its sections overlap"


def test_with_json_the_sentence_is_an_object(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.o").write_text("text")
    assert main(["diff", "--json", str(tmp_path / "bad.o"), str(good)]) == 2
    said = json.loads(capsys.readouterr().out)
    assert (said["type"], said["code"], said["exit_status"]) == ("error", "HR1009", 2)
