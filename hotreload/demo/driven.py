# SPDX-License-Identifier: MIT
"""Drive a `hotreload watch` from another program: start it, save a file, wait for the outcome.

It is the command itself, in a process of its own. Its control socket reports each cycle as a value, with its
events. If an error ends it, that is the last line of its NDJSON.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from hotreload import process
from hotreload.errors import GuestUnreachableError, HotReloadError
from hotreload.process import CommandResult
from hotreload.report.outcome import Outcome, ReloadReport
from hotreload.session.control import Message, RemoteError, answer, ask, report_from
from hotreload.session.guests import place_of

# Seconds: for the watch to end when asked, and for a cycle to end.
GRACE = 15.0
CYCLE_LIMIT = 90.0
SOCKET_INTERVAL = 0.05

Progress = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Told:
    """One cycle: the first event of each type, and the report.

    ``climbs`` tells why it went on to the next rung of the ladder, each time it did.
    """

    events: Mapping[str, Mapping[str, Any]]
    report: ReloadReport
    climbs: tuple[ReloadReport, ...] = ()


class Driven:
    """A running `hotreload watch`. Inside ``async with Driven(folder, guest, progress)`` the guest is up."""

    def __init__(self, folder: Path, guest: str, progress: Progress, options: tuple[str, ...] = ()) -> None:
        """Prepare the command.

        ``options`` are further options of `hotreload watch`. ``progress`` is told what the start waits for.
        """
        self.folder = folder
        self.facts: Mapping[str, Any] = {}
        self._argv = (
            *(sys.executable, "-m", "hotreload", "watch", str(folder)),
            *("--json", "--color", "never", "--guest", guest, *options),
        )
        self._place = place_of(guest)
        self._progress = progress
        self._process: asyncio.subprocess.Process
        self._said: list[str] = []
        self._failure: HotReloadError | None = None
        self._events: dict[str, Mapping[str, Any]] = {}
        self._climbs: list[ReloadReport] = []
        self._cycles: asyncio.Queue[Told] = asyncio.Queue()
        self._ready = asyncio.Event()
        self._readers: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        """The process id of hotreload."""
        return self._process.pid

    async def __aenter__(self) -> Self:
        """Start it, and wait until it is ready. If it ends instead, raise its error."""
        self._process = await process.spawn(self._argv)
        self._readers = [
            asyncio.create_task(read()) for read in (self._read_output, self._read_text, self._follow)
        ]
        try:
            await self._or_ended(self._ready.wait())
            self.facts = await answer(self._place, "show")
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        await process.end(self._process, grace=GRACE)
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def run(self, command: str, stdin: bytes = b"") -> CommandResult:
        """Run a shell command in the guest. Raises RemoteError, GuestUnreachableError."""
        data = base64.b64encode(stdin).decode()
        done = await self.ask("exec", command=command, stdin=data)
        return CommandResult(
            done["status"], base64.b64decode(done["stdout"]), base64.b64decode(done["stderr"])
        )

    async def ask(self, verb: str, **fields: object) -> dict[str, Any]:
        """Return the session's answer to a request. Raises RemoteError, GuestUnreachableError."""
        return await answer(self._place, verb, **fields)

    async def request(self, verb: str, **fields: object) -> ReloadReport:
        """Ask for an undo, a redo or a push. Raises RemoteError, GuestUnreachableError."""
        report = report_from((await self.ask(verb, **fields))["report"])
        await self._cycles.get()  # followers are told of it, too, so drop that copy
        return report

    async def next_cycle(self) -> Told:
        """Wait for the next cycle to end.

        Raises the error that the watch ended with, or HotReloadError after 90 s.
        """
        try:
            async with asyncio.timeout(CYCLE_LIMIT):
                return await self._or_ended(self._cycles.get())
        except TimeoutError:
            raise HotReloadError(
                f"no result of a save within {CYCLE_LIMIT:g} s", hint="\n".join(self._said[-3:]) or None
            ) from None

    async def _or_ended(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, unless the watch ends first, or one of its readers fails."""
        working = asyncio.create_task(work)
        ending = asyncio.create_task(self._process.wait())
        both: set[asyncio.Future[Any]] = {working, ending}
        try:
            await asyncio.wait({*both, *self._failing()}, return_when=asyncio.FIRST_COMPLETED)
            for reader in self._failing():
                if reader.done():
                    reader.result()
            if not working.done():
                raise await self._why_it_ended()
            return working.result()
        finally:
            working.cancel()
            ending.cancel()
            await asyncio.wait(both)

    def _failing(self) -> set[asyncio.Task[None]]:
        """Return the readers that have not ended successfully."""
        return {
            reader
            for reader in self._readers
            if not (reader.done() and not reader.cancelled() and reader.exception() is None)
        }

    async def _why_it_ended(self) -> HotReloadError:
        await asyncio.gather(*self._readers[:2])
        if self._failure is not None:
            return self._failure
        said = "; ".join(line.strip() for line in self._said[-2:])
        return GuestUnreachableError(f"hotreload watch ended: {said or self._process.returncode}")

    # --- what it reports ---

    async def _read_output(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            event = json.loads(line)
            if event["type"] == "error":
                self._failure = RemoteError({**event, "said": ""})

    async def _read_text(self) -> None:
        """Read standard error, so that its pipe does not fill up.

        The last lines are reported if the watch fails.
        """
        assert self._process.stderr
        async for line in self._process.stderr:
            self._said = [*self._said[-20:], line.decode(errors="replace").rstrip()]

    async def _follow(self) -> None:
        while not self._place.control.exists():  # noqa: ASYNC110 - it is made by another process
            await asyncio.sleep(SOCKET_INTERVAL)
        try:
            async for message in ask(self._place, "watch"):
                self._take(message)
        except HotReloadError:
            # A watch that ends reports the reason with its exit status and error event. If it goes on
            # instead, raise, so that nobody waits in vain.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await self._process.wait()
                    return
            raise

    def _take(self, message: Message) -> None:
        if "progress" in message:
            self._progress(message["progress"])
        elif "ready" in message:
            self._ready.set()
        elif "event" in message:
            event = json.loads(message["event"])
            # Keep the first event of a type. The event that closes the cycle may have the same type, with
            # less in it.
            self._events.setdefault(event["type"], event)
        elif "climb" in message:
            self._climbs.append(report_from(message["climb"]))
        elif "report" in message:
            report = report_from(message["report"])
            if report.outcome is Outcome.COMPLAINED:
                # A complaint of the kernel belongs to no cycle, and may come at any time.
                self._events.pop("crash", None)
                return
            self._cycles.put_nowait(Told(self._events, report, tuple(self._climbs)))
            self._events, self._climbs = {}, []


def guest_name(purpose: str) -> str:
    """Return a unique name for a guest."""
    return f"{purpose}-{os.getpid()}-{time.time_ns() % 10**6:06d}"
