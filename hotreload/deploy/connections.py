# SPDX-License-Identifier: MIT
"""SSH connections into one guest, each used by one command at a time.

dropbear (2022.83) does not handle several well: if one command ends while another begins, it may silently
close the new channel, or the connection. Of two loops of `echo` on one connection, every tenth command
failed, of four loops every third. Therefore a command that finds all connections in use gets another one,
which stays open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncssh

# Connections that stay open while idle: one for a reload, one for a user who looks around.
KEPT = 2
# Seconds to wait for the end of an aborted connection.
HANG_UP = 2.0


async def hang_up(connection: asyncssh.SSHClientConnection) -> None:
    """End a connection, whether or not somebody is at its other end."""
    # Not close(), because a guest that is gone would never answer its message.
    connection.abort()
    with contextlib.suppress(TimeoutError):  # nothing waits longer for its end
        async with asyncio.timeout(HANG_UP):
            await connection.wait_closed()


class Connections:
    """The connections into one guest. ``log_in`` makes one; what it raises, ``one`` raises as well."""

    def __init__(self, log_in: Callable[[], Awaitable[asyncssh.SSHClientConnection]]) -> None:
        self._log_in = log_in
        self._idle: list[asyncssh.SSHClientConnection] = []
        self._watched: dict[asyncssh.SSHClientConnection, asyncio.Task[None]] = {}
        self._logging_in = asyncio.Lock()
        self._lost = asyncio.Event()

    @contextlib.asynccontextmanager
    async def one(self, *, new: bool = False) -> AsyncIterator[asyncssh.SSHClientConnection]:
        """Yield a connection that nobody else uses within the context; ``new``: one that was never used.

        If the context is left by an error or a cancellation, the connection is dropped, because a command may
        still run at its other end.
        """
        connection = await self._take(new=new)
        try:
            yield connection
        except BaseException:
            await self._drop(connection)
            raise
        if connection not in self._watched or len(self._idle) >= KEPT:
            await self._drop(connection)
        else:
            self._idle.append(connection)

    async def close(self) -> None:
        """Drop all connections, even those in use. The next command logs in again."""
        for connection in tuple(self._watched):
            await self._drop(connection)

    async def wait_until_lost(self) -> None:
        """Return when a connection, in use or idle, has dropped since the last call."""
        await self._lost.wait()
        self._lost.clear()

    def note_lost(self) -> None:
        """Note that a connection was found to have dropped."""
        self._lost.set()

    async def _take(self, *, new: bool) -> asyncssh.SSHClientConnection:
        if not new and self._idle:
            return self._idle.pop()
        async with self._logging_in:
            if not new and self._idle:  # another task may have returned one meanwhile
                return self._idle.pop()
            connection = await self._log_in()
            self._watched[connection] = asyncio.create_task(self._watch(connection))
            return connection

    async def _watch(self, connection: asyncssh.SSHClientConnection) -> None:
        await connection.wait_closed()
        if self._watched.pop(connection, None):  # else we disconnected ourselves
            self._idle = [each for each in self._idle if each is not connection]
            self._lost.set()

    async def _drop(self, connection: asyncssh.SSHClientConnection) -> None:
        watching = self._watched.pop(connection, None)
        self._idle = [each for each in self._idle if each is not connection]
        await hang_up(connection)
        if watching is not None:
            watching.cancel()
