# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotreload import __version__
from hotreload.cli.main import Globals, cli, json_option, load_option, main, max_rung_option, verb
from hotreload.errors import CompileError, GuestUnreachableError, InputError
from hotreload.paths import state_folder

Said = tuple[int, str, str]
Run = Callable[..., Said]
HEAVY = ("asyncio", "asyncssh", "elftools", "msgspec", "pexpect", "qemu", "rich", "watchdog")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command line in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Said:
        status = main(words)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def trial() -> Iterator[Callable[[Callable[[Globals], int | None]], None]]:
    """Make a function the verb ``trial`` for this test."""

    def make(function: Callable[[Globals], int | None]) -> None:
        verb("trial")(json_option(load_option(max_rung_option(function))))

    yield make
    cli.commands.pop("trial", None)


def raising(error: BaseException) -> Callable[[Globals], int | None]:
    def trial(_options: Globals) -> int | None:
        raise error

    return trial


def test_version_is_one_line(run: Run) -> None:
    assert run("--version") == (0, f"hotreload {__version__}\n", "")


def test_nothing_heavy_is_imported_for_the_command_line_itself() -> None:
    program = "import hotreload.cli.main, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint(HEAVY)


def test_without_a_word_the_help_is_shown(run: Run) -> None:
    status, out, err = run()
    assert (status, err) == (0, "")
    assert out.startswith("Usage: hotreload [OPTIONS] COMMAND")


def test_every_command_has_help_and_the_global_options(run: Run) -> None:
    for name in cli.commands:
        status, out, _err = run(name, "--help")
        assert status == 0
        assert "--kernel KERNEL" in out, name
        assert cli.commands[name].get_short_help_str(), name


def test_why_explains_a_code_on_stdout(run: Run) -> None:
    status, out, err = run("why", "hr1007")
    assert (status, err) == (0, "")
    assert out.startswith("HR1007: no module is built in this folder\n")


def test_an_error_is_a_line_with_its_code_and_a_line_that_helps(run: Run, trial: Callable) -> None:
    trial(raising(InputError("no obj-m in /x", code="HR1007", hint="write a Kbuild file")))
    assert run("trial") == (
        2,
        "",
        "hotreload: error[HR1007]: no obj-m in /x\n  hint: write a Kbuild file\n",
    )


def test_with_json_an_error_is_an_object_on_stdout_too(run: Run, trial: Callable) -> None:
    trial(raising(GuestUnreachableError("no answer", hint="look")))
    status, out, err = run("trial", "--json")
    assert json.loads(out) == {
        "v": 1,
        "type": "error",
        "code": "HR4103",
        "message": "no answer",
        "hint": "look",
        "exit_status": 8,
    }
    assert (status, err) == (8, "hotreload: error[HR4103]: no answer\n  hint: look\n")


def test_what_the_compiler_said_comes_before_the_line_as_gcc_said_it(run: Run, trial: Callable) -> None:
    trial(raising(CompileError("foo.c: 1 error", "foo.c:3:1: error: expected ';'\n")))
    status, _out, err = run("trial")
    assert status == 3
    assert err == "foo.c:3:1: error: expected ';'\nhotreload: error[HR1003]: foo.c: 1 error\n"


def test_an_error_out_of_a_task_group_is_told_as_itself(run: Run, trial: Callable) -> None:
    async def fails() -> None:
        raise InputError("the first cause")

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fails())

    trial(lambda _options: asyncio.run(group()))
    assert run("trial") == (2, "", "hotreload: error[HR1009]: the first cause\n")


def test_a_full_disk_is_the_environments_fault_wherever_it_is_met(run: Run, trial: Callable) -> None:
    trial(raising(OSError(errno.ENOSPC, "No space left on device", "/cache/x")))
    status, _out, err = run("trial")
    assert status == 7
    assert err.startswith("hotreload: error[HR5107]: no space left: /cache/x\n")


def test_a_bug_is_one_line_and_its_story_is_in_a_file(run: Run, trial: Callable) -> None:
    trial(raising(KeyError("nothing")))
    status, _out, err = run("trial")
    story = state_folder() / "last-failure.txt"
    assert status == 70
    assert err == (
        "hotreload: error[HR0000]: hotreload failed: KeyError: 'nothing'\n"
        f"  hint: please report this bug, with {story}\n"
    )
    assert "Traceback" in story.read_text()


def test_a_bug_shows_its_traceback_with_vv(run: Run, trial: Callable) -> None:
    trial(raising(KeyError("nothing")))
    assert "Traceback (most recent call last)" in run("-vv", "trial")[2]
    assert "Traceback (most recent call last)" in run("trial", "-v", "-v")[2]


def test_an_interrupt_says_nothing_and_is_130(run: Run, trial: Callable) -> None:
    trial(raising(KeyboardInterrupt()))
    assert run("trial") == (130, "", "")


def test_a_usage_error_is_a_line_and_the_way_to_the_help(run: Run) -> None:
    status, out, err = run("why", "--jsno")
    assert (status, out) == (2, "")
    assert err.startswith("hotreload: error: no such option")
    assert err.endswith("\n  hint: hotreload why --help\n")
    assert err.count("\n") == 2


def test_an_unknown_command_names_the_nearest(run: Run) -> None:
    status, _out, err = run("docter")
    assert status == 2
    assert err.startswith("hotreload: error: no such command: 'docter'; did you mean 'doctor'?\n")


def test_global_options_stand_before_or_behind_the_verb_and_the_last_one_wins(
    run: Run, trial: Callable
) -> None:
    seen = []
    trial(lambda options: seen.append(options.config()))
    run("-K", "/a", "--guest", "one", "trial", "-K", "/b", "--load", "foo debug=1", "--load", "bar")
    run("trial", "--max-rung", "patch", "--color", "never")
    assert (seen[0].kernel, seen[0].guest, seen[0].load) == ("/b", "one", ("foo debug=1", "bar"))
    assert (seen[1].kernel, seen[1].max_rung, seen[1].color, seen[1].load) == ("debian", "patch", "never", ())


def test_the_folder_option_comes_first_wherever_it_stands(run: Run, trial: Callable, tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "hotreload.toml").write_text("cpus = 3")
    seen = []
    trial(lambda options: seen.append(options.config().cpus))
    assert run("trial", "-C", "driver")[0] == 0
    assert seen == [3]


def test_an_option_that_was_not_given_leaves_the_projects_file_in_force(
    run: Run, trial: Callable, tmp_path: Path
) -> None:
    (tmp_path / "hotreload.toml").write_text("load = ['foo']\nkernel = '/k'\nmax_rung = 'patch'")
    seen = []
    trial(lambda options: seen.append(options.config()))
    run("trial")
    assert (seen[0].load, seen[0].kernel, seen[0].max_rung) == (("foo",), "/k", "patch")


def test_a_broken_project_file_is_exit_status_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "hotreload.toml").write_text("cpu = 3")
    status, _out, err = run("doctor")
    assert status == 2
    assert err == (
        f"hotreload: error[HR1008]: {tmp_path}/hotreload.toml:1: unknown key 'cpu'\n"
        "  hint: did you mean 'cpus'?\n"
    )


def test_colour_is_used_only_when_asked_for_or_on_a_terminal(
    run: Run, trial: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial(raising(InputError("no")))
    assert "\033[" not in run("trial")[2]
    assert "\033[" in run("trial", "--color", "always")[2]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033[" not in run("trial")[2]
    assert "\033[" in run("trial", "--color=always")[2]


def program(text: str) -> subprocess.Popen[str]:
    """hotreload in a process of its own, with a verb ``trial`` that runs ``text``."""
    lines = (
        "import sys, time",
        "from hotreload import __main__",
        "from hotreload.cli import main as cli",
        "@cli.verb('trial')",
        f"def trial(_options): {text}",
        "sys.exit(__main__.main())",
    )
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), "trial"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_being_told_to_end_is_130_and_silent(number: signal.Signals) -> None:
    with program("print('up', flush=True); time.sleep(60)") as hotreload:
        assert hotreload.stdout is not None
        assert hotreload.stdout.readline() == "up\n"
        hotreload.send_signal(number)
        assert hotreload.communicate(timeout=30) == ("", "")
    assert hotreload.returncode == 130


def test_a_reader_that_goes_away_is_no_error_to_speak_of() -> None:
    with program("sys.stdout.write('x' * 1_000_000)") as hotreload:
        assert hotreload.stdout is not None
        assert hotreload.stderr is not None
        hotreload.stdout.close()
        assert hotreload.stderr.read() == ""
        assert hotreload.wait(timeout=30) == 141


def test_a_kernel_is_built_of_sources_only(run: Run, tmp_path: Path) -> None:
    status, out, err = run("kernel", "build")
    assert (status, out) == (2, "")
    assert f"error[HR1009]: {tmp_path} does not contain kernel sources" in err
