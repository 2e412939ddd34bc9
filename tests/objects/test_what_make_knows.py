# SPDX-License-Identifier: MIT
"""Changes of files that no unit names, and what is compiled because of them. kbuild is the real one."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from hotreload.build.base import build_base
from hotreload.build.compile import rebuild
from hotreload.build.guest_base import GuestBase
from hotreload.build.kernel_tree import KernelTree
from hotreload.diff.obstacles import NotPatchableError
from hotreload.edits import Edits
from hotreload.errors import CompileError
from hotreload.running_check import RunningCheck

HEAD = '#include <linux/module.h>\nMODULE_LICENSE("GPL");\n'


@pytest.fixture(autouse=True)
def _bases_of_their_own(tmp_path: Path, debian_kernel: KernelTree, monkeypatch: pytest.MonkeyPatch) -> None:
    assert debian_kernel  # fetched into the real cache first
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Driver:
    """A folder that was built and booted; ``save`` is an edit, ``push`` finds out by itself."""

    def __init__(self, tree: KernelTree, folder: Path, files: Mapping[str, str]) -> None:
        self.folder = folder
        self.write(files)
        module, base = asyncio.run(build_base(tree, folder))
        self.base = GuestBase.booted(module, base)
        objects = folder.parent / "objects"
        self.edits = Edits(self.base, cast(RunningCheck, None), Path(), objects, 100, "reload")
        self.objects = objects

    def write(self, files: Mapping[str, str]) -> tuple[Path, ...]:
        for name, text in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)
        return tuple(self.folder / name for name in files)

    def save(self, files: Mapping[str, str]) -> set[str]:
        """The names of the units that are compiled when these files are saved together."""
        return self.compiled(self.write(files))

    def push(self, files: Mapping[str, str]) -> set[str]:
        self.write(files)
        return self.compiled(())

    def asks(self, files: Mapping[str, str]) -> bool:
        """Is make asked when these files are saved?"""
        others = self.edits.others(self.write(files))
        return bool(others) and self.edits.is_open(others)

    def compiled(self, files: tuple[Path, ...]) -> set[str]:
        async def through() -> set[str]:
            others = self.edits.others(files)
            if others and self.edits.is_open(others):
                await self.edits.ask_make(others)
            units = self.edits.of(files, others)
            pairs = await rebuild(self.base, units, self.objects)
            self.edits.units.are_compiled(units)
            return {pair.unit.source.name for pair in pairs if _differ(pair.original, pair.patched)}

        return asyncio.run(through())


def _differ(one: Path, other: Path) -> bool:
    return _loaded(one) != _loaded(other)


def _loaded(file: Path) -> list[bytes]:
    with file.open("rb") as stream:
        sections = ELFFile(stream).iter_sections()
        return [each.data() for each in sections if each["sh_flags"] & SH_FLAGS.SHF_ALLOC]


RULE = """obj-m := m.o
m-y := a.o b.o
ccflags-y := -I$(obj)
$(obj)/a.o: $(obj)/names.h
$(obj)/names.h: $(src)/names.txt $(src)/make.sh
	sh $(src)/make.sh $< > $@
"""
MAKE = "sed 's/.*/#define NAME \"&\"/' $1\n"
A = HEAD + '#include "names.h"\nconst char *a(void);\nconst char *a(void) { return NAME; }\n'
B = "int b(void);\nint b(void) { return 1; }\n"


def ruled(tree: KernelTree, folder: Path) -> Driver:
    files = {"Kbuild": RULE, "names.txt": "one\n", "make.sh": MAKE, "a.c": A, "b.c": B}
    return Driver(tree, folder / "drv", files)


def test_a_table_that_a_rule_makes_a_header_of_asks_for_the_units_that_include_it(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    driver = ruled(debian_kernel, tmp_path)
    assert driver.save({"names.txt": "two\n"}) == {"a.c"}
    assert driver.save({"names.txt": "three\n", "b.c": B.replace("1", "2")}) == {"a.c", "b.c"}


def test_a_push_finds_the_table_and_the_script_by_itself(debian_kernel: KernelTree, tmp_path: Path) -> None:
    driver = ruled(debian_kernel, tmp_path)
    assert driver.push({}) == set()
    assert driver.push({"names.txt": "two\n"}) == {"a.c"}
    assert driver.push({"names.txt": "one\n"}) == set()
    assert driver.push({"make.sh": MAKE.replace("&", "<&>")}) == {"a.c"}


def test_make_is_not_asked_about_what_units_name(debian_kernel: KernelTree, tmp_path: Path) -> None:
    driver = ruled(debian_kernel, tmp_path)
    assert not driver.asks({"a.c": A + "\n"})
    assert not driver.asks({"names.h": '#define NAME "by hand"\n'})
    assert driver.asks({"README": "hello\n"})


def test_what_make_makes_nothing_of_asks_for_nothing_and_is_asked_once(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    driver = ruled(debian_kernel, tmp_path)
    assert driver.save({"README": "hello\n"}) == set()
    others = driver.edits.others((driver.folder / "README",))
    assert not driver.edits.is_open(others)
    assert not driver.edits.has_new(others)


def test_a_rule_that_fails_is_an_error_of_the_edit_and_is_asked_again(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    driver = ruled(debian_kernel, tmp_path)
    with pytest.raises(CompileError, match="no such table"):
        driver.save({"make.sh": "echo no such table >&2; exit 1\n"})
    assert driver.save({"make.sh": MAKE.replace("&", "<&>")}) == {"a.c"}


def test_flags_that_are_read_from_a_file_are_a_change_of_the_recipe(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    kbuild = "obj-m := m.o\nccflags-y := -DVERSION=$(shell cat $(src)/VERSION)\n"
    source = HEAD + "int m(void);\nint m(void) { return VERSION; }\n"
    driver = Driver(debian_kernel, tmp_path / "drv", {"Kbuild": kbuild, "VERSION": "1\n", "m.c": source})
    with pytest.raises(NotPatchableError, match=r"VERSION changed, .* m\.o"):
        driver.save({"VERSION": "2\n"})


@pytest.mark.parametrize("is_asked", [True, False])
def test_flags_that_a_program_says_may_change_though_no_file_of_the_folder_does(
    is_asked: bool, debian_kernel: KernelTree, tmp_path: Path
) -> None:
    """As those of `git describe` do with each commit."""
    (tmp_path / "commit").write_text("1\n")
    flag = f"ccflags-y := -DCOMMIT=$(shell cat {tmp_path}/commit)\n"
    flag = flag if is_asked else "KDIR := /lib/modules/$(shell uname -r)/build\n"
    source = HEAD + "#ifndef COMMIT\n#define COMMIT 1\n#endif\nint c(void);\nint c(void) { return COMMIT; }\n"
    driver = Driver(debian_kernel, tmp_path / "drv", {"Kbuild": f"obj-m := m.o\n{flag}", "m.c": source})
    assert not asyncio.run(driver.edits.is_made_otherwise(lambda _made: None))
    (tmp_path / "commit").write_text("2\n")
    assert asyncio.run(driver.edits.is_made_otherwise(lambda _made: None)) is is_asked
    if is_asked:
        with pytest.raises(NotPatchableError, match="no longer uses the same command"):
            driver.push({})


def test_a_clock_among_the_flags_is_no_change(debian_kernel: KernelTree, tmp_path: Path) -> None:
    kbuild = "obj-m := m.o\nccflags-y := -DBUILT=$(shell date +%s)\n"
    source = HEAD + "long m(void);\nlong m(void) { return BUILT; }\n"
    driver = Driver(debian_kernel, tmp_path / "drv", {"Kbuild": kbuild, "m.c": source})
    time.sleep(1.1)
    assert driver.save({"README": "hello\n"}) == set()


def test_a_stamp_that_make_always_writes_does_not_ask_for_ever(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    kbuild = "obj-m := m.o\n$(obj)/m.o: $(obj)/stamp\n$(obj)/stamp: FORCE\n\tdate +%N > $@\n"
    driver = Driver(debian_kernel, tmp_path / "drv", {"Kbuild": kbuild, "m.c": HEAD})
    asked = [driver.push({}) for _ in range(3)]
    assert asked == [set()] * 3
    others = driver.edits.others(())
    assert not driver.edits.is_open(others)


def test_bytes_that_assembly_includes_are_among_its_inputs(debian_kernel: KernelTree, tmp_path: Path) -> None:
    files = {
        "Kbuild": "obj-m := m.o\nm-y := a.o blob.o\nAFLAGS_blob.o := -I$(src)\n",
        "a.c": HEAD,
        "blob.S": '\t.section .rodata\n\t.globl blob\nblob:\n\t.incbin "blob.bin"\n',
        "blob.bin": "AAAA",
    }
    driver = Driver(debian_kernel, tmp_path / "drv", files)
    assert not driver.asks({"blob.bin": "BBBB"})
    assert driver.push({}) == {"blob.S"}
    assert driver.push({"blob.bin": "AAAA"}) == set()


def test_bytes_that_c_includes_are_refused_and_not_compared(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    folder = tmp_path / "drv"
    source = f'{HEAD}asm(".section .rodata\\nblob: .incbin \\"{folder}/blob.bin\\"\\n.previous");\n'
    driver = Driver(debian_kernel, folder, {"Kbuild": "obj-m := m.o\n", "m.c": source, "blob.bin": "AAAA"})
    with pytest.raises(NotPatchableError, match=r"blob\.bin changed: it is in m, but not compiled from C"):
        driver.push({"blob.bin": "BBBB"})
    assert driver.base.carried_otherwise() == {folder / "blob.bin": {"m"}}
    # The Makefile says nothing of it; whoever builds the module to load it gets the new bytes all the same.
    module, _ = asyncio.run(build_base(debian_kernel, folder))
    assert b"BBBB" in module.modules[0].ko.read_bytes()


@pytest.mark.parametrize("name", ["core.o_shipped", "vendor.bin"])
def test_an_object_that_was_built_elsewhere_is_refused(
    debian_kernel: KernelTree, tmp_path: Path, name: str
) -> None:
    kbuild = "obj-m := m.o\nm-y := a.o core.o\n$(shell touch $(obj)/.core.o.cmd)\n"
    if name == "vendor.bin":
        kbuild += "$(obj)/core.o: $(src)/vendor.bin\n\tcp $< $@\n"
    folder = tmp_path / "drv"
    folder.mkdir()

    def compiled(number: int) -> None:
        os.system(f"echo 'int core = {number};' | gcc -x c -c -o {folder / name} -")

    compiled(1)
    driver = Driver(debian_kernel, folder, {"Kbuild": kbuild, "a.c": HEAD})
    assert driver.push({}) == set()
    compiled(2)
    with pytest.raises(NotPatchableError, match=r"core\.o changed: it is in m, but not compiled from C"):
        driver.push({})
    assert driver.push({"a.c": HEAD + "int a;\n"}) == {"a.c"}  # told once, and a note from then on
    assert driver.edits.units.carried_otherwise() == "core.o"


def test_a_list_that_units_include_and_a_rule_counts_asks_for_both(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    files = {
        "Kbuild": "obj-m := m.o\nm-y := a.o b.o\nccflags-y := -I$(obj)\n$(obj)/b.o: $(obj)/count.h\n"
        '$(obj)/count.h: $(src)/list.def\n\techo "#define COUNT $$(grep -c X $<)" > $@\n',
        "list.def": "X(a)\n",
        "a.c": f'{HEAD}#define X(name) #name\nconst char *const names =\n#include "list.def"\n;\n',
        "b.c": '#include "count.h"\nint b(void);\nint b(void) { return COUNT; }\n',
    }
    driver = Driver(debian_kernel, tmp_path / "drv", files)
    assert driver.asks({"list.def": "X(b) X(c)\n"})
    assert driver.save({"list.def": "X(b)\nX(c)\n"}) == {"a.c", "b.c"}
    assert not driver.asks({"b.c": files["b.c"] + "\n"})


SHADOWED = {
    "Kbuild": "obj-m := m.o\nm-y := a.o b.o\nccflags-y := -I$(src)/first -I$(src)/then\n",
    "then/conf.h": "#define CONF 1\n",
    "a.c": HEAD + "#include <conf.h>\nint a(void);\nint a(void) { return CONF; }\n",
    "b.c": B,
}


def test_a_header_that_is_found_first_now_asks_for_its_units_until_it_goes(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    driver = Driver(debian_kernel, tmp_path / "drv", SHADOWED)
    assert driver.save({"first/conf.h": "#define CONF 2\n"}) == {"a.c"}
    assert driver.edits.units.back_at_base() == set()
    assert driver.save({"first/conf.h": "#define CONF 3\n"}) == {"a.c"}
    assert driver.push({"b.c": B.replace("1", "2")}) == {"a.c", "b.c"}
    (driver.folder / "first/conf.h").unlink()
    assert driver.compiled((driver.folder / "first/conf.h",)) == set()
    driver.edits.of(())
    assert {each.name for each in driver.edits.units.compiled} == {"b.o"}


def test_a_header_that_is_asked_for_by_has_include_counts_when_it_comes(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    source = """#define OPTION "opt.h"
#if __has_include(OPTION)
#include OPTION
#else
#define OPT 1
#endif
int m(void);
int m(void) { return OPT; }
"""
    driver = Driver(debian_kernel, tmp_path / "drv", {"Kbuild": "obj-m := m.o\n", "m.c": HEAD + source})
    assert driver.push({"opt.h": "#define OPT 2\n"}) == {"m.c"}
    assert driver.push({"opt.h": "#define OPT 3\n"}) == {"m.c"}
    assert driver.push({"opt.h": "#define OPT 1\n"}) == set()


def test_a_new_header_that_nobody_includes_is_told(debian_kernel: KernelTree, tmp_path: Path) -> None:
    driver = Driver(debian_kernel, tmp_path / "drv", SHADOWED)
    with pytest.raises(NotPatchableError, match=r"stray\.h is not part of this build"):
        driver.save({"stray.h": "#define STRAY 1\n"})
