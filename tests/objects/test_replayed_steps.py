# SPDX-License-Identifier: MIT
"""Recorded commands that name their object in more than one way."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.gcc import compile_object

OBJTOOL = "#!/bin/sh\nobjcopy --add-section .seen=/dev/null $1\n"


def test_objtool_works_on_our_object_also_where_the_command_spells_the_built_one_with_a_step_up(
    tmp_path: Path,
) -> None:
    # As KVM's shared files are: arch/x86/kvm/../../../virt/kvm/eventfd.o.
    (tmp_path / "arch/x86").mkdir(parents=True)
    built = tmp_path / "unit.o"
    built.write_bytes(b"what the user has built")
    (tmp_path / "unit.c").write_text("int unit;\n")
    (tmp_path / "objtool").write_text(OBJTOOL)
    os.chmod(tmp_path / "objtool", 0o755)
    spelled = "arch/x86/../../unit.o"
    command = f"gcc -c -o {spelled} arch/x86/../../unit.c ; ./objtool {spelled}"
    unit = TranslationUnit(tmp_path / "unit.c", built, command, tmp_path, "vmlinux")
    asyncio.run(compile_object(unit, tmp_path / "ours/unit.o"))
    assert built.read_bytes() == b"what the user has built"
    assert b".seen" in (tmp_path / "ours/unit.o").read_bytes()
