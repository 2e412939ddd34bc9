# SPDX-License-Identifier: MIT
"""The protocol between commands and a session: requests and answers over its control socket.

Each connection carries one request, which is a line of JSON. The answer is lines of JSON. The last one has
``done`` (the result) or ``error``. When the client hangs up, its request is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from hotreload.errors import GuestUnreachableError, HotReloadError
from hotreload.paths import writing_to
from hotreload.report.ndjson import reason_object
from hotreload.report.outcome import Outcome, Reason, ReloadReport
from hotreload.session.guests import Place, absent, sessions

log = logging.getLogger(__name__)

# Bytes of one request or answer. A request may contain a whole file for the guest.
LINE_LIMIT = 256 << 20

Message = Mapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Handler = Callable[[Message, Send], Awaitable[Message]]


@contextlib.asynccontextmanager
async def serving(place: Place, handler: Handler) -> AsyncIterator[None]:
    """Answer requests with ``handler`` until the end of the block.

    A HotReloadError of the handler is sent as the answer. The handler is cancelled when its client hangs up.
    """
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_answer(reader, writer, handler))
        connections.add(task)
        task.add_done_callback(connections.discard)

    with _listening(place) as listener:
        server = await asyncio.start_unix_server(connected, sock=listener, limit=LINE_LIMIT)
        try:
            yield
        finally:
            server.close()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)


@contextlib.contextmanager
def _listening(place: Place) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with writing_to(place.folder), contextlib.closing(listener), _short(place.control) as address:
        # Rename the socket when it accepts connections: between bind() and listen() a client is refused.
        listener.bind(f"{address}.new")
        new = place.control.with_name(f"{place.control.name}.new")
        new.chmod(0o600)
        listener.listen()
        listener.setblocking(False)
        new.rename(place.control)
        yield listener


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Return a short form of a path. A socket address has room for only 107 bytes (unix(7))."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler) -> None:
    async def send(message: Message) -> None:
        writer.write(json.dumps(message, default=str).encode() + b"\n")
        await writer.drain()

    try:
        line = await reader.readline()
        if line:
            await _until_gone(reader, _handled(line, handler, send))
    except (ConnectionError, ValueError):
        pass  # the client is gone, or its request is longer than LINE_LIMIT
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _handled(line: bytes, handler: Handler, send: Send) -> None:
    try:
        answer: Message = {"done": dict(await handler(json.loads(line), send))}
    except HotReloadError as error:
        answer = {"error": error_object(error)}
    except Exception as error:
        # A bug in a handler fails this request, but must not end the session.
        log.exception("a request failed: %s", line[:200])
        answer = {"error": error_object(HotReloadError(f"hotreload failed: {error!r}"))}
    await send(answer)


async def _until_gone(reader: asyncio.StreamReader, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, and cancel it when the client hangs up."""
    working = asyncio.create_task(work)
    gone = asyncio.create_task(reader.read(1))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait({working, gone})
    if not working.cancelled():
        working.result()


async def ask(place: Place, verb: str, **fields: object) -> AsyncIterator[Message]:
    """Send a request to a session, and yield the messages that it sends. The last one has ``done``.

    Raises RemoteError if it answers with an error, and GuestUnreachableError (HR4103) if there is no session
    or it ends before it has answered.
    """
    reader, writer = await _connect(place)
    try:
        writer.write(json.dumps({"verb": verb, **fields}, default=str).encode() + b"\n")
        await writer.drain()
        while line := await reader.readline():
            message: dict[str, Any] = json.loads(line)
            if "error" in message:
                raise RemoteError(message["error"])
            yield message
            if "done" in message:
                return
    except ConnectionError:
        pass
    finally:
        writer.close()
    raise GuestUnreachableError(
        f"the session of the guest {place.name} ended", hint="start another one: hotreload guest start"
    )


async def answer(place: Place, verb: str, **fields: object) -> dict[str, Any]:
    """Send a request to a session, and return its result. For requests without intermediate messages."""
    async for message in ask(place, verb, **fields):
        if "done" in message:
            return dict(message["done"])
    raise AssertionError("ask() ends with an answer or an error")


async def _connect(place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        with _short(place.control) as address:
            return await asyncio.open_unix_connection(address, limit=LINE_LIMIT)
    except (FileNotFoundError, ConnectionRefusedError):
        raise absent(f"the guest {place.name} is not running", sessions()) from None


class RemoteError(HotReloadError):
    """An error that a session answered with. It has the text and the exit status of the original."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        super().__init__(told["message"], code=told["code"], hint=told["hint"])
        self.exit_status = int(told["exit_status"])
        self.diagnostics = str(told["said"])


def error_object(error: HotReloadError) -> dict[str, Any]:
    """Return an error as a JSON object. ``said`` is the output of a tool or of the console."""
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "exit_status": error.exit_status,
        "said": getattr(error, "diagnostics", "") or getattr(error, "excerpt", ""),
    }


def report_object(report: ReloadReport) -> dict[str, Any]:
    """Return a report as a JSON object: the fields of ReloadReport, and the rung of its outcome."""
    return {
        "outcome": report.outcome.value,
        "rung": report.outcome.rung,
        "number": report.number,
        "files": [str(file) for file in report.files],
        "symbols": list(report.symbols),
        "ms": dict(report.milliseconds),
        "saved_to_live_ms": report.saved_to_live_ms,
        "reasons": [reason_object(reason) for reason in report.reasons],
        "notes": list(report.notes),
        "error": report.error,
        "still_runs": report.still_runs,
        "time": report.time.isoformat(),
    }


def report_from(data: Mapping[str, Any]) -> ReloadReport:
    """Return the report that ``report_object`` made ``data`` of."""
    return ReloadReport(
        outcome=Outcome(data["outcome"]),
        number=data["number"],
        files=tuple(map(Path, data["files"])),
        symbols=tuple(data["symbols"]),
        milliseconds=data["ms"],
        saved_to_live_ms=data["saved_to_live_ms"],
        reasons=tuple(_reason_from(item) for item in data["reasons"]),
        notes=tuple(data["notes"]),
        error=data["error"],
        still_runs=data["still_runs"],
        time=datetime.fromisoformat(data["time"]),
    )


def _reason_from(data: Mapping[str, Any]) -> Reason:
    file = data["file"]
    return Reason(
        data["code"],
        data["message"],
        data["symbol"],
        data["hint"],
        None if file is None else Path(file),
        data["line"],
    )
