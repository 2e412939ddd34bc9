# SPDX-License-Identifier: MIT
from __future__ import annotations

import shlex
from pathlib import Path

from hotreload.vm.spec import Endpoints, MachineSpec

AT = Endpoints(folder=Path("/run/vm-1"), console_log=Path("/state/console.log"), ssh_port=2222)
SPEC = MachineSpec(kernel=Path("/k/vmlinuz"), initramfs=Path("/k/initramfs"))


def value(argv: tuple[str, ...], option: str) -> str:
    assert argv.count(option) == 1, f"{option} is there {argv.count(option)} times"
    return argv[argv.index(option) + 1]


def test_only_this_machine_reaches_the_guest_and_the_guest_reaches_nothing() -> None:
    network = value(SPEC.argv(AT), "-netdev")
    assert network == "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:2222-:22"


def test_a_dead_guest_is_kept_for_the_report_and_for_its_checkpoint() -> None:
    assert value(SPEC.argv(AT), "-action") == "reboot=shutdown,shutdown=pause,panic=pause"
    assert "panic=0" in value(SPEC.argv(AT), "-append").split()


def test_the_console_socket_is_made_before_qemu_connects_to_our_monitor() -> None:
    argv = SPEC.argv(AT)
    chardevs = [argv[place + 1] for place, word in enumerate(argv) if word == "-chardev"]
    assert [word.split("id=")[1].split(",")[0] for word in chardevs] == ["console", "qmp", "qmp2"]
    assert chardevs[0].endswith("path=/run/vm-1/console,logfile=/state/console.log")
    # QEMU is the client of the first monitor, and the server of the second.
    assert "server" not in chardevs[1]
    assert "server=on,wait=off" in chardevs[2]


def test_an_emulated_guest_gets_the_plain_processor_and_kvm_the_real_one() -> None:
    # No time stamp counter: a restore does not set it back, and the guest's clock would jump.
    assert value(SPEC.argv(AT), "-cpu") == "qemu64,-tsc"
    kvm = MachineSpec(SPEC.kernel, SPEC.initramfs, accel="kvm")
    assert (value(kvm.argv(AT), "-accel"), value(kvm.argv(AT), "-cpu")) == ("kvm", "host")


def test_only_an_emulated_guest_leaves_out_the_check_of_its_timer() -> None:
    kvm = MachineSpec(SPEC.kernel, SPEC.initramfs, accel="kvm")
    assert "no_timer_check" in value(SPEC.argv(AT), "-append").split()
    assert "no_timer_check" not in value(kvm.argv(AT), "-append").split()


def test_there_is_no_disk_unless_asked_for() -> None:
    assert "-blockdev" not in SPEC.argv(AT)
    spec = MachineSpec(SPEC.kernel, SPEC.initramfs, state_disk=Path("/state/a,b.qcow2"))
    disk = spec.argv(AT)
    blocks = [disk[place + 1] for place, word in enumerate(disk) if word == "-blockdev"]
    assert blocks == [
        "driver=file,node-name=state-file,filename=/state/a,,b.qcow2,cache.no-flush=on",
        "driver=qcow2,node-name=state,file=state-file,cache.no-flush=on",
    ]
    assert spec.by_hand(2222) == SPEC.by_hand(2222), "whoever pastes it later finds no disk"


def test_kernel_arguments_of_the_user_come_last() -> None:
    spec = MachineSpec(SPEC.kernel, SPEC.initramfs, kernel_arguments=("slub_debug=FZ", "panic=5"))
    assert value(spec.argv(AT), "-append").endswith(" slub_debug=FZ panic=5")


def test_the_line_for_people_boots_the_same_guest_without_our_sockets() -> None:
    words = tuple(shlex.split(SPEC.by_hand(2222)))
    assert value(words, "-serial") == "mon:stdio"
    assert value(words, "-append") == value(SPEC.argv(AT), "-append")
    assert not [word for word in words if "/run/vm-1" in word or "/state" in word]
