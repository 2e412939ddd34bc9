# SPDX-License-Identifier: MIT
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hotreload.report.outcome import Outcome
from hotreload.survey.random_edits import Command, Deed, Panic, RandomEdits, Save, Touch
from hotreload.survey.soak import Result, told
from hotreload.survey.soak_driver import TICK, Driver, first_driver, users
from hotreload.survey.soak_model import Expected, Model
from hotreload.survey.soak_program import program_of, reading
from hotreload.survey.soak_session import Sample, seen_in
from hotreload.survey.soak_statements import Arithmetic, Called, Crash, Mixed, Scaled, Statement, Text, Warned
from hotreload.survey.soak_texts import never_edited, texts

BASE = first_driver()
SEED = 23
LIVE, UNDONE = Expected(Outcome.LIVE), Expected(Outcome.UNDONE)


def with_word(word: str, unit: str = "alpha", driver: Driver = BASE) -> Driver:
    return driver.with_unit(replace(driver.unit(unit), word=word))


def with_statement(statement: Statement, unit: str = "alpha", driver: Driver = BASE) -> Driver:
    it = driver.unit(unit)
    first = it.functions[0]
    return driver.with_unit(it.with_function(replace(first, body=(*first.body, statement))))


def answer(model: Model, unit: str = "alpha") -> str:
    return model.reading.lines[unit].split()[1]


# --- the generator ---


def deeds(seed: int, count: int) -> Iterator[tuple[Deed, Expected | None]]:
    """What the generator gives where all goes as foretold, and what comes of it."""
    model, edits = Model(BASE), RandomEdits(seed)
    number = 0
    for _ in range(count):
        deed = edits.next(model)
        expected = None
        if isinstance(deed, Save) and deed.quickly:
            model.saved_in_a_row(deed.driver, number + 1000)
        elif isinstance(deed, Save):
            expected = model.save(deed.driver)
        elif isinstance(deed, Command):
            words = deed.words
            ways = {"push": model.push, "redo": model.redo}
            numbers = [int(word) for word in words if word.isdecimal()]
            expected = (
                ways[words[0]]()
                if words[0] in ways
                else model.undo(numbers[0] if numbers else None, everything="--all" in words)
            )
        elif isinstance(deed, Panic):
            model.restore()
        number = max(number, model.runs.number)
        yield deed, expected
        assert model.reading.calls < 1000


def test_the_same_seed_gives_the_same_edits_and_another_one_others() -> None:
    assert [*deeds(3, 30)] == [*deeds(3, 30)]
    assert [*deeds(3, 30)] != [*deeds(4, 30)]


def test_in_some_hundred_edits_there_is_every_kind_and_every_outcome() -> None:
    found = [each for seed in (SEED, SEED + 1) for each in deeds(seed, 100)]
    kinds = Counter(deed.kind for deed, _ in found)
    for kind in (
        "good", "good in several files", "header", "initial value", "table of functions", "comment",
        "touched", "does not compile", "refused", "refused and good", "crashing", "fixed",
        "fixed after a crash", "good while held up", "back to an earlier text",
        "back to the booted code", "switch", "quickly", "undo", "undo by number", "redo", "push", "panic",
    ):  # fmt: skip
        assert kinds[kind], kind
    assert any(expected and expected.dies for _, expected in found)
    codes = {code for _, expected in found if expected for code in expected.codes}
    assert codes >= {"HR2101", "HR2103", "HR2205", "HR3104"}
    assert {expected.outcome for _, expected in found if expected} >= {
        Outcome.LIVE, Outcome.UNDONE, Outcome.REDONE, Outcome.NO_CHANGE, Outcome.REFUSED, Outcome.STALLED,
        Outcome.COMPILE_ERROR,
    }  # fmt: skip


def test_a_save_changes_some_file_and_a_crashing_one_kills_the_guest() -> None:
    before = BASE
    for deed, expected in deeds(SEED, 60):
        if isinstance(deed, Save):
            assert texts(deed.driver) != texts(before)
            before = deed.driver
            if deed.kind == "crashing":
                assert expected is not None
                assert expected.dies


# --- the driver ---


def test_the_files_of_the_driver_name_what_they_need() -> None:
    files = {**texts(BASE), **never_edited()}
    assert set(files) == {
        *("alpha.c", "beta.c", "gamma.c", "main.c", "fixed.c", "soak.h", "scale.h"),
        *("Kbuild", "hotreload.toml"),
    }
    assert 'n = soak_hash(n, "beta was here");' in files["beta.c"]
    assert files["beta.c"].index("beta_2(struct") < files["beta.c"].index("beta_0(struct")
    assert "u32 beta_1(struct seq_file *m, u32 n);" in files["soak.h"]
    assert "beta_2" not in files["soak.h"], "it is static"
    assert not any(word in files["main.c"] for word in ("BANNER", "EXPORTED", "STRIDE"))


def test_a_header_goes_into_its_units() -> None:
    assert users("soak.h") == ("gamma", "beta", "alpha", "main")
    assert users("scale.h") == ("alpha", "beta")
    assert users("main.c") == ("main",)


def test_what_it_answers_comes_of_its_statements() -> None:
    alone = replace(BASE.unit("gamma"), functions=(BASE.unit("gamma").functions[1],))
    changed = replace(alone, functions=(replace(alone.functions[0], body=(Arithmetic("*", 10),)),))
    program = program_of(BASE.with_unit(changed)) | {}
    lines = reading({**program, "beta": program_of(BASE)["beta"]}).lines
    assert lines["gamma"] == "gamma plain 10 20 10000030 0"


def test_a_static_function_of_another_unit_is_not_there() -> None:
    with pytest.raises(KeyError, match="gamma_2"):
        reading(program_of(with_statement(Called("gamma_2"))))


def test_code_is_the_same_with_another_comment_header_or_function_that_nobody_uses() -> None:
    plain = program_of(BASE)["main"]
    assert replace(plain, scale=replace(BASE.scale, factor=99)).code == plain.code
    assert replace(plain, unit=replace(plain.unit, comment="other")).code == plain.code
    assert replace(plain, shared=replace(BASE.shared, mix=(Arithmetic("+", 1),))).code != plain.code
    scaled = program_of(with_statement(Scaled(), "beta"))["beta"]
    assert replace(scaled, scale=replace(BASE.scale, factor=99)).code != scaled.code
    assert Mixed in {type(statement) for statement in plain.unit.statements}


def test_a_warning_that_an_edit_added_tells_its_line() -> None:
    warned = program_of(with_statement(Warned("amber 101")))["alpha"]
    moved = replace(warned, unit=replace(warned.unit, comment="two\n * lines"))
    other = replace(warned, unit=replace(warned.unit, comment="other"))
    assert moved.code != warned.code == other.code


# --- what hotreload is to make of it ---


def test_what_is_saved_is_live_and_what_is_taken_back_is_undone() -> None:
    model = Model(BASE)
    assert model.save(with_word("amber")) == LIVE
    assert (answer(model), model.still_runs) == ("amber", 1)
    assert model.save(BASE) == UNDONE
    assert (answer(model), model.still_runs) == ("plain", 2)


def test_an_undone_reload_comes_back_with_the_next_save_of_another_file() -> None:
    model = Model(BASE)
    model.save(with_word("amber"))
    assert model.undo() == UNDONE
    assert (answer(model), model.is_behind) == ("plain", True)
    assert model.save(with_word("birch", "beta", with_word("amber"))) == LIVE
    assert (answer(model), answer(model, "beta"), model.still_runs) == ("amber", "birch", 2)
    assert not model.can_redo


def test_a_unit_that_cannot_be_patched_holds_up_the_others() -> None:
    model = Model(BASE)
    grown = BASE.with_unit(replace(BASE.unit("beta"), members=1))
    refused = Expected(Outcome.REFUSED, frozenset({"HR2101"}))
    assert model.save(grown) == refused
    assert model.save(with_word("amber", driver=grown)) == refused
    assert answer(model) == "plain"
    assert model.save(with_word("amber")) == LIVE
    assert answer(model) == "amber"


def test_a_unit_that_does_not_compile_is_compiled_again_with_the_next_save() -> None:
    model = Model(BASE)
    broken = BASE.with_unit(replace(BASE.unit("beta"), error="{"))
    error = Expected(Outcome.COMPILE_ERROR)
    assert model.save(broken) == error
    assert model.save(with_word("amber", driver=broken)) == error
    assert model.save(with_word("amber")) == LIVE


def test_after_a_crash_a_unit_is_left_out_until_it_is_saved() -> None:
    model = Model(BASE)
    model.save(with_word("amber"))
    bad = with_statement(Crash("null"), driver=with_word("birch"))
    assert model.save(bad) == Expected(Outcome.LIVE, dies=True)
    assert (answer(model), model.still_runs, model.left_out) == ("amber", 1, {"alpha"})
    assert model.save(with_word("cedar", "beta", bad)) == LIVE
    assert (answer(model), answer(model, "beta")) == ("amber", "cedar")
    assert model.save(with_word("birch", driver=with_word("cedar", "beta"))) == LIVE
    assert answer(model) == "birch"


def test_a_guest_that_dies_of_itself_is_as_before_the_last_push_whatever_it_was() -> None:
    model = Model(BASE)
    model.save(with_word("amber"))
    model.save(with_word("birch"))
    model.undo()
    model.restore()
    assert (answer(model), model.still_runs) == ("birch", 2)
    model.restore()
    assert (answer(model), model.still_runs) == ("amber", 1)


def test_what_runs_only_once_is_refused_alone_and_beside_other_changes() -> None:
    model = Model(BASE)
    refused = Expected(Outcome.REFUSED, frozenset({"HR2201"}))
    other = BASE.with_unit(replace(BASE.unit("main"), banner="other"))
    assert model.save(other) == refused
    assert model.save(with_word("amber", driver=other)) == refused
    assert model.save(with_word("birch", "main", other)) == refused


def test_only_the_last_of_quick_saves_is_known() -> None:
    model = Model(BASE)
    model.saved_in_a_row(with_word("amber"), 3)
    assert (answer(model), model.still_runs, model.can_undo, model.is_restorable) == (
        "amber",
        3,
        False,
        False,
    )
    model.save(with_word("birch"))
    assert model.still_runs == 4
    assert model.undo(everything=True) == UNDONE
    assert (answer(model), model.can_redo) == ("plain", False)


# --- what is seen ---


def test_a_reading_has_lines_counts_and_how_the_guest_is() -> None:
    told = "alpha.reads 7\nseen_101 3\nseen_101 5\n= alpha amber 1 2 3 0\n"
    seen = seen_in(f"{told}#\n[ 1.0] soak: here\n#\n40\n2\n445000\n")
    assert seen.lines == {"alpha": "alpha amber 1 2 3 0"}
    assert seen.kept == {"alpha.reads": 7, "seen_101": 5}
    assert (seen.complaints, seen.rounds, seen.modules, seen.memory_kb) == ((), 40, 2, 445000)


def test_a_kernels_complaint_is_seen() -> None:
    seen = seen_in("#\n[ 1.0] BUG: kernel NULL pointer dereference, address: 8\n#\n1\n1\n1\n")
    assert "NULL pointer" in seen.complaints[0]


def test_an_edit_is_told_as_a_diff() -> None:
    text = told(Save("good", with_statement(Text("new"))), BASE)
    assert text.startswith("good\n--- a/alpha.c\n+++ b/alpha.c\n@@ ")
    assert '+\tn = soak_hash(n, "new");' in text.splitlines()
    assert told(Touch("main.c"), BASE).startswith("Touch(")


def test_what_has_grown_is_told_with_both_figures() -> None:
    result = Result(1, samples=[Sample(edits, 80000, 20, 6, 1, 5, 1) for edits in (10, 20, 30)])
    assert result.has_grown == []
    result.samples.append(Sample(40, 80000, 30, 6, 1, 5, 1))
    assert result.has_grown == ["files: 20 -> 30, at most 2 more allowed"]


def test_the_timer_of_the_driver_calls_a_function_that_is_read_as_well() -> None:
    main = BASE.unit("main")
    tick = main.function(TICK)
    assert tick is not None
    other = BASE.with_unit(main.with_function(replace(tick, body=(Arithmetic("+", 1),))))
    assert reading(program_of(other)).lines["main"] != reading(program_of(BASE)).lines["main"]
