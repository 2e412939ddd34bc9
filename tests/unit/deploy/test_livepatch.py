# SPDX-License-Identifier: MIT
"""Answers of the guest's agent become values or errors. The answers are recorded from 6.1 guests."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

import pytest

from hotreload.deploy import livepatch
from hotreload.deploy.guest import CommandResult
from hotreload.deploy.livepatch import AGENT_PATH, Swept, kernel_reason, rejection
from hotreload.errors import GuestUnreachableError, PatchRejectedError, TransitionStalledError

APPLIED = (
    '{"ok":true,"load_ms":28.412,"complete_ms":29.770,"patches":{"hotreload_2":1},'
    '"sections":{".text":"0xffffffffc0a00000",".bss":"0x0"}}\n'
)

STALLED = json.dumps(
    {
        "ok": False,
        "stage": "transition",
        "undone": True,
        "tasks": [
            {
                "pid": 140,
                "comm": "cat",
                "stack": ["schedule+0x5a/0xd0", "my_read+0x7b/0xa0 [drv]", "vfs_read+0x9b/0x1c0"],
            }
        ],
    }
)

NOT_FOUND = """\
[   12.083915] livepatch: tainting kernel with TAINT_LIVEPATCH
[   12.096812] livepatch: enabling patch 'hotreload_5'
[   12.104213] livepatch: symbol 'no_such_function' not found in symbol table
[   12.131180] livepatch: symbol 'no_such_function' not found in symbol table
"""


@dataclass
class Answering:
    """A guest whose agent gives one answer, whatever it is asked."""

    stdout: str = ""
    stderr: str = ""
    status: int = 0
    asked: list[tuple[str, bytes | None]] = field(default_factory=list)
    agent: str = AGENT_PATH

    async def run(self, command: str, *, stdin: bytes | None = None, timeout: float = 30.0) -> CommandResult:
        assert timeout > 0
        self.asked.append((command, stdin))
        return CommandResult(self.status, self.stdout.encode(), self.stderr.encode())


class Silent:
    """A guest that never answers."""

    agent = AGENT_PATH

    async def run(self, command: str, *, stdin: bytes | None = None, timeout: float = 30.0) -> CommandResult:
        raise TimeoutError(command, stdin, timeout)


def apply(guest: Answering | Silent, timeout: float = 5.0) -> livepatch.AppliedPatch:
    return asyncio.run(livepatch.apply_patch(guest, "hotreload_2", b"\x7fELF", timeout=timeout))


def test_an_applied_patch_tells_its_times_and_what_is_live() -> None:
    guest = Answering(APPLIED)
    applied = apply(guest, timeout=2.2)
    assert (applied.load_ms, applied.complete_ms, applied.live) == (28.412, 29.77, ("hotreload_2",))
    assert applied.push_ms >= 0
    assert guest.asked == [(f"{AGENT_PATH} apply hotreload_2 3", b"\x7fELF")]


def test_a_patch_of_many_symbols_has_time_to_be_loaded() -> None:
    with pytest.raises(GuestUnreachableError, match="did not answer within 25 s"):
        apply(Silent())
    many = livepatch.apply_patch(Silent(), "hotreload_2", b"\x7fELF", timeout=5, lookups=1000)
    with pytest.raises(GuestUnreachableError, match="did not answer within 275 s"):
        asyncio.run(many)


def test_a_stalled_transition_names_the_tasks_and_where_they_sleep() -> None:
    with pytest.raises(TransitionStalledError) as stall:
        apply(Answering(STALLED))
    assert stall.value.tasks == ("cat (140) in my_read+0x7b/0xa0 [drv] < vfs_read+0x9b/0x1c0",)
    assert stall.value.message.startswith(
        "patch hotreload_2: the transition did not finish within 5 s; 1 task in the way: cat"
    )
    assert stall.value.hint == (
        "wake or end these tasks, then save again; or reload the module: hotreload reload"
    )


def test_a_transition_that_could_not_be_taken_back_says_so() -> None:
    with pytest.raises(TransitionStalledError, match="could not be undone") as stall:
        apply(Answering(STALLED.replace("true", "false")))
    assert "restart" in (stall.value.hint or "")


def test_another_patch_in_transition_is_named() -> None:
    with pytest.raises(
        TransitionStalledError, match="must wait, because kpatch_7 is in transition; no task was reported"
    ):
        apply(Answering('{"ok":false,"stage":"busy","patch":"kpatch_7","tasks":[]}'))


def test_a_refused_patch_carries_the_kernels_reason_once() -> None:
    answer = json.dumps({"ok": False, "stage": "load", "error": "insmod: ...", "dmesg": NOT_FOUND})
    with pytest.raises(PatchRejectedError) as refusal:
        apply(Answering(answer))
    assert refusal.value.message == (
        "the guest's kernel refused patch hotreload_2:"
        " livepatch: symbol 'no_such_function' not found in symbol table"
    )
    assert refusal.value.code == "HR3103"


def test_without_a_word_from_the_kernel_insmod_gives_the_reason() -> None:
    complaint = "insmod: can't insert '/tmp/hotreload-agent.88.ko': invalid module format"
    assert kernel_reason("", complaint) == "invalid module format"
    assert kernel_reason("", "") == "no reason given"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("hotreload_1: disagrees about version of symbol kfree", "HR2303"),
        ("hotreload_1: version magic '6.1.0-1 SMP' should be '6.1.0-2 SMP'", "HR2303"),
        ("Lockdown: insmod: unsigned module loading is restricted; see man kernel_lockdown.7", "HR3105"),
        ("Loading of unsigned module is rejected; Key was rejected by service", "HR3105"),
        ("x86/modules: Invalid relocation target, existing value is nonzero for type 1", "HR3103"),
        ("hotreload_1: Unknown symbol frob (err -2)", "HR3103"),
    ],
)
def test_the_reason_chooses_the_code(reason: str, code: str) -> None:
    error = rejection("patch hotreload_1", reason)
    assert error.code == code
    assert reason in error.message


def test_the_kernels_remark_on_an_unsigned_module_is_no_reason() -> None:
    remark = (
        "[ 2.1] plain: module verification failed: signature and/or required key missing - tainting kernel\n"
    )
    assert kernel_reason(remark + "[ 2.2] plain: no device", "") == "plain: no device"


@pytest.mark.parametrize(
    "guest",
    [
        Answering(),
        Answering("[1, 2]"),
        Answering("{}"),
        Answering("/bin/sh: out of memory\n"),
        Answering('{"ok":true,"load_ms":1'),
        Answering('{"ok":true,"load_ms":1}'),
        Answering(stderr="sh: /usr/lib/hotreload/agent: not found", status=127),
        Silent(),
    ],
)
def test_a_guest_that_answers_nonsense_or_nothing_is_unreachable(guest: Answering | Silent) -> None:
    with pytest.raises(GuestUnreachableError):
        apply(guest)


def test_what_was_swept_and_what_is_left() -> None:
    guest = Answering('{"ok":true,"removed":["hotreload_1"],"left":["hotreload_2"]}')
    swept = asyncio.run(livepatch.sweep(guest, ["hotreload_2"]))
    assert swept == Swept(("hotreload_1",), ("hotreload_2",))
    assert guest.asked[0][0] == f"{AGENT_PATH} sweep hotreload_2"


def test_nothing_to_disable_is_no_error() -> None:
    guest = Answering('{"ok":false,"stage":"absent"}')
    assert asyncio.run(livepatch.disable_patch(guest, "hotreload_2", timeout=1)) is False


@pytest.mark.parametrize(
    ("answer", "code", "fact"),
    [
        ({"users": 1, "holders": ["user"]}, "HR2304", "is used by user"),
        ({"users": 2, "holders": []}, "HR2301", "is in use \\(2 references\\)"),
        (
            {"users": 0, "holders": [], "error": "rmmod: ...: Device or resource busy"},
            "HR2302",
            "no exit function",
        ),
        ({"users": -1, "holders": [], "error": "rmmod: no such module"}, "HR3103", "no such module"),
    ],
)
def test_a_module_that_stays_says_why(answer: dict[str, object], code: str, fact: str) -> None:
    guest = Answering(json.dumps({"ok": False, "stage": "unload", "dmesg": "", **answer}))
    with pytest.raises(PatchRejectedError, match=fact) as refusal:
        asyncio.run(livepatch.unload_module(guest, "plain"))
    assert refusal.value.code == code


def test_parameters_reach_the_agent_as_one_word() -> None:
    guest = Answering('{"ok":true}')
    asyncio.run(livepatch.load_module(guest, "plain", b"ko", 'text="two words" $x'))
    assert guest.asked == [(f"{AGENT_PATH} load plain 'text=\"two words\" $x'", b"ko")]


@pytest.mark.parametrize(
    ("folder", "error", "told", "place"),
    [
        (
            "/tmp",
            "cat: write error: No space left on device",
            "the guest's /tmp is full: there is no space for patch p",
            "du -ax /tmp |",
        ),
        (
            "/run/hotreload",
            "/bin/agent: line 9: can't create /run/hotreload/x.ko: Read-only file system",
            "the guest's /run/hotreload cannot hold patch p: Read-only file system",
            "du -ax /run |",
        ),
    ],
)
def test_a_guest_without_space_is_told_as_such(folder: str, error: str, told: str, place: str) -> None:
    answer = json.dumps({"ok": False, "stage": "receive", "folder": folder, "error": error})
    with pytest.raises(PatchRejectedError) as refused:
        asyncio.run(livepatch.apply_patch(Answering(answer), "p", b"", timeout=1))
    assert refused.value.message.endswith(told)
    assert refused.value.code == "HR3109"
    assert place in (refused.value.hint or "")
