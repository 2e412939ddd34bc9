# SPDX-License-Identifier: MIT
"""Checkpoints of a running guest: its memory and processors, saved by QEMU into the state disk.

    save      0.1-0.35 s, during which the guest is stopped
    restore   0.1-0.4 s; a guest that panicked runs again

(512 MiB under TCG.) Checkpoints last as long as the machine. Each takes as much disk space as the guest uses
memory, 60 to 200 MB. The disk's file is unlinked by then (``take_name``), so that its space is freed when
QEMU ends, for whatever reason. QEMU's job commands return at once; only query-jobs says whether a job
succeeded.
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

# The maximum size of the disk; it only takes the space that is used.
DISK_SIZE = "64G"
TAG_PREFIX = "checkpoint-"
WITHOUT = "to do without checkpoints: --checkpoints off"
# Seconds between polls of a job or of a sleeping guest, and in which a job must be done.
INTERVAL = 0.005
LONG_INTERVAL = 0.1
LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved state of the guest. ``tag``: its name in the state disk; ``seconds``: the time it took to save.

    ``saved_at``: Unix time.
    """

    tag: str
    seconds: float
    saved_at: float = 0.0


async def make_state_disk(file: Path) -> None:
    """Make an empty state disk.

    Raises EnvironmentFault (HR5105) if there is no qemu-img, or no disk space.
    """
    try:
        made = await process.run(["qemu-img", "create", "-q", "-f", "qcow2", file, DISK_SIZE])
    except FileNotFoundError as error:
        raise _unusable("qemu-img is not installed", "apt-get install qemu-utils") from error
    if not made.ok:
        raise _unusable(made.complaint)


def take_name(file: Path) -> int:
    """Unlink the disk, which QEMU has open, and return a descriptor of it.

    A second QEMU for the same guest gets another disk.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    file.unlink()
    return descriptor


class NoSpaceError(EnvironmentFault):
    """There is not enough disk space for a checkpoint."""


class TooSlowError(EnvironmentFault):
    """A save did not end in time, because this machine is busy."""


class Checkpoints:
    """The checkpoints of one machine; calls are run one at a time."""

    def __init__(self, machine: Machine, disk: int) -> None:
        """``disk``: descriptor of the machine's state disk, which may be unlinked already."""
        self._machine = machine
        self._disk = disk
        self._serial = 0
        self._there: dict[str, Checkpoint] = {}
        self.is_given_up = False
        self._jobs = 0
        self._busy = asyncio.Lock()

    async def save(self, tag: str | None = None) -> Checkpoint:
        """Save the current state of the guest; ``tag``: a name for the checkpoint.

        Raises NoSpaceError (HR5107), EnvironmentFault (HR5105), and GuestUnreachableError, also if the guest
        does not run, because that state is of no use.
        """
        async with self._busy:
            self._serial += 1
            tag = tag or f"{TAG_PREFIX}{self._serial}"
            # QEMU would also save a suspended guest, but when restored it would neither sleep nor wake up.
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
        """Raise NoSpaceError if the guest's memory may not fit: compilers need the remaining space more."""
        wanted, about = self._machine.spec.memory_mb << 20, os.fstatvfs(self._disk)
        if (free := about.f_bavail * about.f_frsize) < wanted:
            disk = self._machine.spec.state_disk
            where = f" below {disk.parent}" if disk is not None else ""
            raise NoSpaceError(
                f"no checkpoint of the guest: {free >> 20} MiB are free{where}, and it may take"
                f" {wanted >> 20} MiB",
                code="HR5107",
                hint="free some space",
            )

    def give_up(self) -> None:
        """Free the space of the disk. No checkpoint can be used afterwards."""
        self.is_given_up = True
        with contextlib.suppress(OSError):
            os.ftruncate(self._disk, 0)

    def _require_running(self) -> None:
        if trouble := self._machine.trouble:
            raise GuestUnreachableError(f"the guest is lost: {trouble.message}")

    async def delete(self, checkpoint: Checkpoint) -> None:
        """Free the space of a checkpoint. Raises what ``save`` raises."""
        async with self._busy:
            await self._job("snapshot-delete", checkpoint.tag)
            self._there.pop(checkpoint.tag, None)

    async def delete_all_but(self, kept: Checkpoint) -> None:
        """Free the space of all other checkpoints. Raises what ``save`` raises."""
        for checkpoint in tuple(self._there.values()):
            if checkpoint.tag != kept.tag:
                await self.delete(checkpoint)

    async def restore(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint, and let the guest run. Connections into it are lost.

        Raises what ``save`` raises.
        """
        async with self._busy:
            await self.wake()  # QEMU does not continue a guest that it found suspended
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
                raise _unusable(f"bringing the guest back takes more than {LIMIT:g} s") from error

    async def wake(self) -> None:
        """Wake up the guest if it is suspended. Raises GuestUnreachableError."""
        if await self._machine.standstill() == "suspended":
            with contextlib.suppress(QmpError):  # it has woken up by itself
                await self._execute("system_wakeup")

    async def _let_reset(self) -> None:
        """Reset a machine that was shut down, because it cannot load a state before."""
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
        """Wait for a job. Return its error; empty if it succeeded."""
        while True:
            for job in await self._machine.monitor.execute("query-jobs"):
                if job["id"] == name and job["status"] == "concluded":
                    return str(job.get("error", ""))
            await asyncio.sleep(INTERVAL)


def _unusable(fact: str, hint: str = WITHOUT) -> EnvironmentFault:
    return EnvironmentFault(f"no checkpoint of the guest: {fact}", code="HR5105", hint=hint)
