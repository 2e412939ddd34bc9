# SPDX-License-Identifier: MIT
"""Make, where no kernel is built: the units of a tree, and what a failure leaves behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from hotreload.build.kernel_make import make_kernel
from hotreload.build.kernel_progress import list_units
from hotreload.build.unfinished import unfinished
from hotreload.errors import CompileError, KernelUnfitError
from tests.conftest import require
from tests.guest.faults import guards_of, until

# A tree in kbuild's language: composite objects, modules, folders, and names that another folder has, too.
TREE = {
    "Kbuild": "obj-y += kernel/\nobj-$(CONFIG_NET) += net/\nobj-y += $(ARCH_LIB) $(ARCH_DRIVERS)\n",
    "kernel/Makefile": "obj-y := fork.o entry.o parts.o\nparts-y := one.o\nparts-$(CONFIG_TWO) += two.o\n"
    "parts-m += none.o\n",
    "kernel/fork.c": "",
    "kernel/entry.S": "",
    "kernel/one.c": "",
    "kernel/two.c": "",
    "kernel/none.c": "",
    "net/Kbuild": "obj-m += parts.o\nparts-objs := three.o\nparts-m := nine.o\n"
    "obj-$(CONFIG_OFF) += off.o\nsubdir-y := deep\n",
    "net/Makefile": "obj-y := wrong.o\n",
    "net/three.c": "",
    "net/nine.c": "",
    "net/off.c": "",
    "net/wrong.c": "",
    "net/deep/Makefile": "ccflags-y := $(call cc-option,-O2)\nobj-y += four.o\n",
    "net/deep/four.c": "",
    "lib/Makefile": "lib-y := five.o\n",
    "lib/five.c": "",
    "arch/x86/lib/Makefile": "lib-y := six_$(BITS).o\n",
    "arch/x86/lib/six_64.c": "",
    "arch/x86/pci/Makefile": "obj-y := seven.o\n",
    "arch/x86/pci/seven.c": "",
    "arch/x86/power/Makefile": "obj-y := eight.o\n",
    "arch/x86/power/eight.c": "",
}


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_units_of_a_configuration_are_known_before_it_is_built(tmp_path: Path) -> None:
    require(shutil.which("make"), "make", "apt-get install make")
    source = write(tmp_path / "linux", TREE)
    config = "CONFIG_PCI=y\nCONFIG_NET=y\nCONFIG_TWO=y\n# CONFIG_OFF is not set\nCONFIG_NAME=\"a 'b'\"\n"
    output = write(tmp_path / "built", {".config": config})
    found = asyncio.run(list_units(source, output, 2))
    assert sorted(found) == [
        "arch/x86/lib/six_64.o", "arch/x86/pci/seven.o", "kernel/fork.o", "kernel/one.o", "kernel/two.o",
        "lib/five.o", "net/deep/four.o", "net/nine.o", "net/three.o",
    ]  # fmt: skip


def test_where_the_units_cannot_be_told_there_are_none(tmp_path: Path) -> None:
    require(shutil.which("make"), "make", "apt-get install make")
    output = write(tmp_path, {".config": "", "Kbuild": "$(error of another kind)\n"})
    assert asyncio.run(list_units(tmp_path, output, 1)) == frozenset()


# What kbuild's own Makefile is asked for; its kconfig has no LIVEPATCH where it is told so.
MAKEFILE = """olddefconfig:
\t@sed -i '/CONFIG_LIVEPATCH=/d' .config
allnoconfig:
\t@cp $(KCONFIG_ALLCONFIG) .config
bzImage:
\t@echo '  CC      init/main.o'
\t@gcc -c init/main.c -o init/main.o
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for program in ("make", "gcc", "flex", "bison", "bc"):
        require(shutil.which(program), program, f"apt-get install {program}")
    require(Path("/usr/include/libelf.h").is_file(), "libelf", "apt-get install libelf-dev")
    return write(tmp_path / "linux", {"Kconfig": "", "Makefile": MAKEFILE, "init/main.c": "int a\n"})


def test_a_configuration_that_cannot_be_had_leaves_the_old_one(tree: Path) -> None:
    write(tree, {".config": "CONFIG_MINE=y\n"})
    with pytest.raises(KernelUnfitError, match="LIVEPATCH=y: it is what switches the guest to the new code"):
        asyncio.run(make_kernel(tree, tree, None, 1, lambda _step: None))
    assert (tree / ".config").read_text() == "CONFIG_MINE=y\n"
    assert not list(tree.glob(".config?*"))


def test_a_source_that_does_not_compile_is_shown_in_gccs_words(tree: Path) -> None:
    with pytest.raises(CompileError) as raised:
        asyncio.run(make_kernel(tree, tree, None, 1, lambda _step: None))
    assert raised.value.diagnostics.startswith("init/main.c:1:1: error: expected")
    assert "make" not in raised.value.diagnostics
    assert raised.value.message.startswith(
        f"make bzImage modules failed in {tree}: init/main.c:1:1: error: expected"
    )


BUILD = """
import asyncio, sys
from pathlib import Path
from hotreload.build.kernel_make import make_kernel

tree = Path(sys.argv[1])
asyncio.run(make_kernel(tree, tree, None, 1, lambda _step: None))
"""


@pytest.mark.parametrize("by", ["gcc -c init/main.c -o $@", "cat blob init/main.c >$@"])
def test_what_was_being_written_when_the_build_was_killed_goes_with_it(by: str, tree: Path) -> None:
    os.mkfifo(tree / "blob")  # the assembler, or cat, has made the object, and waits
    (tree / "init/main.c").write_text('asm(".incbin \\"blob\\"");\n')
    (tree / "Makefile").write_text(MAKEFILE.partition("bzImage")[0] + f"bzImage: half.o\nhalf.o:\n\t@{by}\n")
    made = tree / "half.o"
    with subprocess.Popen([sys.executable, "-c", BUILD, tree], stderr=subprocess.DEVNULL) as building:
        until(lambda: made.is_file() or building.poll() is not None, "an object")
        assert made.is_file()
        building.kill()
    until(lambda: not guards_of(building.pid), "an end of what it has started")
    assert not made.exists()


def test_only_what_was_written_after_its_command_was_noted_is_unfinished(tmp_path: Path) -> None:
    for name, made, noted in (("old", 10, 5), ("done", 20, 20), ("half", 30, 20), ("new", 30, None)):
        folder = tmp_path / name
        folder.mkdir()
        for file, time in ((folder / "x.o", made), (folder / ".x.o.cmd", noted)):
            if time is not None:
                file.touch()
                os.utime(file, ns=(time, time))
    assert list(unfinished(tmp_path, 15)) == [tmp_path / "half/x.o"]
