# SPDX-License-Identifier: MIT
"""Who keeps a patch out is told by name.

The lines of enabled_functions are those of 6.1 and 6.12 guests; of two users there, t_show() in
kernel/trace/ftrace.c.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from hotreload.deploy import livepatch
from hotreload.deploy.neighbours import blocked_by
from hotreload.errors import GuestUnreachableError, PatchRejectedError
from tests.unit.deploy.test_livepatch import Answering

HANDLER = "kprobe_ftrace_handler+0x0/0x1b0"
KPROBE = f"f (1) R I  \ttramp: 0xffffffffc0221000 ({HANDLER}) ->{HANDLER}"
REDIRECTS = "f (1) R I     M \ttramp: 0xffffffffc0256000 (mine+0x0/0x10 [mod]) ->mine+0x0/0x10 [mod]"
LISTENS = "f (1) R    \ttramp: 0xffffffffc0256000 (mine+0x0/0x10 [mod]) ->mine+0x0/0x10 [mod]"
SEVERAL = "f (2) R I  \t->ftrace_ops_list_func+0x0/0x1e0"
DIRECT = (
    "f (1) R   D   M \ttramp: ftrace_regs_caller+0x0/0x65 (call_direct_funcs+0x0/0x20)",
    "\tdirect-->entry+0x0/0x10 [mod]",
)
SHARED = ("f (2) R I D\t->ftrace_ops_list_func+0x0/0x1e0", "\tdirect-->bpf_trampoline_6442493853+0x0/0x60")


@pytest.mark.parametrize(
    ("users", "handlers", "kprobes", "owner", "first"),
    [
        ([KPROBE], ["after [mod]"], True, "a kprobe that has a post_handler: after [mod]", "(rmmod mod), "),
        ([KPROBE], [], True, "a kprobe that has a post_handler", "remove it, "),
        (
            [KPROBE],
            ["after [mod]", "then [other]"],
            True,
            "a kprobe that has a post_handler: after [mod], then [other]",
            "(rmmod mod other), ",
        ),
        ([REDIRECTS], [], False, "another user of ftrace: mine [mod]", "(rmmod mod), "),
        # Kprobes that only look on are there as well, or somebody else who does.
        ([REDIRECTS], [], True, "another user of ftrace: mine [mod]", "(rmmod mod), "),
        ([SEVERAL], [], False, "another user of ftrace", "remove it, "),
        ([LISTENS], [], False, "another user of ftrace", "remove it, "),
        (DIRECT, [], False, "an ftrace direct call: entry [mod]", "(rmmod mod), "),
        (DIRECT, [], True, "an ftrace direct call: entry [mod]", "(rmmod mod), "),
        # One that shares is not in the way: the other one is.
        (SHARED, ["after [mod]"], True, "a kprobe that has a post_handler: after [mod]", "(rmmod mod), "),
    ],
)
def test_who_has_the_function_is_named(
    users: list[str], handlers: list[str], kprobes: bool, owner: str, first: str
) -> None:
    error = blocked_by(
        "patch x",
        {"function": "f", "ftrace_enabled": 1, "kprobes": kprobes, "handlers": handlers, "users": users},
    )
    assert error.code == "HR3103"
    assert error.message == f"the guest's kernel refused patch x: f is already used by {owner}"
    assert first in (error.hint or "")


def test_ftrace_that_is_turned_off_is_the_reason_whoever_is_there() -> None:
    blocked = {"function": "f", "ftrace_enabled": 0, "kprobes": True, "handlers": [], "users": [LISTENS]}
    assert blocked_by("patch x", blocked).message.endswith(": kernel.ftrace_enabled is 0 in the guest")


def test_an_answer_that_lacks_a_field_is_nonsense() -> None:
    with pytest.raises(GuestUnreachableError, match="makes no sense"):
        blocked_by("patch x", {"function": "f"})


def refusal(answer: dict[str, object]) -> PatchRejectedError:
    guest = Answering(json.dumps({"ok": False, **answer}))
    with pytest.raises(PatchRejectedError) as refused:
        asyncio.run(livepatch.apply_patch(guest, "hotreload_2", b"\x7fELF", timeout=5))
    return refused.value


def test_live_patches_of_others_are_named_with_how_to_disable_them() -> None:
    error = refusal({"stage": "foreign", "patches": ["kpatch_7", "theirs"]})
    assert (error.code, error.message) == (
        "HR3103",
        "patch hotreload_2 would disable the guest's other live patches: kpatch_7, theirs",
    )
    assert (error.hint or "").endswith(
        "echo 0 >/sys/kernel/livepatch/kpatch_7/enabled; echo 0 >/sys/kernel/livepatch/theirs/enabled"
    )


def test_who_has_the_function_is_told_instead_of_the_kernels_lines() -> None:
    blocked = {"function": "f", "ftrace_enabled": 1, "kprobes": False, "handlers": [], "users": [REDIRECTS]}
    error = refusal(
        {"stage": "load", "error": "insmod: ...", "dmesg": "livepatch: failed", "blocked": blocked}
    )
    assert error.message == (
        "the guest's kernel refused patch hotreload_2: f is already used by another user of ftrace:"
        " mine [mod]"
    )
