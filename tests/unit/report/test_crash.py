# SPDX-License-Identifier: MIT
from __future__ import annotations

import time
from pathlib import Path

import pytest

from hotreload.report.crash import CrashReport, find_complaints, find_crash

RECORDED = Path(__file__).parents[2] / "recorded"
FILES = {path.relative_to(RECORDED).with_suffix("").as_posix() for path in RECORDED.glob("*/*.txt")}
QUIET = {"6.1/quiet", "6.1/out_of_memory", "6.12/out_of_memory"}
NULL = "BUG: kernel NULL pointer dereference"

# story, and the kernel where the two differ: code | type | function (less what gcc appends to it) and module
STORIES = dict(
    line.split(": ", 1)
    for line in (RECORDED / "stories.txt").read_text().splitlines()
    if not line.startswith("#")
)
PANICS = "Kernel panic - not syncing:"


def recorded(story: str) -> str:
    return (RECORDED / f"{story}.txt").read_text()


def crash_in(text: str) -> CrashReport:
    crash = find_crash(text)
    assert crash is not None
    return crash


def told(crash: CrashReport) -> str:
    """What is compared: a function without what gcc appends when it splits or clones it."""
    function = crash.function.partition(".")[0] if crash.function else "-"
    stuck = " stuck" if crash.is_stuck else ""
    return f"{crash.code}{stuck} | {crash.type} | {function} {crash.module or '-'}"


@pytest.mark.parametrize("story", sorted(FILES - QUIET))
def test_a_crash_is_named_by_its_kind_and_by_who_is_to_blame(story: str) -> None:
    crash = crash_in(recorded(story))
    kernel, _, name = story.partition("/")
    assert told(crash) == STORIES.get(f"{name} {kernel}", STORIES.get(name))
    assert crash.complete
    if crash.function and crash.offset is not None:
        assert f" in {crash.function}+0x" in crash.title
        assert crash.function in crash.excerpt


def test_every_recorded_story_is_told_and_no_other() -> None:
    names = {story.partition("/")[2] for story in FILES - QUIET}
    assert names == {story.partition(" ")[0] for story in STORIES}


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_stories_were_recorded_of_either_kernel(kernel: str) -> None:
    assert len([story for story in FILES if story.startswith(f"{kernel}/")]) > 80


@pytest.mark.parametrize("story", sorted(QUIET))
def test_what_a_healthy_kernel_says_is_no_crash(story: str) -> None:
    assert find_crash(recorded(story)) is None
    assert find_complaints(recorded(story)) == ()


def test_no_text_is_no_crash() -> None:
    assert find_crash("") is None
    assert find_complaints("") == ()


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


def lines_of(crash: CrashReport) -> list[str]:
    lines = crash.excerpt.splitlines()
    return [(line.partition("] ")[2] if line.startswith("[") else line).strip() for line in lines]


@pytest.mark.parametrize(
    ("story", "first", "last"),
    [
        ("6.1/null_dereference", f"{NULL}, address:", f"{PANICS} Fatal exception"),
        ("6.12/list_del_twice", "list_del corruption, ffff", f"{PANICS} Fatal exception"),
        ("6.1/execute_data", "kernel tried to execute NX-protected page", f"{PANICS} Fatal exception"),
        ("6.1/timer_null", NULL, f"{PANICS} Fatal exception in interrupt"),
        ("6.1/stack_overflow", "BUG: TASK stack guard page was hit", "---[ end Kernel panic"),
        ("6.1/warn_message", "------------[ cut here ]------------", "---[ end trace"),
        ("6.1/slab_out_of_bounds", "=" * 66, "=" * 66),
        ("6.12/guarded_corruption", "=" * 66, "=" * 66),
        ("6.12/lockdep_circular", "=" * 54, "</TASK>"),
        ("6.12/slub_poison", "[Poison overwritten] 0xffff", "FIX kmalloc-64: Marking all objects used"),
        ("6.1/scheduling_while_atomic", "BUG: scheduling while atomic", "</TASK>"),
        ("6.1/irq_nobody", "irq 29: nobody cared", "Disabling IRQ #29"),
        ("6.1/lock_leak", "=" * 48, "#0: ffffffff"),
        ("6.12/netdev_leak", "unregister_netdevice: waiting", "unregister_netdevice: waiting"),
    ],
)  # fmt: skip
def test_the_excerpt_is_the_complaint_from_its_first_to_its_last_line(
    story: str, first: str, last: str
) -> None:
    lines = lines_of(crash_in(recorded(story)))
    assert lines[0].startswith(first)
    assert lines[-1].startswith(last)


@pytest.mark.parametrize(
    ("story", "source"),
    [
        ("6.1/warn", "/home/me/foo/foo.c:"),
        ("6.12/patched_warn", "/home/me/pair/main.c:10"),
        ("6.12/bug_on", "/home/me/foo/foo.c:"),
        ("6.1/refcount_zero", "lib/refcount.c:25"),
        ("6.12/array_index", "/home/me/foo/foo.c:"),
        ("6.1/rcu_unlocked", "/home/me/foo/foo.c:"),
    ],
)
def test_the_file_and_line_are_those_that_the_message_names(story: str, source: str) -> None:
    assert (crash_in(recorded(story)).source or "").startswith(source)


def test_the_worst_of_several_complaints_is_told() -> None:
    names = ("warn", "soft_lockup", "null_dereference", "refcount_zero")
    texts = [recorded(f"6.1/{name}") for name in names]
    assert crash_in("".join(texts)).type == NULL
    assert crash_in(texts[0] + texts[1]).is_stuck
    assert crash_in(texts[0] + texts[3]).type == "WARNING"


def test_all_complaints_are_told_in_their_order_and_one_that_repeats_itself_once() -> None:
    names = ("slab_out_of_bounds", "warn", "soft_lockup", "warn", "lockdep_circular", "null_dereference")
    found = find_complaints("".join(recorded(f"6.1/{name}") for name in names))
    assert [(each.code, each.is_stuck) for each in found] == [
        ("HR4105", False), ("HR4105", False), ("HR4105", True), ("HR4105", False), ("HR4101", False),
    ]  # fmt: skip
    assert [each.type for each in found][1:3] == ["WARNING", "BUG: soft lockup"]
    excerpts = [line for each in found for line in each.excerpt.split("\n")]
    assert len([line for line in excerpts if "WARNING: CPU" in line]) == 1


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_what_was_told_of_a_text_stays_when_it_grows(kernel: str) -> None:
    names = (
        *("slab_out_of_bounds", "refcount_zero", "hung_task", "sleeping_in_atomic"),
        *("slub_poison", "array_index", "rcu_stall", "timer_null"),
    )
    text = "".join(recorded(f"{kernel}/{name}") for name in names)
    final = find_complaints(text)
    assert len(final) >= len(names)
    for end in range(0, len(text), 211):
        so_far = find_complaints(text[:end])
        sure = [each.title for each in so_far if each.complete or each is not so_far[-1]]
        assert sure == [each.title for each in final][: len(sure)]


def test_a_second_complaint_about_the_same_place_is_one_of_its_own() -> None:
    types = [each.type for each in find_complaints(recorded("6.1/sleeping_in_atomic"))]
    assert types == ["BUG: sleeping function called from invalid context", "BUG: Invalid wait context"]


def test_complaints_without_end_are_told_up_to_a_bound() -> None:
    assert len(find_complaints("".join(f"BUG: foo_{'x' * n} is broken\n" for n in range(500)))) == 50


def test_a_panic_is_told_by_what_led_to_it() -> None:
    crash = crash_in(recorded("6.1/null_dereference") + recorded("6.1/panic"))
    assert crash.code == "HR4102"
    assert crash.title == f"{NULL} in foo_release+0x5"
    assert "Kernel panic - not syncing" in crash.excerpt


@pytest.mark.parametrize(
    ("story", "panic"),
    [
        ("warn", "panic_on_warn set ..."),
        ("soft_lockup", "softlockup: hung tasks"),
        ("hung_task", "hung_task: blocked tasks"),
        ("rcu_stall", "RCU Stall"),
    ],
)
def test_a_complaint_that_was_made_a_panic_keeps_its_name(story: str, panic: str) -> None:
    text = recorded(f"6.12/{story}")
    crash = crash_in(f"{text}[    9.0] Kernel panic - not syncing: {panic}\n")
    assert (crash.code, crash.title) == ("HR4102", crash_in(text).title)


def test_an_oops_that_oops_panic_made_a_panic_is_an_oops_and_one_in_an_interrupt_is_none() -> None:
    oops = recorded("6.1/null_dereference").partition("Kernel panic")[0].rpartition("\n")[0]
    for words, code in (("Fatal exception", "HR4101"), ("Fatal exception in interrupt", "HR4102")):
        crash = crash_in(f"{oops}\n[    9.0] Kernel panic - not syncing: {words}\n")
        assert (crash.code, crash.title) == (code, f"{NULL} in foo_release+0x5")


def test_an_oops_in_an_interrupt_is_a_panic_before_the_kernel_says_so() -> None:
    text = recorded("6.1/timer_null")
    crash = crash_in(text[: text.index("Kernel panic")])
    assert (crash.code, crash.complete) == ("HR4102", True)


@pytest.mark.parametrize(
    ("story", "offset"),
    [("null_dereference", 5), ("refcount_zero", 0x49 - 1), ("slab_out_of_bounds", 0x63 - 1)],
)
def test_the_offset_is_in_the_instruction_at_fault_not_behind_the_call(story: str, offset: int) -> None:
    assert crash_in(recorded(f"6.1/{story}")).offset == offset


def test_a_driver_may_call_its_functions_as_the_kernel_calls_its_helpers() -> None:
    text = recorded("6.1/null_dereference").replace("foo_release", "schedule_release")
    assert crash_in(text).function == "schedule_release"


# Text in other forms, and text that is not whole.


def test_text_without_times_with_carriage_returns_and_levels_reads_the_same() -> None:
    expected = crash_in(recorded("6.1/page_fault"))
    lines = [
        line.partition("] ")[2] for line in recorded("6.1/page_fault").splitlines() if line.startswith("[")
    ]
    for text in (
        "\n".join(lines),
        "\r\n".join(lines),
        "\n".join(f"<4>[    9.1][    C0] {line}" for line in lines),
        "\n".join(f"[  T123] {line}" for line in lines),
        "\n".join(f"\x1b[1;31m[    9.1] {line}\x1b[0m" for line in lines),
    ):
        assert crash_in(text).title == expected.title


def test_a_complaint_behind_a_prompt_is_found() -> None:
    text = "~ # " + recorded("6.1/null_dereference").partition("kernel.\n")[2]
    assert crash_in(text).title == f"{NULL} in foo_release+0x5"


def test_the_words_of_a_driver_cannot_move_the_cursor() -> None:
    text = recorded("6.1/warn_message").replace("foo: length 3", "foo: \x1b[2J\x1b]0;title\x07length\x08 3")
    assert crash_in(text).type == "WARNING: foo: length 3"


@pytest.mark.parametrize("story", sorted(FILES))
def test_a_text_that_ends_anywhere_is_read_as_far_as_it_goes(story: str) -> None:
    text = recorded(story)
    for end in range(0, len(text), 1 + len(text) // 17):
        for crash in find_complaints(text[:end]):
            assert crash.excerpt
            assert crash.title.startswith(crash.type)


@pytest.mark.parametrize(
    "story", ["null_dereference", "slab_out_of_bounds", "lockdep_circular", "slub_poison"]
)
def test_a_text_that_begins_anywhere_or_lacks_lines_is_read_too(story: str) -> None:
    lines = recorded(f"6.12/{story}").splitlines()
    for number in range(len(lines)):
        find_complaints("\n".join(lines[number:]))
        find_complaints("\n".join(lines[:number] + lines[number + 1 :]))
        find_complaints("\n".join([*lines[:number], lines[number][:30], *lines[number + 1 :]]))


def test_two_processors_that_complain_at_once_are_both_heard() -> None:
    one = recorded("6.1/warn").splitlines()
    other = recorded("6.1/sleeping_in_atomic").splitlines()
    mixed = [line for pair in zip(one, other, strict=False) for line in pair]
    types = [each.type.partition(":")[0] for each in find_complaints("\n".join(mixed))]
    assert types[:2] == ["BUG", "WARNING"]
    assert all(each.excerpt for each in find_complaints("\n".join(mixed)))


def test_two_complaints_within_a_few_lines_have_each_their_own() -> None:
    warn = "------------[ cut here ]------------\nWARNING: CPU: 0 PID: 1 at foo.c:1 foo+0x1/0x2"
    assert [each.excerpt for each in find_complaints(f"{warn}\nBUG: foo is broken\n")] == [
        warn,
        "BUG: foo is broken",
    ]


def test_a_line_that_no_kernel_would_write_is_cut() -> None:
    assert len(crash_in("BUG: " + "a" * 100_000).title) < 2_100


def test_an_oops_that_has_just_begun_is_known_to_be_unfinished() -> None:
    text = recorded("6.1/null_dereference")
    crash = crash_in(text[: text.index("Call Trace")])
    assert not crash.complete
    assert crash.title == f"{NULL} in foo_release+0x5"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a" * 2_000_000, id="one line"),
        pytest.param("\x1b]" * 1_000_000, id="escapes"),
        pytest.param(("BUG: " + "a" * 2_000 + "\n") * 1_000, id="headlines of long words"),
        pytest.param(("general protection fault " + "a " * 900 + "\n") * 1_000, id="nearly a trap"),
        pytest.param(("x" * 2_000 + "\n") * 1_000, id="long words"),
        pytest.param(("[<" * 900 + "\n") * 1_000, id="brackets"),
        pytest.param("BUG: x\n" * 20_000, id="headlines"),
        pytest.param("------------[ cut here ]------------\n" * 20_000, id="beginnings"),
        pytest.param("BUG kmalloc-64 (x): y\n" * 9_000 + "WARNING: CPU: 0 PID: 1 at\n" * 9_000, id="slub"),
    ],
)
def test_no_text_takes_quadratic_time(text: str) -> None:
    """Of any of these that would be minutes."""
    started = time.process_time()
    find_complaints(text)
    assert time.process_time() - started < 10
