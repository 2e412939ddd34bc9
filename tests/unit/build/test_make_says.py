# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from hotreload.build.make_says import first_error, without_make


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "/src/a.c: In function 'f':\n/src/a.c:3:2: error: 'x' undeclared\nmake[2]: *** [a.o] Error 1\n",
            "/src/a.c:3:2: error: 'x' undeclared",
        ),
        (
            (
                "/bin/sh: 1: pahole: not found\n"
                "make[2]: *** [/k/scripts/Makefile.modfinal:57: /src/a.ko] Error 127\n"
                "make[1]: *** [/k/Makefile:1892: modules] Error 2\n"
            ),
            "/bin/sh: 1: pahole: not found",
        ),
        (
            (
                "make[2]: *** No rule to make target '/src/b.o', needed by '/src/a.o'.  Stop.\n"
                "make[1]: *** [/k/Makefile:2035: /src] Error 2\n"
            ),
            "No rule to make target '/src/b.o', needed by '/src/a.o'.  Stop.",
        ),
        ("/src/Kbuild:3: *** missing separator.  Stop.\n", "/src/Kbuild:3: *** missing separator.  Stop."),
        (
            "/src/a.c:1: warning: x\ngen.sh: no input\nmake[2]: *** [/src/Kbuild:4: /src/t.h] Error 1\n",
            "gen.sh: no input",
        ),
        ("make[2]: *** [/src/Kbuild:4: /src/t.h] Error 1\nlate words\n", "late words"),
        ("", None),
    ],
)
def test_the_first_error_is_the_reason_and_not_that_make_gave_up(said: str, reason: str | None) -> None:
    assert first_error(said) == reason


def test_make_s_own_lines_are_left_out() -> None:
    assert without_make("make[1]: Entering directory '/k'\na.c:1: error: x\nmake: *** [a] Error 2\n") == (
        "a.c:1: error: x\n"
    )
