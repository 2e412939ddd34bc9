# SPDX-License-Identifier: MIT
"""The driver of `scripts/random-pairs`, its edits, and what a guest that runs it must print. Pure."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hotreload.survey.pair_element import Element, State
from hotreload.survey.pair_families import FAMILIES

# hotreload said that a variable, or a place that reports only once, starts again.
RESTARTED = re.compile(r"HR2104|may report once more|is another variable now")


@dataclass(frozen=True, slots=True)
class Sources:
    """The driver's source. ``elements``: in file order. ``lines``: the number of empty lines above them."""

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
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/once_lite.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

static unsigned int which = 1;
module_param(which, uint, 0644);
{lines}
{code}
static int pairs_show(struct seq_file *m, void *v)
{{
\tu32 i = 0, sum = 0;

{show}
\treturn 0;
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
    """Return the sources to begin with, which have two elements of each family."""
    names = [f"{family.__name__.lower()}_{letter}" for family in FAMILIES for letter in "ab"]
    families = [family for family in FAMILIES for _ in "ab"]
    return Sources(tuple(family(name) for family, name in zip(families, names, strict=True)))


def edited(sources: Sources, source: random.Random) -> tuple[str, Sources]:
    """Make a random edit. Return its kind, such as the families of the edited elements, and the sources."""
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
    """What the guest runs, and the possible states of each element; none if it cannot run there."""

    sources: Sources
    states: dict[str, list[State]] = field(default_factory=dict)

    def load(self) -> None:
        """Note that the module was loaded with these sources."""
        self.states = {each.name: [each.loaded()] for each in self.sources.elements}

    def went_on(self, after: Sources, told: str) -> None:
        """Note that other sources went live and the state was kept. ``told``: hotreload's output."""
        before = {each.name: each for each in self.sources.elements}
        for each in after.elements:
            states = [new for old in self.states[each.name] for new in each.carried(old, before[each.name])]
            if RESTARTED.search(told) and each.name in told:
                states += [new for state in states for new in each.restarted(state)]
            self.states[each.name] = states
        self.sources = after

    def needs_a_load(self, after: Sources) -> bool:
        """Return whether these sources need a module reload in the current state of the guest."""
        before = {each.name: each for each in self.sources.elements}
        return any(
            each.must_begin_anew(state, before[each.name])
            for each in after.elements
            for state in self.states[each.name]
        )

    def leaving(self, after: Sources, said: str) -> list[tuple[str, ...]]:
        """Return what the exit code may log when the module is unloaded and loaded with these sources.

        It should be the exit code of the new sources. If the init code changed, too, or hotreload's output
        ``said`` says so, it may be the exit code that belongs to the init code that ran.
        """
        old, new = ({each.name: each for each in of.elements} for of in (self.sources, after))
        logged = [tuple(sorted(each.leaves for each in new.values() if each.leaves))]
        other_init = any((new[it].of_init, new[it].start) != (old[it].of_init, old[it].start) for it in new)
        if other_init or "exit code from before" in said:
            logged.append(tuple(sorted(each.leaves for each in old.values() if each.leaves)))
        return logged

    def look(self, printed: Mapping[str, str]) -> list[str]:
        """Return what is wrong with the guest's output, and keep only the states that fit it."""
        wrong = []
        for each in self.sources.elements:
            seen = printed.get(each.name, "nothing")
            read = [each.read(state) for state in self.states[each.name]]
            fitting = [after for line, after in read if line == seen]
            if not fitting:
                expected = " or ".join(repr(line) for line, _ in read) or "that the edit is not applied"
                wrong.append(f"{each.name}: expected {expected}, seen {seen!r}")
            self.states[each.name] = fitting
        return wrong


def printed_lines(text: str) -> dict[str, str]:
    """Parse the output of /proc/pairs. Return the values of each element."""
    return {name: rest for name, _, rest in (line.partition(" ") for line in text.splitlines())}
