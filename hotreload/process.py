# SPDX-License-Identifier: MIT
"""The one place where programs are started.

Every command line is logged, ready to paste into a shell, at DEBUG level of the logger ``hotreload.process``.
A program that is started here never outlives us. If the awaiting task is cancelled or its time is up, the
program is killed with its process group. If hotreload itself is killed, the kernel kills the program
(``PR_SET_PDEATHSIG``, set by setpriv), and the ``guard`` ends what the program has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotreload import guard
from hotreload.errors import EnvironmentFault

log = logging.getLogger(__name__)

Argument = str | os.PathLike[str]

DYING = ("setpriv", "--pdeathsig", "KILL", "--")
# make prints what it is going to delete, and would die of SIGPIPE if nobody reads that any more. With its own
# ends of the pipes open for reading, it can finish deleting. (Opening a pipe by its name in /proc opens
# another end of it.)
TIDYING = ("sh", "-c", 'exec "$@" 8</proc/self/fd/1 9</proc/self/fd/2', "sh")


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of a command: its exit status and output."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def text(self) -> str:
        """Standard output, decoded. Bytes that are not UTF-8 are replaced."""
        return self.stdout.decode(errors="replace")

    @property
    def complaint(self) -> str:
        """Standard error, decoded and stripped."""
        return self.stderr.decode(errors="replace").strip()


@dataclass(frozen=True, slots=True)
class Completed(CommandResult):
    """A program of this machine that has ended. A negative status means that this signal killed it."""

    argv: tuple[str, ...]
    seconds: float


def paste_ready(argv: Sequence[Argument], cwd: Path | None = None) -> str:
    """Return the command as a person would type it."""
    line = shlex.join(os.fspath(word) for word in argv)
    return f"cd {shlex.quote(str(cwd))} && {line}" if cwd else line


async def spawn(
    argv: Sequence[Argument],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | None = asyncio.subprocess.DEVNULL,
    stdout: int | None = asyncio.subprocess.PIPE,
    stderr: int | None = asyncio.subprocess.PIPE,
    tidies: bool = False,
) -> asyncio.subprocess.Process:
    """Start a program in a process group of its own that dies with us.

    ``env`` is added to our environment. With ``tidies``, the program has something to clean up when we are
    killed, so it is not killed at once, and the guard tells it to end. Raises EnvironmentFault (HR5106) if
    there is no such program.
    """
    words = [os.fspath(word) for word in argv]
    log.debug("%s", paste_ready(words, cwd))
    around = TIDYING if tidies else DYING
    for program in (around[0], words[0]):
        if shutil.which(program) is None:
            raise EnvironmentFault(
                f"{program} is not installed", hint="hotreload doctor --fix installs what is missing"
            )
    return await asyncio.create_subprocess_exec(
        *around,
        *words,
        cwd=cwd,
        env={**os.environ, **(env or {}), **guard.word()},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
    )


async def run(
    argv: Sequence[Argument],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout: float | None = None,
    most: int | None = None,
) -> Completed:
    """Run a program to its end and return the result. A non-zero status is not an error here.

    ``timeout`` is in seconds. ``most`` limits the output as in ``beginning_of``, and cannot be combined with
    ``stdin``. Raises TimeoutError after the timeout, when the program and its children are killed.
    """
    started = time.monotonic()
    process = await spawn(
        argv,
        cwd=cwd,
        env=env,
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(timeout):
            if most is None:
                stdout, stderr = await process.communicate(stdin)
            else:
                stdout, stderr = await _beginnings_of(process, most)
                await process.wait()
    finally:
        await end(process)
    assert process.returncode is not None
    status = process.returncode
    words = tuple(os.fspath(word) for word in argv)
    return Completed(status, stdout, stderr, words, time.monotonic() - started)


async def _beginnings_of(process: asyncio.subprocess.Process, most: int) -> tuple[bytes, bytes]:
    assert process.stdout is not None
    assert process.stderr is not None
    return await asyncio.gather(beginning_of(process.stdout, most), beginning_of(process.stderr, most))


async def beginning_of(stream: asyncio.StreamReader, most: int) -> bytes:
    """Read to the end and return the first ``most`` bytes. A last line tells how many more there were."""
    kept, dropped = b"", 0
    while data := await stream.read(1 << 16):
        taken = data[: most - len(kept)]
        kept += taken
        dropped += len(data) - len(taken)
    return kept + f"\n(and {dropped} bytes more)\n".encode() if dropped else kept


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yield the lines of a stream as they come, however long they are."""
    rest = ""
    while data := await stream.read(1 << 16):
        *whole, rest = (rest + data.decode(errors="replace")).split("\n")
        for line in whole:
            yield line
    if rest:
        yield rest


async def end(process: asyncio.subprocess.Process, *, grace: float = 0.0) -> None:
    """Make sure that the program and its process group are gone: SIGTERM, ``grace`` seconds, SIGKILL."""
    if process.returncode is not None:
        return
    if grace:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), grace)
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
