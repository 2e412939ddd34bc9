# SPDX-License-Identifier: MIT
"""Serve a session's control socket: run the session, and handle each request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hotreload.build.built import VMLINUX
from hotreload.config import Config
from hotreload.deploy.livepatch import patch_status
from hotreload.errors import GuestUnreachableError, InputError
from hotreload.paths import writing_to
from hotreload.report.console import Console
from hotreload.report.outcome import ReloadReport
from hotreload.session.attached import Attachment
from hotreload.session.control import Message, Send, report_object, serving
from hotreload.session.guests import About, claim, guest_name
from hotreload.session.order import Order, make_state_folder, new_state
from hotreload.session.session import STANDS, Session
from hotreload.session.telling import Listener

if TYPE_CHECKING:
    from hotreload.restore_points import Saved

# Seconds. Longer commands should run in a shell of the guest.
COMMAND_LIMIT = 24 * 3600.0

Job = Callable[[Session], Awaitable[int]]


async def run_session(
    folder: Path,
    config: Config,
    console: Console,
    job: Job,
    *,
    stream: TextIO | None = None,
    background: bool = False,
    dry_run: bool = False,
    listener: Listener | None = None,
    attachment: Attachment | None = None,
) -> int:
    """Run a session until ``job`` ends. Return its exit status, or the session's if that ends first.

    ``background``: redirect this process's standard output and error to the session's records. ``listener``
    gets every message of the session, from its start. ``attachment``: somebody else's guest, to attach to
    instead of booting one.

    Raises GuestBusyError (HR3106), what Session raises on entry, and the error that a session ends with.
    """
    name = guest_name(config.guest, folder)
    state = new_state(name)
    attached = attachment.login.address if attachment else None
    about = About(name, folder.resolve(), os.getpid(), background, time.time(), state, attached)
    with claim(about) as place:
        make_state_folder(state)
        if background:
            _speak_to(state / "session.log")
        session = Session(Order(about.folder, config, name, state, dry_run, attachment), console, stream)
        service = Service(session, about)
        with session.teller.listen(listener) if listener else contextlib.nullcontext():
            async with serving(place, service.handle):
                return await _stoppable(_serve(session, job), service)


def _speak_to(file: Path) -> None:
    with writing_to(file.parent), file.open("ab", buffering=0) as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)


async def _serve(session: Session, job: Job) -> int:
    async with session:
        working = asyncio.ensure_future(job(session))
        try:
            await asyncio.wait({working, session.finished}, return_when=asyncio.FIRST_COMPLETED)
            # If both are done, prefer the job: the report that ended the session may be what it waited for.
            return await (working if working.done() else session.finished)
        finally:
            working.cancel()
            await asyncio.wait({working})


async def _stoppable(work: Any, service: Service) -> int:
    """Do the work, and cancel it cleanly at a request to stop. Return its exit status, or 0 if cancelled."""
    working = asyncio.create_task(work)
    stopped = asyncio.create_task(service.stopped.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait({working})
    if working.cancelled() and service.stopped.is_set():
        return 0
    return int(working.result())


class Service:
    """Answers the requests to one session. Each verb is answered by the method of the same name."""

    def __init__(self, session: Session, about: About) -> None:
        self.stopped = asyncio.Event()
        self._session = session
        self._about = about
        self._running: set[asyncio.Task[ReloadReport]] = set()

    async def handle(self, request: Message, send: Send) -> Message:
        """Answer one request. Raises HotReloadError."""
        handlers: Mapping[str, Callable[[Message, Send], Awaitable[Message]]] = {
            "status": self.status,
            "show": self.show,
            "history": self.history,
            "why": self.why,
            "push": self.push,
            "reload": self.reload,
            "undo": self.undo,
            "redo": self.redo,
            "watch": self.watch,
            "exec": self.exec,
            "record": self.record,
            "put": self.put,
            "save": self.save,
            "load": self.load,
            "checkpoints": self.checkpoints,
            "dump": self.dump,
            "stop": self.stop,
        }
        verb = str(request.get("verb"))
        if verb not in handlers:
            raise InputError(
                f"the session does not know the request {verb!r}",
                hint="it runs another version of hotreload: stop it (hotreload guest stop),"
                " and start it again",
            )
        if verb not in ("status", "stop", "watch", "record"):
            if self._session.away_since is not None:
                raise GuestUnreachableError(
                    f"the guest {self._about.guest} has been lost since {self._session.away_since:%H:%M:%S}",
                    hint="hotreload did not start this guest: the session"
                    " goes on as soon as it answers again",
                )
            await self._session.ready.wait()
        return await handlers[verb](request, send)

    async def status(self, _request: Message, _send: Send) -> Message:
        """Return the state of the guest, its modules, its live patches and what holds up a transition."""
        session, about = self._session, self._about
        facts: dict[str, Any] = {
            "v": 1,
            "guest": about.guest,
            "folder": str(about.folder),
            "state": "booting",
            "pid": about.pid,
            "background": about.background,
            "watching": session.is_watched,
            "records": str(about.state),
        }
        if session.away_since is not None:
            since = f"{session.away_since:%H:%M:%S}"
            return facts | {"state": "away", "message": f"lost since {since}; waiting until it answers again"}
        if not session.ready.is_set():
            return facts
        booted = session.booted
        trouble = booted.machine.trouble
        facts |= {
            "state": trouble.state.value if trouble else "running",
            "message": trouble.message if trouble else None,
            "kernel": session.kernel.release,
            **booted.reached,
            "modules": list(booted.loaded),
            "contents": booted.contents,
            "running": session.reloader.running,
            "reloads": len(session.reloader.history),
            "kept": {name: list(reasons) for name, reasons in session.reloader.kept_loaded.items()},
        }
        if trouble is None and (stands := await session.standstill()):
            return facts | {"state": stands, "message": STANDS[stands]}
        return facts if trouble else facts | await self._patches()

    async def _patches(self) -> dict[str, Any]:
        """Return the fields of PatchStatus as nested JSON objects."""
        found = await patch_status(self._session.booted.guest)
        tasks = [dataclasses.asdict(task) | {"told": task.told} for task in found.tasks]
        return dataclasses.asdict(found) | {"tasks": tasks}

    async def show(self, _request: Message, _send: Send) -> Message:
        """Return the status, how to reach the guest, and how it was started."""
        return {
            **await self.status({}, _send),
            "ssh": self._session.booted.guest.ssh_command,
            "console_log": str(self._session.console_log),
            **self._session.booted.made_of,
        }

    async def history(self, _request: Message, _send: Send) -> Message:
        return {"reports": [report_object(report) for report in self._session.reloader.history]}

    async def why(self, request: Message, _send: Send) -> Message:
        return {"text": self._session.reloader.why(request.get("number"))}

    async def push(self, request: Message, send: Send) -> Message:
        if patches := request.get("patches"):
            files, init_changes = list(map(Path, patches)), request.get("init_changes")
            return await self._cycle(self._session.push_patched(files, init_changes), send)
        work = self._session.push(request.get("max_units"), request.get("init_changes"))
        return await self._cycle(work, send)

    async def reload(self, request: Message, send: Send) -> Message:
        """Reload the named modules, or all if none is named."""
        return await self._cycle(self._session.reload(request.get("modules", ())), send)

    async def undo(self, request: Message, send: Send) -> Message:
        everything = bool(request.get("everything"))
        return await self._cycle(self._session.undo(request.get("number"), everything=everything), send)

    async def redo(self, _request: Message, send: Send) -> Message:
        return await self._cycle(self._session.redo(), send)

    async def _cycle(self, work: Coroutine[Any, Any, ReloadReport], send: Send) -> Message:
        """Finish a cycle even if the client hangs up. Its events are sent to the client."""
        task = asyncio.create_task(work)
        # Hold a reference, so that the task is not garbage-collected when the client hangs up.
        self._running.add(task)
        task.add_done_callback(self._forget)
        async with self._relay(send):
            report = await asyncio.shield(task)
        return {"report": report_object(report)}

    def _forget(self, task: asyncio.Task[ReloadReport]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: the client got it, if it did not hang up

    @contextlib.asynccontextmanager
    async def _relay(self, send: Send) -> AsyncIterator[None]:
        """Send the session's messages to a client inside the block. All have been sent when it ends."""
        messages: asyncio.Queue[Message] = asyncio.Queue()

        async def forward() -> None:
            while True:
                await send(await messages.get())
                messages.task_done()

        forwarding = asyncio.create_task(forward())
        try:
            with self._session.teller.listen(messages.put_nowait):
                yield
            # Do not wait for join() alone, because a client that is gone never takes the rest.
            joined = asyncio.create_task(messages.join())
            await asyncio.wait({joined, forwarding}, return_when=asyncio.FIRST_COMPLETED)
            joined.cancel()
        finally:
            forwarding.cancel()
            await asyncio.wait({forwarding})

    async def watch(self, _request: Message, send: Send) -> Message:
        """Reload what is saved, and report it, until the client hangs up or the session ends.

        Raises the error that the session ends with.
        """
        async with self._relay(send):
            await self._session.ready.wait()
            await send({"ready": dict(await self.status({}, send))})
            with self._session.watching():
                await asyncio.wait({self._session.finished})
        # Pass on the error that ended it, because its own standard error goes to a file.
        self._session.finished.result()
        return {}

    async def exec(self, request: Message, _send: Send) -> Message:
        """Run a shell command in the guest. Its input and output are base64."""
        await self._session.require_awake()
        stdin = base64.b64decode(request.get("stdin", ""))
        done = await self._session.booted.guest.run(request["command"], stdin=stdin, timeout=COMMAND_LIMIT)
        return {"status": done.status, "stdout": _text64(done.stdout), "stderr": _text64(done.stderr)}

    async def record(self, request: Message, _send: Send) -> Message:
        """Record an event of a client that watches. Return it with its number."""
        return {"event": self._session.teller.record(request["type"], **request["fields"])}

    async def put(self, request: Message, _send: Send) -> Message:
        """Write a file in the guest."""
        data = base64.b64decode(request["data"])
        try:
            await self._session.booted.guest.put(data, request["path"], int(request["mode"]))
        except OSError as error:
            raise InputError(str(error)) from error
        except TimeoutError:
            raise GuestUnreachableError(
                f"the guest did not accept {len(data)} bytes in time", hint="see hotreload guest logs"
            ) from None
        return {}

    async def save(self, request: Message, _send: Send) -> Message:
        """Save the guest under a name."""
        return saved_object(await self._session.save_checkpoint(request["name"]))

    async def load(self, request: Message, send: Send) -> Message:
        """Restore the guest to a checkpoint."""
        return await self._cycle(self._session.load_checkpoint(request.get("name")), send)

    async def checkpoints(self, _request: Message, _send: Send) -> Message:
        """List the checkpoints that the guest can be restored to."""
        return {"v": 1, "checkpoints": [saved_object(each) for each in self._session.reloader.checkpoints]}

    async def dump(self, request: Message, _send: Send) -> Message:
        """Write the guest's memory to a file, for drgn and crash."""
        await self._session.booted.machine.dump(Path(request["file"]))
        return {"vmlinux": str(self._session.kernel.output / VMLINUX)}

    async def stop(self, _request: Message, _send: Send) -> Message:
        self.stopped.set()
        # There is no other answer than the end of the connection, when the session has ended.
        await asyncio.Event().wait()
        return {}


def saved_object(saved: Saved) -> Message:
    """Return a checkpoint as a JSON object. ``runs`` is the number of the reload that the guest ran then."""
    checkpoint = saved.checkpoint
    return {
        "name": checkpoint.tag,
        "saved_at": checkpoint.saved_at,
        "seconds": checkpoint.seconds,
        "runs": saved.moment.runs,
        "by_hand": saved.by_hand,
    }


def _text64(data: bytes) -> str:
    return base64.b64encode(data).decode()
