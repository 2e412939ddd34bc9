# SPDX-License-Identifier: MIT
"""The verbs about the machine: ``hotreload guest ...``."""

from __future__ import annotations

import base64
import codecs
import contextlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from hotreload.cli.command import (
    Commands,
    Globals,
    checkpoints_option,
    cli,
    init_changes_option,
    json_option,
    load_option,
    make_option,
    verb,
    with_global_options,
)
from hotreload.cli.verbs import (
    WithCommand,
    answer_of,
    console_of,
    cycle,
    guest_command,
    one_folder,
    path_argument,
    print_json,
    session_here,
    watched,
)
from hotreload.errors import EnvironmentFault, GuestBusyError, InputError
from hotreload.interrupts import run

if TYPE_CHECKING:
    from hotreload.config import Config
    from hotreload.session.attached import Attachment
    from hotreload.session.guests import About

STOP_LIMIT = 60.0


@cli.group(cls=Commands)
@with_global_options
def guest() -> None:
    """Start, stop and inspect the virtual machine, and run commands in it."""


@verb("start", guest)
@path_argument
@checkpoints_option
@init_changes_option
@load_option
@make_option
@json_option
def start(options: Globals, paths: tuple[Path, ...]) -> None:
    """Boot a guest in the background, with the modules of PATH (default: of this folder)."""
    start_session(options, *watched(one_folder(paths), options))


def start_session(
    options: Globals, folder: Path, config: Config, attachment: Attachment | None = None
) -> None:
    """Start a session in the background, and return when it is up.

    It boots a guest or, with ``attachment``, uses one that somebody else started.
    """
    from hotreload.cli.failures import known
    from hotreload.session.background import in_background
    from hotreload.session.client import ready_text

    console = console_of(options, config)
    facts: dict[str, Any] = {}

    def session(stream: TextIO) -> int:
        return _run_in_background(folder, config, options, stream, attachment)

    title = "attaching to the guest" if attachment else "starting a guest in the background"
    with console.progress(title) as progress:

        def tell(message: Mapping[str, Any]) -> None:
            if "progress" in message:
                progress.update(message["progress"])
            facts.update(message.get("ready", {}))

        in_background(session, tell, known)
    if options.json:
        print_json(facts)
    else:
        console.say(ready_text(facts, watching=False))
        for note in facts["notes"] if attachment else ():
            console.say(f"{'':19}{note}")


def _run_in_background(
    folder: Path, config: Config, options: Globals, stream: TextIO, attachment: Attachment | None
) -> int:
    from hotreload.session.background import writer_to
    from hotreload.session.client import facts_of
    from hotreload.session.service import run_session
    from hotreload.session.session import Session

    tell = writer_to(stream)

    async def serve(session: Session) -> int:
        tell({"ready": facts_of(session)})
        stream.close()
        return await session.finished

    console = console_of(options, config)
    job = run_session(folder, config, console, serve, background=True, listener=tell, attachment=attachment)
    return run(job)


@verb("stop", guest)
@click.option("--all", "everything", is_flag=True, help="All your guests.")
def stop(options: Globals, everything: bool) -> None:
    """End a guest and its session, even if they are busy; an attached guest is left as it was."""
    from hotreload.session.guests import sessions

    console = console_of(options, options.config())
    for about in sessions() if everything else (session_here(options),):
        _stop(about)
        done = "left as it was" if about.attached else "stopped"
        console.say(f"the guest {about.guest} is {done}")


def _stop(about: About) -> None:
    """Ask the session to end, and wait until nothing of it is left."""
    from hotreload.errors import GuestUnreachableError
    from hotreload.session.guests import sessions

    with contextlib.suppress(GuestUnreachableError):  # the connection ends with the session
        answer_of(about, "stop")
    deadline = time.monotonic() + STOP_LIMIT
    while any(other.pid == about.pid for other in sessions()):
        if time.monotonic() > deadline:
            raise GuestBusyError(
                f"the session of the guest {about.guest} does not end", hint=f"kill -9 {about.pid}"
            )
        time.sleep(0.02)


@verb("restart", guest)
@checkpoints_option
@init_changes_option
@load_option
@make_option
@json_option
def restart(options: Globals) -> None:
    """Stop a guest and boot it again, in the background, with the sources as they are now."""
    from hotreload.session.boot import require_buildable

    about = session_here(options)
    if about.attached:
        raise _not_ours(about, "it cannot be restarted from here")
    folder, config = watched(about.folder, options)
    with console_of(options, config).progress("building") as progress:
        # If the new guest cannot be built, keep the old one.
        run(require_buildable(folder, config, progress.update))
    _stop(about)
    options.flags["guest"] = about.guest
    start_session(options, *watched(about.folder, options))


def _not_ours(about: About, fact: str) -> InputError:
    return InputError(
        f"the guest {about.guest} was not started by hotreload: {fact}",
        hint=f"do this where it was started; its address is {about.attached}",
    )


@verb("list", guest)
@json_option
def list_guests(options: Globals) -> None:
    """List the running guests."""
    from hotreload.report.table import align
    from hotreload.session.guests import sessions

    alive = sessions()
    if options.json:
        print_json(
            {
                "v": 1,
                "guests": [
                    {
                        "guest": about.guest,
                        "folder": str(about.folder),
                        "pid": about.pid,
                        "background": about.background,
                        "attached": about.attached,
                        "records": str(about.state),
                    }
                    for about in alive
                ],
            }
        )
        return
    rows = [(about.guest, str(about.pid), _kind(about), str(about.folder)) for about in alive]
    click.echo(align(("guest", "process", "session", "folder"), rows) if rows else "no guest is running")


def _kind(about: About) -> str:
    if about.attached:
        return "attached"
    return "background" if about.background else "watch"


@verb("show", guest)
@json_option
def show(options: Globals) -> None:
    """Show everything about a guest: ports, sockets, keys, records."""
    facts = answer_of(session_here(options), "show")
    if options.json:
        print_json(facts)
        return
    for name, value in facts.items():
        if not isinstance(value, list | dict) and value is not None:
            click.echo(f"{name:<13} {value}")


@verb("cmdline", guest)
def cmdline(options: Globals) -> None:
    """Print the QEMU command line that boots the same guest by hand, with its console on the terminal."""
    about = session_here(options)
    if about.attached:
        raise _not_ours(about, "its QEMU command line is not known here")
    click.echo(answer_of(about, "show")["qemu"])


@verb("ssh", guest, cls=WithCommand)
def ssh(options: Globals) -> None:
    """Log in to the guest."""
    words = shlex.split(answer_of(session_here(options), "show")["ssh"])
    if shutil.which(words[0]) is None:
        raise EnvironmentFault("ssh is not installed", hint="apt-get install openssh-client; or guest exec")
    command = click.get_current_context().meta.get("command")
    os.execvp(words[0], [*words, command] if command else words)


@verb("console", guest)
def console(options: Globals) -> None:
    """Connect this terminal to the guest's serial console, until Ctrl-]."""
    from hotreload.cli.terminal import connect_terminal

    about = session_here(options)
    if about.attached:
        raise _not_ours(about, "its console is not here; hotreload guest logs shows what was read from it")
    facts = answer_of(about, "show")
    if not options.quiet:
        click.echo(f"the console of {facts['guest']}; Ctrl-] leaves it", err=True)
    connect_terminal(Path(facts["console"]))


@verb("exec", guest, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-i", "--stdin", "with_input", is_flag=True, help="Pass standard input to the command.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(options: Globals, with_input: bool, command: tuple[str, ...]) -> int:
    """Run a command in the guest, and pass on its output and exit status."""
    data = sys.stdin.buffer.read() if with_input else b""
    words = guest_command(list(command))
    done = answer_of(session_here(options), "exec", command=words, stdin=base64.b64encode(data).decode())
    for stream, text in ((sys.stdout, done["stdout"]), (sys.stderr, done["stderr"])):
        stream.buffer.write(base64.b64decode(text))
        stream.flush()
    return int(done["status"])


@verb("put", guest)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("where")
def put(options: Globals, file: Path, where: str) -> None:
    """Copy FILE to WHERE in the guest; if WHERE ends in /, it is a folder."""
    try:
        data, mode = file.read_bytes(), file.stat().st_mode & 0o777
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", hint="fix its permissions") from error
    path = where + file.name if where.endswith("/") else where
    answer_of(session_here(options), "put", path=path, mode=mode, data=base64.b64encode(data).decode())


@verb("save", guest)
@click.argument("name")
def save(options: Globals, name: str) -> None:
    """Save the guest as it is now, under NAME; `guest load NAME` restores it."""
    saved = answer_of(session_here(options), "save", name=name)
    _say(options, f"saved {saved['name']} in {saved['seconds']:.2f} s")


@verb("load", guest)
@click.argument("name", required=False)
@json_option
def load(options: Globals, name: str | None) -> int:
    """Bring the guest back to the checkpoint NAME, or to the latest one.

    The sources stay as they are. Those that the guest then does not run are applied with their next save.
    """
    return cycle(options, None, "load", name=name)


@verb("checkpoints", guest)
@json_option
def checkpoints(options: Globals) -> None:
    """List the checkpoints for `guest load`: those saved by hand, and those from before the last pushes."""
    from hotreload.report.table import align

    answer = answer_of(session_here(options), "checkpoints")
    if options.json:
        print_json(answer)
        return
    if not answer["checkpoints"]:
        _say(options, "no checkpoints yet")
        return
    rows = [
        (
            each["name"],
            f"{datetime.fromtimestamp(each['saved_at']):%H:%M:%S}",
            "what it booted" if each["runs"] is None else f"#{each['runs']}",
        )
        for each in answer["checkpoints"]
    ]
    click.echo(align(("name", "saved at", "runs"), rows))


@verb("dump", guest)
@click.argument("file", type=click.Path(path_type=Path))
def dump(options: Globals, file: Path) -> None:
    """Write the guest's memory to FILE, a vmcore for drgn and crash; the guest goes on."""
    from hotreload.process import paste_ready

    target = file.absolute()
    vmlinux = answer_of(session_here(options), "dump", file=str(target))["vmlinux"]
    symbols = vmlinux if Path(vmlinux).is_file() else "VMLINUX"
    for line in (("drgn", "-c", target, "-s", symbols), ("crash", symbols, target)):
        _say(options, paste_ready(line))


def _say(options: Globals, text: str) -> None:
    if not options.quiet:
        click.echo(text, err=True)


@verb("logs", guest)
@click.option("-f", "--follow", is_flag=True, help="Keep printing what the console prints.")
def logs(options: Globals, follow: bool) -> None:
    """Print the guest's console log; if the guest is gone, that of its last session."""
    from hotreload.session.alert import read_log
    from hotreload.vm.console import printable

    log, end = _console_log(options), 0
    text = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        said = read_log(log, end)
        end = said.end
        if said.data:
            click.echo(printable(text.decode(said.data)), nl=False)
        elif not follow:
            return
        else:
            time.sleep(0.1)


def _console_log(options: Globals) -> Path:
    from hotreload.errors import GuestUnreachableError
    from hotreload.paths import state_folder
    from hotreload.session.guests import guest_name

    try:
        return session_here(options).state / "console.log"
    except GuestUnreachableError:
        name = guest_name(options.config().guest, Path.cwd())
        records = sorted((state_folder() / "guests" / name).glob("*/console.log"))
        if not records:
            raise
        return records[-1]
