# SPDX-License-Identifier: MIT
"""The life cycle of one virtual machine, from its sockets to its end.

    created --> booting --> running --> stopped
                   |         |   ^-----------------.
                   |         |-----> panicked -----| QEMU says RESUME    the guest is kept, paused
                   |         |-----> reset --------|                     the guest reset itself
                   |         `-----> halted -------'                     the guest switched itself off
                   `------------------------------> stopped              with GuestUnreachableError

``async with Machine(...)`` owns everything: QEMU dies with this process (process.spawn), the sockets' folder
is removed with the machine, and what a killed hotreload left behind is removed by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hotreload.errors import EnvironmentFault, GuestUnreachableError
from hotreload.paths import writing_to
from hotreload.vm.console import Console
from hotreload.vm.memory import dump_memory, read_memory
from hotreload.vm.monitor import Monitor, QmpEvent
from hotreload.vm.processors import InKernel, standstill, stuck_processor
from hotreload.vm.qemu import Qemu, QemuEndedError, main_complaint, start_qemu
from hotreload.vm.sockets import free_port, socket_folder
from hotreload.vm.spec import Endpoints, MachineSpec

# Seconds. A guest without KVM on a loaded machine boots in ten; one that takes a minute never boots.
BOOT_DEADLINE = 60.0
# How many ports are tried, in case somebody else takes one first.
PORT_ATTEMPTS = 3
# A panic or the end of QEMU is reported twice, as an event and on the console: how long to wait for the
# second report.
SECOND_OPINION = 0.5


class State(enum.Enum):
    CREATED = "created"
    BOOTING = "booting"
    RUNNING = "running"
    PANICKED = "panicked"
    HALTED = "halted"
    RESET = "reset"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a guest does not run: ``state`` is PANICKED, HALTED, RESET or STOPPED."""

    state: State
    message: str


PANICKED = Trouble(State.PANICKED, "the guest's kernel panicked")
HALTED = Trouble(State.HALTED, "the guest powered itself off")
RESET = Trouble(State.RESET, "the guest reset itself")


def trouble_in(event: QmpEvent) -> Trouble | None:
    """Return what an event of QEMU means if it says that the guest stopped by itself."""
    if event.name == "GUEST_PANICKED":
        return PANICKED
    if event.name == "SHUTDOWN":
        # With -action reboot=shutdown, a reset is reported as a shutdown.
        return RESET if event.data.get("reason") == "guest-reset" else HALTED
    return None


class Machine:
    """One QEMU, booted on entry and ended on exit.

    Entry raises EnvironmentFault (HR5104) if QEMU is missing, and GuestUnreachableError (HR3107) if the guest
    is not ready within ``boot_deadline`` seconds, with the console's last lines and QEMU's own error.
    """

    def __init__(self, spec: MachineSpec, console_log: Path, *, boot_deadline: float = BOOT_DEADLINE) -> None:
        self.spec = spec
        self.state = State.CREATED
        # From the start of QEMU until the guest is ready.
        self.boot_seconds = 0.0
        self.endpoints: Endpoints
        self.console: Console
        self._console_log = console_log
        self._deadline = boot_deadline
        self._owned = contextlib.AsyncExitStack()
        self._qemu: Qemu
        self._reads = 0
        self._running = asyncio.Event()
        self._trouble: asyncio.Future[Trouble]

    async def __aenter__(self) -> Self:
        if self.state is not State.CREATED:
            raise RuntimeError(f"a machine has one life, and this one is {self.state.value}")
        if shutil.which(self.spec.qemu) is None:
            raise EnvironmentFault(
                f"{self.spec.qemu} is not installed", code="HR5104", hint="apt-get install qemu-system-x86"
            )
        self.state = State.BOOTING
        self._trouble = asyncio.get_running_loop().create_future()
        started = time.monotonic()
        try:
            await self._start()
            await self._wait_for_boot()
        except BaseException:
            await self.stop()
            raise
        self.boot_seconds = time.monotonic() - started
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End QEMU: ask, wait, kill. Safe in every state, and more than once."""
        if self.state is not State.STOPPED:
            self._enter(Trouble(State.STOPPED, "the guest was stopped"))
        await self._owned.aclose()

    @property
    def monitor(self) -> Monitor:
        return self._qemu.monitor

    @property
    def pid(self) -> int:
        """The process ID of QEMU."""
        return self._qemu.pid

    @property
    def ssh_port(self) -> int:
        return self.endpoints.ssh_port

    @property
    def by_hand(self) -> str:
        """A QEMU command line that boots the same guest in a terminal, without hotreload."""
        return self.spec.by_hand(self.ssh_port)

    @property
    def trouble(self) -> Trouble | None:
        """Why the guest does not run, or None if it does."""
        return self._trouble.result() if self._trouble.done() else None

    async def wait_for_trouble(self) -> Trouble:
        """Return when the guest does not run, at once if that is so already.

        Any number of callers may wait.
        """
        return await asyncio.shield(self._trouble)

    async def wait_until_running(self) -> None:
        """Return when the guest runs (again): when QEMU has reported it, and ``state`` shows it."""
        await self._running.wait()

    async def dump(self, file: Path) -> None:
        """Write the guest's memory to a new file for drgn and crash. The guest is stopped meanwhile.

        ``file`` is absolute. Raises InputError if it exists already, EnvironmentFault if it cannot be
        written, GuestUnreachableError.
        """
        await dump_memory(self.monitor, file)

    async def standstill(self) -> str | None:
        """See processors.standstill."""
        return None if self.trouble else await standstill(self.monitor)

    async def stuck_processor(self) -> InKernel | None:
        """See processors.stuck_processor."""
        return await stuck_processor(self.monitor)

    async def read_memory(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes of the kernel's memory at a virtual address, while the guest keeps running.

        A page takes 1-2 ms, 16 MiB take 40 ms. Raises EnvironmentFault (HR5111) if nothing is mapped there,
        and GuestUnreachableError if QEMU is gone.
        """
        self._reads += 1
        # The folder is accessible to its owner only, and is removed with the machine.
        return await read_memory(self.monitor, self.endpoints.folder / f"memory-{self._reads}", address, size)

    async def _start(self) -> None:
        with writing_to(self._console_log.parent):
            self._console_log.parent.mkdir(parents=True, exist_ok=True)
            self._console_log.write_bytes(b"")
        folder = self._owned.enter_context(socket_folder())
        self._qemu = await self._start_qemu(folder)
        self._owned.push_async_callback(self._qemu.end)
        self.console = Console(self.endpoints.console, self._console_log)
        watcher = asyncio.create_task(self._watch())
        self._owned.callback(watcher.cancel)

    async def _start_qemu(self, folder: Path) -> Qemu:
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.endpoints = Endpoints(folder, self._console_log, free_port())
            try:
                return await start_qemu(self.spec.argv(self.endpoints), self.endpoints.qmp)
            except QemuEndedError as error:
                if attempt == PORT_ATTEMPTS or "host forwarding rule" not in str(error):
                    raise GuestUnreachableError(
                        f"QEMU does not start: {main_complaint(str(error))}",
                        str(error),
                        code="HR3107",
                        hint=f"to start it by hand: {self.by_hand}",
                    ) from error
        raise AssertionError("unreachable")

    async def _watch(self) -> None:
        """Follow QEMU's events until it is gone."""
        async for event in self.monitor.events():
            self._note(event)
        self._enter(Trouble(State.STOPPED, await self._qemu.wait()))

    def _note(self, event: QmpEvent) -> None:
        trouble = trouble_in(event)
        if trouble is not None and self.state in (State.BOOTING, State.RUNNING):
            self._enter(trouble)
        elif event.name == "RESUME" and self.state in (State.PANICKED, State.HALTED, State.RESET):
            # A snapshot was loaded over the dead guest.
            self.state = State.RUNNING
            self._trouble = asyncio.get_running_loop().create_future()
            self._running.set()

    def _enter(self, trouble: Trouble) -> None:
        self.state = trouble.state
        self._running.clear()
        if self._trouble.done():
            # From now on, report the end, not the panic before it.
            self._trouble = asyncio.get_running_loop().create_future()
        self._trouble.set_result(trouble)

    async def _wait_for_boot(self) -> None:
        """Return in state RUNNING, or raise GuestUnreachableError (HR3107) with everything that is known."""
        ready = asyncio.create_task(self.console.wait_for_boot())
        both: set[asyncio.Future[Any]] = {ready, self._trouble}
        try:
            async with asyncio.timeout(self._deadline):
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if not ready.done() or ready.exception():
                    await asyncio.wait(both, timeout=SECOND_OPINION)
            self._judge(ready)
        except TimeoutError:
            raise self._not_booted(f"the guest was not ready after {self._deadline:g} s") from None
        finally:
            ready.cancel()
            await asyncio.wait({ready})

    def _judge(self, ready: asyncio.Task[None]) -> None:
        trouble = self.trouble
        if trouble and (trouble.state is State.STOPPED or not ready.done()):
            raise self._not_booted(f"the guest did not boot: {trouble.message}")
        if error := ready.exception():
            if not isinstance(error, GuestUnreachableError):
                raise error
            raise self._not_booted(error.message)
        self.state = State.RUNNING
        self._running.set()

    def _not_booted(self, message: str) -> GuestUnreachableError:
        excerpt = "\n".join(part for part in (self._qemu.complaint, self.console.tail()) if part)
        return GuestUnreachableError(
            message,
            excerpt,
            code="HR3107",
            hint=f"console log: {self._console_log}; to boot it by hand: {self.by_hand}",
        )
