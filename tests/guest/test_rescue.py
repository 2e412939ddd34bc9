# SPDX-License-Identifier: MIT
"""A guest that crashes, falls silent, complains or is cut off: nobody loses more than one reload."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

from hotreload.demo.driven import Driven
from hotreload.report.outcome import Outcome
from hotreload.session.control import RemoteError
from tests.conftest import require
from tests.guest.story import HELP, MAIN, Read, Save
from tests.guest.watching import DRIVER, LIMIT, TIMER, Watch, edit, left_behind, reading, run, watch
from tests.kernels import SERIES, kernel_of


def crash_of_reading(driver: Path, watching: Watch, said: int) -> str:
    """Read in a guest that does not survive it; what was said of that."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        run(driver, "guest", "exec", "cat", "/proc/counter", limit=20)
    return watching.waits_for("report: ", times=said)


def test_a_crash_brings_the_guest_back_to_before_the_reload_and_edits_go_on(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "old %d", "new %d")
        watching.waits_for("live")
        assert reading(driver) == "new 1\n"
        edit(driver, "reads += step;", "reads += *(volatile int *)8;")
        watching.waits_for("live", times=2)
        crash_of_reading(driver, watching, 1)
        lines = (driver / "counter.c").read_text().splitlines()
        line = next(number for number, text in enumerate(lines, 1) if "volatile" in text)
        told = watching.waits_for("crashed")
        assert re.search(
            rf"HR4101 BUG: kernel NULL pointer dereference in show\+0x\w+ \(counter.c:{line}\)", told
        )
        assert re.search(r"#2 undone, guest restored to the checkpoint before it in \d", watching.said)
        assert "counter.c: the guest runs #1 of it, until it is saved again" in watching.said
        (report,) = re.findall("report: (.*)", watching.said)
        commands = Path(report).read_text().partition("commands for a closer look:\n")[2].split("\n")
        assert re.fullmatch(
            r"  gdb -batch -ex 'disassemble /s show' \S+/2/4-module/hotreload_2.ko", commands[0]
        )
        assert Path(commands[0].split()[-1]).is_file()
        assert reading(driver) == "new 2\n"
        assert "#1" in run(driver, "status").stdout
        assert run(driver, "redo").stderr.count("nothing to redo") == 1
        assert "crashed" in run(driver, "history").stdout
        assert "NULL pointer" in run(driver, "why").stdout

        edit(driver, "reads += *(volatile int *)8;", "reads += 10 * step;")
        assert "#3" in watching.waits_for("live", times=3)
        assert reading(driver) == "new 12\n"
        assert watching.end() == 130
    assert not left_behind(driver)


def test_a_guest_that_crashes_again_goes_back_further_and_then_is_booted_anew(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "old %d", "new %d")
        watching.waits_for("live")
        edit(driver, "new %d", "newer %d")
        watching.waits_for("live", times=2)
        panic = ("guest", "exec", "echo c >/proc/sysrq-trigger")
        for number, text in ((2, "new"), (1, "old")):
            run(driver, *panic)
            watching.waits_for(f"#{number} undone, guest restored")
            assert reading(driver).startswith(text)
        run(driver, *panic)
        watching.waits_for("rebooted", limit=150)
        assert (
            "counter.c: the guest runs the code it first booted with, until it is saved again"
        ) in watching.said
        assert reading(driver) == "old 1\n"
        edit(driver, "newer %d", "newest %d")
        assert "#3" in watching.waits_for("live", times=3)
        assert reading(driver) == "newest 2\n"
        assert watching.end() == 130
    assert not left_behind(driver)


def test_a_crash_after_an_undo_goes_back_to_before_the_undo(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        for number, (old, new) in enumerate((("old", "new"), ("new", "newer")), 1):
            edit(driver, f"{old} %d", f"{new} %d")
            watching.waits_for("live", times=number)
        assert run(driver, "undo", "1").returncode == 0
        panic = ("guest", "exec", "echo c >/proc/sysrq-trigger")
        run(driver, *panic)
        watching.waits_for("#2 runs again, guest restored to the checkpoint before the undo")
        assert reading(driver).startswith("newer")
        run(driver, *panic)
        watching.waits_for("#2 undone, guest restored")
        assert reading(driver).startswith("new ")
        assert watching.end() == 130


def test_a_crash_while_the_patch_is_brought_takes_it_back(driver: Path) -> None:
    # A timer runs the function before anybody could look.
    edit(driver, "static int __init", TIMER)
    edit(driver, "{\n\tproc_create", "{\n\tmod_timer(&timer, jiffies + 1);\n\tproc_create")
    edit(driver, "{\n\tremove", "{\n\tdel_timer_sync(&timer);\n\tremove")
    with watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "ticks++;", "ticks += *(volatile int *)8;")
        watching.waits_for(r"crashed .*HR410\d .* in tick\+0x")
        watching.waits_for("guest restored to the checkpoint before it")
        assert reading(driver) == "old 1\n"
        edit(driver, "ticks += *(volatile int *)8;", "ticks += 2;")
        watching.waits_for("live")
        assert watching.end() == 130
    assert not left_behind(driver)


def test_a_command_that_crashes_the_guest_after_a_reload_does_not_end_the_watch(driver: Path) -> None:
    with watch(driver, "--", "cat", "/proc/counter") as watching:
        watching.waits_for("ready")
        edit(driver, "reads += step;", "reads += *(volatile int *)8;")
        watching.waits_for("the guest was lost while this command ran: cat /proc/counter")
        watching.waits_for("#1 undone, guest restored")
        edit(driver, "reads += *(volatile int *)8;", "reads += 10 * step;")
        watching.waits_for("live .*#2")
        assert watching.process.stdout is not None
        assert watching.process.stdout.readline() == "old 10\n"
        assert watching.end() == 130
    edit(driver, "reads += 10 * step;", "reads += step;")
    with watch(driver, "--once", "--", "cat", "/proc/counter") as watching:
        watching.waits_for("ready")
        edit(driver, "reads += step;", "reads += *(volatile int *)8;")
        assert watching.process.wait(LIMIT) == 5
        assert "#1 undone" in watching.said


def test_without_checkpoints_a_guest_that_crashes_is_booted_anew(driver: Path) -> None:
    with watch(driver, "--checkpoints", "off") as watching:
        watching.waits_for("ready")
        edit(driver, "reads += step;", "reads += *(volatile int *)8;")
        watching.waits_for("live")
        with contextlib.suppress(subprocess.TimeoutExpired):
            run(driver, "guest", "exec", "cat", "/proc/counter", limit=20)
        assert re.search(r"crashed .*HR410\d .* in show\+0x", watching.waits_for("crashed"))
        watching.waits_for("rebooted", limit=150)
        [report] = re.findall(r"report: (\S+)", watching.said)
        assert "RIP: 0010:show+0x" in Path(report).read_text()
        # It has not what killed it, but what it booted first.
        assert reading(driver) == "old 1\n"
        edit(driver, "reads += *(volatile int *)8;", "reads += 10;")
        watching.waits_for("live", times=2)
        assert reading(driver) == "old 11\n"
        assert watching.end() == 130
    assert not left_behind(driver)


def test_a_machine_that_is_killed_is_started_anew(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        shown = json.loads(run(driver, "guest", "show", "--json").stdout)
        edit(driver, "old %d", "new %d")
        watching.waits_for("live")
        os.kill(shown["qemu_pid"], signal.SIGKILL)
        watching.waits_for("warned .*HR4103 the guest is lost: QEMU ended with signal 9")
        watching.waits_for("rebooted", limit=150)
        # It is no fault of the edit's.
        watching.waits_for("live", times=2)
        assert reading(driver) == "new 1\n"
        # Who switches it off wants it so.
        run(driver, "guest", "exec", "poweroff -f")
        assert watching.process.wait(LIMIT) == 8
        assert "error[HR4103]: the guest is lost: the guest powered itself off" in watching.said
    assert not left_behind(driver)


def test_a_guest_without_userland_is_brought_back_and_gets_what_was_saved(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "old %d", "new %d")
        watching.waits_for("live")
        with contextlib.suppress(subprocess.TimeoutExpired):
            run(driver, "guest", "exec", "kill -9 -1", limit=10)
        # Its checkpoint of now is no good, and the edit not to blame.
        edit(driver, "new %d", "newer %d")
        watching.waits_for(
            "the guest does not answer at checkpoint-2: restored checkpoint-1 instead", limit=120
        )
        assert (
            "counter.c: the guest runs the code it booted with, and gets the saved version again"
            in watching.said
        )
        watching.waits_for("live", times=2, limit=150)
        assert reading(driver) == "newer 1\n"
        assert watching.end() == 130


def test_what_is_saved_while_the_guest_sleeps_or_is_paused_goes_live_when_it_goes_on(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        socket = json.loads(run(driver, "guest", "show", "--json").stdout)["qmp"]
        for number, (state, begin, end) in enumerate(
            (("suspended", None, "system_wakeup"), ("paused", "stop", "cont")), 1
        ):
            if begin:
                qmp(socket, begin)
            else:
                sleep = "(sleep 0.2; echo mem >/sys/power/state) >/dev/null 2>&1 </dev/null &"
                run(driver, "guest", "exec", sleep)
            watching.waits_for(rf"the guest (?:sleeps|is) .*{state[:6]}")
            edit(driver, "%d", f"{state} %d")
            assert json.loads(run(driver, "status", "--json").stdout)["state"] == state
            refused = run(driver, "guest", "exec", "true")
            assert (refused.returncode, f"it is {state}" in refused.stderr) == (8, True)
            assert watching.said.count("live") == number - 1
            qmp(socket, end)
            watching.waits_for("live", times=number)
        assert reading(driver) == "old suspended paused 1\n"
        assert watching.end() == 130


def test_a_makefile_that_is_half_saved_is_an_error_of_that_edit(driver: Path) -> None:
    kbuild = driver / "Kbuild"
    text = kbuild.read_text()
    with watch(driver) as watching:
        watching.waits_for("ready")
        for number, half in enumerate(("", "obj-m := counter.o\nifeq (a,b\n"), 1):
            kbuild.write_text(half)
            watching.waits_for("HR1007 .*has no obj-m|Kbuild +does not compile", times=number)
        watching.waits_for(r"Kbuild:2: \*\*\* invalid syntax in conditional")  # make's own words
        kbuild.write_text(text)
        watching.waits_for("no change")
        edit(driver, "old %d", "new %d")
        watching.waits_for("live")
        assert reading(driver) == "new 1\n"
        assert watching.end() == 130


# What a patch can do to a guest.


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        pytest.param(
            "local_irq_disable();\n\tfor (;;)\n\t\tcpu_relax();",
            "HR4104 the guest is silent: it runs with interrupts off",
            id="it loops with interrupts off",
        ),
        pytest.param(
            '{ u8 none[10] = {}; asm volatile("lidt %0; int3" :: "m"(none)); }',
            "HR4102 the guest reset itself: a triple fault",
            id="its processor gives up",
        ),
        pytest.param(
            "preempt_disable();\n\tfor (;;)\n\t\tcpu_relax();",
            "HR4103 the guest runs, but no longer answers",
            id="it loops",
        ),
    ],
)
def test_a_guest_that_answers_no_more_is_brought_back(harm: str, told: str, driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "old %d", "new %d")
        watching.waits_for("live")
        assert reading(driver) == "new 1\n"
        edit(driver, "reads += step;", harm)
        watching.waits_for("live", times=2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run(driver, "guest", "exec", "cat", "/proc/counter")
        line = watching.waits_for(f"crashed .*{told}", limit=150)
        if "triple fault" not in line:  # which leaves no trace
            assert re.search(r" in show\+0x\w+ \(counter.c:1[123]\)", line)
        watching.waits_for("#2 undone, guest restored to the checkpoint before it")
        assert reading(driver) == "new 2\n"
        edit(driver, harm, "reads += 10;")
        watching.waits_for("live", times=3)
        assert reading(driver) == "new 12\n"
        assert watching.end() == 130
    assert not left_behind(driver)


def test_a_panic_in_an_interrupt_brings_the_guest_back_and_names_the_line(driver: Path) -> None:
    edit(driver, "static int __init", TIMER)
    edit(driver, "reads += step;", "reads += step;\n\tmod_timer(&timer, jiffies + 1);")
    edit(driver, "{\n\tremove", "{\n\tdel_timer_sync(&timer);\n\tremove")
    edit(driver, "static int show", "static struct timer_list timer;\nstatic int show")
    with watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "ticks++;", "ticks += *(volatile int *)8;")
        watching.waits_for("live")
        with contextlib.suppress(subprocess.TimeoutExpired):
            run(driver, "guest", "exec", "cat", "/proc/counter")
        watching.waits_for(r"crashed .*HR4102 .* in tick\+0x\w+ \(counter.c:\d+\)")
        watching.waits_for("#1 undone, guest restored")
        assert watching.end() == 130


def test_a_warning_after_a_reload_is_told_once_and_nothing_is_undone(driver: Path) -> None:
    with watch(driver, "--json") as watching:
        watching.waits_for("ready")
        edit(driver, "reads += step;", "WARN_ON(reads);\n\treads += step;")
        watching.waits_for("live")
        for number in (1, 2, 3):
            assert reading(driver) == f"old {number}\n"
        lines = (driver / "counter.c").read_text().splitlines()
        line = next(number for number, text in enumerate(lines, 1) if "WARN_ON" in text)
        watching.waits_for(rf"warned .*HR4105 WARNING in show\+0x\w+ \(counter.c:{line}\) .*#1")
        assert reading(driver) == "old 4\n"
        assert watching.said.count("warned") == 1
        assert "warned" in run(driver, "history").stdout
        assert watching.end() == 130
        assert watching.process.stdout is not None
        events = [json.loads(text) for text in watching.process.stdout]
    (crash,) = (event for event in events if event["type"] == "crash")
    assert (crash["code"], crash["function"], crash["number"]) == ("HR4105", "show", 1)


def test_the_line_of_a_crash_in_code_that_no_reload_has_changed_is_named(driver: Path) -> None:
    follow = "static noinline int\nfollow(volatile int *place)\n{\n\t*place += 1;\n\treturn 1;\n}\n\n"
    edit(driver, "static int show", f"{follow}static int show")
    edit(driver, "reads += step;", "reads += follow(&step);")
    with watch(driver) as watching:
        watching.waits_for("ready")
        assert reading(driver) == "old 1\n"
        # Further down than when it was compiled.
        more = "/*\n * Two lines more.\n */\nstatic noinline"
        edit(driver, "static noinline", more, "follow(&step)", "follow((int *)(reads + 7L))")
        watching.waits_for("live")
        crash_of_reading(driver, watching, 1)
        lines = (driver / "counter.c").read_text().splitlines()
        line = next(number for number, text in enumerate(lines, 1) if "*place += 1" in text)
        watching.waits_for(rf"crashed .*HR4101 .* in follow\+0x\w+ \(counter.c:{line}\) .*#1")
        assert watching.end() == 130


def test_a_lock_that_a_reload_leaks_is_told_and_who_waits_for_it_is_brought_back(driver: Path) -> None:
    kernel = asyncio.run(kernel_of(SERIES[-1]))  # one that looks for who sleeps with a lock
    edit(driver, "static int show", "static DEFINE_SPINLOCK(lock);\nstatic int show")
    edit(driver, "reads += step;", "spin_lock(&lock);\n\treads += step;\n\tspin_unlock(&lock);")
    with watch(driver, "-K", str(kernel.output)) as watching:
        watching.waits_for("ready")
        assert reading(driver) == "old 1\n"
        edit(driver, "\n\tspin_unlock(&lock);", "")
        watching.waits_for("live")
        assert reading(driver) == "old 2\n"
        watching.waits_for(r"warned .*HR4105 BUG: (?:scheduling while atomic|sleeping function).*#1")
        with contextlib.suppress(subprocess.TimeoutExpired):
            run(driver, "guest", "exec", "cat", "/proc/counter", limit=5)
        # It spins with its interrupts on: given the time that a kernel may go without scheduling.
        watching.waits_for(r"crashed .*HR410[35] .*#1", limit=3 * LIMIT)
        watching.waits_for("#1 undone, guest restored")
        assert reading(driver) == "old 2\n"
        assert watching.end() == 130


def test_what_came_along_with_a_reload_that_crashed_is_left_out_with_it(in_session: InSession) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        await save(help_c=HELP.replace("2 * n", "3 * n"))
        await watch.request("undo")
        assert await read() == "hello 1 2\n"
        # The next save brings back what was undone.
        await save(main_c=MAIN.replace("hello", "hi"))
        assert await read() == "hi 2 6\n"
        with contextlib.suppress(RemoteError):
            await watch.run("echo c >/proc/sysrq-trigger")
        crashed = (await watch.next_cycle()).report
        assert (crashed.outcome, crashed.number) == (Outcome.CRASHED, 2)
        assert crashed.notes[1].startswith("help.c, main.c: the guest runs the code it booted with, until")
        await save(main_c=MAIN.replace("hello", "hey"))
        assert await read() == "hey 2 4\n"

    in_session(story)


# What somebody does to it while a patch is on its way.


InSession = Callable[..., None]
SLOW = DRIVER.replace("<linux/module.h>", "<linux/delay.h>\n#include <linux/module.h>").replace(
    "reads += step;", "reads += step;\n\tif (reads == 1)\n\t\tmsleep(12000);"
)


@pytest.fixture
def on_its_way(driver: Path) -> Path:
    (driver / "counter.c").write_text(SLOW)
    return driver


def push_on_its_way(driver: Path, watching: Watch) -> None:
    """Save an edit whose patch is held up: a task sleeps in the old code."""
    watching.waits_for("ready")
    run(driver, "guest", "exec", "setsid cat /proc/counter >/dev/null 2>&1 </dev/null & sleep 0.3")
    edit(driver, "old %d", "new %d")
    deadline = time.monotonic() + LIMIT
    while "in transition" not in run(driver, "status").stdout:
        assert time.monotonic() < deadline, watching.said


def test_a_connection_that_is_cut_while_a_patch_is_on_its_way_takes_it_back(on_its_way: Path) -> None:
    with watch(on_its_way) as watching:
        push_on_its_way(on_its_way, watching)
        # Its server for this connection is the one that another of them has started.
        parent = "/proc/$(awk '/^PPid/ {print $2}' /proc/$p/status)/comm"
        cut = f"for p in $(pidof dropbear); do grep -q dropbear {parent} && kill -9 $p; done"
        run(on_its_way, "guest", "exec", f"(sleep 0.2; {cut}) >/dev/null 2>&1 </dev/null &")
        watching.waits_for("crashed .*HR4103 the guest does not answer: ")
        watching.waits_for("unfinished patch undone, guest restored to the checkpoint before it")
        edit(on_its_way, "new %d", "newer %d")
        watching.waits_for("live")
        assert reading(on_its_way).startswith("newer")
        assert watching.end() == 130
    assert not left_behind(on_its_way)


def test_a_guest_that_is_paused_while_a_patch_is_on_its_way_is_waited_for(on_its_way: Path) -> None:
    with watch(on_its_way) as watching:
        push_on_its_way(on_its_way, watching)
        shown = json.loads(run(on_its_way, "guest", "show", "--json").stdout)
        qmp(shown["qmp"], "stop")
        time.sleep(8)
        assert "crashed" not in watching.said
        qmp(shown["qmp"], "cont")
        watching.waits_for("unfinished patch undone, guest restored|live ")
        edit(on_its_way, "new %d", "newer %d")
        watching.waits_for("live ", times=watching.said.count("live ") + 1)
        assert reading(on_its_way).startswith("newer")
        assert watching.end() == 130
    assert not left_behind(on_its_way)


def test_a_machine_that_is_killed_while_a_patch_is_on_its_way_is_started_anew(on_its_way: Path) -> None:
    with watch(on_its_way) as watching:
        push_on_its_way(on_its_way, watching)
        shown = json.loads(run(on_its_way, "guest", "show", "--json").stdout)
        os.kill(shown["qemu_pid"], signal.SIGKILL)
        watching.waits_for("warned .*HR4103 the guest is lost: QEMU ended with signal 9")
        watching.waits_for("rebooted", limit=150)
        edit(on_its_way, "new %d", "newer %d")
        watching.waits_for("live")
        assert watching.end() == 130
    assert not left_behind(on_its_way)


def qmp(socket: str, command: str) -> None:
    """Give QEMU an order by hand, as a person would."""

    async def give() -> None:
        client = QMPClient("by hand")
        await client.connect(socket)
        await client.execute(command)
        await client.disconnect()

    asyncio.run(give())


# Checkpoints by hand.


def test_a_guest_is_saved_and_brought_back_by_name(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        assert "no checkpoints yet" in run(driver, "guest", "checkpoints").stderr
        assert reading(driver) == "old 1\n"
        edit(driver, "old %d", "new %d")
        watching.waits_for("live")
        assert run(driver, "guest", "save", "clean").returncode == 0
        assert reading(driver) == "new 2\n"
        run(driver, "undo", "--all")
        assert reading(driver) == "old 3\n"

        loaded = run(driver, "guest", "load", "clean")
        assert loaded.returncode == 0
        assert re.search(r"restored +clean .*\n +the guest runs #1", loaded.stderr)
        assert reading(driver) == "new 2\n"
        listed = json.loads(run(driver, "guest", "checkpoints", "--json").stdout)["checkpoints"]
        assert [(each["name"], each["runs"], each["by_hand"]) for each in listed] == [
            ("checkpoint-1", None, False),
            ("clean", 1, True),
        ]
        # What a crash brings back is what was before the push, as ever.
        run(driver, "guest", "exec", "echo c >/proc/sysrq-trigger")
        watching.waits_for("#1 undone, guest restored")
        assert reading(driver) == "old 2\n"
        assert run(driver, "guest", "load").returncode == 0
        assert reading(driver) == "new 2\n"

        for words, said in (
            (("load", "nowhere"), "there is no checkpoint nowhere"),
            (("save", "a/b"), "'a/b' is not a valid name for a checkpoint"),
            (("save", "checkpoint-1"), "'checkpoint-1' is not a valid name"),
        ):
            wrong = run(driver, "guest", *words)
            assert (wrong.returncode, said in wrong.stderr) == (2, True), wrong.stderr
        assert watching.end() == 130


def test_a_reload_that_deadlocks_two_readers_is_left_behind_by_loading_a_checkpoint(driver: Path) -> None:
    edit(driver, "static int step", "static DEFINE_MUTEX(lock);\nstatic int step")
    with watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "reads += step;", "mutex_lock(&lock);\n\tmutex_lock(&lock);\n\treads += step;")
        watching.waits_for("live")
        run(driver, "guest", "exec", "setsid cat /proc/counter >/dev/null 2>&1 </dev/null & sleep 0.3")
        assert "show+0x" in run(driver, "guest", "exec", "cat /proc/[0-9]*/stack").stdout
        assert run(driver, "guest", "load").returncode == 0
        edit(driver, "mutex_lock(&lock);\n\tmutex_lock(&lock);\n\treads += step;", "reads += 2 * step;")
        watching.waits_for("live", times=2)
        assert reading(driver) == "old 2\n"
        assert watching.end() == 130


def test_the_memory_of_a_guest_that_crashed_is_kept_for_who_asks(driver: Path) -> None:
    (driver / "hotreload.toml").write_text('vmcore = "on"\n')
    with watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "reads += step;", "reads += *(volatile int *)8;")
        watching.waits_for("live")
        run(driver, "guest", "exec", "cat", "/proc/counter")
        line = watching.waits_for("drgn -c ")
        vmcore = re.search(r"drgn -c (\S+) -s \S+/vmlinux", line)
        assert vmcore is not None
        assert Path(vmcore[1]).stat().st_size > 1 << 20
        assert reading(driver) == "old 1\n"
        assert watching.end() == 130


def test_a_guest_without_checkpoints_says_so(driver: Path) -> None:
    with watch(driver, "--checkpoints", "off") as watching:
        watching.waits_for("ready")
        saved = run(driver, "guest", "save", "clean")
        assert saved.returncode == 7
        assert "error[HR5105]: this guest has no checkpoints" in saved.stderr
        assert watching.end() == 130


def test_the_guests_memory_is_written_to_a_file_that_is_not_there_yet(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        dumped = run(driver, "guest", "dump", "vmcore")
        assert dumped.returncode == 0, dumped.stderr
        assert dumped.stderr.startswith(f"drgn -c {driver / 'vmcore'} -s ")
        # Of makedumpfile: the format that crash and drgn read, plain or flattened.
        assert (driver / "vmcore").read_bytes()[:8] in (b"KDUMP   ", b"makedump")
        again = run(driver, "guest", "dump", "vmcore")
        assert (again.returncode, "already exists" in again.stderr) == (2, True)
        assert reading(driver) == "old 1\n"
        assert watching.end() == 130


def test_without_space_for_a_checkpoint_an_edit_goes_live_and_says_so(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=700m", "hotreload-test", str(place)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    require(
        mounted.returncode == 0, f"the right to mount ({mounted.stderr.strip()})", "run the tests as root"
    )
    try:
        monkeypatch.setenv("XDG_STATE_HOME", str(place))
        with watch(driver) as watching:
            watching.waits_for("ready")
            edit(driver, "old %d", "new %d")
            watching.waits_for("live")
            with (place / "much").open("wb") as much:
                os.posix_fallocate(much.fileno(), 0, 200 << 20)
            edit(driver, "new %d", "newer %d")
            watching.waits_for("live", times=2)
            assert "HR5107 no checkpoint of the guest: " in watching.said
            assert reading(driver) == "newer 1\n"
            run(driver, "guest", "exec", "echo c >/proc/sysrq-trigger")
            watching.waits_for("#2 and earlier reloads undone, guest restored to a checkpoint of the code")
            assert reading(driver) == "old 1\n"
            (place / "much").unlink()
            edit(driver, "newer %d", "newest %d")
            watching.waits_for("live", times=3)
            assert watching.said.count("HR5107") == 1
            assert watching.end() == 130
    finally:
        subprocess.run(["umount", str(place)], check=True)


# What is no reason to bring a guest back.


def test_a_guest_that_prints_and_prints_is_waited_for(driver: Path) -> None:
    edit(
        driver,
        "reads += step;",
        'reads += step;\n\tfor (int i = 0; i < 20000; i++)\n\t\tpr_info("line %d\\n", i);',
    )
    with watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "old %d", "new %d")
        watching.waits_for("live")
        run(driver, "guest", "exec", "dmesg -n 8; (cat /proc/counter) >/dev/null 2>&1 </dev/null &")
        deadline = time.monotonic() + 60
        while "line 19999" not in run(driver, "guest", "logs").stdout:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert "crashed" not in watching.said
        assert run(driver, "guest", "exec", "echo", "there", limit=150).stdout == "there\n"
        assert "crashed" not in watching.said
        assert watching.end() == 130


def test_a_guest_whose_network_is_down_for_a_while_is_left_alone(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        run(driver, "guest", "exec", "echo kept >/tmp/kept")
        down = "(ip link set eth0 down; sleep 45; ip link set eth0 up) >/dev/null 2>&1 </dev/null &"
        run(driver, "guest", "exec", down)
        watching.waits_for("warned .*HR4103 the guest runs, but no longer answers", limit=150)
        watching.waits_for("the guest answers again", limit=150)
        assert run(driver, "guest", "exec", "cat", "/tmp/kept").stdout == "kept\n"
        edit(driver, "old %d", "new %d")
        watching.waits_for("live")
        assert watching.end() == 130
