# SPDX-License-Identifier: MIT
"""What all verbs share: the global options, the decorator that makes a function a verb, and their group.

A verb is a function under ``@verb("name")``. It gets ``Globals`` (the values of the options that every verb
has), imports its stage late, and returns its exit status, or None for 0. Its docstring is its help text.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from hotreload import __version__
from hotreload.config import INIT_CHANGES, RUNGS, Config, load_config, nearest, settings

Verb = Callable[..., int | None]
Decorator = Callable[[Verb], Verb]


@dataclass(slots=True)
class Globals:
    """The values of the global options, given before or after the name of the verb. The last one wins."""

    json: bool = False
    quiet: bool = False
    verbose: int = 0
    flags: dict[str, object] = field(default_factory=dict)

    def config(self, folder: Path | None = None) -> Config:
        """Return the settings for ``folder`` (default: the current one). Raises InputError (HR1008)."""
        return load_config(folder or Path.cwd(), self.flags)

    @property
    def color(self) -> str:
        """auto, always or never, for output before there is a Config, or without one."""
        said = self.flags.get("color") or os.environ.get("HOTRELOAD_COLOR")
        return str(said or ("never" if os.environ.get("NO_COLOR") else "auto"))

    def start_logging(self) -> None:
        """Set the log level. -q: errors only; -v: what is done; -vv: every program, ready to paste."""
        import logging

        level = logging.ERROR if self.quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[self.verbose]
        logging.basicConfig(format="hotreload: %(message)s", stream=sys.stderr)
        logging.getLogger("hotreload").setLevel(level)


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    options: Globals = context.obj
    if value in (None, False, ()) or option.name is None:
        return  # not given here, but maybe before the verb
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
    """Return an option for a key of Config, which is its last name. The help text is that of the key."""
    return _global(*names, **{"help": f"{_sentence(settings()[names[-1]])}.", **attributes})


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


json_option = _global("--json", "json", is_flag=True, help="Print JSON on stdout.")
max_rung_option = setting("--max-rung", "max_rung", type=click.Choice(RUNGS))
init_changes_option = setting("--init-changes", "init_changes", type=click.Choice(INIT_CHANGES))
max_units_option = setting("--max-units", "max_units", metavar="N", type=click.IntRange(1))
checkpoints_option = setting("--checkpoints", "checkpoints", type=click.Choice(("on", "off")))
load_option = setting("--load", "load", multiple=True, metavar="'MODULE [PARAM=VALUE]'")

make_option = setting("--make", "make", multiple=True, metavar="NAME=VALUE")


def patch_option(*, required: bool = False) -> Decorator:
    """Return the option ``-p FILE``, which may be repeated, as the argument ``patches``."""
    return click.option(
        "-p", "--patch", "patches", metavar="FIX.patch", multiple=True, required=required,
        type=click.Path(path_type=Path),
        help="Source patch (git diff, diff -u); several are applied in order.",
    )  # fmt: skip


def output_option(metavar: str, text: str) -> Decorator:
    """Return the option ``-o FILE`` as the argument ``output``.

    output_file.py checks and writes the file.
    """
    return click.option("-o", "--output", metavar=metavar, type=click.Path(path_type=Path), help=text)


GLOBAL_OPTIONS = (
    _global(
        "-C",
        "directory",
        metavar="DIR",
        type=click.Path(exists=True, file_okay=False),
        is_eager=True,  # before any path is looked at
        help="Change to DIR first.",
    ),
    setting("-K", "--kernel", "kernel", metavar="KERNEL"),
    setting("--guest", "guest", metavar="NAME"),
    setting("--color", "color", type=click.Choice(["auto", "always", "never"])),
    _global("-q", "--quiet", "quiet", is_flag=True, help="Print only errors."),
    _global(
        "-v",
        "--verbose",
        "verbose",
        count=True,
        help="Print what is done; -vv: also every program that is run.",
    ),
)


def with_global_options(command: Any) -> Any:
    """Add the options that every verb has to a command or a group of commands."""
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(GLOBAL_OPTIONS), command)


class Commands(click.Group):
    """A group that answers an unknown command with the nearest known one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            close = nearest(name, self.list_commands(ctx))
            ctx.fail(f"no such command: '{name}'" + (f"; did you mean '{close}'?" if close else ""))
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="hotreload COMMAND --help describes a command; hotreload why CODE explains a code.",
)
@with_global_options
@click.version_option(__version__, prog_name="hotreload", message="%(prog)s %(version)s")
def cli() -> None:
    """Save a kernel source file; a second later the running guest executes it."""


def verb(name: str, group: click.Group = cli, **attributes: Any) -> Decorator:
    """Return a decorator that makes a function the command ``name``. It gets Globals and its own options."""

    def decorate(function: Verb) -> Verb:
        @functools.wraps(function)
        @click.pass_obj
        def run(options: Globals, /, **arguments: Any) -> int | None:
            options.start_logging()
            return function(options, **arguments)

        group.command(name, **attributes)(with_global_options(run))
        return function

    return decorate
