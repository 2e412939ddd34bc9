# SPDX-License-Identifier: MIT
"""`hotreload watch` and its companions, as processes: what a person types, sees, and finds afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotreload.build.kernel_tree import KernelTree
from hotreload.paths import runtime_folder
from hotreload.session.guests import sessions
from tests.conftest import require
from tests.guest.conftest import PROGRAMS

DRIVER = """\
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

static int step = 1;
module_param(step, int, 0444);
static int reads;

static int show(struct seq_file *m, void *v)
{
	reads += step;
	seq_printf(m, "old %d\\n", reads);
	return 0;
}

static int __init counter_init(void)
{
	proc_create_single("counter", 0, NULL, show);
	return 0;
}

static void __exit counter_exit(void)
{
	remove_proc_entry("counter", NULL);
}
module_init(counter_init);
module_exit(counter_exit);
MODULE_LICENSE("GPL");
"""
TIMER = """\
static int ticks;
static void tick(struct timer_list *unused);
static DEFINE_TIMER(timer, tick);
static noinline void tick(struct timer_list *unused)
{
	ticks++;
	mod_timer(&timer, jiffies + 1);
}

static int __init"""
HOTRELOAD = (sys.executable, "-m", "hotreload")
LIMIT = 30.0


@pytest.fixture(scope="module", autouse=True)
def _everything_is_here(debian_kernel: KernelTree) -> None:
    for program, package in PROGRAMS.items():
        require(shutil.which(program), program, f"apt-get install {package}")
    assert debian_kernel.image.is_file()


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    # No other test run's guest has this name: what is left behind is ours.
    return made_driver(tmp_path / f"counter{os.getpid()}")


def made_driver(folder: Path) -> Path:
    folder.mkdir()
    (folder / "Kbuild").write_text("obj-m := counter.o\n")
    (folder / "counter.c").write_text(DRIVER)
    return folder


def edit(folder: Path, old: str, new: str) -> None:
    source = folder / "counter.c"
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))


def run(folder: Path, *words: str, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
    """One hotreload command in ``folder``, to its end."""
    return subprocess.run(
        [*HOTRELOAD, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=limit,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def _field(pid: int, name: str) -> str:
    """One line of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


class Watch:
    """A `hotreload watch` that runs; ``said`` is its standard error so far."""

    def __init__(self, folder: Path, *words: str, **options: object) -> None:
        self.log = folder.parent / f"said-{time.monotonic_ns()}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*HOTRELOAD, "watch", *words],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                **options,  # type: ignore[call-overload]
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def runs(self) -> None:
        """Return once the process is hotreload: a starting interpreter dies as any program does."""
        hangup = 1 << (signal.SIGHUP - 1)  # the last signal that hotreload takes in hand
        while not hangup & int(_field(self.process.pid, "SigCgt"), 16):
            time.sleep(0.002)

    def waits_for(self, pattern: str, *, times: int = 1, limit: float = LIMIT) -> str:
        """The line that matches, once it was said ``times`` times."""
        deadline = time.monotonic() + limit
        while len(found := re.findall(f"^.*(?:{pattern}).*$", self.said, re.MULTILINE)) < times:
            assert self.process.poll() is None, f"it ended ({self.process.returncode}): {self.said}"
            assert time.monotonic() < deadline, f"no {pattern!r} in: {self.said}"
            time.sleep(0.02)
        return str(found[-1])

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(LIMIT)


@contextlib.contextmanager
def watch(folder: Path, *words: str, **options: object) -> Iterator[Watch]:
    watching = Watch(folder, *words, **options)
    try:
        yield watching
    finally:
        if watching.process.poll() is None:
            watching.process.kill()
        watching.process.wait(LIMIT)
        assert watching.process.stdout is not None
        watching.process.stdout.close()


def leftovers(folder: Path) -> list[str]:
    """Machines of this folder's guest, and sockets and folders of its session, that still exist."""
    qemus = []
    for commandline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"qemu-system" in (words := commandline.read_bytes()) and folder.name.encode() in words:
                qemus.append(str(commandline))
    guests = runtime_folder() / "guests"
    named = [str(path) for path in guests.glob("*") if path.name.startswith(folder.name)]
    return qemus + named


def eventually_nothing(folder: Path) -> bool:
    deadline = time.monotonic() + 5
    while leftovers(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not leftovers(folder)


def reading(folder: Path) -> str:
    return run(folder, "guest", "exec", "cat", "/proc/counter").stdout


def test_an_edit_is_live_with_its_state_and_can_be_taken_back_and_brought_again(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready .*counter")
        assert reading(driver) == "old 1\n"

        edit(driver, "old %d", "new %d")
        assert "#1" in watching.waits_for(r"live +counter\.c +show")
        assert reading(driver) == "new 2\n"

        status = json.loads(run(driver, "status", "--json").stdout)
        assert (status["running"], status["modules"]) == (1, ["counter"])
        [patch] = status["patches"]
        assert [function["name"] for function in patch["objects"][0]["functions"]] == ["show"]

        assert run(driver, "undo").returncode == 0
        assert reading(driver) == "old 3\n"
        assert run(driver, "redo").returncode == 0
        assert reading(driver) == "new 4\n"

        edit(driver, "reads += step;", "reads += step; /* why */")
        watching.waits_for("no change")

        edit(driver, "reads += step;", "reads += ;")
        watching.waits_for("does not compile; the guest still runs #1")
        watching.waits_for(r"counter\.c:11:\d+: error: expected expression")
        assert reading(driver) == "new 5\n"

        (driver / "counter.c").write_text(DRIVER)
        watching.waits_for("undone", times=2)
        assert reading(driver) == "old 6\n"

        outcomes = [
            each["outcome"] for each in json.loads(run(driver, "history", "--json").stdout)["reports"]
        ]
        assert outcomes[0] == "live"
        assert "compile_error" in outcomes
        assert watching.end() == 130
    assert eventually_nothing(driver)
    assert (driver / "counter.c").read_text() == DRIVER


def test_what_was_saved_while_the_guest_booted_is_live_without_another_save(driver: Path) -> None:
    with watch(driver, "-v", "--once") as watching:
        deadline = time.monotonic() + LIMIT
        while not (driver / "counter.ko").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        edit(driver, "old %d", "new %d")
        assert watching.process.wait(LIMIT) == 0
        assert re.search(r"live +counter\.c +show", watching.said)


def test_a_second_hotreload_on_the_same_guest_is_refused_and_another_guest_is_not(tmp_path: Path) -> None:
    one, two = made_driver(tmp_path / "one"), made_driver(tmp_path / "two")
    with watch(one) as first:
        first.waits_for("ready")
        refused = run(one, "watch")
        assert refused.returncode == 2
        assert refused.stderr.startswith("hotreload: error[HR3106]: the guest one-")
        assert f"process {first.process.pid}, which watches {one}" in refused.stderr
        with watch(two) as second:
            second.waits_for("ready")
            assert {about.folder for about in sessions()} >= {one, two}
            edit(two, "old %d", "two %d")
            second.waits_for("live")
            assert (reading(one), reading(two)) == ("old 1\n", "two 1\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_being_told_to_end_leaves_nothing(number: signal.Signals, driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        assert leftovers(driver)
        assert watching.end(number) == 130
        assert "Traceback" not in watching.said
    assert eventually_nothing(driver)


@pytest.mark.parametrize("moment", [0.0, 0.15, 0.4, 0.8, 1.6])
def test_being_told_to_end_at_any_moment_of_the_boot_leaves_nothing(moment: float, driver: Path) -> None:
    with watch(driver) as watching:
        watching.runs()
        time.sleep(moment)
        assert watching.end() == 130
        assert "Traceback" not in watching.said
        assert "error" not in watching.said
    assert eventually_nothing(driver)


def test_sigterm_ends_it_where_a_script_had_interrupts_ignored(driver: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with watch(driver, preexec_fn=ignore) as watching:
        watching.waits_for("ready")
        assert watching.end(signal.SIGTERM) == 130
        assert "Traceback" not in watching.said
    assert eventually_nothing(driver)


def test_a_killed_session_takes_its_machine_with_it_and_is_no_obstacle(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        watching.end(signal.SIGKILL)
    missing = run(driver, "status")
    assert missing.returncode == 8
    assert missing.stderr.startswith("hotreload: error[HR4103]: no guest is running for ")
    assert "hint: hotreload watch or hotreload guest start" in missing.stderr
    assert eventually_nothing(driver)
    with watch(driver) as again:
        again.waits_for("ready")


def test_a_guest_in_the_background_takes_pushes_and_watchers_and_stays(driver: Path) -> None:
    started = run(driver, "guest", "start")
    assert started.returncode == 0, started.stderr
    try:
        edit(driver, "old %d", "new %d")
        pushed = run(driver, "push", "--json")
        assert pushed.returncode == 0
        events = [json.loads(line) for line in pushed.stdout.splitlines()]
        assert [event["type"] for event in events][-1] == "apply.done"
        assert reading(driver) == "new 1\n"

        with watch(driver) as watching:
            watching.waits_for("ready")
            edit(driver, "new %d", "newer %d")
            watching.waits_for("live")
            assert watching.end() == 130
        assert reading(driver) == "newer 2\n"

        edit(driver, "newer %d", "unwatched %d")
        time.sleep(0.5)
        assert reading(driver) == "newer 3\n"
        put = run(driver, "guest", "put", "counter.c", "/tmp/")
        assert put.returncode == 0, put.stderr
        assert run(driver, "guest", "exec", "wc -l < /tmp/counter.c").stdout.strip() == str(
            len((driver / "counter.c").read_text().splitlines())
        )
        assert run(driver, "guest", "exec", "exit 3").returncode == 3
    finally:
        assert run(driver, "guest", "stop").returncode == 0
    assert not leftovers(driver)


def test_a_restart_that_cannot_be_built_leaves_the_guest_that_runs(driver: Path) -> None:
    assert run(driver, "guest", "start").returncode == 0
    try:
        edit(driver, "reads += step;", "reads += stop;")
        refused = run(driver, "guest", "restart")
        assert refused.returncode == 3
        assert "'stop' undeclared" in refused.stderr.replace("\u2018", "'").replace("\u2019", "'")
        assert reading(driver) == "old 1\n"
        edit(driver, "reads += stop;", "reads += 2 * step;")
        assert run(driver, "guest", "restart").returncode == 0
        assert reading(driver) == "old 2\n"
    finally:
        assert run(driver, "guest", "stop").returncode == 0


def test_a_background_guest_that_does_not_come_up_says_why(driver: Path) -> None:
    edit(driver, "return 0;\n}\n\nstatic void", "return -ENODEV;\n}\n\nstatic void")
    started = run(driver, "guest", "start")
    assert started.returncode == 4
    assert "error[HR3103]: the guest's kernel refused module counter" in started.stderr
    assert eventually_nothing(driver)


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
        assert reading(driver) == "new 2\n"
        assert "#1" in run(driver, "status").stdout
        assert run(driver, "redo").stderr.count("nothing to redo") == 1
        assert "crashed" in run(driver, "history").stdout
        assert "NULL pointer" in run(driver, "why").stdout

        edit(driver, "reads += *(volatile int *)8;", "reads += 10 * step;")
        assert "#3" in watching.waits_for("live", times=3)
        assert reading(driver) == "new 12\n"
        assert watching.end() == 130
    assert eventually_nothing(driver)


def test_a_guest_that_crashes_again_goes_back_further_and_then_ends_with_status_5(driver: Path) -> None:
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
        assert watching.process.wait(LIMIT) == 5
    assert eventually_nothing(driver)


def test_a_crash_after_an_undo_goes_back_to_before_the_undo(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        for number, (old, new) in enumerate((("old", "new"), ("new", "newer")), 1):
            edit(driver, f"{old} %d", f"{new} %d")
            watching.waits_for("live", times=number)
        assert run(driver, "undo", "1").returncode == 0
        panic = ("guest", "exec", "echo c >/proc/sysrq-trigger")
        run(driver, *panic)
        watching.waits_for("restored to the checkpoint before the undo: it runs #2 again")
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
    assert eventually_nothing(driver)


def test_a_command_that_crashes_the_guest_after_a_reload_does_not_end_the_watch(driver: Path) -> None:
    with watch(driver, "--", "cat", "/proc/counter") as watching:
        watching.waits_for("ready")
        edit(driver, "reads += step;", "reads += *(volatile int *)8;")
        watching.waits_for("the guest was lost while it ran: cat /proc/counter")
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


def test_without_checkpoints_a_crash_ends_the_session_with_status_5(driver: Path) -> None:
    with watch(driver, "--checkpoints", "off") as watching:
        watching.waits_for("ready")
        edit(driver, "reads += step;", "reads += *(volatile int *)8;")
        watching.waits_for("live")
        with contextlib.suppress(subprocess.TimeoutExpired):
            run(driver, "guest", "exec", "cat", "/proc/counter", limit=20)
        assert watching.process.wait(LIMIT) == 5
        assert re.search(r"crashed .*HR410\d .* in show\+0x", watching.said)
        [report] = re.findall(r"report: (\S+)", watching.said)
        assert "RIP: 0010:show+0x" in Path(report).read_text()
    assert eventually_nothing(driver)


def test_a_machine_that_is_lost_ends_the_session_with_status_8(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        shown = json.loads(run(driver, "guest", "show", "--json").stdout)
        os.kill(shown["qemu_pid"], signal.SIGKILL)
        assert watching.process.wait(LIMIT) == 8
        assert "error[HR4103]: the guest is lost: QEMU ended with signal 9" in watching.said
    assert eventually_nothing(driver)


def test_parameters_setup_and_teardown_come_from_the_projects_file(driver: Path) -> None:
    (driver / "hotreload.toml").write_text(
        'load = ["counter step=10"]\nsetup = "cat /proc/counter"\nteardown = "exit 7"\n'
    )
    with watch(driver) as watching:
        watching.waits_for("ready")
        assert reading(driver) == "old 20\n"
        assert watching.end() == 130
        assert "the teardown command ended with status 7" in watching.said


def test_once_runs_the_command_and_its_failure_is_status_1(driver: Path) -> None:
    with watch(driver, "--once", "--", "cat /proc/counter; exit 9") as watching:
        watching.waits_for("ready")
        edit(driver, "old %d", "new %d")
        assert watching.process.wait(LIMIT) == 1
        assert watching.process.stdout is not None
        assert watching.process.stdout.read() == "new 1\n"
        assert "ended with status 9" in watching.said


def test_a_dry_run_tells_what_would_be_and_sends_nothing(driver: Path) -> None:
    with watch(driver, "--dry-run", "--json") as watching:
        watching.waits_for("ready")
        edit(driver, "old %d", "new %d")
        watching.waits_for("show")
        assert reading(driver) == "old 1\n"


@pytest.mark.parametrize(
    ("spoil", "status", "told"),
    [
        pytest.param(
            lambda folder: (folder / "Kbuild").unlink(), 2, "error[HR1007]", id="a-folder-without-a-makefile"
        ),
        pytest.param(
            lambda folder: (folder / "Kbuild").write_text("obj-y := a.o\n"), 2, "error[HR1007]", id="no-obj-m"
        ),
        pytest.param(
            lambda folder: (folder / "hotreload.toml").write_text("cpu = 1\n"),
            2,
            "error[HR1008]",
            id="a-broken-toml",
        ),
        pytest.param(
            lambda folder: (folder / "hotreload.toml").write_text('kernel = "/nowhere"\n'),
            2,
            "error[HR1009]: /nowhere is not a folder",
            id="no-such-kernel",
        ),
        pytest.param(
            lambda folder: (folder / "hotreload.toml").write_text('setup = "nothing-of-that-name"\n'),
            2,
            "error[HR1008]: the setup command failed with status 127",
            id="a-setup-that-fails",
        ),
        pytest.param(
            lambda folder: (folder / "hotreload.toml").write_text('load = ["nowhere_to_be_found"]\n'),
            2,
            "error[HR1008]: there is no module nowhere_to_be_found",
            id="a-module-that-is-nowhere",
        ),
        pytest.param(
            lambda folder: edit(folder, "reads += step;", "reads += ;"),
            3,
            "counter.c:11:18: error: expected expression",
            id="sources-that-do-not-compile",
        ),
    ],
)
def test_bad_input_is_an_error_with_its_status_and_leaves_nothing(
    spoil, status: int, told: str, driver: Path
) -> None:
    spoil(driver)
    done = run(driver, "watch", "--once")
    assert done.returncode == status, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert eventually_nothing(driver)
