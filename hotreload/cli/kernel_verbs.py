# SPDX-License-Identifier: MIT
"""The verbs about the kernel: ``hotreload kernel ...``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hotreload.cli.command import Commands, Globals, cli, json_option, verb, with_global_options
from hotreload.cli.verbs import console_of, one_folder, path_argument, print_json
from hotreload.config import PACKAGED_KERNEL
from hotreload.interrupts import run

if TYPE_CHECKING:
    from hotreload.build.base import Base
    from hotreload.build.kernel_make import MadeKernel
    from hotreload.build.kernel_tree import KernelTree
    from hotreload.report.console import Progress


@cli.group(cls=Commands)
@with_global_options
def kernel() -> None:
    """Build and inspect the kernel that guests boot and modules are built against."""


@verb("build", kernel)
@path_argument
@click.option(
    "--config",
    metavar="minimal|virtio|debug|FILE",
    help="Configuration to start from; default: the existing .config, or minimal.",
)
@click.option(
    "-O",
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Build in DIR; default: in the source tree.",
)
@click.option(
    "-j",
    "--jobs",
    metavar="N",
    type=click.IntRange(1),
    help="Number of parallel compilers; default: one for each processor.",
)
@json_option
def build_kernel(
    options: Globals, paths: tuple[Path, ...], config: str | None, output: Path | None, jobs: int | None
) -> None:
    """Build a kernel from the sources in PATH that can be live patched and booted as a guest.

    An existing .config gets the few options that this needs, and otherwise stays as it is.
    """
    from hotreload.build.kernel_config import config_file
    from hotreload.build.kernel_make import find_source

    named = options.flags.get("kernel")
    source, output = find_source(one_folder(paths or ((Path(str(named)),) if named else ())), output)
    file = None if config is None else config_file(config)
    console = console_of(options, options.config(source))
    with console.progress("building the kernel") as bar:
        made = run(_make_and_record(source, output, file, jobs or os.cpu_count() or 1, bar))
    if options.json:
        print_json({"v": 1, **made.facts()})
    else:
        console.say(made.told())


async def _make_and_record(
    source: Path, output: Path, config: Path | None, jobs: int, bar: Progress
) -> MadeKernel:
    from hotreload.build.kernel_make import make_kernel
    from hotreload.build.kernel_progress import on_bar

    made = await make_kernel(source, output, config, jobs, on_bar(bar))
    await _record(made.tree, bar)
    return made


async def _record(tree: KernelTree, bar: Progress) -> Base:
    """Record what the kernel was built from, and prepare what its patches need."""
    from hotreload.build.kernel_record import record_kernel
    from hotreload.patch.glue import build_glue

    base = await record_kernel(tree, bar.update)
    await build_glue(tree, bar.update, base)
    return base


@verb("record", kernel)
@path_argument
@json_option
def record(options: Globals, paths: tuple[Path, ...]) -> None:
    """Record the sources of the kernel that was built in PATH, so that later edits are recognized.

    Use this for a kernel that was built by hand. `kernel build` and the first watch do it on their own.
    """
    from hotreload.build.debian_kernel import open_kernel
    from hotreload.build.kernel_tree import check_fit, watched_kernel

    folder = one_folder(paths)
    config = options.config(folder)
    found = watched_kernel(folder, None if config.kernel == PACKAGED_KERNEL else config.kernel)
    where = found[1] if found else str(folder)
    console = console_of(options, config)

    async def recorded(bar: Progress) -> Base:
        tree = await open_kernel(where, bar.update)
        check_fit(tree)
        return await _record(tree, bar)

    with console.progress("recording the kernel") as bar:
        base = run(recorded(bar))
    count = f"{len(base.units)} units, {len(base.digests)} files"
    if options.json:
        facts = {"units": len(base.units), "files": len(base.digests), "base": str(base.folder)}
        print_json({"v": 1, "release": base.tree.release, "output": str(base.tree.output), **facts})
    else:
        console.say(f"recorded {base.tree.release} in {base.tree.output}: {count}")


@verb("info", kernel)
@json_option
def info(options: Globals) -> int:
    """Show the kernel that -K names: its parts, its compiler, and whether it can be live patched."""
    from hotreload.build.debian_kernel import open_kernel
    from hotreload.build.kernel_tree import check_fit, kernel_compiler, unmet_needs

    tree = run(open_kernel(options.config().kernel, lambda line: click.echo(line, err=True)))
    compiler = run(kernel_compiler(tree))
    facts = {
        "release": tree.release,
        "arch": tree.arch,
        "source": str(tree.source),
        "output": str(tree.output),
        "image": str(tree.image),
        "modules": None if tree.modules is None else str(tree.modules),
        "compiler": compiler.version,
        "note": compiler.note,
        "unmet": [need.told for need in unmet_needs(tree)],
    }
    if options.json:
        print_json({"v": 1, **facts})
    else:
        for name, value in facts.items():
            if isinstance(value, str):
                click.echo(f"{name:<9} {value}")
    check_fit(tree)
    return 0
