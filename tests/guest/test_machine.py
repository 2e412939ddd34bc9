# SPDX-License-Identifier: MIT
"""A guest's life: it boots, it answers, and it ends without leaving anything, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hotreload.build.kernel_tree import KernelTree
from hotreload.deploy.guest import SshGuest
from hotreload.errors import EnvironmentFault, GuestUnreachableError
from hotreload.vm.checkpoints import Checkpoints, make_state_disk, take_name
from hotreload.vm.image import GuestImage, build_image
from hotreload.vm.machine import Machine, State
from hotreload.vm.spec import MachineSpec
from tests.conftest import require
from tests.guest.conftest import Booted

OWNER = """
import asyncio, sys
from pathlib import Path
from hotreload.vm.machine import Machine
from hotreload.vm.spec import MachineSpec

async def main(kernel, initramfs, log):
    async with Machine(MachineSpec(Path(kernel), Path(initramfs)), Path(log)) as machine:
        print(machine.pid, machine.endpoints.folder, flush=True)
        await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


@contextlib.asynccontextmanager
async def fresh(spec: MachineSpec, image: GuestImage, log: Path) -> AsyncIterator[tuple[Machine, SshGuest]]:
    """A guest of one's own, to break."""
    async with (
        Machine(spec, log) as machine,
        SshGuest(machine.ssh_port, image.client_key, image.host_key) as guest,
    ):
        yield machine, guest


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def eventually_gone(pid: int, seconds: float = 3.0) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


def qemus_with(console_log: Path) -> list[str]:
    """QEMU processes that still write this log."""
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in running.splitlines() if f"logfile={console_log}" in line]


def test_the_guest_runs_the_kernel_it_was_given_and_answers(
    booted: Booted, debian_kernel: KernelTree
) -> None:
    assert booted.run("uname -r").text.strip() == debian_kernel.release
    assert booted.machine.state is State.RUNNING


def test_a_command_gives_back_its_status_and_both_outputs_unchanged(booted: Booted) -> None:
    every_byte = bytes(range(256)) * 400
    echoed = booted.run("cat; echo complaint >&2; exit 7", stdin=every_byte)
    assert (echoed.status, echoed.stdout, echoed.stderr) == (7, every_byte, b"complaint\n")


def test_a_command_that_reads_gets_an_end_of_file_when_it_is_given_nothing(booted: Booted) -> None:
    assert booted.run("cat", timeout=5).stdout == b""


def test_a_command_that_a_signal_ends_has_a_shells_status(booted: Booted) -> None:
    assert booted.run("kill -9 $$").status == 128 + 9


def test_a_command_that_takes_too_long_is_a_timeout_and_the_guest_stays(booted: Booted) -> None:
    with pytest.raises(TimeoutError):
        booted.run("sleep 60", timeout=0.3)
    assert booted.run("true").ok


def test_commands_at_the_same_time_do_not_wait_for_each_other(booted: Booted) -> None:
    async def three() -> list[str]:
        runs = (booted.guest.run(f"sleep 0.5; echo {number}") for number in range(3))
        return [result.text.strip() for result in await asyncio.gather(*runs)]

    started = time.monotonic()
    assert booted.wait(three()) == ["0", "1", "2"]
    assert time.monotonic() - started < 1.4


def test_a_pushed_file_is_whole_and_has_its_mode(booted: Booted) -> None:
    booted.wait(booted.guest.put(b"\0\xff" * 50_000, "/tmp/a file", 0o750))
    listing = booted.run("stat -c '%a %s' '/tmp/a file'; ls /tmp")
    assert listing.text.splitlines()[0] == "750 100000"
    assert ".new" not in listing.text


def test_a_push_to_nowhere_is_an_error_with_the_guests_own_words(booted: Booted) -> None:
    with pytest.raises(OSError, match="nonexistent"):
        booted.wait(booted.guest.put(b"x", "/nonexistent/file"))


def test_dmesg_is_readable_and_so_are_the_kernels_tables(booted: Booted) -> None:
    booted.run("echo canary-7 >/dev/kmsg")
    assert "canary-7" in booted.run("dmesg").text
    assert booted.run("grep -c '^ffffffff81' /proc/kallsyms").ok
    assert booted.run("ls /sys/kernel/debug /sys/kernel/tracing /dev/pts").ok


def test_what_the_kernel_says_after_the_boot_is_on_the_console(booted: Booted) -> None:
    booted.run("echo '<6>canary-8' >/dev/kmsg; sleep 0.1")
    assert "canary-8" in booted.machine.console.tail(5)


def test_a_module_of_the_kernel_package_can_be_loaded_and_removed(
    booted: Booted, debian_kernel: KernelTree
) -> None:
    assert debian_kernel.modules is not None
    module = next(debian_kernel.modules.glob("kernel/drivers/net/dummy.ko")).read_bytes()
    loaded = booted.run("cat >/tmp/dummy.ko && insmod /tmp/dummy.ko && grep -c ^dummy /proc/modules", module)
    assert (loaded.status, loaded.text) == (0, "1\n"), loaded.complaint
    assert booted.run("rmmod dummy && ! grep ^dummy /proc/modules").ok


def test_modprobe_finds_the_modules_that_the_recipe_carries(booted: Booted) -> None:
    assert booted.run("modprobe virtio_blk && grep -q ^virtio_blk /proc/modules && rmmod virtio_blk").ok


def test_an_oops_is_a_panic_and_a_panic_waits(booted: Booted) -> None:
    assert booted.run("cd /proc/sys/kernel && cat panic_on_oops panic").text == "1\n0\n"


def test_only_the_key_of_the_image_opens_the_guest(booted: Booted, guest_image: GuestImage) -> None:
    require(shutil.which("ssh"), "ssh", "apt-get install openssh-client")
    line = shlex.split(booted.guest.ssh_command)
    batch = [line[0], "-o", "BatchMode=yes", "-F", "none", *line[1:]]
    assert subprocess.run([*batch, "echo in"], capture_output=True, text=True).stdout == "in\n"
    without = [word for word in batch if word not in ("-i", str(guest_image.client_key))]
    refused = subprocess.run([*without, "echo in"], capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (255, "")
    assert "publickey" in refused.stderr
    assert "password" not in refused.stderr


def test_a_lost_connection_is_made_anew(booted: Booted) -> None:
    before = booted.run("cat /proc/uptime").text
    for connection in tuple(booted.guest.connections._watched):
        connection.abort()
    assert float(booted.run("cat /proc/uptime").text.split()[0]) >= float(before.split()[0])


def test_commands_at_the_same_time_do_not_get_into_each_others_way(booted: Booted) -> None:
    async def several() -> list[str]:
        async def loop(name: str) -> list[str]:
            return [(await booted.guest.run(f"echo {name}{n}")).text for n in range(25)]

        return [text for texts in await asyncio.gather(*map(loop, "abcd")) for text in texts]

    assert booted.wait(several()) == [f"{name}{n}\n" for name in "abcd" for n in range(25)]


def test_a_command_that_goes_on_does_not_keep_others_waiting(booted: Booted) -> None:
    async def both() -> str:
        long = asyncio.create_task(booted.guest.run("mkfifo /tmp/p; cat /tmp/p; echo ended"))
        while not (await booted.guest.run("test -p /tmp/p")).ok:
            pass
        await booted.guest.run("echo begun >/tmp/p")
        return (await long).text

    assert booted.wait(both()) == "begun\nended\n"


def test_a_second_monitor_is_there_for_people(booted: Booted) -> None:
    async def greeting() -> bytes:
        reader, writer = await asyncio.open_unix_connection(booted.machine.endpoints.qmp2)
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return line

    assert b'"QMP"' in booted.wait(greeting())


def test_a_panic_is_noticed_within_a_second_and_the_console_tells_of_it(
    guest_spec: MachineSpec, guest_image: GuestImage, console_log: Path
) -> None:
    async def scenario() -> tuple[float, State, str]:
        async with fresh(guest_spec, guest_image, console_log) as (machine, guest):
            await guest.run("true")
            started = time.monotonic()
            crash = asyncio.create_task(guest.run("echo c >/proc/sysrq-trigger"))
            trouble = await machine.wait_for_trouble()
            seconds = time.monotonic() - started
            crash.cancel()
            assert machine.trouble == trouble
            return seconds, machine.state, machine.console.tail(200)

    seconds, state, text = asyncio.run(scenario())
    assert state is State.PANICKED
    assert seconds < 1.0
    assert "sysrq triggered crash" in text
    assert not qemus_with(console_log)


def test_a_guest_that_panicked_is_as_it_was_at_its_checkpoint(
    guest_spec: MachineSpec, guest_image: GuestImage, console_log: Path
) -> None:
    async def scenario() -> None:
        disk = console_log.parent.parent / "state.qcow2"
        await make_state_disk(disk)
        spec = dataclasses.replace(guest_spec, state_disk=disk)
        async with fresh(spec, guest_image, console_log) as (machine, guest):
            descriptor = take_name(disk)
            assert not disk.exists()
            checkpoints = Checkpoints(machine, descriptor)
            await guest.run("echo first >/tmp/what")
            first = await checkpoints.save()
            await guest.run("echo second >/tmp/what")
            second = await checkpoints.save()
            for checkpoint, text in ((second, "second"), (first, "first"), (second, "second")):
                await guest.run("echo lost >/tmp/what")
                crash = asyncio.create_task(guest.run("echo c >/proc/sysrq-trigger"))
                await machine.wait_for_trouble()
                crash.cancel()
                await checkpoints.restore(checkpoint)
                assert machine.state is State.RUNNING
                assert machine.trouble is None
                await guest.reconnect()
                assert (await guest.run("cat /tmp/what")).text == f"{text}\n"
            crash = asyncio.create_task(guest.run("echo c >/proc/sysrq-trigger"))
            await machine.wait_for_trouble()
            crash.cancel()
            await checkpoints.delete(first)
            with pytest.raises(EnvironmentFault, match="no checkpoint") as gone:
                await checkpoints.restore(first)
            assert gone.value.code == "HR5105"
            assert machine.state is State.PANICKED
            assert os.fstat(descriptor).st_blocks > 8192
            checkpoints.give_up()
            assert os.fstat(descriptor).st_blocks == 0
            os.close(descriptor)

    asyncio.run(scenario())


def test_a_guest_that_is_restored_later_goes_on_from_the_time_that_it_had(
    guest_spec: MachineSpec, guest_image: GuestImage, console_log: Path
) -> None:
    async def uptime(guest: SshGuest) -> float:
        return float((await guest.run("cut -d' ' -f1 /proc/uptime")).text)

    async def scenario() -> tuple[float, float, float]:
        disk = console_log.parent.parent / "state.qcow2"
        await make_state_disk(disk)
        spec = dataclasses.replace(guest_spec, state_disk=disk)
        async with fresh(spec, guest_image, console_log) as (machine, guest):
            checkpoints = Checkpoints(machine, take_name(disk))
            saved = await checkpoints.save()
            then, clock = await uptime(guest), time.monotonic()
            await asyncio.sleep(10)
            await checkpoints.restore(saved)
            again = time.monotonic()
            await guest.reconnect()
            now = await uptime(guest)
            assert now - then < time.monotonic() - again + 1
            assert time.monotonic() - clock > 10
            # It does not go faster, either.
            began, clock = await uptime(guest), time.monotonic()
            await guest.run("sleep 2")
            return now - then, await uptime(guest) - began, time.monotonic() - clock

    jump, slept, took = asyncio.run(scenario())
    assert jump < 8
    assert 1.9 < slept < took + 0.5


def test_the_streams_of_a_program_have_names(booted: Booted) -> None:
    said = booted.run("echo in | cat /dev/stdin; echo out >/dev/stdout; echo err >/dev/stderr; ls /dev/fd/0")
    assert (said.text, said.stderr) == ("in\nout\n/dev/fd/0\n", b"err\n")


def test_a_guest_that_switches_itself_off_is_told_apart_from_a_crash(
    guest_spec: MachineSpec, guest_image: GuestImage, console_log: Path
) -> None:
    async def scenario() -> tuple[State, State]:
        async with fresh(guest_spec, guest_image, console_log) as (machine, guest):
            await guest.run("(sleep 0.1; poweroff -f) >/dev/null 2>&1 &")
            trouble = await asyncio.wait_for(machine.wait_for_trouble(), 10)
        return trouble.state, machine.state

    assert asyncio.run(scenario()) == (State.HALTED, State.STOPPED)


def test_a_killed_qemu_is_noticed_and_leaves_nothing(
    guest_spec: MachineSpec, guest_image: GuestImage, console_log: Path
) -> None:
    async def scenario() -> tuple[str, Path]:
        async with fresh(guest_spec, guest_image, console_log) as (machine, guest):
            await guest.run("true")
            os.kill(machine.pid, signal.SIGKILL)
            trouble = await asyncio.wait_for(machine.wait_for_trouble(), 1)
            with pytest.raises(GuestUnreachableError) as caught:
                await guest.run("true")
            assert caught.value.code == "HR4103"
            with pytest.raises(GuestUnreachableError):
                await machine.monitor.execute("query-status")
            return trouble.message, machine.endpoints.folder

    message, folder = asyncio.run(scenario())
    assert message == "QEMU ended with signal 9"
    assert not folder.exists()


def test_a_killed_hotreload_takes_its_guest_along(guest_spec: MachineSpec, console_log: Path) -> None:
    command = [sys.executable, "-c", OWNER, guest_spec.kernel, guest_spec.initramfs, console_log]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, folder = owner.stdout.readline().split()
        assert is_running(int(pid))
        owner.kill()
    assert eventually_gone(int(pid))
    assert Path(folder).exists(), "nobody was left to remove it; the next machine does"


def test_a_file_that_is_no_kernel_is_told_at_once_in_qemus_own_words(
    guest_spec: MachineSpec, console_log: Path, tmp_path: Path
) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"this is not a kernel" * 100)
    spec = dataclasses.replace(guest_spec, kernel=tmp_path / "vmlinuz")
    with pytest.raises(GuestUnreachableError) as caught:
        asyncio.run(Machine(spec, console_log).__aenter__())
    assert caught.value.code == "HR3107"
    assert caught.value.message == "QEMU does not start: qemu: linux kernel too old to load a ram disk"
    assert not qemus_with(console_log)


def test_a_kernel_that_hangs_ends_at_its_deadline_and_nothing_stays(
    guest_spec: MachineSpec, console_log: Path, tmp_path: Path
) -> None:
    kernel = bytearray(guest_spec.kernel.read_bytes())
    # The header stays valid; the code after the setup sectors becomes `jmp .`.
    start = (kernel[0x1F1] + 1) * 512
    kernel[start : start + 0x400] = b"\xeb\xfe" * 0x200
    (tmp_path / "vmlinuz").write_bytes(kernel)
    spec = dataclasses.replace(guest_spec, kernel=tmp_path / "vmlinuz")
    started = time.monotonic()
    with pytest.raises(GuestUnreachableError) as caught:
        asyncio.run(Machine(spec, console_log, boot_deadline=2).__aenter__())
    assert time.monotonic() - started < 5
    assert caught.value.message == "the guest was not ready after 2 s"
    assert caught.value.hint is not None
    assert "qemu-system-x86_64 " in caught.value.hint
    assert not qemus_with(console_log)


def test_a_kernel_that_panics_at_boot_shows_its_last_words(
    guest_spec: MachineSpec, console_log: Path
) -> None:
    spec = dataclasses.replace(guest_spec, kernel_arguments=("rdinit=/nowhere", "root=/dev/nowhere"))
    started = time.monotonic()
    with pytest.raises(GuestUnreachableError) as caught:
        asyncio.run(Machine(spec, console_log).__aenter__())
    assert time.monotonic() - started < 30
    assert "Unable to mount root fs" in caught.value.message
    assert "Kernel panic - not syncing" in caught.value.excerpt


def test_an_init_that_cannot_go_on_says_why(
    guest_spec: MachineSpec, debian_kernel: KernelTree, console_log: Path
) -> None:
    image = asyncio.run(build_image(debian_kernel, extra={"/etc/modules": b"no_such_driver\n"}))
    spec = dataclasses.replace(guest_spec, initramfs=image.initramfs)
    with pytest.raises(GuestUnreachableError) as caught:
        asyncio.run(Machine(spec, console_log).__aenter__())
    assert caught.value.message == "the guest did not boot: a virtio module cannot be loaded"
    assert "no_such_driver" in caught.value.excerpt


def test_a_cancelled_boot_leaves_nothing(guest_spec: MachineSpec, console_log: Path) -> None:
    async def scenario() -> Machine:
        machine = Machine(guest_spec, console_log)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(machine.__aenter__(), 0.4)
        return machine

    machine = asyncio.run(scenario())
    assert machine.state is State.STOPPED
    assert not machine.endpoints.folder.exists()
    assert eventually_gone(machine.pid)


def test_a_missing_qemu_is_a_fault_of_the_environment(guest_spec: MachineSpec, console_log: Path) -> None:
    spec = dataclasses.replace(guest_spec, qemu="qemu-system-nowhere")
    with pytest.raises(EnvironmentFault) as caught:
        asyncio.run(Machine(spec, console_log).__aenter__())
    assert caught.value.code == "HR5104"
