# SPDX-License-Identifier: MIT
"""The command line: verbs become a Config and one call each; there is no logic here.

A verb is a function under ``@verb("name")``. It is given ``Globals`` (what the options said that every
verb has), imports its stage late, and returns its exit status, or None for 0. ``main`` alone turns
errors into text and exit status.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from hotreload import __version__
from hotreload.config import RUNGS, Config, load_config, nearest, settings, wants_color
from hotreload.errors import EnvironmentFault, HotReloadError

INTERRUPTED = 130
READER_GONE = 141  # what a shell reports for a program that died of SIGPIPE
USAGE = 2
BUG = 70  # EX_SOFTWARE of sysexits.h

Verb = Callable[..., int | None]
Decorator = Callable[[Verb], Verb]


@dataclass(slots=True)
class Globals:
    """What the global options said, before or behind the verb; what is said later wins."""

    json: bool = False
    quiet: bool = False
    verbose: int = 0
    flags: dict[str, object] = field(default_factory=dict)

    def config(self, folder: Path | None = None) -> Config:
        """The settings that hold for ``folder`` (default: here). Raises InputError (HR1008)."""
        return load_config(folder or Path.cwd(), self.flags)

    @property
    def color(self) -> str:
        """auto, always or never: for what is said before, or without, a Config."""
        said = self.flags.get("color") or os.environ.get("HOTRELOAD_COLOR")
        return str(said or ("never" if os.environ.get("NO_COLOR") else "auto"))

    def start_logging(self) -> None:
        """-q: errors only; -v: what is done; -vv: every program, ready to paste."""
        import logging

        level = logging.ERROR if self.quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[self.verbose]
        logging.basicConfig(format="hotreload: %(message)s", stream=sys.stderr)
        logging.getLogger("hotreload").setLevel(level)


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    options: Globals = context.obj
    if value in (None, False, ()) or option.name is None:
        return  # not given here; perhaps before the verb
    if option.name == "verbose":
        options.verbose = min(2, options.verbose + value)
    elif option.name in ("json", "quiet"):
        setattr(options, option.name, True)
    elif option.name == "directory":
        os.chdir(value)
    else:
        options.flags[option.name] = value


def _global(*names: str, **attributes: Any) -> Decorator:
    return click.option(*names, expose_value=False, callback=_remember, **attributes)


def setting(*names: str, **attributes: Any) -> Decorator:
    """An option that sets the key of Config that its last name names; its help is that key's."""
    return _global(*names, **{"help": f"{_sentence(settings()[names[-1]])}.", **attributes})


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


json_option = _global("--json", "json", is_flag=True, help="For programs: JSON on stdout.")
max_rung_option = setting("--max-rung", "max_rung", type=click.Choice(RUNGS))
load_option = setting("--load", "load", multiple=True, metavar="'MODULE [PARAM=VALUE]'")

GLOBAL_OPTIONS = (
    _global(
        "-C",
        "directory",
        metavar="DIR",
        type=click.Path(exists=True, file_okay=False),
        is_eager=True,  # before any path is looked at
        help="Go to DIR first.",
    ),
    setting("-K", "--kernel", "kernel", metavar="KERNEL"),
    setting("--guest", "guest", metavar="NAME"),
    setting("--color", "color", type=click.Choice(["auto", "always", "never"])),
    _global("-q", "--quiet", "quiet", is_flag=True, help="Errors only."),
    _global("-v", "--verbose", "verbose", count=True, help="Say what is done; -vv: with every program."),
)


def _with_global_options(command: Any) -> Any:
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(GLOBAL_OPTIONS), command)


class _Commands(click.Group):
    """A group whose unknown commands name the nearest known one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            close = nearest(name, self.list_commands(ctx))
            ctx.fail(f"no command '{name}'" + (f"; did you mean '{close}'?" if close else ""))
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="hotreload COMMAND --help says more; hotreload why CODE explains a code.",
)
@_with_global_options
@click.version_option(__version__, prog_name="hotreload", message="%(prog)s %(version)s")
def cli() -> None:
    """Save a kernel source file; a second later the running guest executes it."""


def verb(name: str, group: click.Group = cli, **attributes: Any) -> Decorator:
    """Make the function the command ``name``: it takes Globals and its own options."""

    def decorate(function: Verb) -> Verb:
        @functools.wraps(function)
        @click.pass_obj
        def run(options: Globals, /, **arguments: Any) -> int | None:
            options.start_logging()
            return function(options, **arguments)

        group.command(name, **attributes)(_with_global_options(run))
        return function

    return decorate


@verb("why")
@click.argument("code")
def why(_options: Globals, code: str) -> None:
    """The long answer to a code, such as HR2101."""
    from hotreload.report.codes import find_code, long_answer

    click.echo(long_answer(find_code(code)), nl=False)


@verb("doctor")
@click.option("--fix", is_flag=True, help="Run the commands that mend what is not right, and look again.")
@json_option
def doctor(options: Globals, fix: bool) -> int:
    """Check every precondition; say why it matters and how to mend it."""
    from hotreload import doctor

    return doctor.examine(
        options.config(),
        fix=fix,
        as_json=options.json,
        color=wants_color(options.color, sys.stdout),
        terse=options.quiet,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. Whatever happens, a person reads one line about it."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = Globals()
    try:
        status = _run(words or ["--help"], options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at its end, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except click.ClickException as error:
        return _tell_usage(error, options, words)
    except Exception as error:
        return _tell(_known(error), options)


def _run(words: list[str], options: Globals) -> int:
    if instruction := os.environ.get("_HOTRELOAD_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {"obj": options}, "hotreload", "_HOTRELOAD_COMPLETE", instruction)
    try:
        # Not cli.main(): that answers an interrupt with a text of its own.
        with cli.make_context("hotreload", words, obj=options) as context:
            return cli.invoke(context) or 0
    except click.exceptions.Exit as end:
        return end.exit_code


def _known(error: BaseException) -> HotReloadError:
    """The error of ours that this is, or the bug that it shows."""
    import errno

    while isinstance(error, BaseExceptionGroup):
        ours, _others = error.split(HotReloadError)
        error = (ours or error).exceptions[0]
    if isinstance(error, HotReloadError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = error.filename or "the disk"
        fault = EnvironmentFault(f"no space left: {place}", code="HR5107", hint="free some space: df -h")
        return fault.with_traceback(error.__traceback__)
    return _Bug(error)


class _Bug(HotReloadError):
    """An exception that nobody raised on purpose; its story is kept in a file."""

    exit_status = BUG

    def __init__(self, error: BaseException) -> None:
        import traceback

        text = "".join(traceback.format_exception(error))
        last = traceback.format_exception_only(error)[-1].strip()
        super().__init__(f"hotreload failed: {last}", hint=f"please report it, with {_kept(text)}")
        self.story = text


def _kept(story: str) -> str:
    """Keep what is needed to report a bug; returns where it is."""
    from hotreload.paths import state_folder

    about = f"hotreload {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n\n"
    try:
        file = state_folder() / "last-failure.txt"
        file.write_text(about + story, encoding="utf-8")
    except (HotReloadError, OSError):
        return "what -vv shows"
    return str(file)


def _tell(error: HotReloadError, options: Globals) -> int:
    """One line, and one that says what to do; what the compiler or the console said comes before them."""
    said = getattr(error, "diagnostics", "") or getattr(error, "excerpt", "")
    if isinstance(error, _Bug) and options.verbose == 2:
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
