# SPDX-License-Identifier: MIT
"""`scripts/self-check`: check that no unit of a kernel differs from itself.

Each unit of a built kernel is compared with itself, and with a compile of its source below an added comment.
Nothing may be reported as changed or refused.
"""

from __future__ import annotations

import sys

from hotreload.build.cmd_files import TranslationUnit
from hotreload.survey.answers import Answer, Edit, ask_all
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

COMMENT = "/* a comment on top */\n"


def with_a_comment(unit: TranslationUnit) -> str:
    """Return a unit's source below a comment."""
    return COMMENT + unit.source.read_text(errors="surrogateescape")


async def check(options: Options) -> int:
    """Compare all units. Return 0 if nothing differs, else 1."""
    everything: list[Answer] = []
    async with survey_of(options) as survey:
        named = [unit for unit in survey.kernel.units if options.only in survey.kernel.name_of(unit)]
        units = spread(named, options.limit)
        ways: tuple[tuple[str, Edit | None], ...] = (("itself", None), ("commented", with_a_comment))
        for label, edit in ways:
            answers: list[Answer] = []
            async for answer in ask_all(survey, units, label, edit):
                answers.append(answer)
                if answer.verdict != "unchanged":
                    print_answer(answer)
                if len(answers) % 100 == 0:
                    say(f"{label}: {len(answers)} of {len(units)}")
            print(f"each unit {'with itself' if edit is None else 'below a comment'}:")
            print_counts(answers)
            everything += answers
    write_json(everything, options.json)
    return int(any(answer.verdict != "unchanged" for answer in everything))


if __name__ == "__main__":
    sys.exit(run(check, parse_options("Compare each unit of a kernel with itself.")))
