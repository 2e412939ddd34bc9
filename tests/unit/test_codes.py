# SPDX-License-Identifier: MIT
from __future__ import annotations

import re
from pathlib import Path

import pytest

import hotreload
from hotreload.config import RUNGS
from hotreload.errors import InputError
from hotreload.report.codes import TABLE, codes, find_code, long_answer, parse_codes

PACKAGE = Path(hotreload.__file__).parent


def test_every_code_in_the_sources_is_in_the_table() -> None:
    used = {
        (number, file.name)
        for file in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.sh"), *PACKAGE.rglob("*.c")]
        for number in re.findall(r"\bHR\d{4}\b", file.read_text())
    }
    assert ("HR1008", "config.py") in used
    assert {(number, name) for number, name in used if number not in codes()} == set()


def test_numbers_are_unique_in_order_and_every_heading_became_a_code() -> None:
    text = TABLE.read_text()
    headings = re.findall(r"^## (\S+)", text, re.MULTILINE)
    assert headings == [code.number for code in parse_codes(text)]
    assert headings == sorted(set(headings))


def test_every_code_says_what_to_do_and_an_edit_also_what_is_lost() -> None:
    for code in codes().values():
        assert code.rung is None or code.rung in RUNGS, code.number
        assert "Do:" in code.explanation, code.number
        if code.rung in ("module", "restore", "reboot"):
            assert "Lost:" in code.explanation, code.number
        if code.number.startswith(("HR21", "HR22")):
            assert "Example:" in code.explanation, code.number
            assert "Why:" in code.explanation, code.number


def test_the_texts_fit_a_terminal() -> None:
    lines = [line for code in codes().values() for line in long_answer(code).splitlines()]
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("text", ["HR2101", "hr2101", "2101", " HR2101 "])
def test_a_code_is_found_however_it_is_written(text: str) -> None:
    assert find_code(text).number == "HR2101"


def test_an_unknown_code_names_its_neighbours() -> None:
    with pytest.raises(InputError) as caught:
        find_code("HR2199")
    assert caught.value.message == "there is no code HR2199"
    assert caught.value.hint == "the codes HR21xx are HR2101, HR2102, HR2103, HR2104, HR2105"


def test_the_long_answer_starts_with_the_fact_and_the_rung() -> None:
    text = (
        "# Data\n\n## HR2101 a layout changed\nRung: module\n\nThe text.\n\nDo: reload.\n\n"
        "# Code\n\n## HR2201 x\n\ny\n"
    )
    first, second = parse_codes(text)
    assert (
        long_answer(first)
        == "HR2101: a layout changed\n\nneeds: a module reload\n\nThe text.\n\nDo: reload.\n"
    )
    assert (second.number, second.rung, second.explanation) == ("HR2201", None, "y")
