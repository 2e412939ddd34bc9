# SPDX-License-Identifier: MIT
"""Reading a guest's memory into names, comparing two guests, and what is made of a history."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import replace
from pathlib import Path

from hotreload.survey.debug_kernel import settings_for, wrapper
from hotreload.survey.history_code import (
    LANDINGS,
    PAGE,
    Names,
    Picture,
    Reader,
    Reading,
    differences,
    read_replaced,
    read_sections,
    read_symbols,
    renamed,
    told_renames,
)
from hotreload.survey.history_guest import kind_of, pushed, runs, splats
from hotreload.survey.history_kept import Kept
from hotreload.survey.history_lines import Lines, Texts
from hotreload.survey.history_rows import Row, line_differences, shares
from hotreload.survey.history_source import read_workload

FENTRY = bytes.fromhex("0f1f440000")
PRINTK = 0xFFFFFFFF81200000
NAMES = Names(read_symbols(f"{PRINTK:x} T _printk\n{PRINTK + 0x100:x} T other\n"))


def call(place: int, target: int) -> bytes:
    return b"\xe8" + struct.pack("<i", target - place - 5)


def load(place: int, register: bytes = b"\xc7") -> bytes:
    """MOV $place, %rdi"""
    return b"\x48\xc7" + register + struct.pack("<I", place & 0xFFFFFFFF)


def module(base: int, text: bytes, *, hook: bytes = FENTRY, owner: str = "drv", table: int = 5) -> Picture:
    """A module with a function that prints a text, and a table that it reads."""
    code = hook + load(base + 0x1000) + call(base + 12, PRINTK) + load(base + 0x2000) + b"\xc3"
    named = (base, "t show"), (base + 0x40, "t end"), (base + 0x2000, "r table")
    symbols = "".join(f"{place:x} {name}\t[{owner}]\n" for place, name in named)
    sections = (
        f"/sys/module/{owner}/sections/.text 0x{base:x}\n"
        f"/sys/module/{owner}/sections/.rodata.str1.1 0x{base + 0x1000:x}\n"
        f"/sys/module/{owner}/sections/.rodata 0x{base + 0x2000:x}\n"
        f"/sys/module/{owner}/sections/.init.text 0x{base + 0x9000:x}\n"
        f"/sys/module/{owner}/sections/.symtab 0x{base + 8:x}\n"
    )
    pages = {
        base: (code.ljust(0x40, b"\x90") + FENTRY + b"\xc3").ljust(PAGE, b"\0"),
        base + PAGE: (text + b"\0").ljust(PAGE, b"\0"),
        base + 2 * PAGE: struct.pack("<QQ", table, base).ljust(PAGE, b"\0"),
    }
    return Picture(read_symbols(symbols), read_sections(sections), {}, pages)


def read(picture: Picture) -> Reading:
    return Reader(picture, NAMES).read("drv")


def test_code_is_read_as_names_and_texts_wherever_it_lies() -> None:
    here, there = read(module(0xFFFFFFFFC0000000, b"hello")), read(module(0xFFFFFFFFC0430000, b"hello"))
    assert here.functions["show"] == [
        ("fentry", "mov rdi, <'hello'>", "call <_printk>", "mov rdi, <table>", "ret")
    ]
    assert here.constants["table"] == {("0500000000000000", "show")}
    assert differences(here, there) == []


def test_a_function_of_another_module_has_its_name_wherever_that_lies() -> None:
    def calling(place: int) -> Reading:
        base = 0xFFFFFFFFC0200000
        own = module(base, b"hello")
        code = (FENTRY + call(base + 5, place + 0x10) + call(base + 10, PRINTK) + b"\xc3").ljust(
            0x40, b"\x90"
        )
        other = read_symbols(f"{place:x} t open\t[videodev]\n{place + 0x10:x} t close\t[videodev]\n")
        other += read_symbols(f"{PRINTK - 0x100:x} U kfree\t[hotreload_1]\n")
        return read(replace(own, symbols=(*own.symbols, *other), pages={base: code.ljust(PAGE, b"\0")}))

    assert calling(0xFFFFFFFFC0400000).functions["show"] == [
        ("fentry", "call <close>", "call <_printk>", "ret")
    ]
    assert differences(calling(0xFFFFFFFFC0400000), calling(0xFFFFFFFFC0007000)) == []


def test_another_text_another_table_and_a_function_that_is_missing_are_told() -> None:
    fresh = read(module(0xFFFFFFFFC0000000, b"hello"))
    assert differences(fresh, read(module(0xFFFFFFFFC0000000, b"hullo"))) == [
        """show: 1: fresh "mov rdi, <'hello'>", here "mov rdi, <'hullo'>\""""
    ]
    assert differences(fresh, read(module(0xFFFFFFFFC0000000, b"hello", table=6))) == [
        "table: 0: fresh '0500000000000000', here '0600000000000000'"
    ]
    assert differences(fresh, Reading()) == ["end is not in the guest", "show is not in the guest"]


def test_another_constant_behind_a_table_is_no_difference() -> None:
    fresh = Reading({}, {"table": {("05", "show")}})
    assert differences(fresh, Reading({}, {"table": {("05", "show", "2a")}})) == []
    assert differences(fresh, Reading({}, {"table": {("05",)}})) == ["table: 2 lines freshly booted, 1 here"]


def test_a_text_among_other_constants_is_a_text() -> None:
    base = 0xFFFFFFFFC0000000
    fresh, patch = module(base, b"\x016said"), module(base, b"-")
    pages = {**patch.pages, base + 2 * PAGE: (b"\5" + bytes(15) + b"\x016said\0").ljust(PAGE, b"\0")}
    code = FENTRY + load(base + 0x2010) + call(base + 12, PRINTK) + load(base + 0x2000) + b"\xc3"
    pages[base] = code.ljust(0x40, b"\x90").ljust(PAGE, b"\0")
    live = Picture(patch.symbols, patch.sections, {}, pages)
    assert read(live).functions["show"] == read(fresh).functions["show"]


def test_the_call_of_a_function_that_is_traced_is_no_difference() -> None:
    base = 0xFFFFFFFFC0000000
    hooked = read(module(base, b"hello", hook=call(base, 0xFFFFFFFFC0700000)))
    assert differences(read(module(base, b"hello")), hooked) == []


def test_a_landing_of_indirect_calls_that_the_kernel_has_sealed_is_no_difference() -> None:
    base = 0xFFFFFFFFC0000000
    kept, sealed = (module(base, b"hello", hook=landing + FENTRY) for landing in LANDINGS)
    assert differences(read(kept), read(sealed)) == []
    assert read(kept).functions["show"][0][0] == "fentry"


def test_a_lock_that_one_processor_does_not_need_is_no_difference() -> None:
    base, decrement = 0xFFFFFFFFC0000000, bytes.fromhex("ff4f68")
    locked, plain = (
        module(base, b"hello", hook=FENTRY + prefix + decrement) for prefix in (b"\xf0", b"\x3e")
    )
    assert differences(read(locked), read(plain)) == []


def test_a_function_that_goes_on_under_another_name_is_known_by_what_the_report_says() -> None:
    names = told_renames(
        "new takes the place of old: anything that holds old runs new\n was was renamed to is, with"
    )
    assert names == {"old": "new", "was": "is"}
    live = Reading({"old": [("ret",)], "user": [("call <old>", "jmp <older>", "jmp <old+0x4>")]})
    fresh = Reading({"new": [("ret",)], "user": [("call <new>", "jmp <older>", "jmp <new+0x4>")]})
    assert differences(fresh, live) != []
    assert differences(fresh, renamed(live, names)) == []


def test_the_function_of_the_live_patch_is_the_one_that_runs() -> None:
    own = module(0xFFFFFFFFC0000000, b"old")
    patch = module(0xFFFFFFFFC0100000, b"new", owner="hotreload_2")
    replaced = read_replaced("/sys/kernel/livepatch/hotreload_2/drv/show,1\n", "drv")
    both = Picture(
        (*own.symbols, *patch.symbols),
        (*own.sections, *patch.sections),
        replaced,
        {**own.pages, **patch.pages},
    )
    assert replaced == {"show": "hotreload_2"}
    assert "mov rdi, <'new'>" in read(both).functions["show"][0]
    assert read(both).functions["end"] == [("fentry", "ret")]


def test_what_was_split_off_a_replaced_function_goes_with_it() -> None:
    own = "1000 t f\t[drv]\n1040 t f.cold\t[drv]\n"
    symbols = read_symbols(f"{own}5000 t f\t[hotreload_1]\n5040 t f.cold\t[hotreload_1]\n")
    places = Picture(symbols, (), {"f": "hotreload_1"}, {}).running("drv")
    assert places == {"f": [0x5000], "f.cold": [0x5040]}


def test_a_copy_for_the_code_of_a_patch_runs_beside_the_original() -> None:
    symbols = read_symbols(
        "1000 t f\t[drv]\n1040 t g\t[drv]\n5000 t f\t[hotreload_1]\n5040 t g\t[hotreload_1]\n"
    )
    places = Picture(symbols, (), {"f": "hotreload_1"}, {}).running("drv")
    assert places == {"f": [0x5000], "g": [0x1040, 0x5040]}


def test_a_number_of_a_line_that_stayed_the_same_is_no_difference() -> None:
    before = {"f.c": ["int f(void)", "{", '    say("here");', "    other();", "}"]}
    now = {"f.c": ["/* f */", *before["f.c"]]}

    def told(fresh: str, live: str, since: list[Texts]) -> list[str]:
        one, other = (Reading({"f": [("fentry", line, "ret")]}) for line in (fresh, live))
        return differences(one, other, Lines(now, since))

    assert told("mov esi, 4", "mov esi, 3", [before]) == []
    assert told("push 0x4", "push 0x3", [now, before]) == []
    assert told("mov rdi, <'f.c:4: said %d'>", "mov rdi, <'f.c:3: said %d'>", [before]) == []
    assert told("mov esi, 4", "mov esi, 0x2714", [before]) == []  # build/lines.py: BEYOND
    # No sources had such a line there; a jump and an offset are no numbers of lines.
    assert len(told("mov esi, 4", "mov esi, 3", [])) == 1
    assert len(told("mov esi, 4", "mov esi, 2", [before])) == 1
    assert len(told("mov esi, 3", "mov esi, 2", [before])) == 1
    assert len(told("mov rdi, <'f.c:4: said'>", "mov rdi, <'f.c:2: said'>", [before])) == 1
    assert len(told("jne <4>", "jne <3>", [before])) == 1


def test_a_push_is_read_with_its_codes() -> None:
    said = (
        "14:03:40 refused    f.c    HR2101 struct foo grew\n          needs a reload: hotreload why HR2101\n"
    )
    done = pushed(0, said + "14:03:41 reloaded   foo.ko   0.61 s  #13\n")
    assert (done.outcome, done.codes) == ("reloaded", ("HR2101",))
    assert pushed(4, said).outcome == "refused"
    assert pushed(8, "hotreload: error: no guest").outcome == "status 8"


def test_a_busy_machine_is_no_splat() -> None:
    log = "BUG: KASAN: use-after-free in f\nwatchdog: BUG: soft lockup - CPU#0\nhello\n"
    assert splats(log) == ["BUG: KASAN: use-after-free in f"]


def test_a_complaint_is_known_again_whenever_it_comes() -> None:
    first = "[   89.017984] WARNING: CPU: 0 PID: 458 at fs/buffer.c:1145 __find_get_block+0x320/0x330"
    again = "[  102.5] WARNING: CPU: 1 PID: 9 at fs/buffer.c:1145 __find_get_block+0x320/0x330"
    assert kind_of(first) == kind_of(again) != kind_of(first.replace("1145", "1146"))


def test_a_workload_says_what_it_needs() -> None:
    workload = read_workload("# load: loop\n# load: drv number=2\n# host: cc -o $OUT/a a.c\necho\n")
    assert workload.load == ("loop", "drv number=2")
    assert workload.host == ("cc -o $OUT/a a.c",)
    assert workload.parts == ("# load: loop\n# load: drv number=2\n# host: cc -o $OUT/a a.c\necho\n",)


def test_each_part_of_a_workload_runs_after_what_they_share() -> None:
    workload = read_workload("mount\n# part: one\ncat\n# part: another\nrm\n")
    assert workload.parts == ("mount\ncat\n", "mount\nrm\n")


def test_rows_are_summed_up_with_the_codes_that_led_to_them() -> None:
    rows = [
        Row("a", "", "live"),
        Row("b", "", "live", differs=("prints 'x', freshly booted 'y'",)),
        Row("c", "", "reloaded", ("HR2101",)),
        Row("d", "", "refused", ("HR2301", "HR2101")),
        Row("e", "", "lost"),
    ]
    assert [row.is_wrong for row in rows] == [False, True, False, False, False]
    assert [" ".join(line.split()) for line in shares(rows)] == [
        "2 40.0 % live",
        "1 20.0 % reloaded (HR2101 1)",
        "1 20.0 % refused (HR2301 1, HR2101 1)",
        "1 20.0 % lost",
        "1 20.0 % wrong",
        "1 20.0 % lost",
    ]


def test_what_a_workload_prints_is_compared_line_by_line() -> None:
    assert line_differences("a\nb\n", "a\nb\n") == []
    assert line_differences("a\nb\n", "a\nc\nd\n") == [
        "prints 'c', freshly booted 'b'",
        "prints 'd', freshly booted ''",
    ]


def test_pages_are_read_in_stretches() -> None:
    assert runs([0, PAGE, 3 * PAGE]) == [(0, 2), (3 * PAGE, 1)]


def test_a_wrapper_has_its_settings_whatever_the_environment() -> None:
    assert "export HOTRELOAD_KERNEL='/a b'\n" in wrapper({"HOTRELOAD_KERNEL": "/a b"})
    assert settings_for("/kernel")["HOTRELOAD_KERNEL"] == "/kernel"


def test_what_is_kept_is_found_once_and_for_the_same_question_only(tmp_path: Path) -> None:
    asked: list[str] = []

    async def ask(what: str, kernel: str) -> str:
        async def find() -> str:
            asked.append(what)
            return f"{what} in {kernel}"

        return await Kept(tmp_path, (kernel,)).found(what, find)

    found = [asyncio.run(ask(*each)) for each in (("a", "6.1"), ("a", "6.1"), ("a", "6.12"), ("b", "6.1"))]
    assert found == ["a in 6.1", "a in 6.1", "a in 6.12", "b in 6.1"]
    assert asked == ["a", "a", "b"]
