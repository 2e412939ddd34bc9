# SPDX-License-Identifier: MIT
"""The command line: run one verb, and turn its outcome into text and an exit status."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click

from hotreload.cli import attach_verb, build_verbs, guest_verbs, kernel_verbs, play_verbs, verbs
from hotreload.cli.command import Globals, cli, json_option, load_option, max_rung_option, setting, verb
from hotreload.cli.failures import Bug, known
from hotreload.config import wants_color
from hotreload.errors import HotReloadError
from hotreload.interrupts import INTERRUPTED

__all__ = ["Globals", "cli", "json_option", "load_option", "main", "max_rung_option", "setting", "verb"]

READER_GONE = 141  # the status that a shell reports for a program that SIGPIPE killed
USAGE = 2

# Importing these modules registers their verbs.
VERBS = (verbs, build_verbs, guest_verbs, attach_verb, kernel_verbs, play_verbs)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. Every failure is reported in one line."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = Globals()
    try:
        status = _run(words or ["--help"], options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more when it exits, and would print an error then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except click.ClickException as error:
        return _tell_usage(error, options, words)
    except Exception as error:
        return _tell(known(error), options)


def _run(words: list[str], options: Globals) -> int:
    if instruction := os.environ.get("_HOTRELOAD_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {"obj": options}, "hotreload", "_HOTRELOAD_COMPLETE", instruction)
    try:
        # Do not use cli.main(), which prints its own text after an interrupt.
        with cli.make_context("hotreload", words, obj=options) as context:
            return cli.invoke(context) or 0
    except click.exceptions.Exit as end:
        return end.exit_code


def _tell(error: HotReloadError, options: Globals) -> int:
    """Print one line about the error, and one that says what to do.

    The output of the compiler or the console comes before them.
    """
    said = getattr(error, "diagnostics", "") or getattr(error, "excerpt", "")
    if isinstance(error, Bug) and options.verbose == 2:
        said = error.story
    if said:
        click.echo(said.rstrip("\n"), err=True)
    _print_error(f"error[{error.code}]", error.message, error.hint, options)
    if options.json:
        _print_json(error.code, error.message, error.hint, error.exit_status)
    return error.exit_status


def _tell_usage(error: click.ClickException, options: Globals, words: Sequence[str]) -> int:
    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".")
    hint = f"{context.command_path if context else 'hotreload'} --help"
    _print_error("error", message[:1].lower() + message[1:], hint, options)
    if options.json or "--json" in words:
        _print_json(None, message, hint, USAGE)
    return USAGE


def _print_error(what: str, message: str, hint: str | None, options: Globals) -> None:
    color = wants_color(options.color, sys.stderr)
    what = click.style(what, fg="red", bold=True) if color else what
    line = " ".join(message.split("\n"))
    click.echo(f"hotreload: {what}: {line}" + (f"\n  hint: {hint}" if hint else ""), err=True, color=color)


def _print_json(code: str | None, message: str, hint: str | None, status: int) -> None:
    fact = {"v": 1, "type": "error", "code": code, "message": message, "hint": hint, "exit_status": status}
    click.echo(json.dumps(fact))
