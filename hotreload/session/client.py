# SPDX-License-Identifier: MIT
"""How commands use a session, in this process or another one: follow it, query it, print the results."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hotreload.errors import GuestUnreachableError, HotReloadError
from hotreload.process import CommandResult
from hotreload.report.console import Console
from hotreload.report.text import enumerate_names
from hotreload.session.control import Message, answer, ask, report_from
from hotreload.session.guests import About, place_of

if TYPE_CHECKING:
    from hotreload.session.session import Session

COMMAND_FAILED = 1
COMMAND_LIMIT = 24 * 3600.0
MOST_TOLD = 64 * 1024  # the most bytes of a command's output in an event

Run = Callable[[str], Awaitable[CommandResult]]
Tell = Callable[..., Awaitable[None]]  # the fields of the event command.done


@dataclass(frozen=True, slots=True)
class Wish:
    """The options of `watch`.

    ``once``: end after one cycle. ``command``: run this in the guest after each reload. ``as_json``: print
    NDJSON.
    """

    once: bool = False
    command: str | None = None
    as_json: bool = False


def watch_here(wish: Wish, console: Console) -> Callable[[Session], Awaitable[int]]:
    """Return the job of a session in this process: reload each save, until the session ends."""

    async def job(session: Session) -> int:
        async def run(command: str) -> CommandResult:
            return await session.booted.guest.run(command, timeout=COMMAND_LIMIT)

        async def tell(**fields: Any) -> None:
            session.teller.record("command.done", **fields)

        for note in session.booted.notes:
            console.say(note)
        with session.watching():
            console.say(ready_text(facts_of(session)))
            return await _follow(_messages(session), wish, console, run, tell)

    return job


async def _messages(session: Session) -> AsyncIterator[Message]:
    queue: asyncio.Queue[Message] = asyncio.Queue()
    with session.teller.listen(queue.put_nowait):
        while True:
            yield await queue.get()


async def attach(about: About, wish: Wish, console: Console) -> int:
    """Watch with a session that runs in the background, and goes on when this command ends."""
    place = place_of(about.guest)

    async def run(command: str) -> CommandResult:
        done = await answer(place, "exec", command=command)
        return CommandResult(
            done["status"], base64.b64decode(done["stdout"]), base64.b64decode(done["stderr"])
        )

    async def messages() -> AsyncGenerator[Message, None]:
        async for message in ask(place, "watch"):
            _show(message, console, as_json=wish.as_json)
            yield message

    async def tell(**fields: Any) -> None:
        line = (await answer(place, "record", type="command.done", fields=fields))["event"]
        if wish.as_json:
            sys.stdout.write(line)
            sys.stdout.flush()

    async with contextlib.aclosing(messages()) as told:
        return await _follow(told, wish, console, run, tell)


def _show(message: Message, console: Console, *, as_json: bool) -> None:
    """Print a message of a session in another process, as a session in this process would."""
    if as_json and "event" in message:
        sys.stdout.write(message["event"])
        sys.stdout.flush()
    for key in ("climb", "report"):
        if key in message:
            console.report(report_from(message[key]))
    if "say" in message:
        console.say(message["say"])
    if "ready" in message:
        console.say(ready_text(message["ready"]))


async def _follow(
    messages: AsyncIterator[Message], wish: Wish, console: Console, run: Run, tell: Tell
) -> int:
    """Run the command after each reload. With ``once``, return the exit status of the first cycle."""
    async for message in messages:
        if "report" not in message or not message["watched"]:
            continue
        report = report_from(message["report"])
        status = report.outcome.exit_status
        if wish.command and report.outcome.rung:
            done = await _done(wish, console, run, tell)
            if done is None and wish.once:
                return await _ending(messages)
            status = status or (0 if done else COMMAND_FAILED)
        if wish.once:
            return status
    return GuestUnreachableError.exit_status


async def _ending(messages: AsyncIterator[Message]) -> int:
    """Return the exit status for a lost guest, from the session's report on it."""
    async for message in messages:
        if "report" in message:
            return report_from(message["report"]).outcome.exit_status
    return GuestUnreachableError.exit_status


async def _done(wish: Wish, console: Console, run: Run, tell: Tell) -> bool | None:
    """Run the command and report its result. Return whether it succeeded, or None if the guest was lost."""
    assert wish.command is not None
    started = time.monotonic()

    async def told(status: int | None, stdout: bytes = b"", stderr: bytes = b"") -> None:
        spent = (time.monotonic() - started) * 1000
        texts = {"stdout": _text(stdout), "stderr": _text(stderr)}
        await tell(command=wish.command, status=status, **texts, ms=spent)

    try:
        done = await run(wish.command)
    except HotReloadError as error:
        if error.exit_status != GuestUnreachableError.exit_status:
            raise
        await told(None)
        # The session itself reports what happened to the guest, and whether it is back.
        console.say(f"the guest was lost while this command ran: {wish.command}", always=True)
        return None
    await told(done.status, done.stdout, done.stderr)
    # With --json, standard output is reserved for the events.
    out = sys.stderr if wish.as_json else sys.stdout
    for stream, data in ((out, done.stdout), (sys.stderr, done.stderr)):
        stream.buffer.write(data)
        stream.flush()
    if not done.ok:
        console.say(f"the command in the guest ended with status {done.status}: {wish.command}", always=True)
    return done.ok


def _text(output: bytes) -> str:
    """Return what an event contains of an output: all of it, or its end if it is long."""
    return output[-MOST_TOLD:].decode(errors="replace")


async def cycle(
    about: About, request: str, fields: Mapping[str, object], console: Console, *, as_json: bool
) -> int:
    """Request a cycle, such as a push or an undo, and print its report. Return its exit status."""
    async for message in ask(place_of(about.guest), request, **fields):
        if "event" in message or "climb" in message:
            _show(message, console, as_json=as_json)
        if "done" in message:
            report = report_from(message["done"]["report"])
            console.report(report)
            return report.outcome.exit_status
    raise AssertionError("ask() ends with an answer or an error")


def facts_of(session: Session) -> dict[str, Any]:
    """Return the fields that ``ready_text`` takes."""
    booted = session.booted
    return {
        "v": 1,
        "guest": session.order.guest,
        "folder": str(session.order.folder),
        "modules": list(booted.loaded),
        "contents": booted.contents,
        "kernel": session.kernel.release,
        **booted.reached,
        "ssh": booted.guest.ssh_command,
        "notes": list(booted.notes),
    }


def ready_text(facts: Mapping[str, Any], *, watching: bool = True) -> str:
    """Return the lines that announce that the guest is ready."""
    from datetime import datetime

    name, what = facts["guest"], "watching" if watching else "running"
    return (
        f"{datetime.now():%H:%M:%S} ready      {what} {facts['folder']} ({facts['contents']})\n"
        f"{'':19}guest {name}: {facts['kernel']}, {_how(facts)}"
        f"      hotreload guest ssh --guest {name}"
    )


def _how(facts: Mapping[str, Any]) -> str:
    return f"attached at {facts['attached']}" if facts.get("attached") else str(facts["accel"])


def status_text(facts: Mapping[str, Any]) -> str:
    """Return what `status` prints."""
    owner = f"{'background session' if facts['background'] else 'hotreload watch'}, process {facts['pid']}"
    rows = [("guest", f"{facts['guest']}  {facts['state']}")]
    if facts.get("message"):
        rows.append(("", facts["message"]))
    if "kernel" in facts:
        where = "" if facts.get("attached") else f", SSH on port {facts['ssh_port']}"
        rows.append(("kernel", f"{facts['kernel']}, {_how(facts)}{where}"))
    rows.append(("session", f"{owner}, {'watches' if facts['watching'] else 'does not watch'}"))
    rows.append(("folder", facts["folder"]))
    if "modules" in facts:
        rows.append(("modules", ", ".join(facts["modules"]) or facts["contents"]))
        number = facts["running"]
        rows.append(("runs", "the code it booted with" if number is None else f"reload #{number}"))
    rows += _patch_rows(facts)
    return "\n".join(f"{label:<9} {text}" for label, text in rows)


def _patch_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for patch in facts.get("patches", ()):
        state = "in transition" if patch["transition"] else "live" if patch["enabled"] else "disabled"
        whose = ", not loaded by hotreload: no reload while it is loaded" if patch["foreign"] else ""
        rows.append(("patch", f"{patch['name']}  {state}{whose}"))
        for each in patch["objects"]:
            functions = ", ".join(function["name"] for function in each["functions"])
            waits = "" if each["patched"] else "  (not loaded)"
            rows.append(("", f"{each['name']}: {functions}{waits}"))
    rows += [("held up", task["told"]) for task in facts.get("tasks", ())]
    kept = facts.get("kept", {})
    for name in facts.get("replaced", ()):
        reasons = enumerate_names(kept.get(name, []), 60)
        why = f"because of {reasons}" if reasons else "because a task may be running in it"
        rows.append(("replaced", f"{name}  stays loaded {why}"))
    return rows
