# SPDX-License-Identifier: MIT
"""QEMU's monitor protocol. The only module that uses the qemu.qmp package, which is still in alpha.

For our own QEMU we listen and it connects, so the socket always exists before it is used. To somebody else's
QEMU we connect. A monitor serves one QEMU process. A socket serves one client, so people get a second one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotreload.errors import EnvironmentFault, GuestUnreachableError

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

# Seconds within which QEMU greets a client that may talk to it.
GREETING_LIMIT = 5.0


class NobodyListensError(EnvironmentFault):
    """There is no QEMU behind a monitor's socket (HR3108)."""


class QmpError(Exception):
    """QEMU refused a command; the text is its own description."""


@dataclass(frozen=True, slots=True)
class QmpEvent:
    """An event that QEMU sends, such as GUEST_PANICKED; ``data`` as in its QMP reference."""

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Monitor:
    """The connection to one QEMU. `listen`, start QEMU, `accept` (or `connect`), `execute`..., `close`."""

    def __init__(self, socket: Path) -> None:
        from qemu.qmp import QMPClient

        self._socket = socket
        self._is_ours = False
        self._client: QMPClient = QMPClient("hotreload")
        # Its warnings about a peer that disconnected would be noise, because the machine reports that.
        self._client.logger.disabled = True

    async def listen(self) -> None:
        """Create the socket. QEMU may be started afterwards."""
        await self._client.start_server(str(self._socket))
        self._is_ours = True

    async def accept(self) -> None:
        """Wait until QEMU connects, and shake hands.

        Never returns if QEMU died, so wait for its end as well.
        """
        from qemu.qmp import ConnectError

        try:
            await self._client.accept()
        except ConnectError as error:
            raise GuestUnreachableError(f"QEMU's monitor does not answer: {error}", code="HR3107") from error

    async def connect(self) -> None:
        """Connect to a socket on which somebody's QEMU listens.

        Raises EnvironmentFault (HR3108). In the case of NobodyListensError, QEMU may have ended.
        """
        from qemu.qmp import ConnectError

        try:
            async with asyncio.timeout(GREETING_LIMIT):
                await self._client.connect(str(self._socket))
        except TimeoutError:
            await self.close()
            raise self._no_monitor(
                "does not answer: another client is connected, or it is not a QMP socket",
                "disconnect the other client",
            ) from None
        except ConnectError as error:
            await self.close()
            cause, hint = error.exc, "start QEMU with -qmp unix:SOCKET,server=on,wait=off"
            if isinstance(cause, OSError) and not isinstance(cause, ConnectionResetError):
                fact = f"cannot be opened: {cause.strerror or cause}"
                nobody = isinstance(cause, (FileNotFoundError, ConnectionRefusedError))
                kind = NobodyListensError if nobody else EnvironmentFault
                raise self._no_monitor(fact, hint, kind) from error
            raise self._no_monitor("is not a QMP socket", hint) from error

    def _no_monitor(
        self, fact: str, hint: str, kind: type[EnvironmentFault] = EnvironmentFault
    ) -> EnvironmentFault:
        return kind(f"{self._socket} {fact}", code="HR3108", hint=f"{hint}; or attach without --qmp")

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a command and return its result. Raises QmpError, or GuestUnreachableError if QEMU is gone."""
        from qemu.qmp import ExecInterruptedError, ExecuteError, StateError

        try:
            return await self._client.execute(command, dict(arguments) if arguments else None)
        except ExecuteError as error:
            raise QmpError(str(error)) from error
        except (ExecInterruptedError, StateError, OSError, EOFError) as error:
            raise GuestUnreachableError(f"QEMU is gone: {command} was not answered") from error

    async def events(self) -> AsyncIterator[QmpEvent]:
        """Yield QEMU's events from now on; end when QEMU is gone."""
        with self._client.listener() as listener:
            # A listener does not end by itself on a disconnect (qemu.qmp 0.0.6).
            gone = asyncio.create_task(self._disconnected())
            message = asyncio.create_task(listener.get())
            try:
                while await _first(message, gone) is message:
                    event = message.result()
                    message = asyncio.create_task(listener.get())
                    # The client also queues the events for a default listener, which nobody reads.
                    self._client.events.clear()
                    yield QmpEvent(str(event["event"]), _data(event))
            finally:
                gone.cancel()
                message.cancel()

    async def close(self) -> None:
        """Disconnect. Safe in every state."""
        with contextlib.suppress(Exception):
            # What ended the connection was reported by the call that ran into it.
            await self._client.disconnect()
        if self._is_ours:
            self._socket.unlink(missing_ok=True)

    async def _disconnected(self) -> None:
        from qemu.qmp import Runstate

        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()


def _data(event: Mapping[str, Any]) -> dict[str, Any]:
    return dict(event.get("data") or {})


async def _first(message: asyncio.Task[Any], gone: asyncio.Task[None]) -> asyncio.Task[Any]:
    """Return the task that is done; the message if both are, so that no event before a disconnect is lost."""
    await asyncio.wait({message, gone}, return_when=asyncio.FIRST_COMPLETED)
    return message if message.done() else gone
