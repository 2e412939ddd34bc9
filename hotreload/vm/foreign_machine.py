# SPDX-License-Identifier: MIT
"""The machine of a guest that somebody else started: we look on, and never end it.

With a QMP socket of its QEMU we hear of what happens to the guest, and can ask where its processors are;
without one, what is known comes from whoever talks to the guest (``lose``). Other than ours it may be reset,
and come back: that is up to its owner.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

from hotreload.errors import EnvironmentFault
from hotreload.vm.machine import HALTED, PANICKED, RESET, State, Trouble
from hotreload.vm.memory import dump_memory, idt_base, read_memory
from hotreload.vm.monitor import Monitor, QmpEvent
from hotreload.vm.processors import InKernel, standstill, stuck_processor

REBOOTED = Trouble(State.RESET, "the guest was booted anew")
ENDED = Trouble(State.STOPPED, "QEMU has ended, or closed its monitor")
# How QEMU says that the guest did it, and not its owner (ShutdownCause in qapi/run-state.json).
BY_GUEST = "guest-reset"


class ForeignMachine:
    """See the module. Entry raises EnvironmentFault (HR3108) when ``qmp`` is no monitor that talks to us.

    NobodyListensError among them: there is no QEMU.
    """

    def __init__(self, qmp: Path | None, folder: Path, *, has_console: bool) -> None:
        """``folder``: for what QEMU writes for us, for its owner only.

        ``has_console``: is there a log of its console, which tells a reboot from a triple fault?
        """
        self._qmp = qmp
        self._folder = folder
        self._has_console = has_console
        self._monitor: Monitor | None = None
        self._owned = contextlib.AsyncExitStack()
        self._trouble: asyncio.Future[Trouble] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self._reads = 0

    async def __aenter__(self) -> Self:
        if self._qmp is not None:
            monitor = Monitor(self._qmp)
            await monitor.connect()
            self._monitor = monitor
            self._owned.push_async_callback(monitor.close)
            watcher = asyncio.create_task(self._watch(monitor))
            self._owned.callback(watcher.cancel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._monitor = None
        await self._owned.aclose()

    @property
    def trouble(self) -> Trouble | None:
        """See AnyMachine."""
        return self._trouble.result() if self._trouble.done() else None

    @property
    def may_return(self) -> bool:
        """May somebody boot a guest anew that is lost? Until QEMU has ended, as far as that is told."""
        return not self._ended.is_set()

    async def wait_for_trouble(self) -> Trouble:
        """See AnyMachine."""
        return await asyncio.shield(self._trouble)

    async def wait_for_end(self) -> Trouble:
        """Return when QEMU has ended, within the block; without a monitor that is never."""
        await self._ended.wait()
        return ENDED

    def lose(self, trouble: Trouble) -> None:
        """Take it from us that the guest is in trouble. What was first is what is told."""
        if not self._trouble.done():
            self._trouble.set_result(trouble)

    async def standstill(self) -> str | None:
        """See AnyMachine."""
        if self._monitor is None or self.trouble is not None:
            return None
        return await standstill(self._monitor)

    async def stuck_processor(self) -> InKernel | None:
        """See AnyMachine."""
        return None if self._monitor is None else await stuck_processor(self._monitor)

    async def dump(self, file: Path) -> None:
        """See AnyMachine; QEMU writes it, as the user that it runs as."""
        await dump_memory(self._required(), file)

    async def read_memory(self, address: int, size: int) -> bytes:
        """See Machine.read_memory; QEMU writes it, as the user that it runs as."""
        self._reads += 1
        return await read_memory(self._required(), self._folder / f"memory-{self._reads}", address, size)

    async def idt_base(self) -> int:
        """See memory.idt_base."""
        return await idt_base(self._required())

    @property
    def has_monitor(self) -> bool:
        """Can its QEMU be asked?"""
        return self._monitor is not None

    def _required(self) -> Monitor:
        if self._monitor is None:
            raise EnvironmentFault(
                "the memory of this guest cannot be read: we have no monitor of its QEMU",
                code="HR3108",
                hint="hotreload guest attach --qmp SOCKET",
            )
        return self._monitor

    async def _watch(self, monitor: Monitor) -> None:
        async for event in monitor.events():
            if trouble := foreign_trouble_in(event, has_console=self._has_console):
                self.lose(trouble)
        self._ended.set()
        self.lose(ENDED)


def foreign_trouble_in(event: QmpEvent, *, has_console: bool) -> Trouble | None:
    """What the event of a QEMU says whose command line is not ours: there a reset is no end.

    RESET itself only where a console tells more of it; what somebody asked QEMU for is none of the guest's.
    """
    if event.name == "GUEST_PANICKED":
        return PANICKED
    if event.name not in ("RESET", "SHUTDOWN"):
        return None
    reason = str(event.data.get("reason", ""))
    if reason == BY_GUEST and has_console:
        return RESET
    if event.name == "RESET" or reason == BY_GUEST:
        return REBOOTED
    return HALTED
