# SPDX-License-Identifier: MIT
"""`scripts/replay-history`: the commits of a real driver, pushed one after the other into one live guest.

First each commit that builds is booted afresh, its workload is run, and the code and constants of its modules
are read from memory. Then one guest boots the oldest, and each further commit is checked out and pushed. What
the tool says is done must be so: the workload prints the same as freshly booted, and the functions that run
and the constants that they read are the same. After a refusal or a wrong result the guest boots anew, so that
each commit is judged by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hotreload.build.debian_kernel import fetch_debian_kernel, open_kernel
from hotreload.build.kernel_tree import KernelTree
from hotreload.demo.driven import guest_name
from hotreload.errors import HotReloadError, InputError
from hotreload.interrupts import run as run_main
from hotreload.paths import cache_folder
from hotreload.survey.command import say
from hotreload.survey.debug_kernel import DEBUG, debug_kernel, wanted_kernel
from hotreload.survey.history_code import Reading, differences
from hotreload.survey.history_guest import HistoryGuest, Pushed, kind_of
from hotreload.survey.history_source import History, Made, Workload, evenly_named, read_workload

COMMITS = 40
GENERIC = "generic"
# Outcomes that say that the guest is what the sources are.
CLAIMS = frozenset({"live", "no change", "undone", "reloaded", "restored", "rebooted"})
SHOWN = 4  # differences, in a row
LEAKS_EVERY = 10


@dataclass(frozen=True, slots=True)
class Options:
    """``source``: a bundle or a repository; ``kernel``: as of hotreload, or ``generic`` or ``debug``."""

    source: str
    commits: int
    kernel: str
    workload: Path | None
    until: str
    json: Path | None


@dataclass(frozen=True, slots=True)
class Fresh:
    """A commit freshly booted.

    ``printed`` by its workload, None: the driver does not live through it, or it prints something else the
    second time; ``splats``: the kinds of what the
    kernel complains of then, which is the driver's own fault.
    """

    made: Made
    printed: str | None
    readings: dict[str, Reading]
    splats: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a commit. ``differs``: how the guest is otherwise than freshly booted."""

    commit: str
    subject: str
    outcome: str
    codes: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    splats: tuple[str, ...] = ()
    seconds: float = 0.0
    said: str = ""

    @property
    def is_lost(self) -> bool:
        return self.outcome not in {*CLAIMS, "refused", "rejected", "stalled"}

    @property
    def is_wrong(self) -> bool:
        """Said to be done, and it is not; or the kernel complains."""
        return bool(self.splats) or (self.outcome in CLAIMS and bool(self.differs))

    def text(self) -> str:
        verdict = "WRONG" if self.is_wrong else "LOST" if self.is_lost else ""
        head = f"{self.commit:<9} {self.outcome:<10} {' '.join(self.codes):<24} {self.subject[:56]:<56}"
        return "\n".join(
            (
                f"{head} {verdict}".rstrip(),
                *(f"          {line[:300]}" for line in (*self.differs, *self.splats)[:SHOWN]),
            )
        )


def shares(rows: Sequence[Row]) -> list[str]:
    """How many of each outcome, with the codes that led to it; and the sum of what counts."""
    told = []
    for outcome, count in Counter(row.outcome for row in rows).most_common():
        codes = Counter(code for row in rows if row.outcome == outcome for code in row.codes)
        why = ", ".join(f"{code} {number}" for code, number in codes.most_common())
        told.append(f"{count:5} {100 * count / len(rows):5.1f} %  {outcome}{f'  ({why})' if why else ''}")
    for word, number in (
        ("wrong", sum(row.is_wrong for row in rows)),
        ("lost", sum(row.is_lost for row in rows)),
    ):
        told.append(f"{number:5} {100 * number / len(rows):5.1f} %  {word}")
    return told


class Replay:
    """One history, one kernel, one workload."""

    def __init__(self, history: History, kernel: KernelTree, workload: Workload, scratch: Path) -> None:
        self._history = history
        self._kernel = kernel
        self._workload = workload
        self._scratch = scratch

    async def built(self, until: str, wanted: int) -> list[Made]:
        """The newest commits that build, the oldest first, and one more to begin with."""
        found: list[Made] = []
        for commit in await self._history.commits(until):
            made = await self._history.make(commit, self._kernel)
            say(f"{commit.name} {'builds' if made else 'does not build'}: {commit.subject[:60]}")
            if made:
                found.append(made)
            if len(found) > wanted:
                break
        if len(found) < 2:
            raise InputError("no two commits of this history build", hint="name another kernel: --kernel")
        return found[::-1]

    def _guest(self) -> HistoryGuest:
        name = guest_name("history")
        return HistoryGuest(
            self._history.folder, name, str(self._kernel.output), self._workload.load, self._scratch
        )

    async def fresh(self, made: Sequence[Made]) -> list[Fresh]:
        """Each commit freshly booted; of equal neighbours one is."""
        found: list[Fresh] = []
        for each in made:
            if found and found[-1].made.digest == each.digest:
                found.append(replace(found[-1], made=each))
                continue
            await self._history.check_out(each.commit)
            found.append(await self._freshly_booted(each))
        return found

    async def _freshly_booted(self, made: Made) -> Fresh:
        async with self._guest() as guest:
            readings = await guest.read(evenly_named(made.modules))
            try:
                printed: str | None = await self._printed(guest, made)
                if await self._printed(guest, made) != printed:
                    printed = None  # nobody can say then what a reload should make it print
                complaints = await guest.splats()
            except HotReloadError as error:
                printed, complaints = None, [error.message]
        told = complaints[0] if complaints else ""
        say(f"{made.commit.name} freshly booted {told}".rstrip())
        return Fresh(made, printed, readings, frozenset(map(kind_of, complaints)))

    async def _printed(self, guest: HistoryGuest, made: Made) -> str:
        await guest.run("rm -rf /tmp/workload; mkdir /tmp/workload; tar -C /tmp/workload -xf -", made.files)
        return await guest.run("cd /tmp/workload && sh -s 2>&1", self._workload.script.encode())

    async def rows(self, freshly_booted: Sequence[Fresh]) -> list[Row]:
        """Push each commit but the first into a guest that lives."""
        fresh = list(freshly_booted)
        rows: list[Row] = []
        place = 0
        while place + 1 < len(fresh):
            await self._history.clean()
            await self._history.check_out(fresh[place].made.commit)
            async with self._guest() as guest:
                try:
                    if fresh[place].printed is not None:
                        await self._printed(guest, fresh[place].made)
                    await guest.splats()
                except HotReloadError:
                    fresh[place] = replace(fresh[place], printed=None)  # this time it did not live through it
                    continue
                while place + 1 < len(fresh):
                    place += 1
                    row = await self._row(guest, fresh[place], place)
                    rows.append(row)
                    print(row.text(), flush=True)
                    if row.is_wrong or row.outcome not in CLAIMS:
                        break
        return rows

    async def _row(self, guest: HistoryGuest, fresh: Fresh, place: int) -> Row:
        commit = fresh.made.commit
        started = time.monotonic()
        await self._history.check_out(commit)
        pushed = await guest.push()
        differs: list[str] = []
        complaints: list[str] = []
        try:
            if pushed.outcome in CLAIMS:
                differs = await self._differs(guest, fresh)
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

    async def _differs(self, guest: HistoryGuest, fresh: Fresh) -> list[str]:
        """How the guest is otherwise than freshly booted at this commit."""
        readings = await guest.read(evenly_named(fresh.made.modules))
        found = [
            line for name, wanted in fresh.readings.items() for line in differences(wanted, readings[name])
        ]
        if fresh.printed is not None:
            found[:0] = line_differences(fresh.printed, await self._printed(guest, fresh.made))
        return found


def line_differences(fresh: str, live: str) -> list[str]:
    """The first lines in which a workload printed something else."""
    one, other = fresh.splitlines(), live.splitlines()
    length = max(len(one), len(other))
    one, other = ([*lines, *[""] * (length - len(lines))] for lines in (one, other))
    return [f"prints {b!r}, freshly booted {a!r}" for a, b in zip(one, other, strict=True) if a != b][:SHOWN]


async def kernel_named(name: str) -> KernelTree:
    """``generic``: Debian's kernel with all drivers; ``debug``: ours that checks itself; else as ``-K``."""
    if name == GENERIC:
        return await fetch_debian_kernel(say, "amd64")
    return await debug_kernel(say) if name == DEBUG else await open_kernel(name, say)


async def replay(options: Options, scratch: Path) -> list[Row]:
    """Build, boot each, push each."""
    workload = read_workload(options.workload.read_text() if options.workload else "")
    kernel = await kernel_named(options.kernel)
    folder = scratch / Path(options.source).stem.removesuffix(".git")
    history = await History.cloned(options.source, folder, scratch / "out", workload)
    it = Replay(history, kernel, workload, scratch)
    made = await it.built(options.until, options.commits)
    say(f"{len(made)} commits build; each is booted afresh")
    return await it.rows(await it.fresh(made))


def workload_for(source: str) -> Path | None:
    """Ours for a repository of this name, if there is one."""
    file = Path(__file__).with_name("workloads") / f"{Path(source).stem.removesuffix('.git')}.sh"
    return file if file.is_file() else None


def parse(argv: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description="Replay a driver's history in a live guest.")
    parser.add_argument("source", metavar="BUNDLE|REPO")
    parser.add_argument(
        "--commits", type=int, default=COMMITS, metavar="N", help="the newest that build (40)"
    )
    parser.add_argument("--until", default="HEAD", metavar="COMMIT", help="the newest of them")
    parser.add_argument(
        "--kernel", default=wanted_kernel(), metavar="K", help="as of hotreload watch; generic, debug"
    )
    parser.add_argument("--workload", type=Path, metavar="FILE", help="default: ours for that name, if any")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all rows, for other programs")
    given = parser.parse_args(argv)
    source = str(Path(given.source).resolve()) if Path(given.source).exists() else given.source
    workload = given.workload or workload_for(source)
    return Options(source, given.commits, given.kernel, workload, given.until, given.json)


def main() -> int:
    """The exit status: 1 if anything was wrong or lost."""
    options = parse()
    # A build that was interrupted may still write there.
    place = tempfile.TemporaryDirectory(prefix="hr-history-", dir=cache_folder(), ignore_cleanup_errors=True)
    with place as scratch:
        try:
            rows = run_main(replay(options, Path(scratch)))
        except HotReloadError as error:
            print(f"{error.code} {error.message}; {error.hint}", file=sys.stderr)
            return error.exit_status
        except KeyboardInterrupt:
            return 130
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(*shares(rows), sep="\n")
    return 1 if any(row.is_wrong or row.is_lost for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
