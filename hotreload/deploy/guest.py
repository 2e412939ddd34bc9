# SPDX-License-Identifier: MIT
"""Run commands in the guest, over SSH connections that stay open and are restored when lost.

A handshake with a guest without KVM takes 0.1-1.3 s, a command on an open connection 20-30 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from hotreload.deploy.connections import Connections
from hotreload.errors import GuestUnreachableError
from hotreload.process import CommandResult, paste_ready

if TYPE_CHECKING:
    import asyncssh

USER = "root"
HOST = "127.0.0.1"
AGENT_PATH = "/usr/lib/hotreload/agent"
"""Where the agent is in the guest: ``build_image(kernel, extra={AGENT_PATH: agent_source()})``."""

# dropbear with only an ed25519 host key aborts when it is offered other kinds first.
HOST_KEY_KINDS = ("ssh-ed25519",)
# Of those that dropbear 2022 and asyncssh both know, the cheapest for a guest with an emulated processor.
KEY_EXCHANGES = ("curve25519-sha256", "curve25519-sha256@libssh.org")

# Silence is noticed after INTERVAL * (COUNT + 1) seconds: QEMU itself answers TCP even if the guest is dead.
# QEMU reports a guest that ends, so a shorter time helps nobody, and would disconnect a guest that was only
# stopped for a while.
KEEPALIVE_INTERVAL = 2
KEEPALIVE_COUNT = 5
# Seconds for a login. QEMU accepts the connection even if no guest is behind it.
LOGIN_LIMIT = 10.0
LOGINS = 3
# The session restores a crashed guest by itself.
LOOK = "see whether it is back with hotreload status, and its console with hotreload guest logs"


class Guest(Protocol):
    """A running guest that takes commands. The status of a command is 128 + N if signal N killed it."""

    @property
    def agent(self) -> str:
        """The words to put before the agent's arguments, for the guest's shell."""
        ...

    async def run(self, command: str, *, stdin: bytes | None = None, timeout: float = 30.0) -> CommandResult:
        """Run a shell command. A non-zero status is not an error here.

        Raises TimeoutError after ``timeout`` seconds, GuestUnreachableError (HR4103) when the guest is lost.
        """
        ...


class RestorableGuest(Guest, Protocol):
    """A guest that may be restored to a checkpoint."""

    async def reconnect(self) -> None:
        """Drop the connection and log in again. Raises GuestUnreachableError (HR4103)."""
        ...


async def log_in_again(guest: RestorableGuest, logins: int = LOGINS) -> None:
    """Log in to a restored guest, in several attempts.

    Next to a running compiler a login may time out. Raises GuestUnreachableError (HR4103) if ``logins``
    attempts fail.
    """
    for _ in range(logins - 1):
        with contextlib.suppress(GuestUnreachableError):
            return await guest.reconnect()
    return await guest.reconnect()


# Seconds to search /proc/kallsyms: a kernel with self-checks, emulated on a busy machine, takes more than
# half a minute for its 100,000 lines.
KALLSYMS_LIMIT = 120.0


# A command that exceeds its timeout may take this many times as long, as long as the guest answers others.
PATIENCE = 4
# Seconds for an answer that takes a moment on an idle machine.
ANSWER_LIMIT = 15.0


async def run_in_time(
    guest: Guest, command: str, *, stdin: bytes | None = None, timeout: float = 30.0, patience: int = PATIENCE
) -> CommandResult:
    """Like Guest.run, but a timeout raises GuestUnreachableError (HR4103) as well.

    A kernel with self-checks, emulated on a busy machine, may need minutes for what takes a second elsewhere.
    After ``timeout`` seconds, the guest is therefore asked to run another command. If it answers, it is slow
    but not dead, and the first command gets ``patience`` times as long. In case its answer was lost, it is
    also sent once more, and the first answer counts. Callers that run what must not run twice, or the user's
    code, which may wait for ever, pass 1.
    """
    limit = timeout * patience

    def start() -> asyncio.Task[CommandResult]:
        return asyncio.create_task(guest.run(command, stdin=stdin, timeout=limit))

    running = [start()]
    try:
        for _ in range(patience - 1):
            if (await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED))[0]:
                break
            await guest.run("true", timeout=min(timeout, ANSWER_LIMIT))
            if len(running) == 1:
                running.append(start())
        return await next(asyncio.as_completed(running))
    except TimeoutError as late:
        raise GuestUnreachableError(f"the guest did not answer within {timeout:.0f} s", hint=LOOK) from late
    finally:
        for each in running:
            if not each.cancel() and not each.cancelled():
                each.exception()  # retrieve it, so that asyncio does not log it


class _NotStartedError(ConnectionError):
    """The connection did not accept a command."""


class ShellGuest(ABC):
    """A guest behind SSH. Subclasses define how to log in. The first command connects."""

    def __init__(self) -> None:
        self.connections = Connections(self._log_in)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    @abstractmethod
    def agent(self) -> str:
        """See `Guest.agent`."""

    @property
    @abstractmethod
    def ssh_command(self) -> str:
        """The command line that logs a person in, to be pasted into a shell."""

    @abstractmethod
    async def _log_in(self) -> asyncssh.SSHClientConnection:
        """Connect. Raises asyncssh.Error, OSError, GuestUnreachableError (HR4103)."""

    async def run(self, command: str, *, stdin: bytes | None = None, timeout: float = 30.0) -> CommandResult:
        """See `Guest.run`. If an idle connection was lost, another one is made; no command is sent twice."""
        import asyncssh

        async with asyncio.timeout(timeout):
            try:
                try:
                    return await self._run(command, stdin or b"")
                except _NotStartedError:
                    # The guest was restored meanwhile, or the connection dropped.
                    return await self._run(command, stdin or b"", new=True)
            except (asyncssh.Error, OSError) as error:
                self.connections.note_lost()
                raise _lost(error) from error

    async def _run(self, command: str, stdin: bytes, *, new: bool = False) -> CommandResult:
        import asyncssh
        from asyncssh.constants import OPEN_REQUEST_SESSION_FAILED

        async with self.connections.one(new=new) as connection:
            try:
                process = await connection.create_process(command, encoding=None)
            except asyncssh.ChannelOpenError as error:
                if error.code == OPEN_REQUEST_SESSION_FAILED:
                    raise  # it was sent, as with any other error
                raise _NotStartedError(str(error)) from error
            return await _communicate(process, stdin)

    async def put(self, data: bytes, path: str, mode: int = 0o644) -> None:
        """Write a file in the guest, completely or not at all. Raises OSError if it cannot be written."""
        new, final = shlex.quote(f"{path}.new"), shlex.quote(path)
        result = await self.run(
            f"cat >{new} && chmod {mode:o} {new} && mv -f {new} {final} || {{ rm -f {new}; exit 1; }}",
            stdin=data,
        )
        if not result.ok:
            raise OSError(f"{path} cannot be written in the guest: {result.complaint}")

    async def reconnect(self) -> None:
        """Drop the connections and log in again, because a restored guest does not know the old ones."""
        await self.close()
        await self.knock()

    async def knock(self) -> None:
        """Log in, regardless of other connections. Raises GuestUnreachableError (HR4103)."""
        import asyncssh

        try:
            async with self.connections.one(new=True):
                pass
        except (asyncssh.Error, OSError) as error:
            raise _lost(error) from error

    async def wait_until_lost(self) -> None:
        """Return when a connection, in use or idle, has dropped since the last call."""
        await self.connections.wait_until_lost()

    async def close(self) -> None:
        """Disconnect. The next command connects again."""
        await self.connections.close()


class SshGuest(ShellGuest):
    """A guest that we booted, behind a port of this machine, with the keys of its image."""

    def __init__(self, port: int, client_key: Path, host_key: Path) -> None:
        """``host_key``: a file with the guest's public key (``ssh-ed25519 AAAA``).

        No other key is accepted.
        """
        super().__init__()
        self._port = port
        self._client_key = client_key
        self._host_key = host_key

    @property
    def agent(self) -> str:
        """See `Guest.agent`."""
        return AGENT_PATH

    @property
    def ssh_command(self) -> str:
        """The command line that logs a person in, to be pasted into a shell."""
        kind, key = self._host_key.read_text().split()[:2]
        known = f"KnownHostsCommand=/bin/echo [{HOST}]:{self._port} {kind} {key}"
        options = ("-o", known, "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes")
        return paste_ready(("ssh", "-p", str(self._port), "-i", self._client_key, *options, f"{USER}@{HOST}"))

    async def _log_in(self) -> asyncssh.SSHClientConnection:
        import asyncssh

        host_key = asyncssh.import_public_key(self._host_key.read_text())
        return await asyncssh.connect(
            HOST,
            self._port,
            username=USER,
            client_keys=[str(self._client_key)],
            # Ignore the user's SSH configuration and agent.
            config=None,
            agent_path=None,
            known_hosts=([host_key], [], []),
            server_host_key_algs=list(HOST_KEY_KINDS),
            kex_algs=list(KEY_EXCHANGES),
            compression_algs=None,
            keepalive_interval=KEEPALIVE_INTERVAL,
            keepalive_count_max=KEEPALIVE_COUNT,
            connect_timeout=LOGIN_LIMIT,
            login_timeout=LOGIN_LIMIT,
        )


async def _communicate(process: asyncssh.SSHClientProcess[bytes], stdin: bytes) -> CommandResult:
    # Not communicate(stdin): without data it sends no end of file, and `cat` would wait for ever.
    with contextlib.suppress(BrokenPipeError):
        # The command may end without reading; its status and output say why.
        process.stdin.write(stdin)
        process.stdin.write_eof()
    stdout, stderr = await process.communicate()
    status = process.returncode
    if status is None:
        raise ConnectionResetError("the connection was lost before the command ended")
    return CommandResult(status if status >= 0 else 128 - status, _bytes(stdout), _bytes(stderr))


def _bytes(output: object) -> bytes:
    assert isinstance(output, bytes)
    return output


def _lost(error: Exception) -> GuestUnreachableError:
    return GuestUnreachableError(
        f"the guest does not answer: {str(error).strip() or type(error).__name__}",
        hint=LOOK,
    )
