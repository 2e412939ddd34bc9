# SPDX-License-Identifier: MIT
"""`scripts/real-fixes`: how many of the fixes between two releases of a kernel could be live patched.

Every C file of a built kernel whose text differs in a newer release is compiled in both versions against the
older one's headers, as somebody who edits that file alone would, and the two objects are compared. A pair
that does not compile so (the fix needs a new header, too) is counted apart. What is asked is the
differ: whether a symbol can be resolved in the guest is known to a plan only. With ``--guest`` those that it
takes are planned, too, and go into a guest (guest_fixes.py).
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.kernel_tree import find_kernel
from hotreload.survey.answers import Answer, ask_all
from hotreload.survey.command import (
    Options,
    parse_options,
    print_answer,
    print_counts,
    run,
    say,
    spread,
    survey_of,
    write_json,
)
from hotreload.survey.guest_fixes import Fix, print_trials, try_in_guest
from hotreload.survey.kernel_build import NEW_VERSION, PACKAGE, BuiltKernel, fetch_source

# Of the pairs that change code, so many in a hundred are to be patchable.
GOAL = 95.0


def fixed_units(kernel: BuiltKernel, new: Path) -> list[TranslationUnit]:
    """The units whose source is there in the newer release, and says something else."""
    found = []
    for unit in kernel.units:
        counterpart = new / kernel.name_of(unit)
        if counterpart.is_file() and counterpart.read_bytes() != unit.source.read_bytes():
            found.append(unit)
    return found


async def measure(options: Options) -> int:
    """Ask about all pairs; 0 where the goal is met."""
    answers: list[Answer] = []
    async with survey_of(options) as survey:
        new = options.new or await fetch_source(PACKAGE, NEW_VERSION, say)
        kernel = survey.kernel

        def fixed(unit: TranslationUnit) -> str:
            return (new / kernel.name_of(unit)).read_text(errors="surrogateescape")

        named = [unit for unit in fixed_units(kernel, new) if options.only in kernel.name_of(unit)]
        units = spread(named, options.limit)
        say(f"{len(units)} of them differ in {new}")
        async for answer in ask_all(survey, units, "fixed", fixed):
            answers.append(answer)
            print_answer(answer)
    write_json(answers, options.json)
    print(f"{len(answers):6} pairs")
    print_counts(answers)
    met = share(answers) >= GOAL
    if options.guest:
        met = await _load_all(options, kernel, new, answers) and met
    return 0 if met else 1


async def _load_all(options: Options, kernel: BuiltKernel, new: Path, answers: list[Answer]) -> bool:
    """Have a guest take what is patchable; False where one of these misbehaved there."""
    fixes = [
        Fix(answer.unit, kernel.source / answer.unit, (new / answer.unit).read_bytes())
        for answer in sorted(answers, key=lambda answer: answer.unit)
        if answer.verdict == "patchable"
    ]
    tree = find_kernel(str(kernel.output))
    trials = await try_in_guest(tree, fixes, options.work / "console.log", say)
    write_json(answers, options.json, {tried.unit: asdict(tried) for tried in trials.alone})
    print_trials(trials, len(changing(answers)))
    return not trials.is_wrong


def changing(answers: list[Answer]) -> list[Answer]:
    """The pairs that change code."""
    return [answer for answer in answers if answer.verdict in ("patchable", "refused", "broken")]


def share(answers: list[Answer]) -> float:
    """How many in a hundred of the pairs that change code are patchable; printed, too."""
    asked = changing(answers)
    good = sum(answer.verdict == "patchable" for answer in asked)
    percent = 100 * good / len(asked) if asked else 100.0
    print(f"{good} of {len(asked)} pairs that change code are patchable: {percent:.1f} %")
    return percent


if __name__ == "__main__":
    sys.exit(run(measure, parse_options("Ask the differ about real fixes.", new=True)))
