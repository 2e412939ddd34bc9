# SPDX-License-Identifier: MIT
"""`scripts/real-fixes`: measure how many of the fixes between two releases of a kernel can be live patched.

Every C file of a built kernel that differs in a newer release is compiled in both versions against the older
release's headers, as if somebody had edited that file alone. The two objects are compared. Pairs that do not
compile, because the fix also needs a new header, are counted separately. Only the differ is asked, so whether
all symbols can be resolved in the guest is not checked. With ``--guest``, patches are also planned for the
fixes that the differ accepts, and are loaded into a guest (guest_fixes.py).
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

# The percentage of the pairs that change code that should be patchable.
GOAL = 95.0


def fixed_units(kernel: BuiltKernel, new: Path) -> list[TranslationUnit]:
    """Return the units whose source exists in the newer release and differs there."""
    found = []
    for unit in kernel.units:
        counterpart = new / kernel.name_of(unit)
        if counterpart.is_file() and counterpart.read_bytes() != unit.source.read_bytes():
            found.append(unit)
    return found


async def measure(options: Options) -> int:
    """Compare all pairs and print the results. Return 0 if the goal is met, else 1."""
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
    """Load the patchable fixes into a guest. Return False if one of them misbehaved there."""
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
    """Return the answers for pairs that change code."""
    return [answer for answer in answers if answer.verdict in ("patchable", "refused", "broken")]


def share(answers: list[Answer]) -> float:
    """Return and print the percentage of the pairs that change code that are patchable."""
    asked = changing(answers)
    good = sum(answer.verdict == "patchable" for answer in asked)
    percent = 100 * good / len(asked) if asked else 100.0
    print(f"{good} of {len(asked)} pairs that change code are patchable: {percent:.1f} %")
    return percent


if __name__ == "__main__":
    sys.exit(run(measure, parse_options("Compare the units that real fixes change.", new=True)))
