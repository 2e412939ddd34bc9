# SPDX-License-Identifier: MIT
"""The agent's status becomes values, and the agent's JSON is right whatever the text in it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from hotreload.deploy import livepatch
from hotreload.deploy.transition import (
    LivePatchState,
    PatchedFunction,
    PatchedObject,
    PatchStatus,
    StalledTask,
    parse_answer,
    parse_status,
)
from hotreload.errors import GuestUnreachableError

STATUS = """\
{"ok":true,"patches":[{"name":"hotreload_3","foreign":false,"enabled":true,"transition":true,"objects":[\
{"name":"sleeper","patched":true,"functions":[{"name":"sleeper_show","position":1},{"name":"foo.isra.0",\
"position":2}]},{"name":"vmlinux","patched":true,"functions":[]}]},{"name":"kpatch_7","foreign":true,\
"enabled":true,"transition":false,"objects":[]}],"replaced":["hotreload_2"],"tasks":[{"pid":88,\
"comm":"a \\"b\\u0009","stack":[]}]}
"""


def test_a_status_names_patches_objects_functions_and_the_tasks_in_the_way() -> None:
    functions = (PatchedFunction("sleeper_show", 1), PatchedFunction("foo.isra.0", 2))
    objects = (PatchedObject("sleeper", True, functions), PatchedObject("vmlinux", True, ()))
    assert parse_status(parse_answer(STATUS)) == PatchStatus(
        patches=(
            LivePatchState("hotreload_3", True, True, objects),
            LivePatchState("kpatch_7", True, False, (), foreign=True),
        ),
        replaced=("hotreload_2",),
        tasks=(StalledTask(88, 'a "b\t', ()),),
    )


def test_a_status_without_a_field_is_nonsense() -> None:
    with pytest.raises(GuestUnreachableError, match="makes no sense"):
        parse_status({"ok": True, "patches": [{"name": "x"}], "replaced": [], "tasks": []})


def test_a_warning_before_the_answer_does_no_harm() -> None:
    assert parse_answer('sh: write error: Broken pipe\n{"ok":true}\n') == {"ok": True}


def test_a_task_is_told_by_where_it_sleeps_not_by_how() -> None:
    stack = ("__schedule+0x1/0x2", "schedule+0x1/0x2", "a+0x1/0x2", "b+0x1/0x2", "c+0x1/0x2", "d+0x1/0x2")
    assert StalledTask(7, "kworker/0:1", stack).told == "kworker/0:1 (7) in a+0x1/0x2 < b+0x1/0x2 < c+0x1/0x2"
    assert StalledTask(7, "sh", ()).told == "sh (7)"
    assert StalledTask(7, "sh", stack[:1]).told == "sh (7) in __schedule+0x1/0x2"


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "",
        'quotes " and \\ backslashes \\n \\" \\\\',
        "tab\t return\r escape\x1b[31m bell\a one\x01 last\x1f delete\x7f",
        "grün ☃ 😀 \u2028",
        "two\nlines",
        "%s %d %% {} $x `ls` ' &",
    ],
)
def test_the_agent_writes_json_that_reads_back_as_the_text(text: str, tmp_path: Path) -> None:
    # The guest's awk is busybox's; without busybox here, this machine's own must do as well.
    if busybox := shutil.which("busybox"):
        for applet in ("awk", "sh"):
            (tmp_path / applet).symlink_to(busybox)
    agent = tmp_path / "agent"
    agent.write_bytes(livepatch.agent_source())
    told = subprocess.run(
        ["sh", agent, "json"],
        input=f"{text}\n".encode(),
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        check=True,
    )
    assert json.loads(told.stdout) == text


def test_bytes_that_are_no_utf8_are_still_an_answer(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_bytes(livepatch.agent_source())
    told = subprocess.run(["sh", agent, "json"], input=b'\xff"\xfe\n', capture_output=True, check=True)
    assert json.loads(told.stdout.decode(errors="replace")) == '\ufffd"\ufffd'


def test_the_agent_refuses_a_verb_that_it_does_not_know(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_bytes(livepatch.agent_source())
    told = subprocess.run(["sh", agent, "now_cs"], capture_output=True, check=False)
    assert (told.returncode, told.stdout) == (2, b"")
