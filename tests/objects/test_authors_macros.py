# SPDX-License-Identifier: MIT
"""The macros for authors of patches (build/include), compiled against the packaged kernel's headers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hotreload.build.base import build_base
from hotreload.build.compile import rebuild
from hotreload.build.kernel_tree import KernelTree
from hotreload.diff.object_diff import diff_objects
from hotreload.elf.reader import read_object

# Without its trace events, which modules cannot have, a syscall is defined as in vmlinux.
SYSCALL = """\
#include <linux/module.h>
#undef CONFIG_FTRACE_SYSCALLS
#include <linux/syscalls.h>
INCLUDE
MODULE_LICENSE("GPL");

DEFINE(pair_up, int, one, int __user *, other)
{
	return put_user(one, other);
}
"""


@pytest.mark.parametrize(
    ("header", "macro"),
    [
        ("<hotreload.h>", "KLP_SYSCALL_DEFINE2"),
        ("<linux/livepatch_helpers.h>", "KLP_SYSCALL_DEFINE2"),
        ("<kpatch-macros.h>", "KPATCH_SYSCALL_DEFINE2"),
    ],
)
def test_a_syscall_that_other_tools_need_a_macro_for_is_the_same_code(
    header: str, macro: str, debian_kernel: KernelTree, tmp_path: Path
) -> None:
    plain = SYSCALL.replace("INCLUDE", "").replace("DEFINE", "SYSCALL_DEFINE2", 1)
    (tmp_path / "Kbuild").write_text("obj-m := pair.o\n")
    (tmp_path / "pair.c").write_text(plain)

    async def compiled() -> tuple[Path, Path]:
        _, base = await build_base(debian_kernel, tmp_path)
        (tmp_path / "pair.c").write_text(
            SYSCALL.replace("INCLUDE", f"#include {header}").replace("DEFINE", macro, 1)
        )
        (pair,) = await rebuild(base, base.units, tmp_path / "objects")
        return pair.original, pair.patched

    original, patched = map(read_object, asyncio.run(compiled()))
    assert any("sys_pair_up" in function.name for function in original.functions)
    diff = diff_objects(original, patched)
    assert (diff.verdict, diff.obstacles) == ("unchanged", ())
