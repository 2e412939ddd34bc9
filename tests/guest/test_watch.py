# SPDX-License-Identifier: MIT
"""`hotreload watch` and its companions, as processes: what a person types, sees, and finds afterwards."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from hotreload.session.guests import sessions
from tests.guest.watching import (
    DRIVER,
    LIMIT,
    edit,
    left_behind,
    leftovers,
    made_driver,
    reading,
    run,
    watch,
)


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
    assert not left_behind(driver)
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


RULE = """
$(obj)/counter.o: $(obj)/word.h
$(obj)/word.h: $(src)/word.txt
	echo "#define WORD \\"$$(cat $<)\\"" > $@
"""


def test_what_a_rule_makes_of_a_file_is_live_and_a_file_that_make_does_not_use_is_silence(
    driver: Path,
) -> None:
    with (driver / "Kbuild").open("a") as kbuild:
        kbuild.write(f"ccflags-y += -I$(obj)\n{RULE}")
    (driver / "word.txt").write_text("old\n")
    (driver / "counter.c").write_text(f'#include "word.h"\n{DRIVER.replace(""""old %d""", """WORD " %d""")}')
    with watch(driver) as watching:
        watching.waits_for("ready .*counter", limit=4 * LIMIT)
        assert reading(driver) == "old 1\n"

        (driver / "README").write_text("nothing of it is built\n")
        (driver / "word.txt").write_text("new\n")
        watching.waits_for(r"live .* show", limit=4 * LIMIT)
        assert reading(driver) == "new 2\n"

        (driver / "word.txt").write_text("newer\n")
        edit(driver, "reads += step;", "reads += 2 * step;")
        watching.waits_for(r"live .*counter\.c.* show", limit=4 * LIMIT)
        assert reading(driver) == "newer 4\n"
        assert "README" not in re.sub(r"live .*", "", watching.said)


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
    assert not left_behind(driver)


@pytest.mark.parametrize("moment", [0.0, 0.15, 0.4, 0.8, 1.6])
def test_being_told_to_end_at_any_moment_of_the_boot_leaves_nothing(moment: float, driver: Path) -> None:
    with watch(driver) as watching:
        watching.runs()
        time.sleep(moment)
        assert watching.end() == 130
        assert "Traceback" not in watching.said
        assert "error" not in watching.said
    assert not left_behind(driver)


def test_sigterm_ends_it_where_a_script_had_interrupts_ignored(driver: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with watch(driver, preexec_fn=ignore) as watching:
        watching.waits_for("ready")
        assert watching.end(signal.SIGTERM) == 130
        assert "Traceback" not in watching.said
    assert not left_behind(driver)


def test_a_killed_session_takes_its_machine_with_it_and_is_no_obstacle(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        watching.end(signal.SIGKILL)
    missing = run(driver, "status")
    assert missing.returncode == 8
    assert missing.stderr.startswith("hotreload: error[HR4103]: no guest is running for ")
    assert "hint: hotreload watch or hotreload guest start" in missing.stderr
    assert not left_behind(driver)
    with watch(driver) as again:
        again.waits_for("ready")
        assert again.end() == 130


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


def test_a_push_of_a_recipe_and_of_init_code_reloads_the_module(driver: Path) -> None:
    assert run(driver, "guest", "start").returncode == 0
    try:
        assert reading(driver) == "old 1\n"
        (driver / "Kbuild").write_text("# a word\nobj-m := counter.o\n")
        edit(driver, "counter_init(void)\n{\n", 'counter_init(void)\n{\n\tpr_info("here\\n");\n')
        pushed = run(driver, "push", "--json")
        assert pushed.returncode == 0, pushed.stdout
        last = json.loads(pushed.stdout.splitlines()[-1])
        assert (last["type"], last["rung"]) == ("apply.done", "module")
        assert reading(driver) == "old 1\n"
    finally:
        assert run(driver, "guest", "stop").returncode == 0


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
    assert not left_behind(driver)


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
    edit(driver, "new %d", "old %d")
    with watch(driver, "--once", "--json", "--", "cat /proc/counter; exit 9") as watching:
        watching.waits_for("ready")
        edit(driver, "old %d", "new %d")
        assert watching.process.wait(LIMIT) == 1
        assert watching.process.stdout is not None
        events = [json.loads(line) for line in watching.process.stdout]
    (done,) = (event for event in events if event["type"] == "command.done")
    assert (done["status"], done["stdout"], done["stderr"]) == (9, "new 1\n", "")


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
    assert not left_behind(driver)
