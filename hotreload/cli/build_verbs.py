# SPDX-License-Identifier: MIT
"""The verb build: make a livepatch module file of source patches."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hotreload.cli.command import Globals, json_option, output_option, patch_option, verb
from hotreload.cli.verbs import console_of, one_folder, path_argument, print_json, watched
from hotreload.interrupts import run

if TYPE_CHECKING:
    from hotreload.config import Config
    from hotreload.patch_build import PatchBuild
    from hotreload.report.console import Console


@verb("build")
@path_argument
@patch_option(required=True)
@output_option("OUT.ko", "File to write; default: livepatch-FIX.ko in this folder.")
@json_option
def build(options: Globals, paths: tuple[Path, ...], patches: tuple[Path, ...], output: Path | None) -> int:
    """Build a livepatch module from source patches, for the module in PATH as it is now.

    Without PATH, in a folder without a module, it is for the kernel that -K names, if that has its sources.
    The sources stay as they are. No guest is needed: insmod the file where the driver runs.
    """
    from hotreload.cli.output_file import check_output, remove_output, write_output
    from hotreload.patch_build import default_output

    folder, config = watched(_meant(paths, options), options)
    output = output or default_output(patches[0])
    check_output(output, patches)
    check_output(output, _made_by_kbuild(output))
    console = console_of(options, config)
    built = run(_build(folder, config, patches, output, console))
    console.report(built.report)
    if built.module is not None:
        write_output(output, built.module)
    else:
        remove_output(output)
    _print_result(options, built, output, folder)
    return built.report.outcome.exit_status


def _meant(paths: tuple[Path, ...], options: Globals) -> Path:
    """Return the folder whose sources the patches are for."""
    from hotreload.build.external_module import builds_modules
    from hotreload.build.kernel_tree import kernel_root, sources_of

    here = one_folder(paths)
    if paths or kernel_root(here) or builds_modules(here):
        return here
    return sources_of(options.config(here).kernel) or here


async def _build(
    folder: Path, config: Config, patches: tuple[Path, ...], output: Path, console: Console
) -> PatchBuild:
    from hotreload.build.debian_kernel import open_kernel
    from hotreload.build.kernel_tree import check_fit
    from hotreload.patch_build import Order, build_patch, module_name_of

    with console.progress("building") as progress:
        kernel = await open_kernel(config.kernel, progress.update)
        check_fit(kernel)
        return await build_patch(Order(folder, kernel, patches, module_name_of(output)), progress.update)


def _made_by_kbuild(output: Path) -> tuple[Path, ...]:
    """Return the output file if it is the driver itself, which a patch module must not overwrite."""
    return (output,) if output.with_suffix(".mod.c").is_file() else ()


def _print_result(options: Globals, built: PatchBuild, output: Path, folder: Path) -> None:
    """Print the result to standard output.

    With --json this is all of it. Otherwise it is the name of the file, if one was written.
    """
    if options.json:
        from hotreload.report.build_json import build_object

        diffs = {each.pair.unit.object: each.diff for each in built.compared}
        sources = {each.pair.unit.object: each.pair.unit.source for each in built.compared}
        module = output if built.module is not None else None
        print_json(build_object(diffs, sources, built.obstacles, module, folder))
    elif built.module is not None:
        click.echo(str(output), file=sys.stdout)
