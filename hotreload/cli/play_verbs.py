# SPDX-License-Identifier: MIT
"""The verbs that play with the example driver: demo and bench."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hotreload.cli.command import Globals, json_option, verb
from hotreload.cli.verbs import console_of
from hotreload.config import wants_color


@verb("demo")
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the edited driver in DIR.",
)
def demo(options: Globals, keep: Path | None) -> int:
    """Show hotreload at work on an example driver: each edit, and what changes in the guest."""
    from hotreload.demo.play import play

    color = wants_color(options.color, sys.stdout)
    return play(options.config(), sys.stdout, color=color, keep=keep)


@verb("bench")
@click.option(
    "-n",
    "--edits",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="How many edits to time.",
)
@json_option
def bench(options: Globals, edits: int) -> int:
    """Time each stage on this machine, and compare with the bare compile, module reloads and reboots."""
    from hotreload.demo.bench import measure

    config = options.config()
    color = wants_color(options.color, sys.stdout)
    return measure(edits, config, console_of(options, config), sys.stdout, as_json=options.json, color=color)
