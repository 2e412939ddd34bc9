# SPDX-License-Identifier: MIT
"""`scripts/soak`: make random edits of a driver at work in a guest, and check the predicted state after each.

A `hotreload watch` is used as people use it: by saving files and by commands. After each edit, the outcome
must be the predicted one, the guest must print what the sources say, its counters must not go back, its
kernel must not complain, and the sources must be as they were saved. At the end, hotreload's own resources
must not have grown. The same seed gives the same edits.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from hotreload.config import PACKAGED_KERNEL
from hotreload.demo.driven import Driven, guest_name
from hotreload.errors import HotReloadError
from hotreload.interrupts import run as run_main
from hotreload.report.outcome import Outcome, ReloadReport
from hotreload.report.table import align
from hotreload.survey.command import say
from hotreload.survey.debug_kernel import wanted_kernel
from hotreload.survey.random_edits import Command, Deed, Panic, RandomEdits, Save
from hotreload.survey.soak_driver import MODULE, Driver, first_driver
from hotreload.survey.soak_model import Expected, Model
from hotreload.survey.soak_session import SILENCE, VALUE_REFUSED, Sample, Seen, SoakSession
from hotreload.survey.soak_texts import never_edited, texts

EDITS = 300
SAMPLE_EVERY = 10
# After this many edits, hotreload has loaded everything that it loads once. From then on, it may grow by so
# many kB in total, and by so many for each edit, for its history and the inputs of each reload.
WARM_UP = 20
RSS_KB, RSS_KB_AN_EDIT = 4096, 100
FILES = THREADS = OTHERS = 2
# After this many reads in a row without progress, the work in the guest counts as hung.
STANDSTILL = 5
# The file in the folder that records each edit and its outcome.
STORY = "story.txt"
# After this many seconds without a cycle, no more are expected for earlier saves.
QUIET = 1.5


class NotAsForetoldError(Exception):
    """The guest or hotreload did not do what was predicted. The message has what was expected and seen."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line options. ``kernel``: as for hotreload. ``keep``: keep the folder in any case."""

    seed: int
    edits: int = EDITS
    kernel: str = PACKAGED_KERNEL
    keep: bool = False


@dataclass(slots=True)
class Result:
    """The results.

    ``deeds``     the count of each kind of action
    ``outcomes``  the count of each outcome of a cycle
    ``anew``      variables added by earlier edits that hotreload said start again
    ``samples``   the resources that hotreload used
    ``live_ms``   milliseconds from each save until it was live
    ``failure``   what was not as predicted, and after which edit
    """

    seed: int
    deeds: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    anew: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    live_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    failure: str = ""

    @property
    def has_grown(self) -> list[str]:
        """The resources that grew by more than their bound between the warm-up and the end."""
        warm = [sample for sample in self.samples if sample.edits >= WARM_UP]
        if len(warm) < 2:
            return []
        first, last = warm[0], warm[-1]
        bounds = {
            "rss_kb": RSS_KB + RSS_KB_AN_EDIT * (last.edits - first.edits),
            "files": FILES,
            "threads": THREADS,
            "others": OTHERS,
        }
        return [
            f"{what}: {getattr(first, what)} -> {getattr(last, what)}, at most {bound} more allowed"
            for what, bound in bounds.items()
            if getattr(last, what) - getattr(first, what) > bound
        ]


async def soak(options: Options, folder: Path) -> Result:
    """Make the edits in ``folder``. Raises the error of `hotreload watch` if it ends before it is ready."""
    driver = first_driver()
    place = folder / MODULE
    place.mkdir()
    for name, text in {**never_edited(), **texts(driver)}.items():
        (place / name).write_text(text)
    result = Result(options.seed)
    words = ("--max-rung", "patch", "--kernel", options.kernel)
    started = time.monotonic()
    async with Driven(place, guest_name(MODULE), lambda _text: None, words) as watch:
        session = SoakSession(watch, place, options.seed)
        with (folder / STORY).open("w", buffering=1) as story:
            await _Soak(session, Model(driver), RandomEdits(options.seed), result, story).run(options.edits)
    result.seconds = time.monotonic() - started
    return result


class _Soak:
    """The edits of one soak."""

    def __init__(
        self, session: SoakSession, model: Model, edits: RandomEdits, result: Result, story: TextIO
    ) -> None:
        self._session = session
        self._model = model
        self._edits = edits
        self._result = result
        self._story = story
        self._seen: Seen
        self._kept: Mapping[str, object] = {}  # the counters that must go on
        self._stood_still = 0
        self._last: ReloadReport | None = None
        self._notes: list[str] = []  # notes of the cycles of this edit

    async def run(self, edits: int) -> None:
        """Make the edits, up to the first whose result is not as predicted."""
        self._seen = await self._session.look()
        for number in range(1, edits + 1):
            deed = self._edits.next(self._model)
            before = self._model.disk
            self._result.deeds[deed.kind] += 1
            self._notes.clear()
            self._story.write(f"\n--- edit {number}: {told(deed, before)}\n")
            try:
                await self._do(deed)
                await self._check(goes_on=not isinstance(deed, Panic))
            except (NotAsForetoldError, HotReloadError, TimeoutError, OSError) as error:
                said = str(error) or type(error).__name__
                self._result.failure = f"edit {number}: {told(deed, before)}\n{said}"
                return
            if number % SAMPLE_EVERY == 0 or number == edits:
                self._result.samples.append(await self._session.sample(number, self._seen))
                say(f"{number} of {edits} edits, {dict(self._result.outcomes)}")

    # --- actions ---

    async def _do(self, deed: Deed) -> None:
        if isinstance(deed, Save) and deed.quickly:
            await self._save_quickly(deed)
        elif isinstance(deed, Save):
            before = texts(self._model.disk)
            expected = self._model.save(deed.driver)
            await self._session.save({n: t for n, t in texts(deed.driver).items() if before[n] != t})
            assert expected is not None, "the generator makes no save without a result"
            await self._cycle(expected)
        elif isinstance(deed, Command):
            await self._command(deed)
        elif isinstance(deed, Panic):
            self._model.restore()
            await self._session.panic()
            self._judge(await self._report(), Expected(Outcome.CRASHED))
        else:
            await self._session.save({deed.file: texts(self._model.disk)[deed.file]})
        if late := await self._session.report_within(SILENCE if not isinstance(deed, Save) else 0.01):
            raise NotAsForetoldError(f"an unexpected cycle: {late}")

    async def _cycle(self, expected: Expected) -> None:
        report = await self._report()
        if expected.dies:
            if report.outcome is Outcome.LIVE:
                # The reload was reported with a number before the guest died of it.
                self._model.count_reload()
                report = await self._report()
            expected = Expected(Outcome.CRASHED)
        self._judge(report, expected)

    async def _command(self, deed: Command) -> None:
        verb, *rest = deed.words
        if verb == "push":
            expected = self._model.push()
        elif verb == "redo":
            expected = self._model.redo()
        else:
            number = next((int(word) for word in rest if word.isdecimal()), None)
            expected = self._model.undo(number, everything="--all" in rest)
        done = await self._session.command(*deed.words)
        await self._cycle(expected)
        if done.status != expected.outcome.exit_status:
            raise NotAsForetoldError(f"its exit status is {done.status}: {done.complaint}")

    async def _save_quickly(self, deed: Save) -> None:
        before = texts(self._model.disk)
        for driver in (*deed.quickly, deed.driver):
            now = texts(driver)
            await self._session.save({name: text for name, text in now.items() if before[name] != text})
            await self._session.pause()
            before = now
        after = self._model.copy()
        after.save(deed.driver)
        number = 0
        report: ReloadReport | None = await self._session.report()
        while report is not None:
            self._note(report)
            number = report.number or number
            # Another cycle may have ended meanwhile. Its report comes next.
            self._seen = await self._session.look()
            is_last = self._seen.lines == after.reading.lines
            report = await (self._session.report_within(QUIET) if is_last else self._session.report())
        self._model.saved_in_a_row(deed.driver, number)

    async def _report(self) -> ReloadReport:
        report = await self._session.report()
        self._note(report)
        return report

    def _note(self, report: ReloadReport) -> None:
        self._last = report
        self._notes += report.notes
        reasons = "".join(f"\n  {reason.code} {reason.message}" for reason in report.reasons)
        notes = "".join(f"\n  {note}" for note in report.notes)
        self._story.write(f"{report.outcome.value} #{report.number}{reasons}{notes}\n")
        self._result.outcomes[report.outcome.value] += 1
        if report.outcome is Outcome.LIVE and report.saved_to_live_ms is not None:
            self._result.live_ms.append(report.saved_to_live_ms)

    # --- checks ---

    def _judge(self, report: ReloadReport, expected: Expected) -> None:
        outcome = Outcome.REFUSED if report.outcome is Outcome.REJECTED else report.outcome
        codes = frozenset(reason.code for reason in report.reasons)
        if outcome is not expected.outcome or (expected.codes and codes != expected.codes):
            raise NotAsForetoldError(f"expected {expected}\nseen {report}")
        if report.still_runs != self._model.still_runs:
            raise NotAsForetoldError(f"expected that the guest runs {self._model.still_runs} now: {report}")

    async def _check(self, *, goes_on: bool) -> None:
        before, self._seen = self._seen, await self._session.look()
        seen, expected = self._seen, self._model.reading
        wrong = []
        if seen.lines != expected.lines:
            wrong.append(f"expected {expected.lines}\nseen {dict(seen.lines)}")
        if seen.kept.keys() != expected.kept.keys():
            wrong.append(f"expected the counters {sorted(expected.kept)}, seen {sorted(seen.kept)}")
        if goes_on:
            for name, where in expected.kept.items():
                if self._kept.get(name, where) == where and name in before.kept:
                    wrong += self._went_back(name, before.kept[name], seen.kept.get(name, 0))
            self._stood_still = self._stood_still + 1 if seen.rounds <= before.rounds else 0
        if self._stood_still >= STANDSTILL:
            wrong.append(f"the workload in the guest makes no progress after round {seen.rounds}")
        if complaints := [each for each in seen.complaints if not self._is_due(each)]:
            wrong.append(f"the kernel complained: {'; '.join(complaints)}")
        now = texts(self._model.disk)
        if self._session.sources(now) != now:
            wrong.append("the sources are not as they were saved")
        self._kept = expected.kept
        if wrong:
            raise NotAsForetoldError("\n".join(wrong))

    def _went_back(self, name: str, before: int, now: int) -> list[str]:
        """Return an error if a counter did not go up and hotreload did not say that it starts again."""
        if now > before:
            return []
        if any("starts again" in note and name in note.replace(",", "").split() for note in self._notes):
            self._result.anew.append(name)
            return []
        return [f"{name} was {before} and is {now}"]

    def _is_due(self, complaint: str) -> bool:
        """Return whether a complaint is the kernel's message for a patch that it had to refuse."""
        rejected = self._last is not None and self._last.outcome is Outcome.REJECTED
        return rejected and VALUE_REFUSED.match(complaint) is not None


def told(deed: Deed, before: Driver) -> str:
    """Return the text of an action: a diff if files were saved."""
    if not isinstance(deed, Save):
        return str(deed)
    lines = [deed.kind]
    for driver in (*deed.quickly, deed.driver):
        old, new = texts(before), texts(driver)
        for name in new:
            lines += difflib.unified_diff(
                old[name].splitlines(), new[name].splitlines(), f"a/{name}", f"b/{name}", "", "", 2, ""
            )
        before = driver
    return "\n".join(lines)


def as_text(result: Result) -> str:
    """Return the counts, the times, and the resources of hotreload as text."""
    lines = [f"seed {result.seed}: {result.deeds.total()} edits in {result.seconds:.0f} s", ""]
    lines += [f"{count:6} {kind}" for kind, count in sorted(result.deeds.items())]
    lines += ["", f"{result.outcomes.total():6} cycles"]
    lines += [f"{count:6} {outcome}" for outcome, count in sorted(result.outcomes.items())]
    if result.anew:
        lines.append(
            f"started again as announced, though type and value did not change: {', '.join(result.anew)}"
        )
    if live := sorted(result.live_ms):
        lines.append(f"saved to live: median {live[len(live) // 2]:.0f} ms, longest {live[-1]:.0f} ms")
    if result.samples:
        header = ["edits", "RSS kB", "files", "threads", "processes", "guest: modules", "available kB"]
        rows = [[str(getattr(each, name)) for name in Sample.__slots__] for each in result.samples]
        lines += ["", align(header, rows, range(len(header)))]
        lines.append("flat" if not result.has_grown else f"GREW: {'; '.join(result.has_grown)}")
    if result.failure:
        lines += ["", f"NOT AS PREDICTED, seed {result.seed}, {result.failure}"]
    return "\n".join(lines)


def parse_options(argv: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(
        description="Make random edits in a guest under load, and check that nothing is lost."
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the generator; default: random")
    parser.add_argument("--edits", type=int, metavar="N", default=EDITS, help=f"default: {EDITS}")
    parser.add_argument(
        "--kernel", metavar="KERNEL", default=wanted_kernel(), help="kernel, as for hotreload watch"
    )
    parser.add_argument("--keep", action="store_true", help="also keep the sources if everything went well")
    given = parser.parse_args(argv)
    seed = random.randrange(1 << 31) if given.seed is None else given.seed
    return Options(seed, given.edits, given.kernel, given.keep)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Return 0 if all went as predicted and nothing grew."""
    options = parse_options(argv)
    say(f"seed {options.seed}, {options.edits} edits")
    folder = Path(tempfile.mkdtemp(prefix="hotreload-soak-"))
    keep = True
    try:
        result = run_main(soak(options, folder))
        print(as_text(result), flush=True)
        keep = options.keep or bool(result.failure)
        return 1 if result.failure or result.has_grown else 0
    except HotReloadError as error:
        print(f"{error.code} {error.message}", file=sys.stderr)
        keep = options.keep
        return error.exit_status
    except KeyboardInterrupt:
        keep = options.keep
        return 130
    finally:
        if keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
