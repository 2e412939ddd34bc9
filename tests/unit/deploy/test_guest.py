# SPDX-License-Identifier: MIT
"""Commands over SSH, against a server that breaks connections where it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import pytest

from hotreload.deploy.guest import HOST, SshGuest, _lost
from hotreload.errors import GuestUnreachableError


@dataclass
class Server:
    """``breaks_at``: where the next connection that gets there is broken; ``ran``: the commands."""

    breaks_at: str | None = None
    ran: list[str] = field(default_factory=list)

    def breaks(self, place: str) -> bool:
        found = self.breaks_at == place
        if found:
            self.breaks_at = None
        return found


class _Peer(asyncssh.SSHServer):
    def __init__(self, server: Server) -> None:
        self.server = server

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn

    def session_requested(self) -> _Session | bool:
        if self.server.breaks("open"):
            self.connection.abort()
            return False
        return _Session(self)


class _Session(asyncssh.SSHServerSession[bytes]):
    def __init__(self, peer: _Peer) -> None:
        self.peer = peer

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self.channel = chan

    def exec_requested(self, command: str) -> bool:
        self.peer.server.ran.append(command)
        if self.peer.server.breaks("answer"):
            self.peer.connection.abort()
        return True

    def session_started(self) -> None:
        self.channel.write(b"done")
        self.channel.exit(0)


@contextlib.asynccontextmanager
async def guest_of(server: Server, folder: Path) -> AsyncIterator[SshGuest]:
    keys = {name: asyncssh.generate_private_key("ssh-ed25519") for name in ("host", "client")}
    keys["client"].write_private_key(folder / "client")
    for name, key in keys.items():
        key.write_public_key(folder / f"{name}.pub")
    listening = await asyncssh.listen(
        HOST,
        0,
        server_factory=lambda: _Peer(server),
        server_host_keys=[keys["host"]],
        authorized_client_keys=str(folder / "client.pub"),
        encoding=None,
    )
    async with listening, SshGuest(listening.get_port(), folder / "client", folder / "host.pub") as guest:
        yield guest


def test_a_command_that_was_not_taken_is_sent_again_over_a_new_connection(tmp_path: Path) -> None:
    async def main() -> None:
        server = Server()
        async with guest_of(server, tmp_path) as guest:
            assert (await guest.run("first")).stdout == b"done"
            server.breaks_at = "open"
            assert (await guest.run("second")).stdout == b"done"
            assert server.ran == ["first", "second"]
            assert server.breaks_at is None

    asyncio.run(main())


def test_a_command_that_may_have_run_is_not_sent_again(tmp_path: Path) -> None:
    async def main() -> None:
        server = Server()
        async with guest_of(server, tmp_path) as guest:
            assert (await guest.run("first")).stdout == b"done"
            server.breaks_at = "answer"
            with pytest.raises(GuestUnreachableError):
                await guest.run("second")
            assert server.ran == ["first", "second"]
            assert (await guest.run("third")).stdout == b"done"

    asyncio.run(main())


def test_a_loss_without_a_word_is_told_by_its_kind() -> None:
    error = asyncssh.ConnectionLost("")
    assert str(error) == ""
    assert _lost(error).message == "the guest does not answer: ConnectionLost"
