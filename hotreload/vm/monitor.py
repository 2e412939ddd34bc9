# SPDX-License-Identifier: MIT
"""QEMU's monitor protocol. The only module that knows the qemu.qmp package, which is still in alpha.

With a QEMU of ours we listen and it connects: there is no moment at which the socket does not exist yet. To
that of somebody else we connect. A monitor serves one life of one QEMU; a socket serves one client, so people
get a second one.
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

# Seconds in which QEMU greets whoever may talk to it.
GREETING_LIMIT = 5.0


class NobodyListensError(EnvironmentFault):
    """There is no QEMU behind a monitor's socket (HR3108)."""


class QmpError(Exception):
    """QEMU refused a command; the text is its own description."""


@dataclass(frozen=True, slots=True)
class QmpEvent:
    """What QEMU reports by itself, such as GUEST_PANICKED; ``data`` as in its QMP reference."""

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Monitor:
    """The connection to one QEMU. `listen`, start QEMU, `accept` (or `connect`), `execute`..., `close`."""

    def __init__(self, socket: Path) -> None:
        from qemu.qmp import QMPClient

        self._socket = socket
        self._is_ours = False
        self._client: QMPClient = QMPClient("hotreload")
        # Its own warnings about a peer that went away would be noise: the machine reports that.
        self._client.logger.disabled = True

    async def listen(self) -> None:
        """Make the socket. QEMU may be started now."""
        await self._client.start_server(str(self._socket))
        self._is_ours = True

    async def accept(self) -> None:
        """Wait until QEMU connects, and shake hands. It waits for ever if QEMU died: race it."""
        from qemu.qmp import ConnectError

        try:
            await self._client.accept()
        except ConnectError as error:
            raise GuestUnreachableError(f"QEMU's monitor does not answer: {error}", code="HR3107") from error

    async def connect(self) -> None:
        """Connect to a socket where somebody's QEMU listens.

        Raises EnvironmentFault (HR3108), of which NobodyListensError may come of a QEMU that has ended.
        """
        from qemu.qmp import ConnectError

        try:
            async with asyncio.timeout(GREETING_LIMIT):
                await self._client.connect(str(self._socket))
        except TimeoutError:
            await self.close()
            raise self._no_monitor(
                "is taken: it takes one client, and somebody else is connected", "or it is no QMP socket"
            ) from None
        except ConnectError as error:
            await self.close()
            cause, hint = error.exc, "QEMU makes one with -qmp unix:SOCKET,server=on,wait=off"
            if isinstance(cause, OSError) and not isinstance(cause, ConnectionResetError):
                fact = f"cannot be opened: {cause.strerror or cause}"
                nobody = isinstance(cause, (FileNotFoundError, ConnectionRefusedError))
                kind = NobodyListensError if nobody else EnvironmentFault
                raise self._no_monitor(fact, hint, kind) from error
            raise self._no_monitor("is no QMP socket", hint) from error

    def _no_monitor(
        self, fact: str, hint: str, kind: type[EnvironmentFault] = EnvironmentFault
    ) -> EnvironmentFault:
        return kind(f"{self._socket} {fact}", code="HR3108", hint=f"{hint}; it also works without --qmp")

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
        """What QEMU reports from now on; ends when QEMU goes away."""
        with self._client.listener() as listener:
            # A listener does not end by itself on a disconnect (qemu.qmp 0.0.6).
            gone = asyncio.create_task(self._disconnected())
            message = asyncio.create_task(listener.get())
            try:
                while await _first(message, gone) is message:
                    event = message.result()
                    message = asyncio.create_task(listener.get())
                    # The client keeps them for a reader of its own, which nobody is.
                    self._client.events.clear()
                    yield QmpEvent(str(event["event"]), _data(event))
            finally:
                gone.cancel()
                message.cancel()

    async def close(self) -> None:
        """Disconnect. Safe in every state."""
        with contextlib.suppress(Exception):
            # Whatever ended the connection has been reported by the call that met it.
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
    """Whichever is done, the message if both are: no event may be lost to the disconnect that follows it."""
    await asyncio.wait({message, gone}, return_when=asyncio.FIRST_COMPLETED)
    return message if message.done() else gone
