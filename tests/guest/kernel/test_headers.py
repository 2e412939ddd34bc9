# SPDX-License-Identifier: MIT
"""Edits of headers: all units that include one are compiled, and those that changed travel."""

from __future__ import annotations

from hotreload.report.outcome import Outcome
from tests.guest.kernel.conftest import Kernel, one_kernel

INTERNAL = "fs/proc/internal.h"


def test_all_that_use_an_inline_of_a_header_get_it_and_the_others_are_dropped(kernel: Kernel) -> None:
    reads = ("ls /proc/1/fd", "ls /proc/1/ns", "ls /proc/1/task")
    for each in reads:
        kernel.run(each)
    report = kernel.edit(
        {
            INTERNAL: (
                "return get_pid_task(proc_pid(inode), PIDTYPE_PID);",
                "return pid_nr(proc_pid(inode)) == 1 ? NULL : get_pid_task(proc_pid(inode), PIDTYPE_PID);",
            )
        }
    )
    assert len(kernel.compiled) >= 18
    assert {"fs/proc/base.c", "fs/proc/fd.c", "fs/proc/namespaces.c", "fs/proc/version.c"} <= kernel.compiled
    assert {"proc_readfd_common", "proc_ns_dir_readdir", "proc_task_getattr"} <= set(report.symbols)
    assert "version_proc_show" not in report.symbols
    for each in reads:
        kernel.fails(each)
        kernel.run(each.replace("/1/", "/2/"))
    kernel.restore()
    for each in reads:
        kernel.run(each)


@one_kernel
def test_a_comment_on_top_of_a_header_changes_nothing(kernel: Kernel) -> None:
    report = kernel.save({INTERNAL: ("/* SPDX-", "/*\n * A word on\n * this header.\n */\n/* SPDX-")})
    assert report.outcome is Outcome.NO_CHANGE, (report, report.reasons)
    assert len(kernel.compiled) >= 18


@one_kernel
def test_a_header_of_all_units_is_more_than_one_edit_may_touch(kernel: Kernel) -> None:
    reasons = kernel.refusal({"include/linux/list.h": ("/* SPDX-", "/* A word on this header. */\n/* SPDX-")})
    assert [reason.code for reason in reasons] == ["HR1005"]
    report = kernel.restore()
    assert report is not None
    assert report.outcome is Outcome.NO_CHANGE


@one_kernel
def test_a_structure_that_grows_is_refused_with_its_line(kernel: Kernel) -> None:
    member = "struct char_device_struct *next;"
    reasons = kernel.refusal({"fs/char_dev.c": (f"\t{member}\n", f"\t{member}\n\tlong added;\n")})
    (grown,) = (reason for reason in reasons if reason.code == "HR2101")
    assert grown.symbol == "struct char_device_struct"
    source = kernel.tree.source / "fs/char_dev.c"
    assert (grown.file, grown.line) == (source, _line_of(source.read_text(), "long added;"))


def _line_of(text: str, wanted: str) -> int:
    (line,) = (number for number, line in enumerate(text.splitlines(), 1) if wanted in line)
    return line
