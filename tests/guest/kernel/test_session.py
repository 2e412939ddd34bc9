# SPDX-License-Identifier: MIT
"""What a session makes of several edits, and of those that were there before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.cli.main import main
from hotreload.demo.driven import Driven, guest_name
from hotreload.report.outcome import Outcome
from tests.guest.kernel.conftest import Kernel, one_kernel

VERSION = {"fs/proc/version.c": ("seq_printf(m,", 'seq_puts(m, "edited: ");\n\tseq_printf(m,')}
UPTIME = {"fs/proc/uptime.c": ('"%lu.%02lu %lu.%02lu\\n"', '"%lu.%02lu %lu.%02lu edited\\n"')}
LOADAVG = {"fs/proc/loadavg.c": ('%u/%d %d\\n"', '%u/%d %d edited\\n"')}


def _edited(kernel: Kernel) -> list[bool]:
    files = ("version", "uptime", "loadavg")
    return ["edited" in kernel.run(f"cat /proc/{name}") for name in files]


def test_of_three_edits_one_is_taken_back_and_two_stay(kernel: Kernel) -> None:
    kernel.edit({**VERSION, **UPTIME, **LOADAVG})
    assert _edited(kernel) == [True, True, True]
    report = kernel.restore("fs/proc/uptime.c")
    assert report is not None
    assert report.outcome is Outcome.LIVE
    assert _edited(kernel) == [True, False, True]
    assert kernel.patched == {"vmlinux": {"loadavg_proc_show,1", "version_proc_show,1"}}
    report = kernel.restore()
    assert report is not None
    assert report.outcome is Outcome.UNDONE
    assert _edited(kernel) == [False, False, False]


def test_a_patch_of_several_files_is_brought_without_touching_them(kernel: Kernel, tmp_path: Path) -> None:
    patch = kernel.patch_of({**VERSION, **LOADAVG}, tmp_path / "fix.patch")
    assert kernel.after("push", patches=[str(patch)]).outcome is Outcome.LIVE
    assert _edited(kernel) == [True, False, True]
    assert all("edited" not in (kernel.tree.source / name).read_text() for name in (*VERSION, *LOADAVG))
    assert kernel.after("undo").outcome is Outcome.UNDONE
    assert _edited(kernel) == [False, False, False]


def test_a_patch_of_several_files_becomes_a_module_that_the_kernel_loads(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = kernel.patch_of({**VERSION, **LOADAVG}, tmp_path / "fix.patch")
    monkeypatch.chdir(tmp_path)
    assert main(["build", "-p", str(patch), "-K", str(kernel.tree.output), str(kernel.tree.source)]) == 0
    kernel.insert(tmp_path / "livepatch-fix.ko")
    assert _edited(kernel) == [True, False, True]
    kernel.run("echo 0 >/sys/kernel/livepatch/livepatch_fix/enabled")
    assert _edited(kernel) == [False, False, False]
    kernel.run("rmmod livepatch_fix")


def test_the_line_of_a_crash_in_code_of_the_kernel_that_no_reload_has_changed_is_named(
    kernel: Kernel,
) -> None:
    kernel.edit(
        {"fs/proc/version.c": ("seq_printf(m,", "get_option((char **)m->size, NULL);\n\tseq_printf(m,")}
    )
    crashed = kernel.crash("cat /proc/version")
    (reason,) = crashed.reasons
    assert reason.file == kernel.tree.source / "lib/cmdline.c", reason
    assert reason.line
    line = reason.file.read_text().splitlines()[reason.line - 1]
    assert "*str" in line, line


@one_kernel
def test_an_edit_from_before_the_start_is_live_after_it(kernel: Kernel) -> None:
    kernel.edit(VERSION)

    async def another() -> tuple[Outcome, str]:
        options = ("-K", str(kernel.tree.output))
        async with Driven(kernel.tree.source, guest_name("late"), lambda _text: None, options) as watch:
            report = (await watch.next_cycle()).report
            return report.outcome, (await watch.run("cat /proc/version")).text

    outcome, text = kernel.wait(another())
    assert outcome is Outcome.LIVE
    assert text.startswith("edited: Linux version")
