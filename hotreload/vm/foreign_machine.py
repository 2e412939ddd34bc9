# SPDX-License-Identifier: MIT
"""The machine of a guest that somebody else started. We observe it, and never end it.

With a QMP socket of its QEMU, we are notified of what happens to the guest, and can ask where its processors
are. Without one, we only know what the connections to the guest report (``lose``). Unlike our own machine, it
may be reset and come back, as its owner likes.
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

REBOOTED = Trouble(State.RESET, "the guest was rebooted")
ENDED = Trouble(State.STOPPED, "QEMU has ended, or closed its monitor")
# QEMU's reason if the guest itself caused it, and not its owner (ShutdownCause in qapi/run-state.json).
BY_GUEST = "guest-reset"


class ForeignMachine:
    """A foreign machine. Entry raises EnvironmentFault (HR3108) if ``qmp`` is not a monitor that talks to us.

    That includes NobodyListensError: there is no QEMU.
    """

    def __init__(self, qmp: Path | None, folder: Path, *, has_console: bool) -> None:
        """``folder``: for the files that QEMU writes for us; accessible to its owner only.

        ``has_console``: whether its console is logged, which distinguishes a reboot from a triple fault.
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
        """Return whether a lost guest may be booted again; true until QEMU is known to have ended."""
        return not self._ended.is_set()

    async def wait_for_trouble(self) -> Trouble:
        """See AnyMachine."""
        return await asyncio.shield(self._trouble)

    async def wait_for_end(self) -> Trouble:
        """Return when QEMU has ended; never if there is no monitor. Must be used within the context."""
        await self._ended.wait()
        return ENDED

    def lose(self, trouble: Trouble) -> None:
        """Record that the guest is in trouble. The first report counts."""
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
        """See AnyMachine. QEMU writes the file, as the user that it runs as."""
        await dump_memory(self._required(), file)

    async def read_memory(self, address: int, size: int) -> bytes:
        """See Machine.read_memory. QEMU writes the file, as the user that it runs as."""
        self._reads += 1
        return await read_memory(self._required(), self._folder / f"memory-{self._reads}", address, size)

    async def idt_base(self) -> int:
        """See memory.idt_base."""
        return await idt_base(self._required())

    @property
    def has_monitor(self) -> bool:
        """Return whether there is a monitor of its QEMU."""
        return self._monitor is not None

    def _required(self) -> Monitor:
        if self._monitor is None:
            raise EnvironmentFault(
                "the memory of this guest cannot be read, because hotreload is not connected to QEMU's"
                " monitor",
                code="HR3108",
                hint="name the monitor: hotreload guest attach --qmp SOCKET",
            )
        return self._monitor

    async def _watch(self, monitor: Monitor) -> None:
        async for event in monitor.events():
            if trouble := foreign_trouble_in(event, has_console=self._has_console):
                self.lose(trouble)
        self._ended.set()
        self.lose(ENDED)


def foreign_trouble_in(event: QmpEvent, *, has_console: bool) -> Trouble | None:
    """Return what an event means if QEMU was not started by us, so that a reset does not end the guest.

    Return RESET only if a console tells more about it. What somebody requested from QEMU was not done by the
    guest.
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
