# SPDX-License-Identifier: MIT
"""`scripts/replay-history`: push the commits of a real driver, one after the other, into one live guest.

First each commit that builds is booted in a fresh guest. Its workload is run, and the code and constants of
its modules are read from memory. Then one guest boots the oldest commit, and each further commit is checked
out and pushed. If hotreload reports success, the guest must be like the fresh one: the workload prints the
same, and the running functions and the constants that they read are the same. After a refusal or a wrong
result, the guest is booted again, so that each commit is judged by itself. It is also booted again if bugs of
the driver itself damage the guest, which is so if loading the same commits one after the other without any
patch damages another guest, too.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hotreload.build.debian_kernel import fetch_debian_kernel, open_kernel
from hotreload.build.kernel_tree import KernelTree
from hotreload.demo.driven import guest_name
from hotreload.errors import HotReloadError, InputError
from hotreload.interrupts import run as run_main
from hotreload.paths import cache_folder
from hotreload.survey.command import say
from hotreload.survey.debug_kernel import DEBUG, debug_kernel, wanted_kernel
from hotreload.survey.history_code import Reading, differences, renamed, told_renames
from hotreload.survey.history_fresh import Fresh, FreshGuests, all_printed
from hotreload.survey.history_guest import HistoryGuest, Pushed, kind_of
from hotreload.survey.history_kept import Kept
from hotreload.survey.history_lines import Lines, Texts
from hotreload.survey.history_rows import CLAIMS, Row, line_differences, shares, tell
from hotreload.survey.history_source import History, Made, Workload, read_workload

COMMITS = 40
GENERIC = "generic"
LEAKS_EVERY = 10


@dataclass(frozen=True, slots=True)
class Options:
    """The command line options.

    ``source``: a git bundle or repository. ``kernel``: as hotreload's ``-K``, or ``generic`` or ``debug``.
    """

    source: str
    commits: int
    kernel: str
    workload: Path | None
    until: str
    json: Path | None
    keep: Path | None


class Replay:
    """The replay of one history on one kernel with one workload."""

    def __init__(
        self, history: History, kernel: KernelTree, workload: Workload, scratch: Path, kept: Kept
    ) -> None:
        self._history = history
        self._kernel = kernel
        self._workload = workload
        self._scratch = scratch
        self._kept = kept
        self._since: list[Texts] = []  # the sources at each push since the guest booted
        self._renamed: dict[str, str] = {}  # functions of the guest, by their names when it booted

    async def built(self, until: str, wanted: int) -> list[Made]:
        """Return the ``wanted`` newest commits that build, and one more to begin with, the oldest first."""
        found: list[Made] = []
        for commit in await self._history.commits(until):
            made = await self._kept.found(
                f"{commit.name} made", functools.partial(self._history.make, commit, self._kernel)
            )
            say(f"{commit.name} {'builds' if made else 'does not build'}: {commit.subject[:60]}")
            if made:
                found.append(made)
            if len(found) > wanted:
                break
        if len(found) < 2:
            raise InputError(
                "fewer than two commits of this history build", hint="name a different kernel with --kernel"
            )
        return found[::-1]

    def guest(self) -> HistoryGuest:
        name = guest_name("history")
        return HistoryGuest(
            self._history.folder, name, str(self._kernel.output), self._workload.load, self._scratch
        )

    async def fresh(self, made: Sequence[Made], guests: FreshGuests) -> list[Fresh]:
        """Boot each commit in a fresh guest, but only one of several with the same build."""
        found: dict[str, Fresh] = {}
        for each in made:
            if each.digest not in found:
                boot = functools.partial(guests.found, each)
                found[each.digest] = await self._kept.found(f"{each.commit.name} fresh", boot)
        return [replace(found[each.digest], made=each) for each in made]

    async def rows(
        self, freshly_booted: Sequence[Fresh], guests: FreshGuests, tell: Callable[[Sequence[Row]], None]
    ) -> list[Row]:
        """Push each commit but the first into a running guest. After each, call ``tell`` with all rows."""
        fresh = list(freshly_booted)
        rows: list[Row] = []
        before = ""
        while len(rows) + 1 < len(fresh):
            place = len(rows)
            await self._history.clean()
            await self._history.check_out(fresh[place].made.commit)
            self._since, self._renamed = [self._history.texts()], {}
            async with self.guest() as guest:
                try:
                    if not before:
                        await all_printed(guest, fresh[place], self._workload.parts)
                    await guest.splats()
                except HotReloadError:
                    # This commit's own workload crashes the guest, at least this time, so do not run it.
                    fresh[place] = replace(fresh[place], printed=(None,) * len(self._workload.parts))
                    continue
                while len(rows) + 1 < len(fresh):
                    row = await self._row(guest, fresh, len(rows) + 1, guests)
                    chain = fresh[place : len(rows) + 2]
                    if not row.is_good and not before and await guests.are_harmful(chain):
                        before = row.text()
                        break
                    row, before = replace(row, before=before), ""
                    rows.append(row)
                    tell(rows)
                    if not row.is_good:
                        break
        return rows

    async def _row(self, guest: HistoryGuest, every: Sequence[Fresh], place: int, guests: FreshGuests) -> Row:
        fresh = every[place]
        commit = fresh.made.commit
        started = time.monotonic()
        await self._history.check_out(commit)
        pushed = await guest.push()
        # A reload has loaded the functions under the names of the sources.
        self._renamed = {} if pushed.outcome == "reloaded" else self._renamed | told_renames(pushed.text)
        differs: list[str] = []
        complaints: list[str] = []
        is_as_before = pushed.outcome == "no change" and fresh.made.digest == every[place - 1].made.digest
        try:
            if pushed.outcome in CLAIMS and not is_as_before:
                differs = await self._differs(guest, fresh, guests)
            complaints = [line for line in await guest.splats() if kind_of(line) not in fresh.splats]
            if place % LEAKS_EVERY == 0:
                complaints += await guest.leaks()
        except HotReloadError as error:
            differs = [f"after {pushed.outcome}: {error.message}"]
            pushed = Pushed("lost", pushed.codes, pushed.text)
        seconds = round(time.monotonic() - started, 1)
        return Row(
            commit.name, commit.subject, pushed.outcome, pushed.codes, tuple(differs), tuple(complaints),
            seconds, pushed.text,
        )  # fmt: skip

    async def _differs(self, guest: HistoryGuest, fresh: Fresh, guests: FreshGuests) -> list[str]:
        """Return the differences between the guest and one that was freshly booted with this commit."""
        lines = Lines(self._history.texts(), self._since)
        self._since.append(lines.now)
        found: list[str] = []
        if not self._kernel.option("KASAN"):
            # With KASAN, a patch is compiled with a flag of hotreload's own (build/replay.py).
            readings = await guest.read(fresh.made.names)
            found = [
                line
                for name, wanted in fresh.readings.items()
                for line in differences(wanted, renamed(readings[name], self._gone(wanted)), lines)
            ]
        printed = await all_printed(guest, fresh, self._workload.parts)
        if any(map(line_differences, fresh.printed, printed)):
            # Ignore output that differs between two fresh boots.
            again = (await guests.found(fresh.made)).printed
            printed = [
                live if one == other else one
                for one, other, live in zip(fresh.printed, again, printed, strict=True)
            ]
        return [line for pair in map(line_differences, fresh.printed, printed) for line in pair] + found

    def _gone(self, fresh: Reading) -> dict[str, str]:
        """Return the renamed functions whose old names the sources no longer have."""
        return {old: new for old, new in self._renamed.items() if old not in fresh.functions}


async def kernel_named(name: str) -> KernelTree:
    """Return a kernel: ``generic`` is Debian's with all drivers, ``debug`` our own, others as for ``-K``."""
    if name == GENERIC:
        return await fetch_debian_kernel(say, "amd64")
    return await debug_kernel(say) if name == DEBUG else await open_kernel(name, say)


async def replay(options: Options, scratch: Path) -> list[Row]:
    """Build each commit, boot each in a fresh guest, and push each. Return the rows of the pushes."""
    workload = read_workload(options.workload.read_text() if options.workload else "")
    kernel = await kernel_named(options.kernel)
    # Use the same folder in each run, because the path is part of the code if it uses __FILE__.
    folder = (options.keep or scratch).resolve() / Path(options.source).stem.removesuffix(".git")
    shutil.rmtree(folder, ignore_errors=True)
    history = await History.cloned(options.source, folder, scratch / "out", workload)
    kept = Kept(options.keep, (str(folder), str(kernel.output), kernel.release, repr(workload)))
    it = Replay(history, kernel, workload, scratch, kept)
    made = await it.built(options.until, options.commits)
    say(f"{len(made)} commits build; booting each of them")
    async with FreshGuests(history, workload, it.guest) as guests:
        fresh = await it.fresh(made, guests)
        return await it.rows(fresh, guests, lambda rows: tell(rows, options.json))


def workload_for(source: str) -> Path | None:
    """Return our workload for a repository of this name, if there is one."""
    file = Path(__file__).with_name("workloads") / f"{Path(source).stem.removesuffix('.git')}.sh"
    return file if file.is_file() else None


def parse(argv: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description="Replay a driver's history in a live guest.")
    parser.add_argument("source", metavar="BUNDLE|REPO")
    parser.add_argument(
        "--commits",
        type=int,
        default=COMMITS,
        metavar="N",
        help=f"replay the newest N commits that build (default: {COMMITS})",
    )
    parser.add_argument("--until", default="HEAD", metavar="COMMIT", help="newest commit to replay")
    parser.add_argument(
        "--kernel",
        default=wanted_kernel(),
        metavar="K",
        help="kernel, as for hotreload watch; also generic, debug",
    )
    parser.add_argument(
        "--workload",
        type=Path,
        metavar="FILE",
        help="shell script to run in the guest; default: the one of that name, if any",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows as JSON")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the results of fresh boots here for another run"
    )
    given = parser.parse_args(argv)
    if given.keep is not None and ":" in str(given.keep.absolute()):
        parser.error(f"--keep {given.keep}: make cannot build in a folder with a colon in its name")
    source = str(Path(given.source).resolve()) if Path(given.source).exists() else given.source
    workload = given.workload or workload_for(source)
    return Options(source, given.commits, given.kernel, workload, given.until, given.json, given.keep)


def main() -> int:
    """Run the replay. Return the exit status, which is 1 if anything was wrong or lost."""
    options = parse()
    # An interrupted build may still write to this folder while it is deleted.
    place = tempfile.TemporaryDirectory(prefix="hr-history-", dir=cache_folder(), ignore_cleanup_errors=True)
    with place as scratch:
        try:
            rows = run_main(replay(options, Path(scratch)))
        except HotReloadError as error:
            print(f"{error.code} {error.message}; {error.hint}", file=sys.stderr)
            return error.exit_status
        except KeyboardInterrupt:
            return 130
    print(*shares(rows), sep="\n")
    return 1 if any(row.is_wrong or row.is_lost for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
