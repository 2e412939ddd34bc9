# SPDX-License-Identifier: MIT
"""`scripts/random-pairs`: push random edits of small stateful elements into a guest, and check its output.

The driver has two elements of each family of pair_families.py. An edit changes one or more of them, moves
them, moves their lines, or goes back to earlier sources. Now and then an edit is undone. Any outcome is right
if the guest's output fits it. After a live patch, that is what the sources say, with the state kept; after a
reload, what the sources say with the initial state; after a refusal, what the guest ran before. A refused
edit is reverted. Use a kernel that has debugging checks on to find most bugs: --kernel debug.
"""

from __future__ import annotations

import argparse
import difflib
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hotreload.demo.driven import guest_name
from hotreload.errors import HotReloadError
from hotreload.interrupts import run as run_main
from hotreload.paths import cache_folder
from hotreload.survey.command import say
from hotreload.survey.debug_kernel import wanted_kernel
from hotreload.survey.histories import kernel_named
from hotreload.survey.history_guest import CUT, HistoryGuest, Pushed, splats
from hotreload.survey.history_rows import CLAIMS
from hotreload.survey.pair_model import Model, Sources, edited, first_sources, printed_lines

MODULE = "pairs"
EDITS = 200
LEAKS_EVERY = 50
# The share of edits that go back to earlier sources, how many of these are remembered, and the share of
# reloads that are undone.
BACK, REMEMBERED, UNDONE = 0.06, 6, 0.06
LEAVES = re.compile(r"\w+ says \w+")
READ = f"dmesg -c; echo '{CUT.strip()}'; cat /proc/pairs; echo '{CUT.strip()}'; dmesg -c"
GOES_ON = frozenset({"live", "no change", "undone"})


@dataclass(slots=True)
class Tally:
    """The results.

    ``outcomes``  counts by kind of edit and outcome
    ``codes``     counts by outcome and code
    ``needless``  edits that did not go live though they could have
    ``edits``     a row for each edit
    ``wrong``     a text for each wrong output, with the edit
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    needless: list[tuple[str, Pushed]] = field(default_factory=list)
    edits: list[dict[str, object]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [
            f"{count:5}  {kind:<44} {outcome}" for (kind, outcome), count in sorted(self.outcomes.items())
        ]
        lines += [f"{count:5}  {outcome} for {code}" for (outcome, code), count in sorted(self.codes.items())]
        avoidable = Counter(f"{kind}: {' '.join(pushed.codes)}" for kind, pushed in self.needless)
        lines += [
            f"{count:5}  not live, though it could be: {what}" for what, count in avoidable.most_common()
        ]
        return "\n".join([*lines, f"{len(self.wrong)} wrong of {self.outcomes.total()}"])


class Run:
    """A run of edits, in as many guests as necessary."""

    def __init__(self, folder: Path, kernel: str, source: random.Random, scratch: Path) -> None:
        self._folder = folder
        self._kernel = kernel
        self._source = source
        self._scratch = scratch
        self._saved = first_sources()
        self._past: list[Sources] = []  # what the guest ran
        self._is_undoable = False
        self.tally = Tally()

    async def edits(self, count: int) -> None:
        """Make ``count`` edits. After a wrong output, boot a new guest with the current sources."""
        done = 0
        while done < count:
            self._save(self._saved)
            (self._folder / "Kbuild").write_text(f"obj-m := {MODULE}.o\n")
            name = guest_name(MODULE)
            async with HistoryGuest(self._folder, name, self._kernel, (), self._scratch) as guest:
                model = Model(self._saved)
                model.load()
                while done < count:
                    done += 1
                    if not await self._edit(guest, model, done):
                        break
                    if self._source.random() < UNDONE and not await self._undo(guest, model, done):
                        break

    def _save(self, sources: Sources) -> None:
        self._saved = sources
        (self._folder / f"{MODULE}.c").write_text(sources.text)

    def _next(self) -> tuple[str, Sources]:
        kind, after = "", self._saved
        while after.text == self._saved.text:
            if self._past and self._source.random() < BACK:
                kind, after = "back", self._source.choice(self._past[-REMEMBERED:])
            else:
                kind, after = edited(self._saved, self._source)
        return kind, after

    async def _edit(self, guest: HistoryGuest, model: Model, number: int) -> bool:
        """Make an edit. Return whether the guest is fit for another one."""
        kind, after = self._next()
        before, needs_a_load = model.sources, model.needs_a_load(after)
        self._save(after)
        started = time.monotonic()
        pushed = await guest.push()
        self.tally.outcomes[kind, pushed.outcome] += 1
        row = {"number": number, "kind": kind, "outcome": pushed.outcome, "codes": pushed.codes}
        row |= {"seconds": round(time.monotonic() - started, 2), "needs a load": needs_a_load}
        self.tally.edits.append(row | {"said": pushed.text})
        if pushed.outcome not in GOES_ON:
            self.tally.codes.update((pushed.outcome, code) for code in pushed.codes)
            if not needs_a_load:
                self.tally.needless.append((kind, pushed))
        told = f"edit {number}, {kind}: {pushed.outcome}"
        good = await self._is_right(guest, model, (before, after), pushed, told)
        self._past.append(model.sources)
        self._is_undoable = pushed.outcome == "live"
        if number % 10 == 0:
            say(f"{number} edits, {len(self.tally.wrong)} wrong")
        if good and number % LEAKS_EVERY == 0 and (leaks := await guest.leaks()):
            self.tally.wrong += leaks
            good = False
        return good

    async def _undo(self, guest: HistoryGuest, model: Model, number: int) -> bool:
        """Undo the last reload, but keep the sources. Return whether the guest is fit for another edit."""
        if not self._is_undoable or len(self._past) < 2:
            return True
        before, after = model.sources, self._past[-2]
        pushed = await guest.undo()
        self.tally.outcomes["undo", pushed.outcome] += 1
        told = f"undo of edit {number}: {pushed.outcome}"
        saved = self._saved
        good = await self._is_right(guest, model, (before, after), pushed, told)
        self._save(saved)
        self._past.pop()  # the next undo goes back to where this one went
        return good

    async def _is_right(
        self, guest: HistoryGuest, model: Model, sources: tuple[Sources, Sources], pushed: Pushed, told: str
    ) -> bool:
        """Check the guest's output. Print and note what is wrong, and return whether nothing is."""
        before, after = sources
        try:
            wrong = await self._judged(guest, model, after, pushed)
        except HotReloadError as error:
            wrong = [f"the guest is lost: {error.message}"]
        if wrong:
            change = difflib.unified_diff(
                before.text.splitlines(), after.text.splitlines(), "", "", "", "", 1, ""
            )
            told = "\n".join([told, *wrong, *change, pushed.text])
            self.tally.wrong.append(told)
            print(f"WRONG {told}\n", flush=True)
            model.sources = after
        return not wrong

    async def _judged(self, guest: HistoryGuest, model: Model, after: Sources, pushed: Pushed) -> list[str]:
        log, printed, after_it = (await guest.run(READ)).split(CUT)
        wrong = []
        # An undo may take a module reload, too.
        is_loaded = pushed.outcome == "reloaded" or "reloaded: " in pushed.text
        if pushed.outcome in GOES_ON and not is_loaded:
            model.went_on(after, pushed.text)
        elif pushed.outcome in CLAIMS:
            if is_loaded and (said := tuple(sorted(LEAVES.findall(log)))) not in (
                expected := model.leaving(after, pushed.text)
            ):
                wrong = [f"the exit code printed {said}, not {expected}"]
            model.sources = after
            model.load()
        elif pushed.outcome in ("refused", "rejected", "stalled"):
            self._save(model.sources)
        else:
            return [f"an outcome that no edit of this kind may have: {pushed.outcome}"]
        return wrong + splats(log) + model.look(printed_lines(printed)) + splats(after_it)


async def run_pairs(seed: int, edits: int, kernel: str, scratch: Path) -> Tally:
    """Make ``edits`` edits from a seed, and return the results."""
    folder = scratch / MODULE
    folder.mkdir()
    tree = await kernel_named(kernel)
    run = Run(folder, str(tree.output), random.Random(seed), scratch)
    await run.edits(edits)
    return run.tally


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit status, which is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(
        description="Make random edits of small stateful code, and check that none goes wrong."
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the generator; default: random")
    parser.add_argument("--edits", type=int, metavar="N", default=EDITS, help=f"default: {EDITS}")
    parser.add_argument(
        "--kernel",
        default=wanted_kernel(),
        metavar="K",
        help="kernel, as for hotreload watch; also generic, debug",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write each edit, and what was wrong, as JSON"
    )
    given = parser.parse_args(argv)
    seed = random.randrange(1 << 31) if given.seed is None else given.seed
    say(f"seed {seed}, {given.edits} edits")
    # An interrupted build may still write to this folder while it is deleted.
    place = tempfile.TemporaryDirectory(prefix="hr-pairs-", dir=cache_folder(), ignore_cleanup_errors=True)
    with place as scratch:
        try:
            tally = run_main(run_pairs(seed, given.edits, given.kernel, Path(scratch)))
        except HotReloadError as error:
            print(f"{error.code} {error.message}; {error.hint}", file=sys.stderr)
            return error.exit_status
        except KeyboardInterrupt:
            return 130
    if given.json:
        given.json.write_text(
            json.dumps({"seed": seed, "wrong": tally.wrong, "edits": tally.edits}, indent=1) + "\n"
        )
    print(tally.text())
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
