# SPDX-License-Identifier: MIT
from __future__ import annotations

import time
from pathlib import Path

import pytest

from hotreload.report.crash import find_crash

RECORDED = Path(__file__).parents[2] / "recorded"
NULL = "BUG: kernel NULL pointer dereference"

# file: code, title, module, source
STORIES = {
    "null_dereference": ("HR4101", f"{NULL} in foo_release+0x5", "crash", None),
    "page_fault": ("HR4101", "BUG: unable to handle page fault in foo_release+0x5", "crash", None),
    "general_protection": ("HR4101", "general protection fault in foo_release+0x5", "crash", None),
    "bug_on": ("HR4101", "kernel BUG in foo_bug.constprop.0+0x5", "crash", "/home/me/driver/crash.c:17"),
    "double_free": ("HR4101", "kernel BUG in crash_init+0x1ae", "crash", "mm/slub.c:419"),
    "jump_to_data": ("HR4101", "BUG: unable to handle page fault in crash_init+0xc5", "crash", None),
    "panic": ("HR4102", "Kernel panic: foo: out of luck 7 in crash_init+0x179", "crash", None),
    "stack_overflow": ("HR4102", "BUG: stack guard page was hit in foo_recurse+0x1d", "crash", None),
    "no_root": (
        "HR4102",
        "Kernel panic: VFS: Unable to mount root fs on unknown-block(0,0) in mount_block_root+0x14e",
        None,
        None,
    ),
    "warn": ("HR4105", "WARNING in foo_warn+0xa", "crash", "/home/me/driver/crash.c:16"),
    "warn_message": ("HR4105", "WARNING in foo_warn+0x27", "crash", "/home/me/driver/crash.c:16"),
    "refcount": ("HR4105", "WARNING in crash_init+0x124", "crash", "lib/refcount.c:25"),
    "scheduling_while_atomic": ("HR4105", "BUG: scheduling while atomic in foo_sleep+0x16", "crash", None),
    "soft_lockup": ("HR4105", "BUG: soft lockup in foo_spin+0x2e", "crash", None),
    "rcu_stall": ("HR4105", "INFO: rcu_preempt self-detected stall in foo_spin+0x2e", "crash", None),
    "hung_task": (
        "HR4105",
        "INFO: task insmod blocked for more than 15 seconds in crash_init+0x166",
        "crash",
        None,
    ),
    "kasan": ("HR4105", "BUG: KASAN: slab-out-of-bounds in foo_copy+0x64", "foo", None),
    "lockdep": (
        "HR4105",
        "WARNING: possible circular locking dependency detected in foo_ioctl+0x4d",
        "foo",
        None,
    ),
}


def recorded(story: str) -> str:
    return (RECORDED / f"{story}.txt").read_text()


@pytest.mark.parametrize("story", STORIES)
def test_a_crash_is_named_by_its_kind_and_by_who_is_to_blame(story: str) -> None:
    crash = find_crash(recorded(story))
    assert crash is not None
    assert (crash.code, crash.title, crash.module, crash.source) == STORIES[story]
    assert crash.complete
    assert crash.title.startswith(crash.type)
    assert crash.function is not None
    assert crash.function in crash.excerpt


def test_every_recorded_story_has_a_test() -> None:
    assert {path.stem for path in RECORDED.glob("*.txt")} == {*STORIES, "quiet"}


def test_an_ordinary_log_is_no_crash() -> None:
    assert find_crash(recorded("quiet")) is None
    assert find_crash("") is None


@pytest.mark.parametrize(
    "line",
    [
        "sh: BUG: this is what a program printed",
        "[    1.0] foo: WARNING: nothing of the kernel's",
        "[    1.0] systemd[1]: Oops, no such unit",
        "[    1.0] crash: module verification failed: signature and/or key missing",
        "[    1.0] INFO: lockdep is turned off.",
        "[    1.0] WARNING: foo is deprecated",
    ],
)
def test_words_of_warning_alone_are_no_crash(line: str) -> None:
    assert find_crash(line + "\n") is None


@pytest.mark.parametrize(
    ("story", "first", "last"),
    [
        (
            "null_dereference",
            "BUG: kernel NULL pointer dereference, address:",
            "---[ end trace 0000000000000000 ]---",
        ),
        ("warn_message", "------------[ cut here ]------------", "---[ end trace 0000000000000000 ]---"),
        ("kasan", "=" * 66, "=" * 66),
        ("lockdep", "=" * 54, "</TASK>"),
        ("scheduling_while_atomic", "BUG: scheduling while atomic", "</TASK>"),
        ("stack_overflow", "BUG: TASK stack guard page was hit", "Kernel Offset:"),
    ],
)
def test_the_excerpt_is_the_complaint_from_its_first_to_its_last_line(
    story: str, first: str, last: str
) -> None:
    crash = find_crash(recorded(story))
    assert crash is not None
    lines = [line.partition("] ")[2].strip() for line in crash.excerpt.splitlines()]
    assert lines[0].startswith(first)
    assert lines[-1].startswith(last)


def test_the_worst_of_several_complaints_is_told() -> None:
    crash = find_crash(recorded("warn") + recorded("null_dereference") + recorded("refcount"))
    assert crash is not None
    assert (crash.code, crash.function) == ("HR4101", "foo_release")


def test_a_panic_is_told_by_what_led_to_it() -> None:
    crash = find_crash(recorded("null_dereference") + recorded("panic"))
    assert crash is not None
    assert crash.code == "HR4102"
    assert crash.title == f"{NULL} in foo_release+0x5"
    assert "Kernel panic - not syncing" in crash.excerpt


def test_an_oops_that_oops_panic_made_a_panic_is_an_oops_and_one_in_an_interrupt_is_none() -> None:
    oops = recorded("null_dereference")
    for words, code in (("Fatal exception", "HR4101"), ("Fatal exception in interrupt", "HR4102")):
        crash = find_crash(f"{oops}[    9.0] Kernel panic - not syncing: {words}\n")
        assert crash is not None
        assert (crash.code, crash.title) == (code, f"{NULL} in foo_release+0x5")


@pytest.mark.parametrize(("story", "offset"), [("null_dereference", 5), ("refcount", 0x124 - 1)])
def test_the_offset_is_in_the_instruction_at_fault_not_behind_the_call(story: str, offset: int) -> None:
    crash = find_crash(recorded(story))
    assert crash is not None
    assert crash.offset == offset


def test_text_without_times_with_carriage_returns_and_levels_reads_the_same() -> None:
    expected = find_crash(recorded("page_fault"))
    lines = [line.partition("] ")[2] for line in recorded("page_fault").splitlines() if line.startswith("[")]
    for text in (
        "\n".join(lines),
        "\r\n".join(lines),
        "\n".join(f"<4>[    9.1][    C0] {line}" for line in lines),
    ):
        found = find_crash(text)
        assert found is not None
        assert expected is not None
        assert found.title == expected.title


@pytest.mark.parametrize("story", [*STORIES, "quiet"])
def test_a_text_that_ends_anywhere_is_read_as_far_as_it_goes(story: str) -> None:
    text = recorded(story)
    for end in range(0, len(text), 97):
        crash = find_crash(text[:end])
        if crash is not None:
            assert crash.excerpt
            assert crash.code in ("HR4101", "HR4102", "HR4105")


def test_an_oops_that_has_just_begun_is_known_to_be_unfinished() -> None:
    text = recorded("null_dereference")
    crash = find_crash(text[: text.index("Call Trace")])
    assert crash is not None
    assert not crash.complete
    assert crash.title == f"{NULL} in foo_release+0x5"


def test_a_long_log_is_read_in_no_time() -> None:
    text = recorded("quiet") * 2_000 + recorded("warn")
    started = time.process_time()
    assert find_crash(text) is not None
    assert time.process_time() - started < 2
