# SPDX-License-Identifier: MIT
from __future__ import annotations

from collections import Counter

import pytest

from hotreload.deploy.transition import LivePatchState, PatchedFunction, PatchedObject, PatchStatus
from hotreload.patch.model import KlpFunc, KlpObject
from hotreload.survey.command import parse_options
from hotreload.survey.guest_fixes import Trials, print_trials, print_tried
from hotreload.survey.guest_trial import Tried, not_listed, unusual

PLANNED = (KlpObject(None, (KlpFunc("tcp_ack", 1, 0), KlpFunc("show", 3, 1))),)


def status(*functions: tuple[str, int], name: str = "hotreload_1", transition: bool = False) -> PatchStatus:
    listed = tuple(PatchedFunction(*each) for each in functions)
    vmlinux = PatchedObject("vmlinux", True, listed)
    return PatchStatus((LivePatchState(name, True, transition, (vmlinux,)),), (), ())


def test_what_the_kernel_lists_is_all_that_was_planned() -> None:
    assert not_listed(PLANNED, status(("show", 3), ("tcp_ack", 1)), "hotreload_1") == []


def test_a_namesake_is_another_function() -> None:
    assert not_listed(PLANNED, status(("show", 2), ("tcp_ack", 1)), "hotreload_1") == ["show,3"]


@pytest.mark.parametrize(
    "other", [status(("show", 3), ("tcp_ack", 1), name="other"), PatchStatus((), (), ())]
)
def test_a_patch_that_is_not_there_is_missing_itself(other: PatchStatus) -> None:
    assert not_listed(PLANNED, other, "hotreload_1") == ["tcp_ack,1", "show,3", "hotreload_1"]


def test_what_is_in_transition_is_not_live() -> None:
    assert "hotreload_1" in not_listed(
        PLANNED, status(("show", 3), ("tcp_ack", 1), transition=True), "hotreload_1"
    )


def test_a_patch_that_works_says_nothing_unusual() -> None:
    assert not unusual(
        "[    5.1] hotreload_1: loading out-of-tree module taints kernel.\n"
        "[    5.1] hotreload_1: tainting kernel with TAINT_LIVEPATCH\n"
        "[    5.2] livepatch: enabling patch 'hotreload_1'\n"
        "[    5.2] livepatch: 'hotreload_1': initializing patching transition\n"
        "[    5.2] livepatch: 'hotreload_1': starting patching transition\n"
        "[    5.2] livepatch: signaling remaining tasks\n"
        "[    5.2] livepatch: 'hotreload_1': reversing transition from patching to unpatching\n"
        "[    5.3] livepatch: 'hotreload_1': patching complete\n"
        "[    6.3] livepatch: 'hotreload_1': starting unpatching transition\n"
        "[    6.4] livepatch: 'hotreload_1': unpatching complete\n"
        "[    6.4] EXT4-fs (loop0): mounted filesystem\n"
    )


@pytest.mark.parametrize(
    "line",
    [
        "livepatch: failed to enable patch 'hotreload_1'",
        "livepatch: symbol 'f' not found in symbol table",
        "Unpatched return thunk in use. This should not happen!",
        "hotreload_1: Unknown symbol f (err -2)",
        "module: x86/modules: Skipping invalid relocation target",
    ],
)
def test_every_other_line_about_it_is_a_complaint(line: str) -> None:
    assert unusual(f"[    5.2] livepatch: enabling patch 'hotreload_1'\n[    5.2] {line}\n") == [line]


def test_a_refusal_and_what_went_wrong_are_told_with_their_reasons(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused, wrong = Tried("net/a.c"), Tried("fs/b.c", "loaded")
    refused.refuse("HR2209", "f is not exported")
    wrong.fail("HR4105", "WARNING in f+0x1\nWARNING: CPU: 0 PID: 1 at fs/b.c:7")
    for each in (refused, wrong, Tried("mm/c.c", "undone")):
        print_tried(each)
    assert capsys.readouterr().out.splitlines() == [
        "refused    net/a.c  compared",
        "           HR2209 f is not exported",
        "wrong      fs/b.c  loaded",
        "           HR4105 WARNING in f+0x1",
        "           | WARNING: CPU: 0 PID: 1 at fs/b.c:7",
    ]


def test_the_counts_are_of_those_that_came_so_far_and_the_share_stands_beside_ksplices(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused, wrong = Tried("a.c"), Tried("b.c", "listed", load_ms=30, transition_ms=3)
    refused.refuse("HR2209", "f")
    wrong.fail("HR4105", "WARNING")
    well = [Tried(unit, "undone", load_ms=10, transition_ms=1) for unit in ("c.c", "d.c", "e.c")]
    together = Tried("all in one patch", "undone", functions=7, load_ms=40, transition_ms=2)
    trials = Trials([refused, wrong, *well], together, 3, rounds=Counter(files=9, network=8))
    print_trials(trials, changing=6)
    assert trials.is_wrong
    assert capsys.readouterr().out.splitlines() == [
        "in a guest under load:",
        "     5 patchable by the differ",
        "     4 planned",
        "     4 loaded",
        "     4 listed",
        "     3 undone",
        "            1 for HR2209",
        "            1 for HR4105",
        "median: loaded in 10 ms, transition 1 ms",
        "3 in one patch, 7 functions: undone, loaded in 40 ms, transition 2 ms",
        "work done meanwhile, in rounds: files 9, network 8",
        "3 of 6 pairs that change code were accepted by a running kernel: 50.0 %",
        "Ksplice: 56 of 64, 88 % (Arnold and Kaashoek, EuroSys 2009)",
    ]


def test_a_refusal_alone_is_nothing_wrong() -> None:
    refused = Tried("a.c")
    refused.refuse("HR2209", "f")
    assert not Trials([refused, Tried("b.c", "undone")]).is_wrong


def test_no_guest_is_booted_unless_it_is_asked_for() -> None:
    assert [parse_options("", argv, new=True).guest for argv in ([], ["--guest"])] == [False, True]
