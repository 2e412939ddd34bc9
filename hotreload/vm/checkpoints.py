# SPDX-License-Identifier: MIT
"""Checkpoints of a running guest: its memory and processors, saved by QEMU into the state disk.

    save      0.1-0.35 s, in which the guest stands still
    restore   0.1-0.4 s; a guest that panicked runs again

(512 MiB under TCG.) They live as long as the machine, and each takes the memory that the guest has in use,
60 to 200 MB of disk, which has lost its name by then (``take_name``): when QEMU ends, whatever ends it, the
space is free again. QEMU's jobs answer at once; whether one went well is in query-jobs alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.errors import EnvironmentFault, GuestUnreachableError
from hotreload.vm.machine import Machine, State
from hotreload.vm.monitor import QmpError
from hotreload.vm.spec import STATE_NODE

# What the disk may grow to; it takes what is used.
DISK_SIZE = "64G"
TAG_PREFIX = "checkpoint-"
WITHOUT = "--checkpoints off goes without them"
# Seconds between looks at a job, and in which one must be over.
INTERVAL = 0.005
LONG_INTERVAL = 0.1
LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved state of the guest. ``tag``: its name in the state disk; ``seconds``: to save it.

    ``saved_at``: Unix time.
    """

    tag: str
    seconds: float
    saved_at: float = 0.0


async def make_state_disk(file: Path) -> None:
    """Make an empty one. Raises EnvironmentFault (HR5105) when there is no qemu-img, or no space."""
    try:
        made = await process.run(["qemu-img", "create", "-q", "-f", "qcow2", file, DISK_SIZE])
    except FileNotFoundError as error:
        raise _unusable("qemu-img is not installed", "apt-get install qemu-utils") from error
    if not made.ok:
        raise _unusable(made.complaint)


def take_name(file: Path) -> int:
    """Delete the disk, which QEMU has open, and return a descriptor of it.

    A second QEMU, for the same guest, is given another disk.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    file.unlink()
    return descriptor


class NoSpaceError(EnvironmentFault):
    """There is no space for a checkpoint now."""


class TooSlowError(EnvironmentFault):
    """A save did not end in time: this machine is busy."""


class Checkpoints:
    """Those of one machine; calls are done one at a time."""

    def __init__(self, machine: Machine, disk: int) -> None:
        """``disk``: descriptor of the machine's state disk, which need not have a name any more."""
        self._machine = machine
        self._disk = disk
        self._serial = 0
        self._there: dict[str, Checkpoint] = {}
        self.is_given_up = False
        self._jobs = 0
        self._busy = asyncio.Lock()

    async def save(self, tag: str | None = None) -> Checkpoint:
        """Save the guest as it is now; ``tag``: a name of its own.

        Raises NoSpaceError (HR5107), EnvironmentFault (HR5105), and GuestUnreachableError, also for a guest
        that does not run: nobody wants that one back.
        """
        async with self._busy:
            self._serial += 1
            tag = tag or f"{TAG_PREFIX}{self._serial}"
            # QEMU saves one that sleeps, too; brought back, it would neither sleep nor wake.
            while await self._machine.standstill():  # noqa: ASYNC110 - QEMU is asked
                await asyncio.sleep(LONG_INTERVAL)
            started = time.monotonic()
            self._require_running()
            self._require_space()
            await self._job("snapshot-save", tag, vmstate=STATE_NODE)
            self._require_running()
            self._there[tag] = Checkpoint(tag, time.monotonic() - started, time.time())
            return self._there[tag]

    def _require_space(self) -> None:
        """Raise NoSpaceError when the guest's memory may not fit: who compiles needs what is left more."""
        wanted, about = self._machine.spec.memory_mb << 20, os.fstatvfs(self._disk)
        if (free := about.f_bavail * about.f_frsize) < wanted:
            disk = self._machine.spec.state_disk
            where = f" below {disk.parent}" if disk is not None else ""
            raise NoSpaceError(
                f"no checkpoint of the guest: {free >> 20} MiB are free{where}, it may take {wanted >> 20}",
                code="HR5107",
                hint="free some space",
            )

    def give_up(self) -> None:
        """Give the disk's space back. None of the checkpoints can be used any more."""
        self.is_given_up = True
        with contextlib.suppress(OSError):
            os.ftruncate(self._disk, 0)

    def _require_running(self) -> None:
        if trouble := self._machine.trouble:
            raise GuestUnreachableError(f"the guest is lost: {trouble.message}")

    async def delete(self, checkpoint: Checkpoint) -> None:
        """Give its space back. Raises as ``save``."""
        async with self._busy:
            await self._job("snapshot-delete", checkpoint.tag)
            self._there.pop(checkpoint.tag, None)

    async def delete_all_but(self, kept: Checkpoint) -> None:
        """Give the space of all others back. Raises as ``save``."""
        for checkpoint in tuple(self._there.values()):
            if checkpoint.tag != kept.tag:
                await self.delete(checkpoint)

    async def restore(self, checkpoint: Checkpoint) -> None:
        """Bring the guest back there, and let it run. Connections into it are lost.

        Raises as ``save``.
        """
        async with self._busy:
            await self.wake()  # QEMU does not let one go on that it found asleep
            was_reset = self._machine.trouble is not None and self._machine.trouble.state is State.RESET
            try:
                async with asyncio.timeout(LIMIT):
                    if was_reset:
                        await self._let_reset()
                    await self._job("snapshot-load", checkpoint.tag, vmstate=STATE_NODE)
                    if was_reset:
                        await self._execute("set-action", reboot="shutdown")
                    await self._execute("cont")
                    await self._machine.wait_until_running()
            except QmpError as error:
                raise _unusable(str(error)) from error
            except TimeoutError as error:
                raise _unusable(f"to bring the guest back takes more than {LIMIT:g} s") from error

    async def wake(self) -> None:
        """Wake the guest, if it sleeps. Raises GuestUnreachableError."""
        if await self._machine.standstill() == "suspended":
            with contextlib.suppress(QmpError):  # it has woken by itself
                await self._execute("system_wakeup")

    async def _let_reset(self) -> None:
        """A machine that was shut down loads no state before it was reset."""
        await self._execute("set-action", reboot="reset")
        await self._execute("system_reset")

    async def _execute(self, command: str, **arguments: object) -> None:
        await self._machine.monitor.execute(command, arguments)

    async def _job(self, kind: str, tag: str, **arguments: object) -> None:
        self._jobs += 1
        job = f"{kind}-{self._jobs}"
        execute = self._machine.monitor.execute
        try:
            async with asyncio.timeout(LIMIT):
                await execute(kind, {"job-id": job, "tag": tag, "devices": [STATE_NODE], **arguments})
                complaint = await self._end_of(job)
                await execute("job-dismiss", {"id": job})
        except QmpError as error:
            raise _unusable(str(error)) from error
        except TimeoutError as error:
            raise TooSlowError(
                f"no checkpoint of the guest: {kind} takes more than {LIMIT:g} s", code="HR5105", hint=WITHOUT
            ) from error
        if complaint:
            raise _unusable(complaint)

    async def _end_of(self, name: str) -> str:
        """Wait for a job; what went wrong in it, empty: nothing."""
        while True:
            for job in await self._machine.monitor.execute("query-jobs"):
                if job["id"] == name and job["status"] == "concluded":
                    return str(job.get("error", ""))
            await asyncio.sleep(INTERVAL)


def _unusable(fact: str, hint: str = WITHOUT) -> EnvironmentFault:
    return EnvironmentFault(f"no checkpoint of the guest: {fact}", code="HR5105", hint=hint)
