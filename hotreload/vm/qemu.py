# SPDX-License-Identifier: MIT
"""One QEMU process and its monitor, started together and ended together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from hotreload import process
from hotreload.errors import GuestUnreachableError
from hotreload.vm.console import printable
from hotreload.vm.monitor import Monitor, QmpError

# Seconds from QMP's `quit` to SIGKILL.
QUIT_GRACE = 2.0
# Seconds. QEMU takes some 50 ms to connect to the monitor; more on a machine that swaps.
CONNECT_LIMIT = 30.0
# QEMU may print a thousand warnings; only the last lines matter.
COMPLAINT_BYTES = 8192


def main_complaint(stderr: str) -> str:
    """Return the line that says why QEMU ended: the first one that is not a warning."""
    lines = [line for line in printable(stderr).splitlines() if line.strip()]
    return next((line for line in lines if "warning:" not in line), lines[0] if lines else "")


class QemuEndedError(Exception):
    """QEMU ended before it connected to us; the text is its own error."""


class Qemu:
    """A running QEMU. Made by `start_qemu`."""

    def __init__(self, running: asyncio.subprocess.Process, monitor: Monitor) -> None:
        self.monitor = monitor
        self._process = running
        self._stderr = bytearray()
        self._reader = asyncio.create_task(self._read_stderr())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def complaint(self) -> str:
        """What QEMU wrote to its standard error, safe to print."""
        return printable(self._stderr.decode(errors="replace")).strip()

    async def wait(self) -> str:
        """Wait until QEMU has ended, and return one line that says how."""
        await self._process.wait()
        await asyncio.wait({self._reader})
        status = self._process.returncode or 0
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        complaint = main_complaint(self.complaint)
        return f"QEMU ended with {how}" + (f": {complaint}" if complaint else "")

    async def end(self) -> None:
        """End QEMU: ask, wait, kill. Nothing of it is left afterwards."""
        try:
            with contextlib.suppress(TimeoutError, QmpError, GuestUnreachableError):
                async with asyncio.timeout(QUIT_GRACE):
                    await self.monitor.execute("quit")
                    await self._process.wait()
        finally:
            await process.end(self._process)
            await self.monitor.close()
            await asyncio.wait({self._reader})

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(4096):
            self._stderr += data
            del self._stderr[:-COMPLAINT_BYTES]


async def start_qemu(argv: Sequence[str], qmp_socket: Path) -> Qemu:
    """Start QEMU and wait until it has connected to the monitor at ``qmp_socket``.

    Raises QemuEndedError if it ends instead, GuestUnreachableError (HR3107) if it does neither.
    """
    monitor = Monitor(qmp_socket)
    await monitor.listen()
    try:
        qemu = Qemu(await process.spawn(argv, stdout=asyncio.subprocess.DEVNULL), monitor)
    except BaseException:
        await monitor.close()
        raise
    try:
        await _connected(qemu)
    except BaseException:
        await qemu.end()
        raise
    return qemu


async def _connected(qemu: Qemu) -> None:
    accepted = asyncio.create_task(qemu.monitor.accept())
    ended = asyncio.create_task(qemu.wait())
    try:
        await asyncio.wait({accepted, ended}, timeout=CONNECT_LIMIT, return_when=asyncio.FIRST_COMPLETED)
        if accepted.done() and accepted.exception():
            # It closed the connection and is about to end. Its own error message says more.
            await asyncio.wait({ended}, timeout=QUIT_GRACE)
        if ended.done():
            raise QemuEndedError(qemu.complaint or ended.result())
        if not accepted.done():
            raise GuestUnreachableError(
                f"QEMU did not connect to its monitor within {CONNECT_LIMIT:g} s",
                qemu.complaint,
                code="HR3107",
            )
        await accepted
    finally:
        for task in (accepted, ended):
            task.cancel()
        await asyncio.wait({accepted, ended})
