# SPDX-License-Identifier: MIT
"""The verbs about edits: watch, push, undo, redo, history, status, why; and doctor."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hotreload.cli.command import (
    Globals,
    checkpoints_option,
    init_changes_option,
    json_option,
    load_option,
    make_option,
    max_rung_option,
    max_units_option,
    output_option,
    patch_option,
    verb,
)
from hotreload.config import PACKAGED_KERNEL, Config, wants_color
from hotreload.errors import InputError
from hotreload.interrupts import run

if TYPE_CHECKING:
    from hotreload.diff.object_diff import ObjectDiff
    from hotreload.elf.model import ObjectFile
    from hotreload.report.console import Console
    from hotreload.report.outcome import ReloadReport
    from hotreload.session.guests import About

REFUSED = 4
CODE = re.compile(r"(?:HR)?\d{4}", re.IGNORECASE)
path_argument = click.argument("paths", nargs=-1, metavar="[PATH]..", type=click.Path(path_type=Path))


class WithCommand(click.Command):
    """A command after which ``--`` and a command for the guest may follow.

    That command is in ``context.meta["command"]``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            position = args.index("--")
            ctx.meta["command"] = guest_command(args[position + 1 :])
            args = args[:position]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND..]"]


def guest_command(words: list[str]) -> str | None:
    """Return words as a shell command.

    A single word is the command itself. Several words are a program and its arguments.
    """
    return (words[0] if len(words) == 1 else shlex.join(words)) or None


def console_of(options: Globals, config: Config) -> Console:
    """Return the console for this command's text for people."""
    from hotreload.report.console import Console

    return Console(color=config.color, quiet=options.quiet)


def one_folder(paths: tuple[Path, ...]) -> Path:
    """Return the folder that is meant, by default the current one. Raises InputError (HR1009)."""
    if len(paths) > 1:
        raise InputError(
            "only one folder at a time: a guest has the modules of one folder",
            hint="start one hotreload for each folder",
        )
    folder = (paths[0] if paths else Path.cwd()).resolve()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", hint="name the folder of a module")
    return folder


def watched(folder: Path, options: Globals) -> tuple[Path, Config]:
    """Return what is worked on in a folder, a module or a kernel, and the settings for it.

    Raises InputError (HR1009) for a kernel that is not built.
    """
    from hotreload.build.kernel_tree import watched_kernel

    config = options.config(folder)
    named = None if config.kernel == PACKAGED_KERNEL else config.kernel
    found = watched_kernel(folder, named)
    return (folder, config) if found is None else (found[0], dataclasses.replace(config, kernel=found[1]))


def session_here(options: Globals, folder: Path | None = None) -> About:
    """Return the session that is meant. Raises GuestUnreachableError (HR4103)."""
    from hotreload.session.guests import find_session

    return find_session(options.config(folder).guest, folder or Path.cwd())


def answer_of(about: About, request: str, **fields: object) -> dict[str, Any]:
    """Return the session's answer to a request. Raises RemoteError, GuestUnreachableError."""
    from hotreload.session.control import answer
    from hotreload.session.guests import place_of

    return run(answer(place_of(about.guest), request, **fields))


def print_json(value: object) -> None:
    """Print one object to standard output."""
    click.echo(json.dumps(value))


@verb("watch", cls=WithCommand)
@path_argument
@click.option("--once", is_flag=True, help="End after the first cycle, with its exit status.")
@click.option("--dry-run", is_flag=True, help="Build and compare; send nothing to the guest.")
@max_rung_option
@init_changes_option
@max_units_option
@checkpoints_option
@load_option
@make_option
@json_option
def watch(options: Globals, paths: tuple[Path, ...], once: bool, dry_run: bool) -> int:
    """Boot a guest, or use the running one; from then on, each save goes live in it a moment later.

    A COMMAND after -- is run in the guest after each reload.
    """
    from hotreload.session import client
    from hotreload.session.guests import find_running
    from hotreload.session.service import run_session

    folder, config = watched(one_folder(paths), options)
    console = console_of(options, config)
    wish = client.Wish(once, click.get_current_context().meta.get("command"), options.json)
    running = find_running(config.guest, folder)
    if running and running.background and not dry_run:
        return run(client.attach(running, wish, console))
    stream = sys.stdout if options.json else None
    job = client.watch_here(wish, console)
    return run(run_session(folder, config, console, job, stream=stream, dry_run=dry_run))


@verb("push")
@path_argument
@patch_option()
@init_changes_option
@max_units_option
@json_option
def push(options: Globals, paths: tuple[Path, ...], patches: tuple[Path, ...]) -> int:
    """Bring a running guest up to date with the current sources, once.

    With -p, apply source patches to the guest; the files stay as they are, and their next save replaces that.
    """
    files = [str(file.resolve()) for file in patches]
    given = {key: options.flags.get(key) for key in ("max_units", "init_changes")}
    return cycle(options, one_folder(paths), "push", patches=files, **given)


@verb("reload")
@click.argument("modules", nargs=-1, metavar="[MODULE]..")
@json_option
def reload(options: Globals, modules: tuple[str, ...]) -> int:
    """Reload modules, built from the current sources; without names, all modules of the session.

    Their state is lost; hotreload undo goes back to the previous code.
    """
    return cycle(options, None, "reload", modules=modules)


@verb("undo")
@click.argument("number", required=False, type=click.IntRange(min=1))
@click.option("--all", "everything", is_flag=True, help="Go back to the code that the guest booted with.")
@json_option
def undo(options: Globals, number: int | None, everything: bool) -> int:
    """Undo the last reload; or reload NUMBER and all later ones."""
    return cycle(options, None, "undo", number=number, everything=everything)


@verb("redo")
@json_option
def redo(options: Globals) -> int:
    """Redo the reload that was undone last."""
    return cycle(options, None, "redo")


def cycle(options: Globals, folder: Path | None, request: str, **fields: object) -> int:
    """Send a request that ends in a report, and print the report. Return the exit status."""
    from hotreload.session import client

    console = console_of(options, options.config(folder))
    about = session_here(options, folder)
    return run(client.cycle(about, request, fields, console, as_json=options.json))


@verb("history")
@json_option
def history(options: Globals) -> None:
    """List the reloads of the session: what each changed, how it ended, how long it took."""
    from hotreload.report.table import cycles_table
    from hotreload.session.control import report_from

    reports = answer_of(session_here(options), "history")["reports"]
    if options.json:
        print_json({"v": 1, "reports": reports})
        return
    told: list[ReloadReport] = [report_from(report) for report in reports]
    click.echo(cycles_table(told, Path.cwd(), wants_color(options.color, sys.stdout)))


@verb("status")
@json_option
def status(options: Globals) -> None:
    """Show the guest, its modules, the live patches and what holds them up."""
    from hotreload.session.client import status_text

    facts = answer_of(session_here(options), "status")
    if options.json:
        print_json(facts)
    else:
        click.echo(status_text(facts))


@verb("why")
@click.argument("what", required=False, metavar="[NUMBER|CODE]")
def why(options: Globals, what: str | None) -> None:
    """Explain the last refusal, reload NUMBER, or a CODE such as HR2101."""
    from hotreload.report.codes import find_code, long_answer

    if what is not None and (CODE.fullmatch(what) or not what.isdecimal()):
        click.echo(long_answer(find_code(what)), nl=False)
        return
    number = None if what is None else int(what)
    text = answer_of(session_here(options), "why", number=number)["text"]
    click.echo(str(text).rstrip("\n"))


@verb("doctor")
@click.option("--fix", is_flag=True, help="Run the commands that fix what is missing, and check again.")
@json_option
def doctor(options: Globals, fix: bool) -> int:
    """Check everything that this machine must have; say why it matters and how to fix it."""
    from hotreload import doctor

    return doctor.examine(
        options.config(),
        fix=fix,
        as_json=options.json,
        color=wants_color(options.color, sys.stdout),
        terse=options.quiet,
    )


@verb("diff")
@click.argument("original", type=click.Path(path_type=Path, readable=False))
@click.argument("patched", type=click.Path(path_type=Path, readable=False))
@output_option("OUT.o", "Write an object with what a patch would contain.")
@json_option
def diff(options: Globals, original: Path, patched: Path, output: Path | None) -> int:
    """Show what changed between two objects of one unit, and whether a live patch could do that."""
    import time

    from hotreload.cli.output_file import check_output
    from hotreload.diff.unit_diff import diff_unit, unit_object_of
    from hotreload.elf.input_check import check_pair
    from hotreload.elf.reader import read_object
    from hotreload.report.diff_json import diff_object, diff_text

    started = time.monotonic()
    if output is not None:
        check_output(output, (original, patched))
    objects = read_object(original), read_object(patched)
    check_pair(*objects)
    found = diff_unit(unit_object_of(objects[0]), unit_object_of(objects[1]), {})
    if options.json:
        click.echo(json.dumps(diff_object(found, (time.monotonic() - started) * 1000)))
    else:
        click.echo(diff_text(found), nl=False)
    if output is not None:
        _write_excerpt(options, output, found, objects[1])
    return REFUSED if found.obstacles else 0


def _write_excerpt(options: Globals, output: Path, found: ObjectDiff, patched: ObjectFile) -> None:
    from hotreload.cli.output_file import remove_output, write_output
    from hotreload.patch.excerpt import write_excerpt

    if found.verdict == "patchable":
        write_output(output, write_excerpt(found, patched))
        return
    remove_output(output)
    if not options.quiet:
        click.echo(f"hotreload: {found.verdict}, so {output} was not written", err=True)
