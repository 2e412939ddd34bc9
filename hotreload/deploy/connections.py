# SPDX-License-Identifier: MIT
"""SSH connections into one guest, each of them for one command at a time.

dropbear (2022.83) is no good at several: when one command ends while another begins it may close the new
channel without a word, or the connection; of two loops of `echo` on one connection every tenth failed, of
four every third. So a command that finds all connections at work gets one of its own, which stays.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncssh

# That stay open while nothing is to be done: for a reload, and for who looks on.
KEPT = 2
# Seconds for what is left of one that was aborted.
HANG_UP = 2.0


async def hang_up(connection: asyncssh.SSHClientConnection) -> None:
    """End it, whether somebody is at its other end or not."""
    # Not close(): a guest that is gone would never answer the farewell.
    connection.abort()
    with contextlib.suppress(TimeoutError):  # nothing that ends waits for it longer
        async with asyncio.timeout(HANG_UP):
            await connection.wait_closed()


class Connections:
    """``log_in`` makes one; what it raises ``one`` raises, too."""

    def __init__(self, log_in: Callable[[], Awaitable[asyncssh.SSHClientConnection]]) -> None:
        self._log_in = log_in
        self._idle: list[asyncssh.SSHClientConnection] = []
        self._watched: dict[asyncssh.SSHClientConnection, asyncio.Task[None]] = {}
        self._logging_in = asyncio.Lock()
        self._lost = asyncio.Event()

    @contextlib.asynccontextmanager
    async def one(self, *, new: bool = False) -> AsyncIterator[asyncssh.SSHClientConnection]:
        """One that nobody else uses within the block; ``new``: that nobody has used.

        What leaves the block by an error, or is cancelled, drops it: a command may run on at its other end.
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
        """Hang up, whoever is using them. The next command logs in again."""
        for connection in tuple(self._watched):
            await self._drop(connection)

    async def wait_until_lost(self) -> None:
        """Return when one has dropped since the last call, in use or idle."""
        await self._lost.wait()
        self._lost.clear()

    def note_lost(self) -> None:
        """Somebody has found one to have dropped."""
        self._lost.set()

    async def _take(self, *, new: bool) -> asyncssh.SSHClientConnection:
        if not new and self._idle:
            return self._idle.pop()
        async with self._logging_in:
            if not new and self._idle:  # meanwhile
                return self._idle.pop()
            connection = await self._log_in()
            self._watched[connection] = asyncio.create_task(self._watch(connection))
            return connection

    async def _watch(self, connection: asyncssh.SSHClientConnection) -> None:
        await connection.wait_closed()
        if self._watched.pop(connection, None):  # else it was us who hung up
            self._idle = [each for each in self._idle if each is not connection]
            self._lost.set()

    async def _drop(self, connection: asyncssh.SSHClientConnection) -> None:
        watching = self._watched.pop(connection, None)
        self._idle = [each for each in self._idle if each is not connection]
        await hang_up(connection)
        if watching is not None:
            watching.cancel()
