# SPDX-License-Identifier: MIT
"""`hotreload guest attach`: a guest that somebody else started is worked on, and left as it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotreload.build.debian_kernel import open_kernel
from hotreload.build.kernel_tree import KernelTree
from hotreload.deploy import attached_guest
from hotreload.errors import EnvironmentFault
from hotreload.paths import cache_folder
from hotreload.vm.image import SEARCH_PATH, GuestImage, build_image, recipe_folder
from hotreload.vm.spec import MachineSpec
from tests.conftest import require
from tests.guest.strangers import Stranger, attached, stranger
from tests.guest.watching import LIMIT, edit, left_behind, reading, run, watch


@pytest.fixture(scope="module")
def image(debian_kernel: KernelTree) -> GuestImage:
    """Without the agent: nobody has prepared it for us."""
    require(shutil.which("ssh"), "ssh", "apt-get install openssh-client")
    return asyncio.run(build_image(debian_kernel))


@pytest.fixture(scope="module")
def theirs(
    guest_spec: MachineSpec, image: GuestImage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stranger]:
    """One for the tests that leave it as it was."""
    with stranger(guest_spec, image, tmp_path_factory.mktemp("theirs") / "guest") as guest:
        yield guest


@pytest.fixture
def own(guest_spec: MachineSpec, image: GuestImage, tmp_path: Path) -> Iterator[Stranger]:
    """One for a test that breaks it."""
    with stranger(guest_spec, image, tmp_path / "guest", arguments="panic=0") as guest:
        yield guest


# In place of dropbear; it demands a user of its own, a folder, and keys that nobody else can read.
OPENSSH = """\
dropbearconvert dropbear openssh /etc/dropbear/host_key /etc/host_key
echo 'sshd:*:74:74::/run/sshd:/bin/false' >>/etc/passwd
mkdir -m 755 /run/sshd
chmod 755 /usr/sbin/sshd
/usr/sbin/sshd -f /dev/null -h /etc/host_key -o UsePAM=no || fail "sshd does not start"
"""


def openssh(folder: Path) -> dict[str, bytes]:
    """Its server and the libraries that only that needs, of packages that nobody has to install."""
    quiet = ("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download")
    fetched = subprocess.run([*quiet, "openssh-server", "libwrap0"], cwd=folder, check=False)
    require(fetched.returncode == 0, "the package openssh-server", "apt-get update")
    root = folder / "root"
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, root], check=True)
    parts = root / "usr/lib/openssh/sshd-session"  # of OpenSSH 9.8 and later
    require(not parts.exists(), "an sshd that is one program", "this test knows no other")
    sshd = root / "usr/sbin/sshd"
    own = [str(path.parent) for path in root.rglob("*.so.*")]
    listed = subprocess.run(
        ["ldd", sshd], env={"LD_LIBRARY_PATH": ":".join(own)}, capture_output=True, text=True, check=True
    ).stdout
    missing = re.findall(r"(\S+) => not found", listed)
    require(not missing, ", ".join(missing), "apt-get install openssh-server")
    libraries = [Path(path) for path in re.findall(r"=> (/\S+)", listed)]
    guests = {f"/usr/lib/x86_64-linux-gnu/{path.name}": path.read_bytes() for path in libraries}
    return {"/usr/sbin/sshd": sshd.read_bytes(), **guests}


@pytest.fixture
def of_openssh(debian_kernel: KernelTree, guest_spec: MachineSpec, tmp_path: Path) -> Iterator[Stranger]:
    """One whose SSH server is OpenSSH's."""
    convert = "dropbearconvert"
    require(shutil.which(convert, path=SEARCH_PATH), convert, "apt-get install dropbear-bin")
    recipe = shutil.copytree(recipe_folder(), tmp_path / "openssh")
    text = (recipe / "recipe.toml").read_text()
    more = text.replace('programs = ["dropbear"]', f'programs = ["{convert}"]')
    (recipe / "recipe.toml").write_text(more)
    starts = (recipe / "init").read_text()
    line = next(line for line in starts.splitlines(keepends=True) if line.startswith("dropbear "))
    (recipe / "init").write_text(starts.replace(line, OPENSSH))
    (tmp_path / "packages").mkdir()
    image = asyncio.run(build_image(debian_kernel, recipe, openssh(tmp_path / "packages")))
    with stranger(guest_spec, image, tmp_path / "guest") as guest:
        yield guest


# All that serve a connection; the server itself stays.
CUT_OFF = (
    "for pid in $(pidof dropbear sshd); do [ $(cut -d' ' -f4 /proc/$pid/stat) = 1 ] || kill -9 $pid; done"
)


def status(folder: Path) -> dict[str, object]:
    return dict(json.loads(run(folder, "status", "--json").stdout or "{}"))


def traces_in(guest: Stranger) -> str:
    """What of us is in a guest: live patches, the agent, programs, the driver."""
    return guest.run(
        "ls /sys/kernel/livepatch; ls -d /run/hotreload* /tmp/hotreload* 2>/dev/null;"
        " cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep '^hotreload[-:]'; grep ^counter /proc/modules"
    )


def wait_for_state(folder: Path, state: str, limit: float = 60) -> dict[str, object]:
    deadline = time.monotonic() + limit
    while (facts := status(folder)).get("state") != state:
        assert time.monotonic() < deadline, facts
        time.sleep(0.2)
    return facts


def test_a_guest_of_somebody_elses_runs_what_is_saved_and_is_left_as_it_was(
    theirs: Stranger, driver: Path
) -> None:
    with attached(driver, *theirs.everything):
        facts = status(driver)
        assert (facts["state"], facts["attached"], facts["accel"]) == (
            "running",
            f"root@127.0.0.1:{theirs.port}",
            None,
        )
        with watch(driver) as watching:
            watching.waits_for("ready")
            assert reading(driver) == "old 1\n"
            edit(driver, "old %d", "new %d")
            watching.waits_for("live .*show.*#1")
            assert reading(driver) == "new 2\n"
            edit(driver, "static int reads;", "static long reads;")
            edit(driver, '%d\\n"', '%ld\\n"')
            watching.waits_for("reloaded .*counter.ko.*#2")
            assert reading(driver) == "new 1\n"
            assert watching.end() == 130
        assert run(driver, "undo", "--all").returncode == 0
        assert reading(driver) == "old 1\n"
        assert run(driver, "redo").returncode == 0
        assert reading(driver) == "new 2\n"
        assert "attached" in run(driver, "guest", "list").stdout
    assert theirs.process.poll() is None
    assert traces_in(theirs) == ""
    assert not left_behind(driver)


def test_what_needs_a_machine_of_ours_is_refused_in_one_line(own: Stranger, driver: Path) -> None:
    edit(driver, "module_exit(counter_exit);\n", "")
    (driver / "hotreload.toml").write_text('max_rung = "reboot"\n')
    with attached(driver, *own.everything):
        for words, told in (
            (("guest", "restart"), "HR1009.*was not started by hotreload"),
            (("guest", "cmdline"), "HR1009.*was not started by hotreload"),
            (("guest", "console"), "HR1009.*was not started by hotreload"),
            (("guest", "save", "clean"), "HR5105.*this guest has no checkpoints"),
            (("guest", "load"), "HR5105.*this guest has no checkpoints"),
        ):
            done = run(driver, *words)
            assert done.returncode in (2, 7)
            assert re.search(told, done.stderr), (words, done.stderr)
        # What has no exit function cannot be loaded anew, and nobody boots it from here.
        edit(driver, "static int reads;", "static unsigned char reads;")
        done = run(driver, "push")
        assert done.returncode == 4
        assert "hotreload did not start this guest" in done.stderr


def test_modules_that_were_there_stay_and_one_of_another_build_is_refused(
    theirs: Stranger, driver: Path
) -> None:
    with attached(driver, *theirs.ssh):
        pass
    theirs.put((driver / "counter.ko").read_bytes(), "/tmp/counter.ko")
    theirs.run("insmod /tmp/counter.ko step=5")
    try:
        with attached(driver, *theirs.ssh):
            assert reading(driver) == "old 5\n"
        assert theirs.run("cat /proc/counter") == "old 10\n"
        edit(driver, "old %d", "new %d")
        refused = run(driver, "guest", "attach", *theirs.ssh)
        assert refused.returncode == 7
        assert "HR3101]: the guest has a different build of counter" in refused.stderr
        assert "hint: run rmmod counter" in refused.stderr
        assert theirs.run("cat /proc/counter") == "old 15\n"
    finally:
        theirs.run("rmmod counter")
    assert traces_in(theirs) == ""
    with attached(driver, *theirs.ssh):
        assert reading(driver) == "new 1\n"


def test_a_guest_with_another_kernel_is_refused(theirs: Stranger, driver: Path) -> None:
    try:
        other = asyncio.run(open_kernel("debian:6.12"))
    except EnvironmentFault as fault:
        require(False, f"another packaged kernel ({fault.message})", "hotreload kernel info -K debian:6.12")
        raise
    done = run(driver, "guest", "attach", *theirs.ssh, "-K", "debian:6.12")
    assert done.returncode == 7
    assert "HR3101]: the guest runs a different kernel: 6.1." in done.stderr
    assert other.release in done.stderr
    assert traces_in(theirs) == ""


def test_a_session_that_was_killed_leaves_no_patch_to_the_next_one(theirs: Stranger, driver: Path) -> None:
    assert run(driver, "guest", "attach", *theirs.ssh, limit=90).returncode == 0
    edit(driver, "old %d", "new %d")
    assert run(driver, "push").returncode == 0
    os.kill(int(str(status(driver)["pid"])), signal.SIGKILL)
    deadline = time.monotonic() + LIMIT
    while driver.name in run(driver, "guest", "list").stdout:  # it takes a moment to die
        assert time.monotonic() < deadline
    assert theirs.run("cat /proc/counter") == "new 1\n"
    edit(driver, "new %d", "old %d")
    again = run(driver, "guest", "attach", *theirs.ssh, limit=90)
    try:
        assert again.returncode == 0, again.stderr
        assert re.search(r"hotreload_\d+ was still live from a session that was killed", again.stderr)
        assert reading(driver) == "old 2\n"
        # A module of the same name is still loaded: it may be pointed at.
        edit(driver, "old %d", "newer %d")
        assert run(driver, "push").returncode == 0
        assert reading(driver) == "newer 3\n"
    finally:
        run(driver, "guest", "stop")
    # It was there when the second one came.
    assert theirs.run("cat /proc/counter; rmmod counter") == "old 4\n"
    assert traces_in(theirs) == ""


def test_a_second_session_is_kept_out(theirs: Stranger, driver: Path) -> None:
    with attached(driver, *theirs.ssh):
        same = run(driver, "guest", "attach", *theirs.ssh)
        other = run(driver, "guest", "attach", *theirs.ssh, "--guest", "other")
        assert (same.returncode, other.returncode) == (2, 2), other.stderr
        assert "HR3106]: the guest" in same.stderr
        assert f"HR3106]: another hotreload is attached to root@127.0.0.1:{theirs.port}" in other.stderr
        assert reading(driver) == "old 1\n"
    assert traces_in(theirs) == ""


# Tokens of four who come at once, each round after one who was killed or not: what they are told.
RUSH = """
for round in 1 2 3 4 5 6; do
    if [ $((round % 2)) = 0 ]; then
        { echo a; sleep 1; } | sh -c "$DOORKEEPER" hotreload hotreload-killed$round 2 >/tmp/killed &
        until grep -q ready /tmp/killed; do sleep 0.05; done
        kill -9 $!
    fi
    for one in 1 2 3 4; do
        { echo a; sleep 2; } | sh -c "$DOORKEEPER" hotreload hotreload-$round.$one 2 >/tmp/told.$one &
    done
    wait
    echo $(sort /tmp/told.* | cut -d' ' -f1)
    rm -f /tmp/killed /tmp/told.*
done"""


def test_of_those_who_come_at_the_same_moment_one_is_let_in(theirs: Stranger) -> None:
    lines = Path(attached_guest.__file__).with_name("attach.sh").read_text().splitlines()
    script = "\n".join(line for line in lines if not line.startswith("#"))
    told = theirs.run(f"DOORKEEPER={shlex.quote(script)}; {RUSH}", limit=120)
    assert told.splitlines() == ["busy busy busy ready"] * 6
    assert traces_in(theirs) == ""


def test_a_folder_of_the_guest_without_space_is_named(own: Stranger, driver: Path) -> None:
    own.run("mount -t tmpfs -o size=4m none /run")
    with attached(driver, *own.ssh), watch(driver) as watching:
        watching.waits_for("ready")
        own.run("dd if=/dev/zero of=/run/full bs=4k")
        edit(driver, "old %d", "new %d")
        watching.waits_for("HR3109 the guest's /run/hotreload is full")
        watching.waits_for("'du -ax /run |")
        own.run("rm /run/full")
        assert run(driver, "push").returncode == 0
        assert reading(driver) == "new 1\n"
        assert watching.end() == 130


# Who is not let in.


def test_nobody_gets_in_with_another_key_or_past_an_unknown_host(
    theirs: Stranger, driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    # The kernel of the guest, not the newest one.
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder().parent))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    address = ("--ssh", f"127.0.0.1:{theirs.port}")
    identity = ("--identity", str(theirs.image.client_key))
    host_key = ("--host-key", str(theirs.image.host_key))
    scan = f"ssh-keyscan -p {theirs.port} 127.0.0.1 >>~/.ssh/known_hosts"
    for words, status, told in (
        ((*address, *identity), 8, scan),
        ((*address, *identity, "--host-key", f"{key}.pub"), 8, "has a different host key than"),
        ((*address, "--identity", str(key), *host_key), 8, "refused the login: Permission denied"),
        (("--ssh", f"nobody@127.0.0.1:{theirs.port}", *identity, *host_key), 8, "refused the login"),
        (("--ssh", "127.0.0.1:1", *identity, *host_key), 8, "does not answer"),
        (("--ssh", "two words", *identity), 2, "is not an SSH address"),
        ((*address, *identity, "--host-key", str(driver / "counter.c")), 2, "has no public host key"),
    ):
        done = run(driver, "guest", "attach", *words)
        assert (done.returncode, told in done.stderr) == (status, True), (words, done.stderr)
    known = subprocess.run(
        ["ssh-keyscan", "-t", "ed25519", "-p", str(theirs.port), "127.0.0.1"], capture_output=True, check=True
    ).stdout
    (tmp_path / ".ssh").mkdir(mode=0o700)
    (tmp_path / ".ssh" / "known_hosts").write_bytes(known)
    with attached(driver, *address, *identity):
        assert reading(driver) == "old 1\n"


def test_a_guest_that_lacks_what_the_agent_needs_is_refused_by_name(theirs: Stranger, driver: Path) -> None:
    theirs.run("umount -l /sys")
    try:
        done = run(driver, "guest", "attach", *theirs.ssh)
    finally:
        theirs.run("mount -t sysfs sysfs /sys")
    assert done.returncode == 8
    assert "HR3108]: the guest cannot be used: it has no /sys/kernel/livepatch" in done.stderr
    assert traces_in(theirs) == ""


@contextlib.contextmanager
def listening(path: Path, greeting: bytes) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(LIMIT)
        process = os.fork()
        if process == 0:
            connection, _ = server.accept()
            connection.sendall(greeting)
            time.sleep(LIMIT)
            os._exit(0)
        try:
            yield
        finally:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def test_a_socket_that_is_no_monitor_for_us_is_told_and_nobody_waits(
    theirs: Stranger, driver: Path, tmp_path: Path
) -> None:
    def told(path: Path) -> str:
        done = run(driver, "guest", "attach", *theirs.ssh, "--qmp", str(path))
        assert done.returncode == 7
        assert "or attach without --qmp" in done.stderr
        return done.stderr

    assert "cannot be opened: No such file" in told(tmp_path / "none")
    assert "cannot be opened: Connection refused" in told(driver / "counter.c")
    with listening(tmp_path / "web", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        assert "is not a QMP socket" in told(tmp_path / "web")
    with socket.socket(socket.AF_UNIX) as libvirt:
        libvirt.connect(str(theirs.qmp))
        assert "another client is connected" in told(theirs.qmp)
    assert traces_in(theirs) == ""


def test_a_guest_that_dies_while_it_is_attached_to_is_told(own: Stranger, driver: Path) -> None:
    (driver / "hotreload.toml").write_text('setup = "echo c >/proc/sysrq-trigger"\n')
    done = run(driver, "guest", "attach", *own.everything, limit=90)
    assert done.returncode == 8
    assert "HR4103]: the guest does not answer" in done.stderr
    assert not left_behind(driver)


# What becomes of it.


def test_when_its_qemu_is_killed_the_session_ends_with_status_8(own: Stranger, driver: Path) -> None:
    with attached(driver, *own.everything), watch(driver) as watching:
        watching.waits_for("ready")
        own.process.kill()
        assert watching.process.wait(LIMIT) == 8
    assert not left_behind(driver)


@pytest.mark.parametrize("again", [False, True], ids=["while it is away", "while it is begun with anew"])
def test_when_its_qemu_is_killed_before_the_guest_is_back_the_session_ends(
    again: bool, own: Stranger, driver: Path
) -> None:
    (driver / "hotreload.toml").write_text('setup = "echo here >/tmp/mark; sleep 3"\n')
    with attached(driver, *own.everything), watch(driver) as watching:
        watching.waits_for("ready")
        own.run("(sleep 0.3; reboot -f) >/dev/null 2>&1 &")
        wait_for_state(driver, "away")
        if again:
            deadline = time.monotonic() + LIMIT
            while own.run("cat /tmp/mark 2>/dev/null") != "here\n":
                assert time.monotonic() < deadline
        else:
            own.ask_qemu("stop")
        own.process.kill()
        assert watching.process.wait(LIMIT) == 8
        assert "HR4103]: the guest is lost: QEMU has ended" in watching.said
    assert not left_behind(driver)


def test_a_panic_is_reported_with_its_function_and_the_session_goes_on_when_its_owner_resets_it(
    own: Stranger, driver: Path
) -> None:
    with attached(driver, *own.everything), watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "reads += step;", "reads += *(volatile int *)8;")
        watching.waits_for("live")
        with contextlib.suppress(subprocess.TimeoutExpired):
            run(driver, "guest", "exec", "cat /proc/counter", limit=20)
        told = watching.waits_for("crashed")
        lines = (driver / "counter.c").read_text().splitlines()
        line = next(number for number, text in enumerate(lines, 1) if "volatile" in text)
        assert re.search(
            rf"HR4101 BUG: kernel NULL pointer dereference in show\+0x\w+ \(counter.c:{line}\)", told
        )
        assert "the session waits until it answers" in watching.said
        assert "lost since" in str(wait_for_state(driver, "away")["message"])
        refused = run(driver, "push")
        assert (refused.returncode, "has been lost since" in refused.stderr) == (8, True)

        edit(driver, "reads += *(volatile int *)8;", "reads += 10 * step;")
        own.ask_qemu("system_reset")
        watching.waits_for("rebooted .*counter", limit=60)
        assert reading(driver) == "old 10\n"
        edit(driver, "old %d", "new %d")
        watching.waits_for("live .*#2")
        assert reading(driver) == "new 20\n"
        assert watching.end() == 130


def test_the_log_of_its_console_may_be_rotated(own: Stranger, driver: Path) -> None:
    with attached(driver, *own.everything), watch(driver) as watching:
        watching.waits_for("ready")
        old = own.console.rename(own.console.with_suffix(".1"))
        own.console.write_text("")
        watching.waits_for(f"{own.console} was replaced by another file")
        old.rename(own.console)
        watching.waits_for(f"{own.console} was replaced by another file", times=2)
        # QEMU writes on where it was.
        os.truncate(own.console, 0)
        edit(driver, "reads += step;", "reads += *(volatile int *)8;")
        watching.waits_for("live")
        with contextlib.suppress(subprocess.TimeoutExpired):
            run(driver, "guest", "exec", "cat /proc/counter", limit=20)
        watching.waits_for(r"crashed .*HR4101 BUG: kernel NULL pointer dereference in show\+0x")
        assert "Kernel panic - not syncing" in run(driver, "guest", "logs").stdout


@pytest.mark.parametrize("options", [("--qmp", "--console"), ()], ids=["with QMP", "by SSH alone"])
def test_a_guest_that_reboots_is_begun_with_anew(
    options: tuple[str, ...], own: Stranger, driver: Path
) -> None:
    with attached(driver, *(own.everything if options else own.ssh)), watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "old %d", "new %d")
        watching.waits_for("live")
        own.run("(sleep 0.3; reboot -f) >/dev/null 2>&1 &")
        watching.waits_for("HR4103 the guest is lost: the guest", limit=60)
        watching.waits_for("rebooted .*counter", limit=60)
        assert reading(driver) == "new 1\n"
        edit(driver, "new %d", "newer %d")
        watching.waits_for("live .*#2")
        assert reading(driver) == "newer 2\n"
        history = run(driver, "history").stdout
        assert re.findall(r"^ *\d* +(\w+) ", history, re.MULTILINE) == ["live", "warned", "rebooted", "live"]
        assert watching.end() == 130


def test_what_its_kernel_complains_about_is_told_though_nobody_keeps_its_console(
    own: Stranger, driver: Path
) -> None:
    own.run("echo 0 >/proc/sys/kernel/panic_on_oops")
    with attached(driver, *own.ssh), watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "reads += step;", "WARN_ON(1);\n\treads += step;")
        watching.waits_for("live")
        assert reading(driver) == "old 1\n"
        watching.waits_for(r"warned .*HR4105 WARNING in show\+0x\w+ \(counter.c:\d+\)")
        # An oops kills a task of a guest of theirs, not the guest.
        edit(driver, "WARN_ON(1);", "*(volatile int *)8 = 1;")
        watching.waits_for("live", times=2)
        # By read(): who dies in sendfile() takes a lock of the pipe along, and with it whoever listens.
        assert run(driver, "guest", "exec", "dd if=/proc/counter bs=64 count=1 2>&1").returncode != 0
        watching.waits_for(r"warned .*HR4101 BUG: kernel NULL pointer dereference in show\+0x")
        edit(driver, "*(volatile int *)8 = 1;\n\t", "")
        watching.waits_for("live|undone", times=3)
        assert watching.end() == 130


def test_a_kernel_that_says_more_than_comes_through_is_heard_afterwards(own: Stranger, driver: Path) -> None:
    with attached(driver, *own.ssh), watch(driver) as watching:
        watching.waits_for("ready")
        # More than the kernel's buffer holds, while nobody reads it.
        own.run(
            "reader=$(grep -l '^cat$' /proc/[0-9]*/comm | cut -d/ -f3); kill -STOP $reader;"
            " for i in $(seq 3000); do echo $i, and a line of some length, to be told >/dev/kmsg; done;"
            " kill -CONT $reader"
        )
        edit(driver, "reads += step;", "WARN_ON(1);\n\treads += step;")
        watching.waits_for("live")
        assert reading(driver) == "old 1\n"
        watching.waits_for(r"warned .*HR4105 WARNING in show\+0x\w+ \(counter.c:\d+\)")
        assert re.search(
            r"hotreload: \d+ lines of the kernel's log were lost", run(driver, "guest", "logs").stdout
        )
        assert watching.end() == 130


def test_a_connection_that_breaks_and_comes_back_loses_nothing(own: Stranger, driver: Path) -> None:
    with attached(driver, *own.ssh), watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "old %d", "new %d")
        watching.waits_for("live")
        own.run(CUT_OFF)
        assert reading(driver) == "new 1\n"
        edit(driver, "new %d", "newer %d")
        watching.waits_for("live", times=2)
        assert reading(driver) == "newer 2\n"
        assert watching.end() == 130
    assert traces_in(own) == ""


def test_a_module_that_was_loaded_anew_is_known_again_when_a_patch_of_it_was_cut_off(
    own: Stranger, driver: Path
) -> None:
    edit(driver, "#include <linux/module.h>", "#include <linux/delay.h>\n#include <linux/module.h>")
    with attached(driver, *own.ssh), watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "static int reads;", "static long reads;")
        edit(driver, "reads += step;", "reads += step;\n\tif (reads == 2)\n\t\tssleep(8);")
        edit(driver, '%d\\n"', '%ld\\n"')
        watching.waits_for("reloaded .*counter.ko")
        assert reading(driver) == "old 1\n"
        # Who reads for a while keeps the patch from being complete.
        own.run("dd if=/proc/counter of=/dev/null bs=64 count=1 2>/dev/null & sleep 1")
        edit(driver, "old %ld", "new %ld")
        deadline = time.monotonic() + LIMIT
        while "1" not in own.run("cat /sys/kernel/livepatch/*/transition"):
            assert time.monotonic() < deadline
        own.run(CUT_OFF)
        watching.waits_for("HR4103")
        watching.waits_for("rebooted .*counter", limit=60)
        # The module was not touched; the edit comes again.
        watching.waits_for("live")
        assert reading(driver) == "new 3\n"
        assert watching.end() == 130
    assert traces_in(own) == ""


def test_a_module_whose_exchange_was_cut_off_is_loaded_anew(own: Stranger, driver: Path) -> None:
    (driver / "hotreload.toml").write_text('setup = "[ ! -e /tmp/slow ] || { echo >/tmp/here; sleep 5; }"\n')
    with attached(driver, *own.ssh), watch(driver) as watching:
        watching.waits_for("ready")
        own.run("touch /tmp/slow")
        edit(driver, "static int reads;", "static unsigned char reads;")
        deadline = time.monotonic() + LIMIT
        while not own.run("ls -d /tmp/here 2>/dev/null"):
            assert time.monotonic() < deadline
        own.run(f"rm /tmp/slow; {CUT_OFF}")
        watching.waits_for("HR4103")
        watching.waits_for("rebooted .*counter", limit=60)
        watching.waits_for("reloaded .*counter.ko")
        assert reading(driver) == "old 1\n"
        assert watching.end() == 130
    assert traces_in(own) == ""


def test_a_guest_that_its_owner_has_brought_back_to_before_a_module_was_loaded_anew_is_gone_on_with(
    own: Stranger, driver: Path
) -> None:
    with attached(driver, *own.ssh), watch(driver) as watching:
        watching.waits_for("ready")
        first = (driver / "counter.ko").read_bytes()
        edit(driver, "static int reads;", "static unsigned char reads;")
        watching.waits_for("reloaded .*counter.ko")
        edit(driver, "old %d", "new %d")
        watching.waits_for("live")
        # What is in it then is what a snapshot of before would have.
        own.put(first, "/tmp/was.ko")
        own.run(
            "patch=$(ls /sys/kernel/livepatch); echo 0 >/sys/kernel/livepatch/$patch/enabled;"
            " while [ -e /sys/kernel/livepatch/$patch ]; do sleep 0.1; done; rmmod $patch;"
            " rmmod counter && insmod /tmp/was.ko; " + CUT_OFF
        )
        watching.waits_for("rebooted .*counter", limit=60)
        watching.waits_for("reloaded .*counter.ko", times=2)
        assert reading(driver) == "new 1\n"
        assert watching.end() == 130
    assert traces_in(own) == ""


def test_a_guest_with_openssh_is_worked_on_and_left_as_it_was(of_openssh: Stranger, driver: Path) -> None:
    with attached(driver, *of_openssh.ssh), watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "reads += step;", "WARN_ON(1);\n\treads += step;")
        watching.waits_for("live")
        assert reading(driver) == "old 1\n"
        watching.waits_for(r"warned .*HR4105 WARNING in show\+0x")
        of_openssh.run(CUT_OFF)
        edit(driver, "WARN_ON(1);\n\t", "")
        edit(driver, "static int reads;", "static long reads;")
        edit(driver, '%d\\n"', '%ld\\n"')
        watching.waits_for("reloaded .*counter.ko")
        assert reading(driver) == "old 1\n"
        assert watching.end() == 130
    assert traces_in(of_openssh) == ""


@pytest.mark.parametrize("action", ["pause", "shutdown"])
def test_a_panic_that_qemu_announces_is_told_though_nobody_keeps_its_console(
    action: str, guest_spec: MachineSpec, image: GuestImage, driver: Path, tmp_path: Path
) -> None:
    options = ("-device", "pvpanic-pci", "-action", f"panic={action}")
    with (
        stranger(guest_spec, image, tmp_path / "guest", *options, arguments="panic=0") as guest,
        attached(driver, *guest.ssh, "--qmp", str(guest.qmp)),
        watch(driver) as watching,
    ):
        watching.waits_for("ready")
        edit(driver, "reads += step;", 'panic("no way on");')
        watching.waits_for("live")
        with contextlib.suppress(subprocess.TimeoutExpired):
            run(driver, "guest", "exec", "cat /proc/counter", limit=20)
        watching.waits_for("crashed .*HR4102 the guest's kernel panicked")
        if action == "shutdown":
            assert watching.process.wait(LIMIT) == 8
            assert not left_behind(driver)
            return
        edit(driver, 'panic("no way on");', "reads += 10 * step;")
        guest.ask_qemu("system_reset")
        guest.ask_qemu("cont")
        watching.waits_for("rebooted .*counter", limit=60)
        assert reading(driver) == "old 10\n"
        assert watching.end() == 130
