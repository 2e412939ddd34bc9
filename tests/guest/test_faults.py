# SPDX-License-Identifier: MIT
"""hotreload killed at every stage, disks that are full, files that are none: nothing is lost."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from hotreload.paths import cache_folder
from hotreload.session.boot import STATE_DISK
from hotreload.session.guests import sessions
from tests.guest.faults import (
    MARK,
    blocks_of_checkpoints,
    descendants,
    fill,
    goes_on,
    guards_of,
    killed,
    no_program_remains,
    nothing_remains,
    records,
    small_disk,
    until,
    users_files,
    waits_for_event,
)
from tests.guest.test_rescue import SLOW, push_on_its_way
from tests.guest.watching import DRIVER, HOTRELOAD, LIMIT, Watch, edit, made_driver, reading, run, watch

GROWN = DRIVER.replace("static int reads", "static struct { long n; } reads").replace(
    "reads +=", "reads.n +="
)
GROWN = GROWN.replace('%d\\n", reads', '%ld\\n", reads.n')
STAGES = ("watch.change", "build.start", "diff.done", "apply.start", "apply.done")
PR_CAPBSET_DROP = 24


@pytest.fixture
def spot(driver: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The driver's folder; whatever is started for it is found, and ended at the end."""
    monkeypatch.setenv(MARK, str(driver))
    # Of its own: what another test has left is not swept by a session that does not come to its boot.
    runtime = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))  # short: sockets have 108 bytes of path
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    yield driver
    for pid in descendants(Path(os.environ[MARK])):  # a test may have moved the driver
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(runtime)


@contextlib.contextmanager
def held_compile(folder: Path) -> Iterator[None]:
    """Inside, whoever compiles the source waits: it includes a pipe that nobody writes to."""
    os.mkfifo(folder / "pipe.h")
    edit(folder, "static int step", '#include "pipe.h"\nstatic int step')
    try:
        yield
    finally:
        (folder / "pipe.h").unlink()
        edit(folder, '#include "pipe.h"\n', "")


@contextlib.contextmanager
def objects_held(folder: Path) -> Iterator[Path]:
    """Inside, the assembler makes the driver's object, which is given, and waits for a pipe in the middle."""
    blob = folder / "blob"
    os.mkfifo(blob)
    held = f'asm(".pushsection .discard.held; .incbin \\"{blob}\\"; .popsection");'
    edit(folder, "static int reads;", f"static int reads;\n{held}")
    yield folder / "counter.o"
    blob.unlink()
    blob.touch()


def compiler_of(source: Path, *, of_base: bool = False) -> int:
    """The process of a compiler at work on this source, or on a copy of it; 0: there is none."""
    for pid, words in descendants(source.parent).items():
        if "/cc1 " in words and f"{source} " in words and ("-unchecked" in words) == of_base:
            return pid
    return 0


def compiles(folder: Path) -> bool:
    return compiler_of(folder / "counter.c") != 0


@contextlib.contextmanager
def crash(folder: Path) -> Iterator[None]:
    """Let the guest panic; its session need not live when the block ends."""
    words = [*HOTRELOAD, "guest", "exec", "echo c >/proc/sysrq-trigger"]
    with subprocess.Popen(words, cwd=folder, stderr=subprocess.DEVNULL) as asking:
        yield
        asking.wait(LIMIT)


# Killed.


def test_hotreload_killed_at_any_stage_of_an_edit(spot: Path) -> None:
    shown = "old"
    for stage in STAGES:
        with watch(spot) as watching:
            watching.waits_for("ready")
            assert reading(spot) == f"{shown} 1\n"
            edit(spot, f"{shown} %d", f"{stage} %d")
            waits_for_event(spot, type=stage)
            killed(watching, spot)
            shown = stage
    goes_on(spot, shown)


@pytest.mark.parametrize("moment", ["kbuild", "an edit"])
def test_hotreload_killed_in_the_middle_of_a_compile(moment: str, spot: Path) -> None:
    with contextlib.ExitStack() as held:
        if moment == "kbuild":
            held.enter_context(held_compile(spot))
        with watch(spot) as watching:
            if moment == "an edit":
                watching.waits_for("ready")
                held.enter_context(held_compile(spot))
            until(lambda: compiles(spot), "a compiler")
            killed(watching, spot)
    goes_on(spot, "old")


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_an_object_that_was_being_written_when_hotreload_ended_goes_with_it(
    by: signal.Signals, spot: Path
) -> None:
    with watch(spot) as watching:
        watching.waits_for("ready")
        assert watching.end() == 130
    with objects_held(spot) as made, watch(spot) as watching:
        until(lambda: made.is_file() and not made.stat().st_size, "the assembler")
        watching.end(by)
        no_program_remains(spot)
        assert not made.exists()
    goes_on(spot, "old")


def test_an_object_that_was_being_written_when_everything_was_killed_is_made_again(spot: Path) -> None:
    with watch(spot) as watching:
        watching.waits_for("ready")
        assert watching.end() == 130
    with objects_held(spot) as made, watch(spot) as watching:
        until(lambda: made.is_file() and not made.stat().st_size, "the assembler")
        for pid in (*guards_of(watching.process.pid), watching.process.pid, *descendants(spot)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        no_program_remains(spot)
        assert made.exists()
    goes_on(spot, "old")


def test_hotreload_killed_while_a_guest_boots_is_saved_and_takes_a_patch(spot: Path) -> None:
    with watch(spot) as watching:
        waits_for_event(spot, type="guest.state", state="booting")
        killed(watching, spot)
    with watch(spot) as watching:
        watching.waits_for("ready")
        edit(spot, "old %d", "new %d")
        before = blocks_of_checkpoints(spot)
        until(lambda: blocks_of_checkpoints(spot) > before + 8192, "a checkpoint")
        killed(watching, spot)
        assert not (records(spot)[-1] / STATE_DISK).exists()
    with watch(spot) as watching:
        watching.waits_for("ready")
        (spot / "counter.c").write_text(SLOW)
        watching.waits_for("live")
        push_on_its_way(spot, watching)
        killed(watching, spot)
    goes_on(spot, "new")


def test_hotreload_killed_while_a_guest_that_crashed_is_brought_back(spot: Path) -> None:
    for stage in ({"state": "panicked"}, {"type": "restore.done"}, {"type": "crash"}):
        with watch(spot) as watching:
            watching.waits_for("ready")
            edit(spot, "old %d", "new %d")
            watching.waits_for("live")
            with crash(spot):
                waits_for_event(spot, **stage)
                killed(watching, spot)
            edit(spot, "new %d", "old %d")
    goes_on(spot, "old")


def test_hotreload_killed_while_a_module_is_loaded_anew(spot: Path) -> None:
    texts = [DRIVER, GROWN]
    for stage in ({"type": "refused"}, {"type": "apply.start", "rung": "module"}):
        with watch(spot) as watching:
            watching.waits_for("ready")
            texts.reverse()
            (spot / "counter.c").write_text(texts[0])
            waits_for_event(spot, **stage)
            killed(watching, spot)
    goes_on(spot, "old")


def test_hotreload_killed_while_the_guest_is_stopped(spot: Path) -> None:
    (spot / "hotreload.toml").write_text('teardown = "echo going >/dev/console; sleep 20"\n')
    assert run(spot, "guest", "start").returncode == 0
    (session,) = [about for about in sessions() if about.folder == spot]
    with subprocess.Popen([*HOTRELOAD, "guest", "stop"], cwd=spot, stderr=subprocess.DEVNULL) as stop:
        until(lambda: b"going" in (session.state / "console.log").read_bytes(), "the teardown")
        os.kill(session.pid, signal.SIGKILL)
        assert stop.wait(LIMIT) == 0
    no_program_remains(spot)
    (spot / "hotreload.toml").unlink()
    goes_on(spot, "old")


@pytest.mark.parametrize(
    "place",
    [
        "hotreload/base/.record-*",
        "hotreload/images/new-*",
    ],
)
def test_what_was_half_made_for_the_cache_when_hotreload_was_killed_is_made_again_and_swept(
    place: str, spot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    (cache / "hotreload").mkdir(parents=True)
    (cache / "hotreload" / "kernels").symlink_to(cache_folder() / "kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with watch(spot) as watching:
        until(lambda: list(cache.glob(place)), place)
        killed(watching, spot)
    (left,) = cache.glob(place)
    long_ago = time.time() - 24 * 3600
    os.utime(left, (long_ago, long_ago))
    goes_on(spot, "old")
    assert not left.exists()


# Told to end.


def test_hotreload_told_to_end_at_any_stage_ends_and_leaves_nothing(spot: Path) -> None:
    for moment, number in (
        ("kbuild", signal.SIGHUP),
        ("compile", signal.SIGTERM),
        ("transition", signal.SIGINT),
        ("module", signal.SIGTERM),
        ("restore", signal.SIGINT),
    ):
        (spot / "counter.c").write_text(SLOW if moment == "transition" else DRIVER)
        with contextlib.ExitStack() as held:
            if moment == "kbuild":
                held.enter_context(held_compile(spot))
            watching = held.enter_context(watch(spot))
            reach(moment, spot, watching, held)
            before = users_files(spot)
            assert watching.end(number) == 130, watching.said
            assert "Traceback" not in watching.said
            assert users_files(spot) == before
            nothing_remains(spot)


def reach(moment: str, spot: Path, watching: Watch, held: contextlib.ExitStack) -> None:
    """Bring a session that was just started there."""
    if moment == "transition":
        push_on_its_way(spot, watching)
        return
    if moment != "kbuild":
        watching.waits_for("ready")
    if moment == "compile":
        held.enter_context(held_compile(spot))
    if moment in ("kbuild", "compile"):
        until(lambda: compiles(spot), "a compiler")
    if moment == "module":
        (spot / "counter.c").write_text(GROWN)
        waits_for_event(spot, type="apply.start", rung="module")
    if moment == "restore":
        edit(spot, "old %d", "new %d")
        watching.waits_for("live")
        held.enter_context(crash(spot))
        waits_for_event(spot, type="guest.state", state="panicked")


# A disk that is full.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 600) as place:
        yield place


def put_there(which: str, spot: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have one of the folders on the small disk; that of the driver."""
    if which == "XDG_CACHE_HOME":
        # The kernel need not be fetched again.
        (disk / "hotreload").mkdir()
        (disk / "hotreload" / "kernels").symlink_to(cache_folder() / "kernels")
    if which != "driver":
        monkeypatch.setenv(which, str(disk))
        return spot
    (disk / "below").mkdir()  # beside the driver's folder the tests keep what is said
    moved = made_driver(disk / "below" / spot.name)
    monkeypatch.setenv(MARK, str(moved))
    return moved


@pytest.mark.parametrize(
    ("which", "left"),
    [
        pytest.param("XDG_RUNTIME_DIR", 0),
        ("XDG_CACHE_HOME", 0),
        ("TMPDIR", 0),
        ("driver", 50_000),
    ],
)
def test_a_disk_that_is_full_at_the_start_is_told_in_a_line(
    which: str, left: int, spot: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put_there(which, spot, disk, monkeypatch)
    filler = fill(disk, left)
    before = users_files(folder)
    started = run(folder, "watch", "--once")
    assert "Traceback" not in started.stderr
    assert users_files(folder) == before
    nothing_remains(folder)
    filler.unlink()
    if which != "TMPDIR":
        goes_on(folder, "old")
    told = r"^hotreload: error\[HR5107\]: .*no space left.*\n  hint: .*$"
    assert re.search(told, started.stderr, re.MULTILINE), started.stderr
    assert started.returncode == 7


@pytest.mark.parametrize("which", ["XDG_STATE_HOME", "XDG_CACHE_HOME"])
def test_an_edit_saved_while_the_disk_is_full_is_told_and_the_next_one_is_live(
    which: str, spot: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_there(which, spot, disk, monkeypatch)
    with watch(spot) as watching:
        watching.waits_for("ready")
        filler = fill(disk)
        edit(spot, "old %d", "new %d")
        watching.waits_for("HR5107 no space left")
        assert reading(spot) == "old 1\n"
        filler.unlink()
        edit(spot, "new %d", "newer %d")
        watching.waits_for("live ")
        assert reading(spot) == "newer 2\n"
        assert blocks_of_checkpoints(spot) > 8192, "there is a checkpoint again"
        assert watching.end() == 130
        assert "Traceback" not in watching.said
    nothing_remains(spot)


def test_an_edit_for_which_there_is_no_space_has_the_status_of_the_environment(
    spot: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_there("XDG_STATE_HOME", spot, disk, monkeypatch)
    with watch(spot, "--once") as watching:
        watching.waits_for("ready")
        fill(disk)
        edit(spot, "old %d", "new %d")
        assert watching.process.wait(LIMIT) == 7


def test_a_checkpoint_for_which_there_is_no_space_takes_none_from_the_edit(
    spot: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_there("XDG_STATE_HOME", spot, disk, monkeypatch)
    with watch(spot) as watching:
        watching.waits_for("ready")
        fill(disk, 40_000_000)  # a checkpoint takes 90 MB, a patch one
        edit(spot, "old %d", "new %d")
        watching.waits_for("live ")
        edit(spot, "new %d", "newer %d")
        watching.waits_for("live ", times=2)
        assert reading(spot) == "newer 1\n"


def test_a_module_for_which_there_is_no_space_is_not_loaded_anew(
    spot: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put_there("driver", spot, disk, monkeypatch)
    with watch(folder) as watching:
        watching.waits_for("ready")
        (disk / "grown.c").write_text(GROWN)
        filler = fill(disk)
        (disk / "grown.c").replace(folder / "counter.c")
        watching.waits_for("[nN]o space left")
        assert reading(folder) == "old 1\n"
        filler.unlink()
        edit(folder, "old %ld", "new %ld")
        watching.waits_for("reloaded ")
        assert reading(folder) == "new 1\n"
        assert watching.end() == 130
        assert "Traceback" not in watching.said
    nothing_remains(folder)


def test_a_guest_whose_disk_or_memory_is_full_keeps_its_code_or_is_brought_back(spot: Path) -> None:
    with watch(spot) as watching:
        watching.waits_for("ready")
        run(spot, "guest", "exec", "dd if=/dev/zero of=/tmp/filler bs=1M")
        edit(spot, "old %d", "new %d")
        watching.waits_for("HR3109 the guest's /tmp is full")
        (spot / "counter.c").write_text(GROWN)
        watching.waits_for("HR3109 the guest's /tmp is full", times=2)
        assert reading(spot) == "old 1\n"
        assert "back at checkpoint" not in watching.said, "no module goes before there is space for the next"
        (spot / "counter.c").write_text(DRIVER.replace("old", "new"))
        watching.waits_for("HR3109 the guest's /tmp is full", times=3)
        run(spot, "guest", "exec", "rm /tmp/filler")
        edit(spot, "new %d", "newer %d")
        watching.waits_for("live ")
        assert reading(spot) == "newer 2\n"
        # Three file systems of half its memory each: the kernel finds nobody to kill, and panics.
        fillers = "for place in /tmp /dev ''; do dd if=/dev/zero of=$place/filler bs=64k; done"
        run(spot, "guest", "exec", fillers, limit=60)
        watching.waits_for("#1 undone, guest restored", limit=60)
        edit(spot, "newer %d", "newest %d")
        watching.waits_for("live ", times=2)
        assert reading(spot).startswith("newest ")
        assert watching.end() == 130
    nothing_remains(spot)


def test_the_disk_of_the_checkpoints_does_not_grow_with_each_reload(spot: Path) -> None:
    sizes = []
    with watch(spot) as watching:
        watching.waits_for("ready")
        for number in range(8):
            edit(spot, f"old {'!' * number}%d", f"old {'!' * (number + 1)}%d")
            watching.waits_for("live ", times=number + 1)
            sizes.append(blocks_of_checkpoints(spot))
    assert sizes[-1] < 1.05 * sizes[3]


# Files that are none, compilers that die.


def mended(source: Path, text: str) -> None:
    """Have a plain file there again."""
    if source.is_dir():
        source.rmdir()
    else:
        source.unlink(missing_ok=True)
    source.write_text(text)


def becomes_a_link(to: str) -> Callable[[Path], None]:
    def spoil(source: Path) -> None:
        source.unlink()
        source.symlink_to(to)

    return spoil


def becomes_a_folder(source: Path) -> None:
    source.unlink()
    source.mkdir()


def becomes_a_pipe(source: Path) -> None:
    source.unlink()
    os.mkfifo(source)


def becomes_garbage(source: Path) -> None:
    source.write_bytes(Random(1).randbytes(50 << 20))


def the_compiler_dies(source: Path) -> None:
    """Twice: where the compile of a text with other line numbers fails, that of the file itself follows."""
    with held_compile(source.parent):
        for _ in range(2):
            until(lambda: compiler_of(source), "a compiler")
            os.kill(compiler_of(source), signal.SIGKILL)
            until(lambda: not compiler_of(source), "its end")


def test_a_source_that_cannot_be_compiled_is_told_and_the_next_save_is_live(spot: Path) -> None:
    source = spot / "counter.c"
    spoilers = (
        (Path.unlink, "does not compile"),
        (becomes_a_link("nowhere"), "does not compile"),
        (lambda source: source.write_bytes(b""), "does not compile"),
        (lambda source: source.write_bytes(b"\0" * 4096), "does not compile"),
        (the_compiler_dies, "does not compile"),
    )
    with watch(spot) as watching:
        watching.waits_for("ready")
        for number, (spoil, told) in enumerate(spoilers, 1):
            spoil(source)
            watching.waits_for(told, times=number)
            mended(source, DRIVER.replace("old", f"after {number}:"))
            watching.waits_for("live ", times=number)
            assert reading(spot) == f"after {number}: {number}\n"
        assert watching.end() == 130
        assert "Traceback" not in watching.said
    nothing_remains(spot)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(becomes_a_folder, id="a-folder"),
        pytest.param(becomes_a_link("counter.c"), id="a-link-to-itself"),
        pytest.param(becomes_a_pipe, id="a-pipe"),
        pytest.param(becomes_a_link("/dev/zero"), id="a-device"),
        pytest.param(becomes_garbage, id="garbage"),
    ],
)
def test_a_source_that_is_no_text_any_more_is_told_and_the_next_save_is_live(
    spoil: Callable[[Path], None], spot: Path
) -> None:
    with watch(spot) as watching:
        watching.waits_for("ready")
        spoil(spot / "counter.c")
        watching.waits_for(r"(?:error|refused) +counter\.c")
        mended(spot / "counter.c", DRIVER.replace("old", "new"))
        watching.waits_for("live ")
        assert reading(spot) == "new 1\n"
        assert watching.end() == 130


def may_not_read_all() -> None:
    """Give up the right of root to read every file: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    library = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):
        if library.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) and ctypes.get_errno() != errno.EPERM:
            raise OSError("the capabilities cannot be given up")


def test_a_source_that_may_not_be_read_is_told_and_the_next_save_is_live(spot: Path) -> None:
    with watch(spot, preexec_fn=may_not_read_all) as watching:
        watching.waits_for("ready")
        (spot / "counter.c").chmod(0)
        watching.waits_for("counter.c cannot be read")
        pushed = run(spot, "push")
        assert "Traceback" not in watching.said
        assert "HR0000" not in pushed.stderr
        assert "counter.c" in pushed.stderr
        assert pushed.returncode in (2, 3)
        (spot / "counter.c").chmod(0o644)
        edit(spot, "old %d", "new %d")
        watching.waits_for("live ")
        assert watching.end() == 130


def test_a_compiler_that_dies_of_the_base_source_does_not_end_the_session(spot: Path) -> None:
    with watch(spot) as watching:
        watching.waits_for("ready")
        edit(spot, "old %d", "new %d")
        until(lambda: compiler_of(spot / "counter.c", of_base=True), "the compiler of the base")
        os.kill(compiler_of(spot / "counter.c", of_base=True), signal.SIGKILL)
        watching.waits_for(r"(?:error|refused) +counter\.c")
        edit(spot, "new %d", "newer %d")
        watching.waits_for("live ")
        assert watching.end() == 130


def test_a_compiler_that_is_not_there_any_more_is_told_and_the_next_save_is_live(
    spot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in os.get_exec_path():
        for program in Path(folder).glob("*"):
            if not (programs / program.name).is_symlink():
                (programs / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(programs))
    with watch(spot) as watching:
        watching.waits_for("ready")
        edit(spot, "old %d", "new %d")
        watching.waits_for("live ")
        hidden = [(link, link.readlink()) for link in programs.glob("*gcc*")]
        for link, _program in hidden:
            link.unlink()
        edit(spot, "new %d", "newer %d")
        watching.waits_for("HR5106 gcc.* is not installed")
        for link, program in hidden:
            link.symlink_to(program)
        edit(spot, "newer %d", "newest %d")
        watching.waits_for("live ", times=2)
        assert reading(spot) == "newest 1\n"
        assert watching.end() == 130
