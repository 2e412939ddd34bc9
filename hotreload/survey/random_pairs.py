# SPDX-License-Identifier: MIT
"""`scripts/random-pairs`: random edits of small stateful things, pushed into a guest; no answer may be wrong.

The driver has one element of each family of pair_families.py. Each edit changes one of them, or several, and
may move them, or the lines they stand in. Whatever the tool makes of it is right if the guest answers so:
after live, what the sources say, with its state; after a reload, what they say, begun anew; after a refusal,
what it ran before. What is refused is taken back. Best with a kernel that checks itself: --kernel debug.
"""

from __future__ import annotations

import argparse
import difflib
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hotreload.demo.driven import guest_name
from hotreload.errors import HotReloadError
from hotreload.interrupts import run as run_main
from hotreload.paths import cache_folder
from hotreload.survey.command import say
from hotreload.survey.debug_kernel import wanted_kernel
from hotreload.survey.histories import kernel_named
from hotreload.survey.history_guest import HistoryGuest, Pushed
from hotreload.survey.history_rows import CLAIMS
from hotreload.survey.pair_families import FAMILIES, Element, State

MODULE = "pairs"
EDITS = 200
LEAKS_EVERY = 50
GOES_ON = frozenset({"live", "no change", "undone"})
ANEW = "HR2104"  # the tool said of a variable that it begins anew


@dataclass(frozen=True, slots=True)
class Sources:
    """``elements`` in the order in which they stand; ``lines``: empty ones above them."""

    elements: tuple[Element, ...]
    lines: int = 0

    @property
    def text(self) -> str:
        code = "\n".join(each.code for each in self.elements)
        ordered = sorted(self.elements, key=lambda each: each.name)
        show = "\n".join(
            f"\tseq_puts(m, \"{each.name}\");\n\t{each.show}\n\tseq_putc(m, '\\n');" for each in ordered
        )
        start = "\n".join(f"\t{each.start}" for each in ordered if each.start)
        stop = "\n".join(f"\t{each.stop}" for each in ordered if each.stop)
        return TEMPLATE.format(lines="\n" * self.lines, code=code, show=show, start=start, stop=stop)


TEMPLATE = """\
// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

static unsigned int which = 1;
module_param(which, uint, 0644);
{lines}
{code}
static int pairs_show(struct seq_file *m, void *v)
{{
\tu32 i = 0, sum = 0;

{show}
\treturn i && sum == 1 ? -EIO : 0;
}}

static int __init pairs_init(void)
{{
\tu32 i = 0;

{start}
\treturn proc_create_single("pairs", i * 0, NULL, pairs_show) ? 0 : -ENOMEM;
}}

static void __exit pairs_exit(void)
{{
\tremove_proc_entry("pairs", NULL);
{stop}
}}
module_init(pairs_init);
module_exit(pairs_exit);
MODULE_LICENSE("GPL");
"""


def first_sources() -> Sources:
    """One element of each family, and of some a second."""
    names = [f"{family.__name__.lower()}_{letter}" for family in FAMILIES for letter in "ab"]
    families = [family for family in FAMILIES for _ in "ab"]
    return Sources(tuple(family(name) for family, name in zip(families, names, strict=True)))


def edited(sources: Sources, source: random.Random) -> tuple[str, Sources]:
    """The family of what is edited, and the sources then."""
    if (draw := source.random()) < 0.05:
        return "moved", replace(
            sources, elements=tuple(source.sample(sources.elements, len(sources.elements)))
        )
    if draw < 0.1:
        return "lines", replace(sources, lines=source.randint(0, 9))
    chosen = source.sample(range(len(sources.elements)), source.choice((1, 1, 1, 2, 3)))
    elements = list(sources.elements)
    for place in chosen:
        elements[place] = elements[place].edited(source)
    kinds = "+".join(sorted({type(sources.elements[place]).__name__ for place in chosen}))
    return kinds, replace(sources, elements=tuple(elements))


@dataclass(slots=True)
class Model:
    """What the guest runs, and in which states it may be; ``None``: the sources cannot run in it."""

    sources: Sources
    states: dict[str, list[State]] = field(default_factory=dict)

    def load(self) -> None:
        """The module was loaded with these sources."""
        self.states = {each.name: [each.loaded()] for each in self.sources.elements}

    def went_on(self, after: Sources, told: str) -> None:
        """Other sources run now, with the state; ``told``: what the tool said of it."""
        before = {each.name: each for each in self.sources.elements}
        for each in after.elements:
            states = [new for old in self.states[each.name] for new in each.carried(old, before[each.name])]
            if ANEW in told and each.name in told:
                states.append(each.loaded())
            self.states[each.name] = states
        self.sources = after

    def look(self, printed: Mapping[str, str]) -> list[str]:
        """What is wrong with what the guest printed; the states that it may be in after that."""
        wrong = []
        for each in self.sources.elements:
            seen = printed.get(each.name, "nothing")
            read = [each.read(state) for state in self.states[each.name]]
            fitting = [after for line, after in read if line == seen]
            if not fitting:
                expected = " or ".join(repr(line) for line, _ in read) or "not to go on"
                wrong.append(f"{each.name}: expected {expected}, seen {seen!r}")
            self.states[each.name] = fitting
        return wrong


def printed_lines(text: str) -> dict[str, str]:
    """What /proc/pairs prints, by element."""
    return {name: rest for name, _, rest in (line.partition(" ") for line in text.splitlines())}


@dataclass(slots=True)
class Tally:
    """By kind of edit: how often it came to what. ``wrong``: each, with the edit that led there."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [
            f"{count:5}  {kind:<44} {outcome}" for (kind, outcome), count in sorted(self.outcomes.items())
        ]
        lines += [f"{count:5}  {outcome} for {code}" for (outcome, code), count in sorted(self.codes.items())]
        return "\n".join([*lines, f"{len(self.wrong)} wrong of {self.outcomes.total()}"])


class Run:
    """So many edits, in as many guests as it takes."""

    def __init__(self, folder: Path, kernel: str, source: random.Random, scratch: Path) -> None:
        self._folder = folder
        self._kernel = kernel
        self._source = source
        self._scratch = scratch
        self.tally = Tally()

    async def edits(self, count: int) -> None:
        """Do them; after what is wrong the guest boots anew, with the sources as they are then."""
        sources, left = first_sources(), count
        while left:
            self._write(sources)
            name = guest_name(MODULE)
            async with HistoryGuest(self._folder, name, self._kernel, (), self._scratch) as guest:
                model = Model(sources)
                model.load()
                while left:
                    left -= 1
                    if not await self._edit(guest, model, count - left):
                        break
            sources = model.sources

    def _write(self, sources: Sources) -> None:
        (self._folder / "Kbuild").write_text(f"obj-m := {MODULE}.o\n")
        (self._folder / f"{MODULE}.c").write_text(sources.text)

    async def _edit(self, guest: HistoryGuest, model: Model, number: int) -> bool:
        """Whether the guest is good for another one."""
        before = model.sources
        kind, after = edited(before, self._source)
        if after.text == before.text:
            return True
        self._write(after)
        pushed = await guest.push()
        self.tally.outcomes[kind, pushed.outcome] += 1
        if pushed.outcome not in GOES_ON:
            self.tally.codes.update((pushed.outcome, code) for code in pushed.codes)
        try:
            wrong = await self._judged(guest, model, after, pushed, number)
        except HotReloadError as error:
            wrong = [f"the guest is lost: {error.message}"]
        if wrong:
            change = difflib.unified_diff(
                before.text.splitlines(), after.text.splitlines(), "", "", "", "", 1, ""
            )
            told = "\n".join([f"edit {number}, {kind}: {pushed.outcome}", *wrong, *change, pushed.text])
            self.tally.wrong.append(told)
            print(f"WRONG {told}\n", flush=True)
            model.sources = after
        if number % 10 == 0:
            say(f"{number} edits, {len(self.tally.wrong)} wrong")
        return not wrong

    async def _judged(
        self, guest: HistoryGuest, model: Model, after: Sources, pushed: Pushed, number: int
    ) -> list[str]:
        if pushed.outcome in GOES_ON:
            model.went_on(after, pushed.text)
        elif pushed.outcome in CLAIMS:
            model.sources = after
            model.load()
        elif pushed.outcome in ("refused", "rejected", "stalled"):
            self._write(model.sources)
        else:
            return [f"an outcome that no edit here may have: {pushed.outcome}"]
        wrong = model.look(printed_lines(await guest.run("cat /proc/pairs")))
        wrong += await guest.splats()
        return wrong + (await guest.leaks() if number % LEAKS_EVERY == 0 else [])


async def run_pairs(seed: int, edits: int, kernel: str, scratch: Path) -> Tally:
    """The tally of so many edits from a seed."""
    folder = scratch / MODULE
    folder.mkdir()
    tree = await kernel_named(kernel)
    run = Run(folder, str(tree.output), random.Random(seed), scratch)
    await run.edits(edits)
    return run.tally


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description="Random edits of small stateful things; none may be wrong.")
    parser.add_argument("--seed", type=int, metavar="N", help="of the generator; default: another each time")
    parser.add_argument("--edits", type=int, metavar="N", default=EDITS, help=f"default: {EDITS}")
    parser.add_argument(
        "--kernel", default=wanted_kernel(), metavar="K", help="as of hotreload watch; generic, debug"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="what was wrong, for other programs")
    given = parser.parse_args(argv)
    seed = random.randrange(1 << 31) if given.seed is None else given.seed
    say(f"seed {seed}, {given.edits} edits")
    # A build that was interrupted may still write there.
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
        given.json.write_text(json.dumps({"seed": seed, "wrong": tally.wrong}, indent=1) + "\n")
    print(tally.text())
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
