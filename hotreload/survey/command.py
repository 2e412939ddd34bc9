# SPDX-License-Identifier: MIT
"""The common parts of scripts/self-check and scripts/real-fixes: options, the kernel, printing of results."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from hotreload.build.kernel_config import config_file
from hotreload.errors import CompileError, HotReloadError
from hotreload.paths import cache_folder
from hotreload.survey.answers import Answer, Survey
from hotreload.survey.kernel_build import (
    NEW_VERSION,
    OLD_VERSION,
    PACKAGE,
    build_kernel,
    fetch_source,
)

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True, slots=True)
class Options:
    """The command line options.

    ``old``, ``new``: folders of unpacked sources, or None for the packaged ones. ``limit``: the number of
    pairs, spread evenly, or None for all.
    """

    old: Path | None
    new: Path | None
    work: Path
    config: str
    jobs: int
    limit: int | None
    only: str
    json: Path | None
    guest: bool = False


def parse_options(description: str, argv: Sequence[str] | None = None, *, new: bool = False) -> Options:
    """Parse the command line. ``new``: also accept the options for comparing with another release."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--old", type=Path, metavar="DIR", help=f"sources to build (default: {OLD_VERSION}, by apt)"
    )
    if new:
        parser.add_argument(
            "--new",
            type=Path,
            metavar="DIR",
            help=f"sources to compare with (default: {NEW_VERSION}, by apt)",
        )
        parser.add_argument("--guest", action="store_true", help="also load the patches into a guest")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for builds; it is reused")
    parser.add_argument(
        "--config", metavar="NAME", default="virtio", help="configuration of the kernel, or a file with one"
    )
    parser.add_argument(
        "--jobs", type=_count, metavar="N", default=os.cpu_count() or 1, help="number of parallel jobs"
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="compare only N pairs, spread evenly")
    parser.add_argument("--only", metavar="TEXT", default="", help="only units whose path contains TEXT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results as JSON")
    given = parser.parse_args(argv)
    return Options(
        given.old,
        given.new if new else None,
        given.work or cache_folder() / "survey",
        given.config,
        given.jobs,
        given.limit,
        given.only,
        given.json,
        new and given.guest,
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def run(main: Callable[[Options], Coroutine[None, None, int]], options: Options) -> int:
    """Run ``main``, and return the exit status. Print a HotReloadError and its hint in two lines."""
    try:
        return asyncio.run(main(options))
    except HotReloadError as error:
        said = error.diagnostics if isinstance(error, CompileError) else ""
        print(f"{said}{error.code} {error.message}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


@contextlib.asynccontextmanager
async def survey_of(options: Options) -> AsyncIterator[Survey]:
    """Build the kernel, and start workers for ``jobs`` pairs at a time."""
    source = options.old or await fetch_source(PACKAGE, OLD_VERSION, say)
    config = config_file(options.config)
    kernel = await build_kernel(source, options.work / "kernel", config, options.jobs, say)
    say(f"{len(kernel.units)} units in {kernel.output}")
    # A forked worker would inherit the pipes that compilers read from. They would never see an end of file.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=_end_with_us) as workers:
        yield Survey(kernel, options.work, asyncio.Semaphore(options.jobs), workers)


def _end_with_us() -> None:
    """Make a worker end with the command, however that ends, and ignore Ctrl-C, which the command handles."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def spread(items: Sequence[T], limit: int | None) -> Sequence[T]:
    """Return at most ``limit`` of the items, spread evenly."""
    if limit is None or limit >= len(items):
        return items
    return [items[number * len(items) // limit] for number in range(limit)]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def print_answer(answer: Answer) -> None:
    """Print a line for a pair, and one for each of its obstacles."""
    count = len(answer.changed)
    what = f"  {count} function{'s' * (count != 1)} changed" if count else ""
    print(f"{answer.verdict:<10} {answer.unit}{what}", flush=True)
    for code, _symbol, message in answer.obstacles:
        print(f"           {code} {message}", flush=True)


def print_counts(answers: Iterable[Answer]) -> None:
    """Print how many pairs have each verdict, the refused ones by code, and the time of the differ."""
    answers = list(answers)
    for verdict, count in sorted(Counter(answer.verdict for answer in answers).items()):
        print(f"{count:6} {verdict}")
    codes = Counter(code for a in answers if a.verdict == "refused" for code in {o[0] for o in a.obstacles})
    for code, count in sorted(codes.items()):
        print(f"       {count:6} for {code}")
    compared = sorted(answer.seconds for answer in answers if answer.seconds)
    if compared:
        longest = max(answers, key=lambda answer: answer.seconds)
        symbols, relocations = longest.size
        print(
            f"differ: median {compared[len(compared) // 2] * 1000:.0f} ms, longest "
            f"{longest.seconds * 1000:.0f} ms ({longest.unit}: {symbols} symbols, {relocations} relocations)"
        )


def write_json(
    answers: Iterable[Answer], file: Path | None, in_guest: Mapping[str, object] | None = None
) -> None:
    """Write all answers as a JSON list, sorted by unit. ``in_guest``: results of guest trials, by unit."""
    if file is not None:
        found = in_guest or {}
        rows = [
            asdict(answer) | ({"guest": found[answer.unit]} if answer.unit in found else {})
            for answer in sorted(answers, key=lambda answer: answer.unit)
        ]
        file.write_text(json.dumps(rows, indent=1) + "\n")
