# SPDX-License-Identifier: MIT
"""A guest that somebody else started: our image, without our agent, under a QEMU of the test's own."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotreload.vm.image import GuestImage
from hotreload.vm.sockets import free_port
from hotreload.vm.spec import MachineSpec
from tests.guest.watching import LIMIT, run

NO_QUESTIONS = (
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "LogLevel=ERROR",
)


@dataclass
class Stranger:
    """``qmp`` and ``own_qmp`` are two monitors of it: one for whoever attaches, one for its owner."""

    process: subprocess.Popen[bytes]
    image: GuestImage
    port: int
    folder: Path

    @property
    def console(self) -> Path:
        return self.folder / "console.log"

    @property
    def qmp(self) -> Path:
        return self.folder / "qmp"

    @property
    def ssh(self) -> tuple[str, ...]:
        """The words of `guest attach` that it needs."""
        keys = ("--identity", str(self.image.client_key), "--host-key", str(self.image.host_key))
        return ("--ssh", f"127.0.0.1:{self.port}", *keys)

    @property
    def everything(self) -> tuple[str, ...]:
        return (*self.ssh, "--qmp", str(self.qmp), "--console", str(self.console))

    def run(self, command: str, limit: float = LIMIT) -> str:
        """What its owner is told by a command in it."""
        done = subprocess.run([*self._login, command], capture_output=True, timeout=limit, check=False)
        return done.stdout.decode()

    def put(self, data: bytes, path: str) -> None:
        """Write a file in it."""
        command = [*self._login, f"cat >{path}"]
        subprocess.run(command, input=data, capture_output=True, timeout=LIMIT, check=True)

    @property
    def _login(self) -> tuple[str, ...]:
        key = str(self.image.client_key)
        return ("ssh", "-p", str(self.port), "-i", key, *NO_QUESTIONS, "root@127.0.0.1")

    def ask_qemu(self, command: str) -> Any:
        """One QMP command by its owner."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(LIMIT)
            monitor.connect(str(self.folder / "own_qmp"))
            lines = monitor.makefile("rw")
            lines.readline()
            for words in ("qmp_capabilities", command):
                lines.write(json.dumps({"execute": words}) + "\n")
                lines.flush()
                while "return" not in (answer := json.loads(lines.readline())):
                    assert "event" in answer, answer
            return answer["return"]

    def answers(self) -> None:
        """Return when its SSH server does."""
        deadline = time.monotonic() + 2 * LIMIT
        while "here" not in self.run("echo here"):
            assert self.process.poll() is None, "QEMU ended"
            assert time.monotonic() < deadline, self.console.read_text()[-2000:]
            time.sleep(0.1)


@contextlib.contextmanager
def stranger(
    spec: MachineSpec, image: GuestImage, folder: Path, *options: str, arguments: str = ""
) -> Iterator[Stranger]:
    """Boot it. ``options`` are QEMU's, behind those it has; ``arguments`` are the kernel's."""
    folder.mkdir()
    port = free_port()
    words = (
        *(spec.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"),
        *("-accel", spec.accel, "-cpu", "host" if spec.accel == "kvm" else "qemu64", "-m", "512"),
        *("-kernel", str(spec.kernel), "-initrd", str(image.initramfs)),
        *("-append", f"console=ttyS0 quiet cryptomgr.notests mitigations=off {arguments}"),
        *("-serial", f"file:{folder / 'console.log'}"),
        *("-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"),
        *("-qmp", f"unix:{folder / 'own_qmp'},server=on,wait=off"),
        *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"),
        *options,
    )
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        started = Stranger(process, image, port, folder)
        started.answers()
        yield started
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def attached(folder: Path, *words: str) -> Iterator[None]:
    """Inside, a session is attached; what it says afterwards is that it left the guest."""
    done = run(folder, "guest", "attach", *words, limit=90)
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        run(folder, "guest", "stop", limit=60)
