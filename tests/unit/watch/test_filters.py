# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import PurePath

import pytest

from hotreload.watch.filters import file_matters, folder_matters, path_matters


@pytest.mark.parametrize(
    "name",
    "n_tty.c foo.h entry_64.S Makefile Kbuild Kconfig vmlinux.lds.S foo.rs foo.dts syscall_64.tbl foo.sh "
    "foo_mod.c order.c 8250_core.c sedan.c hotreload.toml".split(),
)
def test_what_people_write_matters(name: str) -> None:
    assert file_matters(name)


@pytest.mark.parametrize(
    "name",
    "foo.o .foo.o.cmd foo.ko foo.mod foo.mod.c foo.mod.o .foo.o.d modules.order Module.symvers .tmp_foo.o "
    "built-in.a vmlinux foo.i .foo.c.swp .foo.c.swx foo.c~ foo.c.~2~ 4913 5036 #foo.c# .#foo.c sedQx81aB "
    ".goutputstream-8NHA01 foo.c___jb_tmp___ foo.c.orig foo.c.rej foo.c.bak compile_commands.json".split(),
)
def test_outputs_and_editors_files_do_not_matter(name: str) -> None:
    assert not file_matters(name)


def test_hidden_folders_are_not_looked_into() -> None:
    assert not folder_matters(".git")
    assert not folder_matters(".tmp_versions")
    assert folder_matters("drivers")


def test_folders_above_the_root_are_the_users_own_affair() -> None:
    root = PurePath("/home/me/.work/drv")
    assert path_matters(root / "sub/foo.c", root)
    assert not path_matters(root / ".git/foo.c", root)
    assert not path_matters(root / "sub/foo.o", root)
    assert not path_matters(root, root)
