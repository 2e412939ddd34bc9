# SPDX-License-Identifier: MIT
"""A guest that somebody else started, with their address and keys.

Nothing of ours is in it before we connect. The first connection, the door, brings the agent, in a folder for
root only, and a program that waits in the guest for the end of that connection, to remove the agent again
(attach.sh). That program also tells a second session, on whatever machine, that there is a first one.
Commands use connections of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotreload.deploy.connections import hang_up
from hotreload.deploy.guest import KEEPALIVE_COUNT, KEEPALIVE_INTERVAL, LOGIN_LIMIT, USER, ShellGuest
from hotreload.deploy.kernel_log import follow_kernel_log
from hotreload.deploy.livepatch import agent_source
from hotreload.errors import GuestBusyError, GuestUnreachableError, InputError
from hotreload.process import paste_ready
from hotreload.vm.console import printable

if TYPE_CHECKING:
    import asyncssh

FOLDER = "/run/hotreload"
KNOWN_HOSTS = (Path("~/.ssh/known_hosts"), Path("/etc/ssh/ssh_known_hosts"))
# The code of login errors that waiting does not cure.
UNFIT = "HR3108"
# Seconds that a killed session has to leave the guest.
LEAVING = 2.0
ADDRESS = re.compile(r"(?:([^@\s]+)@)?(\[[^\]\s]+\]|[^@:\s\[\]]+)(?::(\d+))?")
KEY = re.compile(r"(?:^|\s)((?:ssh|ecdsa|sk)-[\w@.-]+ +[A-Za-z0-9+/=]+)")


@dataclass(frozen=True, slots=True)
class Login:
    """How to reach the guest. ``port`` None: as in the user's SSH configuration, else 22.

    ``identity``: a private key; None: the user's own keys and their agent's. ``host_key``: a file with the
    only host key that is accepted; None: the keys that the user knows.
    """

    host: str
    port: int | None = None
    user: str = USER
    identity: Path | None = None
    host_key: Path | None = None

    @property
    def address(self) -> str:
        """``root@host:port``, as people write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}" + (f":{self.port}" if self.port is not None else "")

    @property
    def ssh_command(self) -> str:
        """The command line that logs a person in."""
        words: list[str | Path] = ["ssh"]
        if self.port is not None:
            words += ["-p", str(self.port)]
        if self.identity is not None:
            words += ["-i", self.identity]
        if self.host_key is not None:
            host = self.host if self.port in (None, 22) else f"[{self.host}]:{self.port}"
            words += ["-o", f"KnownHostsCommand=/bin/echo {host} {pinned_key(self.host_key)}"]
            words += ["-o", "UserKnownHostsFile=/dev/null"]
        return paste_ready((*words, f"{self.user}@{self.host}"))


def parse_address(text: str) -> tuple[str, str, int | None]:
    """Split ``[USER@]HOST[:PORT]`` into user, host and port; an IPv6 host is in brackets.

    Raises InputError (HR1008).
    """
    found = ADDRESS.fullmatch(text)
    port = int(found[3]) if found and found[3] else None
    if (
        found is None
        or found[2].startswith("-")
        or (found[1] or "").startswith("-")
        or (port is not None and not 0 < port < 1 << 16)
    ):
        raise InputError(
            f"{text!r} is not an SSH address",
            code="HR1008",
            hint="use [USER@]HOST[:PORT], such as root@127.0.0.1:2222",
        )
    return found[1] or USER, found[2].strip("[]"), port


def pinned_key(file: Path) -> str:
    """Return the public key in a file, as ``ssh-ed25519 AAAA``.

    The file may also be the output of ssh-keyscan. Raises InputError (HR1009).
    """
    try:
        lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    keys = [found[1] for line in lines if (found := KEY.search(line))]
    if not keys:
        raise InputError(
            f"{file} has no public host key", hint="print the keys of a host with ssh-keyscan HOST"
        )
    return keys[0]


class AttachedGuest(ShellGuest):
    """An attached guest. ``token`` identifies the session; no other session can attach as long as it lasts.

    ``rebooted`` is called if a later connection finds that the guest was booted again. ``kernel_log``: a file
    for the kernel's messages while we are connected.
    """

    def __init__(
        self,
        login: Login,
        token: str,
        rebooted: Callable[[], None] = lambda: None,
        kernel_log: Path | None = None,
    ) -> None:
        super().__init__()
        self.login = login
        # The boot ID that the first connection found.
        self.boot_id: str | None = None
        self._rebooted = rebooted
        self._token = token
        self._kernel_log = kernel_log
        self._door: asyncssh.SSHClientConnection | None = None
        self._at_the_door: tuple[asyncio.Task[None], ...] = ()
        self._hearing: asyncio.Task[None] | None = None
        self._doorkeeper: asyncssh.SSHClientProcess[bytes] | None = None

    @property
    def agent(self) -> str:
        """See `Guest.agent`. The agent is run by sh, because /run may be mounted noexec."""
        return f"PATH=$PATH:/usr/sbin:/sbin TMPDIR={FOLDER} sh {FOLDER}/agent"

    @property
    def ssh_command(self) -> str:
        """The command line that logs a person in, to be pasted into a shell."""
        return self.login.ssh_command

    async def leave(self) -> None:
        """Remove the agent and everything else from the guest, and disconnect."""
        if self._hearing is not None and self._door is not None:
            self._hearing.cancel()
            await asyncio.wait({self._hearing}, timeout=LEAVING)
        doorkeeper, self._doorkeeper = self._doorkeeper, None
        if doorkeeper is not None:
            with contextlib.suppress(OSError, TimeoutError):  # it is gone already, or the guest is
                async with asyncio.timeout(LEAVING):
                    doorkeeper.stdin.write_eof()
                    await doorkeeper.wait_closed()
        await self.close()

    async def close(self) -> None:
        """Disconnect. The next command connects again."""
        await super().close()
        door, self._door = self._door, None
        if door is not None:
            await hang_up(door)
        for task in self._at_the_door:
            task.cancel()
        if self._at_the_door:
            await asyncio.wait(self._at_the_door)
        self._at_the_door = ()

    async def _log_in(self) -> asyncssh.SSHClientConnection:
        """Connect, through the door.

        Raises GuestUnreachableError (HR4103; HR3108 if it will never let us in), GuestBusyError.
        """
        if self._door is None:
            await self._open_door()
        return await self._connect()

    async def _open_door(self) -> None:
        door = await self._connect()
        try:
            await self._bring_agent(door)
        except BaseException:
            door.abort()
            raise
        self._door = door
        self._at_the_door = (asyncio.create_task(self._watch_door(door)),)
        if self._kernel_log is not None:
            self._hearing = asyncio.create_task(follow_kernel_log(door, self._kernel_log))
            self._at_the_door += (self._hearing,)

    async def _watch_door(self, door: asyncssh.SSHClientConnection) -> None:
        """Wait until the door drops. The agent is then removed, so the other connections are of no use."""
        await door.wait_closed()
        if self._door is door:  # else we disconnected ourselves
            self._door = None
            await self.connections.close()
            self.connections.note_lost()

    async def _connect(self) -> asyncssh.SSHClientConnection:
        import asyncssh

        login = self.login
        options: dict[str, Any] = {} if login.port is None else {"port": login.port}
        if login.identity is not None:
            options["client_keys"] = [str(login.identity)]
        if login.host_key is not None:
            key = asyncssh.import_public_key(pinned_key(login.host_key))
            options["known_hosts"] = ([key], [], [])
        else:
            known = [str(file.expanduser()) for file in KNOWN_HOSTS if file.expanduser().is_file()]
            # Not None, which would accept any host.
            options["known_hosts"] = known or b""
        try:
            return await asyncssh.connect(
                login.host,
                username=login.user,
                # Nobody is there to enter a password.
                preferred_auth="publickey",
                compression_algs=None,
                keepalive_interval=KEEPALIVE_INTERVAL,
                keepalive_count_max=KEEPALIVE_COUNT,
                connect_timeout=LOGIN_LIMIT,
                login_timeout=LOGIN_LIMIT,
                **options,
            )
        except asyncssh.HostKeyNotVerifiable as error:
            raise self._unknown_host(str(error)) from error
        except asyncssh.PermissionDenied as error:
            raise self._unfit(
                f"{login.address} refused the login: {error}",
                "name the private key with --identity, or add it to ssh-agent; this must work:"
                f" {login.ssh_command}",
            ) from error
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, asyncssh.ConfigParseError) as error:
            raise self._unfit(
                f"SSH on this machine cannot be used: {error}",
                "if the key has a passphrase, add it to ssh-agent: ssh-add KEYFILE",
            ) from error
        except (asyncssh.Error, OSError) as error:
            # Some servers disconnect a client that offers to accept every kind of key.
            if isinstance(error, asyncssh.DisconnectError) and not self._knows_host(options["known_hosts"]):
                raise self._unknown_host("it is not in a known_hosts file") from error
            raise GuestUnreachableError(
                f"{login.address} does not answer: {str(error) or type(error).__name__}",
                hint=f"check that the guest and its SSH server run; this must work: {login.ssh_command}",
            ) from error

    async def _bring_agent(self, connection: asyncssh.SSHClientConnection) -> None:
        import asyncssh

        agent = agent_source()
        lines = Path(__file__).with_name("attach.sh").read_text().splitlines()
        # The script shows in the guest's list of processes, so strip the comments.
        script = "\n".join(line for line in lines if line and not line.startswith("#"))
        command = shlex.join(("sh", "-c", script, "hotreload", self._token, str(len(agent))))
        clock = asyncio.get_running_loop().time
        deadline = clock() + LEAVING
        while True:
            try:
                async with asyncio.timeout(LOGIN_LIMIT):
                    doorkeeper = await connection.create_process(command, encoding=None)
                    with contextlib.suppress(BrokenPipeError):  # a script that refuses us does not read it
                        doorkeeper.stdin.write(agent)
                    line = (await doorkeeper.stdout.readline()).decode(errors="replace")
                    if not line.endswith("\n"):
                        await doorkeeper.wait_closed()
                        if (doorkeeper.returncode or 0) < 0 or doorkeeper.returncode is None:
                            raise ConnectionResetError("the connection was lost")
                    told = printable(line).split()
            except (asyncssh.Error, OSError, TimeoutError) as error:
                raise GuestUnreachableError(
                    f"{self.login.address} does not answer: {str(error) or 'it does not run commands'}"
                ) from error
            if told[:1] != ["busy"] or clock() > deadline:
                break
            await asyncio.sleep(0.2)
        self._judge(told)
        self._doorkeeper = doorkeeper

    def _judge(self, told: list[str]) -> None:
        match told:
            case ["ready", boot_id]:
                if boot_id != (self.boot_id or boot_id):
                    self._rebooted()
                    raise GuestUnreachableError("the guest was rebooted")
                self.boot_id = boot_id
            case ["busy"]:
                raise GuestBusyError(
                    f"another hotreload is attached to {self.login.address}",
                    hint="end it: hotreload guest list, then hotreload guest stop --guest NAME",
                )
            case ["refused", *why]:
                raise self._unfit(f"the guest cannot be used: {' '.join(why)}")
            case _:
                raise self._unfit(
                    f"the guest's answer makes no sense: {' '.join(told) or 'nothing'!r}",
                    "root's login shell must be able to run sh, and must not print anything itself",
                )

    def _knows_host(self, known_hosts: Any) -> bool:
        import asyncssh

        port = self.login.port if self.login.port != 22 else None
        return any(asyncssh.match_known_hosts(known_hosts, self.login.host, "", port))

    def _unknown_host(self, told: str) -> GuestUnreachableError:
        login = self.login
        if login.host_key is not None:
            return self._unfit(
                f"{login.address} has a different host key than {login.host_key}",
                "check that this is the right guest; ssh-keyscan prints its keys",
            )
        port = f"-p {login.port} " if login.port is not None else ""
        scan = f"ssh-keyscan {port}{shlex.quote(login.host)}"
        return self._unfit(
            f"the host key of {login.address} is not known: {told}",
            f"if nothing else can answer at that address: {scan} >>~/.ssh/known_hosts; or name its key"
            " with --host-key",
        )

    def _unfit(self, fact: str, hint: str | None = None) -> GuestUnreachableError:
        return GuestUnreachableError(fact, code=UNFIT, hint=hint or "see hotreload why HR3108")
