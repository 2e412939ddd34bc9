# SPDX-License-Identifier: MIT
"""Edits that need more than their function: callers that go with it, data that stays, callbacks to come."""

from __future__ import annotations

import time

from tests.guest.constructs.conftest import Constructs, one_kernel


def test_variables_of_each_kind_are_the_ones_of_the_driver(constructs: Constructs) -> None:
    assert constructs.read("percpu") == "calls 1 here 1 limit 1000 settled 77"
    constructs.edit(
        percpu=(
            ("return this_cpu_inc_return(percpu_calls);", "return 100 + this_cpu_inc_return(percpu_calls);"),
            ("return current->pid > 0", "return current->pid > 1"),
            ('"calls %ld here', '"calls: %ld here'),
        )
    )
    assert constructs.read("percpu") == "calls: 102 here 1 limit 1000 settled 77"


@one_kernel
def test_a_per_cpu_variable_that_an_edit_adds_is_refused_by_name(constructs: Constructs) -> None:
    reasons = constructs.refusal(
        percpu=(
            ("static long percpu_l", "static DEFINE_PER_CPU(long, percpu_new);\nstatic long percpu_l"),
            ("return this_cpu", "this_cpu_inc(percpu_new);\n\treturn this_cpu"),
        )
    )
    assert ("HR2105", "percpu_new") in [(reason.code, reason.symbol) for reason in reasons]


def test_functions_of_special_sections_run_anew(constructs: Constructs) -> None:
    booted = "cold 2 sched 3 softirq 31 lock 41 ref 4 noinstr 5 rare 6 switch one goto 90 table 7"
    assert constructs.read("texts", 1) == booted
    constructs.edit(
        texts=(
            ("return n + 1;", "return n + 11;"),
            ("return n + 2;", "return n + 12;"),
            ("return n + 30;", "return n + 31;"),
            ("return n + 40;", "return n + 41;"),
            ("return n + 3;", "return n + 13;"),
            ("return n + 4;", "return n + 14;"),
            ("return n + 5;", 'if (n > 6)\n\t\tpr_err("%d is too many\\n", n);\n\treturn n + 15;'),
            ('case 5: return "five";', 'case 5: return "FIVE";\n\tcase 6: return "six";'),
            ("sum += 10;\n\tgoto *labels[2];", "sum += 20;\n\tgoto *labels[1];"),
            ("{ 5, 7, 11, 13 }", "{ 6, 8, 12, 14 }"),
        )
    )
    assert constructs.read("texts", 3) == (
        "cold 14 sched 15 softirq 34 lock 44 ref 16 noinstr 17 rare 18 switch three goto 110 table 14"
    )
    assert constructs.read("texts", 5) == (
        "cold 16 sched 17 softirq 36 lock 46 ref 18 noinstr 19 rare 20 switch FIVE goto 100 table 8"
    )
    # What is behind the unlikely branch stands apart from its function, in its .cold part.
    assert "7 is too many" in constructs.log_of_reading("texts", 7)
    assert "rare 22 switch many" in constructs.read("texts", 7)


def test_static_variables_keep_their_values_through_reloads(constructs: Constructs) -> None:
    # count: sum * 100 + calls
    assert constructs.read("state", 1) == "count 111 called 101 inlined 1001 same 1"
    constructs.edit(
        state=(
            ("calls++;\n\tsum += n;", "calls += 2;\n\tsum += n;"),
            ("static int sum = 100;\n\n\tsum += n;", "static int sum = 100;\n\n\tsum += n + 1;"),
            ("static int sum = 1000;\n\n\tsum += n;", "static int sum = 1000;\n\n\tsum += n + 2;"),
        )
    )
    assert constructs.read("state", 2) == "count 313 called 104 inlined 1005 same 1"
    constructs.edit(state=("calls += 2;", "calls += 3;"))
    assert constructs.read("state", 1) == "count 416 called 106 inlined 1008 same 1"


def test_a_function_that_cannot_be_traced_changes_through_its_callers(constructs: Constructs) -> None:
    assert constructs.read("untraced", 5) == "1012"
    report = constructs.edit(untraced=("return n + 1;", "return n + 2;"))
    assert constructs.read("untraced", 5) == "1014"
    assert (
        "untraced_top is replaced too, because it calls untraced_middle, which is not traceable"
    ) in report.notes
    assert (
        "untraced_middle is replaced too, because it calls untraced_leaf, which is not traceable"
    ) in report.notes


@one_kernel
def test_an_untraceable_function_that_is_called_from_elsewhere_is_refused(constructs: Constructs) -> None:
    reasons = constructs.refusal(untraced=("{\n\treturn n;", "{\n\treturn n + 1;"))
    assert [(reason.code, reason.symbol) for reason in reasons] == [("HR2202", "untraced_elsewhere")]


def test_an_export_and_its_user_in_another_module_change_in_one_edit(constructs: Constructs) -> None:
    assert (constructs.read("offers", 4), constructs.run("cat /proc/customer")) == ("5", "20\n")
    constructs.edit(
        offers=("return n + 1;", "return n + 2;"), customer=("10 * offered(1)", "100 * offered(2)")
    )
    assert (constructs.read("offers", 4), constructs.run("cat /proc/customer")) == ("6", "400\n")


def test_an_export_that_an_edit_adds_is_used_by_another_unit(constructs: Constructs) -> None:
    more = "int offered_more(int n)\n{\n\treturn 3 * n;\n}\nEXPORT_SYMBOL_GPL(offered_more);\n\n"
    report = constructs.edit(
        offers=("int offers_show(", f"{more}int offers_show("),
        warn=(
            ("static noinline", "int offered_more(int n);\n\nstatic noinline"),
            ("return n * 10;", "return offered_more(n);"),
        ),
    )
    assert constructs.read("warn", 7) == "21"
    assert any("offered_more" in note for note in report.notes), report.notes
    # The tests behind this one begin with what was booted, and that has no such export.
    constructs.edit(warn=("return offered_more(n);", "return 20 * n;"))
    assert constructs.read("warn", 7) == "140"


def test_code_for_loading_needs_a_load_also_beside_other_code(constructs: Constructs) -> None:
    edit = ("return untraced_elsewhere(0);", "return untraced_elsewhere(0) + 0 * untraced_elsewhere(1);")
    for edits in (edit, (edit, ('"%lx\\n"', '"0x%lx\\n"'))):
        (reason,) = constructs.refusal(main=edits)
        assert (reason.code, reason.symbol) == ("HR2201", "constructs_init")


def test_callbacks_that_are_renamed_run_as_the_newest_patch_has_them(constructs: Constructs) -> None:
    report = constructs.edit(
        later=(
            *[(f"void later_{name}(", f"void later_new_{name}(") for name in ("tick", "toil", "grace")],
            *[(f"later_{name}++;", f"later_{name} += 100;") for name in ("timers", "works", "rcus")],
            ("later_tick, 0);", "later_new_tick, 0);"),
            ("later_toil);", "later_new_toil);"),
            ("later_grace);", "later_new_grace);"),
        )
    )
    assert any("later_new_tick takes the place of later_tick" in note for note in report.notes), report.notes
    asked = constructs.patch
    constructs.read("later", 2500)
    until = time.monotonic() + 30
    # The patch is replaced before the callbacks' time.
    constructs.edit(offers=("return n + 1;", "return n + 3;"))
    assert constructs.patch != asked
    while constructs.read("later") != "timers 100 works 100 rcus 100" and time.monotonic() < until:
        time.sleep(0.2)
    assert constructs.read("later") == "timers 100 works 100 rcus 100"
    constructs.undo_all()
    assert constructs.patch == ""
    assert constructs.read("offers", 4) == "5"
    constructs.edit(offers=("return n + 3;", "return n + 4;"))
    assert constructs.read("offers", 4) == "8"


def test_a_pointer_to_a_changed_function_is_the_one_that_the_kernel_holds(constructs: Constructs) -> None:
    # state_held was stored by the code that was booted; patched code compares it with its own idea.
    constructs.edit(state=("sum = 100;\n\n\tsum += n;", "sum = 100;\n\n\tsum += n + 10;"))
    assert constructs.read("state", 0).endswith(" same 1")
