# SPDX-License-Identifier: MIT
"""The description of a virtual machine, as a value, and its QEMU command line. Pure.

Some choices are based on measurements under TCG with Debian's 6.1 cloud kernel (seconds until SSH): q35 2.0,
pc 2.2; qemu64 2.2, max 2.6; a kernel at its link address 2.2, with KASLR 2.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hotreload.process import paste_ready

GUEST_SSH_PORT = 22
# The block node that checkpoints are saved in.
STATE_NODE = "state"

KERNEL_COMMAND_LINE = (
    "console=ttyS0",
    # Boot messages go to the ring buffer (dmesg), not over the slow serial port. Errors still do.
    "quiet",
    # A guest that panics waits: QEMU reports it, and the report and the checkpoint need it as it is.
    "panic=0",
    "oops=panic",
    # System.map, vmlinux, memsave and gdb then all use the same addresses. The guest can only be reached from
    # this machine and runs its developer's code, so there is nobody to hide addresses from.
    "nokaslr",
    "mitigations=off",
    # Skip the self-tests of all ciphers at each boot: 0.5 s of 2.5. cryptomgr.notests=0 enables them again.
    "cryptomgr.notests",
)
# On a busy machine an emulated timer is late, and a kernel that counts its ticks panics: "IO-APIC + timer
# doesn't work". Under KVM the kernel skips the check by itself.
EMULATED_COMMAND_LINE = ("no_timer_check",)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """How one running machine is reached; ``folder`` holds its sockets.

    ``qmp``: we listen, and QEMU connects before the guest runs. ``qmp2``: QEMU listens, for people and for
    ``drgn --qemu``. ``console``: the serial port, QEMU listens; ``console_log`` has everything it ever
    printed. ``ssh_port`` is a port of 127.0.0.1.
    """

    folder: Path
    console_log: Path
    ssh_port: int

    @property
    def qmp(self) -> Path:
        return self.folder / "qmp"

    @property
    def qmp2(self) -> Path:
        return self.folder / "qmp2"

    @property
    def console(self) -> Path:
        return self.folder / "console"


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """The description of a virtual machine. ``memory_mb`` in MiB; ``accel`` is ``kvm`` or ``tcg``.

    ``state_disk``: a qcow2 file that snapshots are saved in, or None.
    """

    kernel: Path
    initramfs: Path
    accel: str = "tcg"
    # One, because with more the kernel's live patch transition waits 0.75-1.75 s for the idle ones.
    cpus: int = 1
    memory_mb: int = 512
    state_disk: Path | None = None
    kernel_arguments: tuple[str, ...] = ()
    name: str = "default"
    qemu: str = "qemu-system-x86_64"

    def argv(self, at: Endpoints) -> tuple[str, ...]:
        """Return the QEMU command line."""
        devices = (*self._devices(at.ssh_port), *self._disk())
        return (self.qemu, *self._machine(), *self._boot(), *_control(at), *devices)

    def by_hand(self, ssh_port: int) -> str:
        """Return a command line for people to paste, with the console in the terminal.

        It needs nothing else.
        """
        terminal = ("-serial", "mon:stdio")
        return paste_ready((self.qemu, *self._machine(), *self._boot(), *terminal, *self._devices(ssh_port)))

    def _machine(self) -> Iterator[str]:
        yield from ("-name", f"hotreload-{_escaped(self.name)}")
        yield from ("-nodefaults", "-no-user-config", "-display", "none")
        yield from ("-machine", "q35")
        yield from ("-accel", self.accel)
        yield from ("-cpu", cpu_model(self.accel))
        # One processor per socket: the firmware's MP table, for kernels without ACPI, only lists the first
        # one of a socket.
        yield from ("-smp", f"{self.cpus},sockets={self.cpus}" if self.cpus > 1 else "1")
        yield from ("-m", str(self.memory_mb))
        # A crashed or stopped guest stays in memory, to be examined and restored.
        yield from ("-action", "reboot=shutdown,shutdown=pause,panic=pause")

    def _boot(self) -> Iterator[str]:
        yield from ("-kernel", str(self.kernel), "-initrd", str(self.initramfs))
        emulated = EMULATED_COMMAND_LINE if self.accel == "tcg" else ()
        yield from ("-append", " ".join((*KERNEL_COMMAND_LINE, *emulated, *self.kernel_arguments)))

    def _devices(self, ssh_port: int) -> Iterator[str]:
        yield from ("-device", "virtio-rng-pci")
        # restrict=on: the guest can reach nothing but the port that is forwarded to it.
        forward = f"hostfwd=tcp:127.0.0.1:{ssh_port}-:{GUEST_SSH_PORT}"
        yield from ("-netdev", f"user,id=net,restrict=on,{forward}")
        # No boot ROM, because nothing boots from this network.
        yield from ("-device", "virtio-net-pci,netdev=net,romfile=")
        yield from ("-device", "pvpanic-pci")
        # Where the kernel puts its VMCOREINFO note: drgn and the crash tools ask QEMU for it.
        yield from ("-device", "vmcoreinfo")

    def _disk(self) -> Iterator[str]:
        if self.state_disk is not None:
            # The guest has no such device, so it cannot affect what is tested in the guest. A snapshot only
            # lasts as long as QEMU, so nothing has to reach the disk.
            file = f"driver=file,node-name=state-file,filename={_escaped(self.state_disk)}"
            yield from ("-blockdev", f"{file},cache.no-flush=on")
            node = f"driver=qcow2,node-name={STATE_NODE},file=state-file"
            yield from ("-blockdev", f"{node},cache.no-flush=on")


def cpu_model(accel: str) -> str:
    """Return the processor model that QEMU shows to the guest."""
    # Under TCG each feature of the processor costs time: `max` boots slower than the plain model. Its time
    # stamp counter is the host's, which a restore does not set back: the guest's clock would jump, and
    # watchdogs would fire. KVM's clock is part of a checkpoint: QEMU saves it, and sets it back
    # (hw/i386/kvm/clock.c).
    return "host" if accel == "kvm" else "qemu64,-tsc"


def _control(at: Endpoints) -> Iterator[str]:
    # The console comes first: QEMU creates character devices in this order, so its socket exists by the time
    # QEMU has connected to ours.
    console = f"path={_escaped(at.console)},logfile={_escaped(at.console_log)}"
    yield from ("-chardev", f"socket,id=console,server=on,wait=off,{console}")
    yield from ("-serial", "chardev:console")
    yield from ("-chardev", f"socket,id=qmp,path={_escaped(at.qmp)}")
    yield from ("-mon", "chardev=qmp,mode=control")
    yield from ("-chardev", f"socket,id=qmp2,server=on,wait=off,path={_escaped(at.qmp2)}")
    yield from ("-mon", "chardev=qmp2,mode=control")


def _escaped(value: str | Path) -> str:
    """Return a value for a QEMU option list, in which a comma would end it."""
    return str(value).replace(",", ",,")
