# SPDX-License-Identifier: MIT
"""Small modules, built by kbuild against the packaged kernel, and their recorded commands replayed."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from hotreload.build.base import Base, SourceMovedError, base_object, build_base, open_base, record_base
from hotreload.build.built import Build
from hotreload.build.compile import compile_patched, rebuild
from hotreload.build.external_module import TICK_NS, build_modules
from hotreload.build.guest_base import GuestBase
from hotreload.build.kernel_tree import KernelTree, check_fit, kernel_compiler
from hotreload.build.units import units_for
from hotreload.errors import CompileError, InputError
from hotreload.module_rung import forget_stale, newly_exporting
from hotreload.plan_units import joined_modules

HEAD = '#include <linux/module.h>\nMODULE_LICENSE("GPL");\n'
ONE = HEAD + "static int n;\nint one(int a);\nint one(int a)\n{\n\treturn n += a;\n}\n"


@pytest.fixture(autouse=True)
def _bases_of_their_own(tmp_path: Path, debian_kernel: KernelTree, monkeypatch: pytest.MonkeyPatch) -> None:
    assert debian_kernel  # fetched into the real cache first
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def built(tree: KernelTree, folder: Path) -> tuple[Build, Base]:
    return asyncio.run(build_base(tree, folder))


def functions(file: Path) -> dict[str, int]:
    """Name and size of each function, as binutils see them."""
    listing = subprocess.run(["nm", "-S", file], check=True, capture_output=True, text=True).stdout
    return {
        name: int(size, 16) for size, name in re.findall(r"^\w+ (\w+) [tT] (\S+)$", listing, re.MULTILINE)
    }


def strings(file: Path) -> set[str]:
    """The strings in what the kernel would load of the object."""
    with file.open("rb") as stream:
        loaded = [
            section.data()
            for section in ELFFile(stream).iter_sections()
            if section["sh_flags"] & SH_FLAGS.SHF_ALLOC and section["sh_type"] != "SHT_NOBITS"
        ]
    return {text.decode() for data in loaded for text in re.findall(rb"[ -~]{4,}", data)}


def test_the_packaged_kernel_is_fit_and_its_compiler_is_here(debian_kernel: KernelTree) -> None:
    check_fit(debian_kernel)
    assert asyncio.run(kernel_compiler(debian_kernel)).program == "gcc-12"


def test_several_modules_of_several_units_in_subfolders_are_found(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    folder = write(
        tmp_path / "drv",
        {
            "Kbuild": "obj-m := first-one.o sub/\nfirst-one-y := a.o part/b.o\nccflags-y := -I$(src)/inc\n",
            "a.c": HEAD + '#include "shared.h"\nint a(void) { return SHARED; }\nint a(void);\n',
            "part/b.c": "#include <shared.h>\nint b(void);\nint b(void) { return SHARED; }\n",
            "inc/shared.h": "int a(void);\n#define SHARED 1\n",
            "sub/Makefile": "obj-m += second.o\nsecond-objs := c.o\n",
            "sub/c.c": ONE,
        },
    )
    module, base = built(debian_kernel, folder)
    assert {each.name: [unit.source for unit in each.units] for each in module.modules} == {
        "first_one": [folder / "a.c", folder / "part/b.c"],
        "second": [folder / "sub/c.c"],
    }
    assert module.makefiles == (folder / "Kbuild", folder / "sub/Makefile")
    assert module.watched_files == {folder / name for name in ("a.c", "part/b.c", "inc/shared.h", "sub/c.c")}
    assert [each.ko.name for each in base.modules] == ["first_one.ko", "second.ko"]
    assert base.modules[0].ko.read_bytes() == (folder / "first-one.ko").read_bytes()
    touched = units_for([folder / "inc/shared.h"], module).units
    assert [unit.source.name for unit in touched] == ["a.c", "b.c"]


def test_replayed_objects_have_the_functions_of_kbuilds_own_each_in_a_section(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    folder = write(tmp_path / "drv", {"Kbuild": "obj-m := m.o\n", "m.c": ONE + "module_param(n, int, 0);\n"})
    _, base = built(debian_kernel, folder)
    (pair,) = asyncio.run(rebuild(base, base.units, tmp_path / "out"))
    assert functions(folder / "m.o") == functions(pair.original) == functions(pair.patched)
    assert functions(pair.original)
    sections = subprocess.run(["readelf", "-SW", pair.patched], capture_output=True, text=True).stdout
    # .orc_unwind: objtool ran. .debug_info: types and variables are told.
    for name in (".text.one ", ".bss.n ", ".orc_unwind ", ".return_sites ", ".debug_info "):
        assert name in sections


def test_file_names_are_the_same_in_base_and_patched_object(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    folder = write(
        tmp_path / "drv",
        {
            "Kbuild": "obj-m := m.o\nm-y := src/m.o\nccflags-y := -I$(src)/inc -include $(src)/first.h\n",
            "first.h": "static inline const char *first(void) { return __FILE__; }\n",
            "src/m.c": HEAD
            + '#include "near.h"\n#include "../up.h"\n#include <far.h>\n#include "../../outside/out.h"\n'
            + "void say(void);\nvoid say(void)\n{\n"
            + '\tpr_info("%s %s %s %s %s %s", __FILE__, first(), near(), up(), far(), out());\n}\n',
            "src/near.h": "static inline const char *near(void) { return __FILE__; }\n",
            "up.h": "static inline const char *up(void) { return __FILE__; }\n",
            "inc/far.h": "static inline const char *far(void) { return __FILE__; }\n",
            "../outside/out.h": "static inline const char *out(void) { return __FILE__; }\n",
        },
    )
    module, base = built(debian_kernel, folder)
    (pair,) = asyncio.run(rebuild(base, base.units, tmp_path / "out"))
    expected = {
        str(folder / name)
        for name in (
            "src/m.c",
            "first.h",
            "src/near.h",
            "src/../up.h",
            "inc/far.h",
            "src/../../outside/out.h",
        )
    }
    for file in (folder / "src/m.o", pair.original, pair.patched):
        assert expected <= strings(file)
    assert not [text for text in strings(pair.original) if "shadow" in text]
    assert tmp_path / "outside/out.h" in module.watched_files
    assert units_for([tmp_path / "outside/out.h"], module).units == module.units


def test_the_base_object_is_made_of_what_was_built_not_of_what_was_edited_since(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    folder = write(
        tmp_path / "drv",
        {
            "Kbuild": "obj-m := m.o\n",
            "m.c": ONE + '#include "m.h"\nint two(void);\nint two(void)\n{\n\treturn TWO;\n}\n',
            "m.h": "#define TWO 2\n",
        },
    )
    _, base = built(debian_kernel, folder)
    write(folder, {"m.h": "#define TWO 2\nint three(void);\n#define MORE int three(void) { return 3; }\n"})
    write(folder, {"m.c": (folder / "m.c").read_text() + "MORE\n"})
    (pair,) = asyncio.run(rebuild(base, base.units, tmp_path / "out"))
    assert set(functions(pair.original)) == {"one", "two"}
    assert set(functions(pair.patched)) == {"one", "two", "three"}
    recorded = base.source(folder / "m.h")
    assert recorded is not None
    assert recorded.read_text() == "#define TWO 2\n"


def test_a_base_object_is_compiled_once_and_found_again_by_the_next_session(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    folder = write(tmp_path / "drv", {"Kbuild": "obj-m := m.o\n", "m.c": ONE})
    _, base = built(debian_kernel, folder)
    first = asyncio.run(base_object(base, base.units[0]))
    written = first.stat().st_ino
    _, again = built(debian_kernel, folder)
    reopened = open_base(base.folder, debian_kernel)
    assert again.id == base.id
    assert reopened == base
    assert asyncio.run(base_object(reopened, reopened.units[0])) == first
    assert first.stat().st_ino == written


def test_modules_are_joined_by_what_they_use_of_each_other(debian_kernel: KernelTree, tmp_path: Path) -> None:
    sources = {
        "a.c": HEAD + "int one(void);\nint one(void) { return 1; }\nEXPORT_SYMBOL_GPL(one);\n",
        "b.c": HEAD
        + "int one(void);\nint two(void);\nint two(void) { return one(); }\nEXPORT_SYMBOL_GPL(two);\n",
        "c.c": HEAD + "int two(void);\nint three(void);\nint three(void) { return two(); }\n",
        "d.c": HEAD + "int four(void);\nint four(void) { return 4; }\n",
    }
    folder = write(tmp_path / "drv", {"Kbuild": "obj-m := a.o b.o c.o d.o\n", **sources})
    _, base = built(debian_kernel, folder)
    assert joined_modules(base, ()) == {**dict.fromkeys("abc", frozenset("abc")), "d": frozenset("d")}


def test_a_module_that_uses_a_new_export_is_loaded_anew_with_who_exports_it(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    one = HEAD + "int one(void);\nint one(void) { return 1; }\nEXPORT_SYMBOL_GPL(one);\n"
    two = "int two(void);\nint two(void) { return 2; }\nEXPORT_SYMBOL_GPL(two);\n"
    user = HEAD + "int one(void);\nint three(void);\nint three(void) { return one(); }\n"
    folder = write(
        tmp_path / "drv", {"Kbuild": "obj-m := a.o b.o c.o\n", "a.c": one, "b.c": user, "c.c": HEAD}
    )
    guest = GuestBase.booted(*built(debian_kernel, folder))
    time.sleep(2 * TICK_NS / 1e9)
    write(folder, {"a.c": one + two})
    _, unused = built(debian_kernel, folder)
    assert newly_exporting(guest, unused, {"b", "c"}) == set()
    write(folder, {"b.c": user.replace("one()", "two()").replace("one(", "two(")})
    _, used = built(debian_kernel, folder)
    assert newly_exporting(guest, used, {"b", "c"}) == {"a"}
    assert newly_exporting(guest, used, {"a", "b"}) == set()


def test_a_compile_error_is_gccs_own_text_about_the_users_own_path(
    debian_kernel: KernelTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "drv", {"Kbuild": "obj-m := m.o\n", "m.c": ONE})
    _, base = built(debian_kernel, folder)
    write(folder, {"m.c": ONE.replace("n += a;", "n += b;")})
    monkeypatch.setenv("LC_ALL", "C")
    with pytest.raises(CompileError) as refused:
        asyncio.run(rebuild(base, base.units, tmp_path / "out"))
    assert f"{folder}/m.c:7:21: error: 'b' undeclared" in refused.value.diagnostics
    assert "return n += b;\n" in refused.value.diagnostics
    assert f"{folder}/m.c:7:21: error:" in refused.value.message
    assert not list((tmp_path / "out").iterdir())


def test_errors_of_all_units_are_told_together(debian_kernel: KernelTree, tmp_path: Path) -> None:
    folder = write(
        tmp_path / "drv",
        {
            "Kbuild": "obj-m := m.o\nm-y := a.o b.o\n",
            "a.c": ONE,
            "b.c": "int b(void);\nint b(void) { return 1; }\n",
        },
    )
    _, base = built(debian_kernel, folder)
    write(folder, {"a.c": ONE + "x", "b.c": "y"})
    with pytest.raises(CompileError) as refused:
        asyncio.run(rebuild(base, base.units, tmp_path / "out"))
    assert f"{folder}/a.c" in refused.value.diagnostics
    assert f"{folder}/b.c" in refused.value.diagnostics


def test_a_module_that_never_compiled_shows_gccs_frame_without_makes_noise(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    folder = write(tmp_path / "drv", {"Kbuild": "obj-m := m.o\n", "m.c": ONE.replace(";", "", 1)})
    with pytest.raises(CompileError) as refused:
        asyncio.run(build_modules(debian_kernel, folder))
    assert refused.value.diagnostics.startswith(f"{folder}/m.c:")
    assert "make" not in refused.value.diagnostics


def test_a_symbol_the_kernel_lacks_is_modposts_error(debian_kernel: KernelTree, tmp_path: Path) -> None:
    source = ONE + "int nowhere(void);\nint two(void);\nint two(void)\n{\n\treturn nowhere();\n}\n"
    folder = write(tmp_path / "drv", {"Kbuild": "obj-m := m.o\n", "m.c": source})
    with pytest.raises(CompileError, match='modpost: "nowhere"') as refused:
        asyncio.run(build_modules(debian_kernel, folder))
    assert "-K" in (refused.value.hint or "")


def test_a_dkms_style_makefile_that_calls_itself_through_kbuild_is_built(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    makefile = (
        "ifneq ($(KERNELRELEASE),)\nobj-m := m.o\nelse\nKDIR ?= /lib/modules/none/build\n"
        "all:\n\t$(MAKE) -C $(KDIR) M=$(CURDIR) modules\nendif\n"
    )
    folder = write(tmp_path / "drv", {"Makefile": makefile, "m.c": ONE})
    module, _ = built(debian_kernel, folder)
    assert [each.name for each in module.modules] == ["m"]


def test_the_folder_is_the_working_folder_that_make_knows(debian_kernel: KernelTree, tmp_path: Path) -> None:
    kbuild = "obj-m := m.o\nccflags-y += -I$(PWD)/include\n"
    text = '#include "ours.h"\n' + ONE
    folder = write(tmp_path / "drv", {"Kbuild": kbuild, "m.c": text, "include/ours.h": "#define OURS 1\n"})
    module, _ = built(debian_kernel, folder)
    assert [each.name for each in module.modules] == ["m"]


def test_variables_reach_make(debian_kernel: KernelTree, tmp_path: Path) -> None:
    folder = write(tmp_path / "drv", {"Kbuild": "obj-$(CONFIG_MINE) := m.o\n", "m.c": ONE})
    module = asyncio.run(build_modules(debian_kernel, folder, variables=("CONFIG_MINE=m",)))
    assert [each.name for each in module.modules] == ["m"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"Makefile": "all:\n\ttouch built\n"}, "has no obj-m"),
        ({"Kbuild": "obj-$(CONFIG_NONE_SUCH) += m.o\n", "m.c": ONE}, "has no obj-m"),
        ({"m.c": ONE}, "neither a Kbuild nor a Makefile"),
    ],
)
def test_a_folder_that_builds_no_module_is_refused(
    debian_kernel: KernelTree, tmp_path: Path, files: Mapping[str, str], told: str
) -> None:
    folder = write(tmp_path / "drv", files)
    with pytest.raises(InputError, match=told) as refused:
        asyncio.run(build_modules(debian_kernel, folder))
    assert refused.value.code == "HR1007"
    assert not (folder / "built").exists()


def test_a_folder_that_make_cannot_name_is_refused(debian_kernel: KernelTree, tmp_path: Path) -> None:
    folder = write(tmp_path / "my driver", {"Kbuild": "obj-m := m.o\n", "m.c": ONE})
    with pytest.raises(InputError, match="no space or colon"):
        asyncio.run(build_modules(debian_kernel, folder))


def test_a_source_saved_while_kbuild_runs_is_compiled_again(
    debian_kernel: KernelTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A compiler during whose first run the source is saved. kbuild itself would take m.o, which is newer
    # than the m.c it was not made of, for fresh.
    saves_once = f"""#!/bin/sh
/usr/bin/gcc-12 "$@" || exit
case "$*" in *-c*/drv/m.c*)
    [ -e {tmp_path}/saved ] || cp {tmp_path}/new.c {tmp_path}/drv/m.c
    touch {tmp_path}/saved
    for word; do case $word in *.o) touch $word;; esac; done
esac
"""
    folder = write(tmp_path / "drv", {"Kbuild": "obj-m := m.o\n", "m.c": ONE})
    write(tmp_path, {"bin/gcc-12": saves_once, "new.c": ONE.replace("one(", "uno(")})
    (tmp_path / "bin/gcc-12").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    _, base = built(debian_kernel, folder)
    assert (tmp_path / "saved").exists()
    assert set(functions(base.plain_object(base.units[0]))) == {"uno"}
    assert set(functions(asyncio.run(base_object(base, base.units[0])))) == {"uno"}


@pytest.mark.parametrize("name", ["m.c", "names.h"])
def test_an_older_file_that_takes_the_place_of_a_source_is_compiled(
    debian_kernel: KernelTree, tmp_path: Path, name: str
) -> None:
    files = {"m.c": '#include "names.h"\n' + ONE.replace("one", "NAME"), "names.h": "#define NAME one\n"}
    folder = write(tmp_path / "drv", {"Kbuild": "obj-m := m.o\n", **files})
    built(debian_kernel, folder)
    # As mv, cp -p, rsync -a and tar leave it: make goes by this time, and takes the object for fresh.
    write(tmp_path, {"old": files[name].replace("one", "uno").replace("NAME(", "uno(")})
    os.utime(tmp_path / "old", (1_000_000_000, 1_000_000_000))
    (tmp_path / "old").rename(folder / name)
    time.sleep(2 * TICK_NS / 1e9)
    _, base = built(debian_kernel, folder)
    assert set(functions(base.plain_object(base.units[0]))) == {"uno"}
    # Once is enough.
    made = base.units[0].object.stat().st_mtime_ns
    built(debian_kernel, folder)
    assert base.units[0].object.stat().st_mtime_ns == made


def test_what_was_compiled_of_an_edit_is_not_linked_when_its_folder_is_that_of_before_again(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    folder = write(
        tmp_path / "drv",
        {
            "Kbuild": "obj-m := m.o\nccflags-y := -I$(src)/include\n",
            "m.c": "#include <names.h>\n" + ONE.replace("one", "NAME"),
            "include/names.h": "#define NAME one\n",
        },
    )
    guest = GuestBase.booted(*built(debian_kernel, folder))
    (folder / "include").rename(tmp_path / "kept")
    write(folder, {"include/names.h": "#define NAME uno\n"})
    assert set(functions(built(debian_kernel, folder)[1].plain_object(guest.units[0]))) == {"uno"}
    # It was undone, or did not load; and no file has a new time.
    shutil.rmtree(folder / "include")
    (tmp_path / "kept").rename(folder / "include")
    time.sleep(2 * TICK_NS / 1e9)
    forget_stale(guest)
    assert set(functions(built(debian_kernel, folder)[1].plain_object(guest.units[0]))) == {"one"}
    # What is as the guest has it stays.
    made = guest.units[0].object.stat().st_mtime_ns
    forget_stale(guest)
    assert guest.units[0].object.stat().st_mtime_ns == made


def test_a_source_saved_between_build_and_record_is_noticed(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    folder = write(tmp_path / "drv", {"Kbuild": "obj-m := m.o\n", "m.c": ONE})
    module = asyncio.run(build_modules(debian_kernel, folder))
    write(folder, {"m.c": ONE + "\n"})
    with pytest.raises(SourceMovedError, match=r"m\.c was saved after") as refused:
        asyncio.run(record_base(module))
    assert refused.value.code == "HR1006"
    assert [entry.name for entry in (tmp_path / "cache/hotreload/base").iterdir()] == ["files"]


def test_an_edited_include_is_known_to_the_next_selection(debian_kernel: KernelTree, tmp_path: Path) -> None:
    folder = write(tmp_path / "drv", {"Kbuild": "obj-m := m.o\n", "m.c": ONE, "new.h": "#define NEW 1\n"})
    module, _ = built(debian_kernel, folder)
    assert units_for([folder / "new.h"], module, tmp_path / "out").units == ()
    write(folder, {"m.c": '#include "new.h"\n' + ONE})
    asyncio.run(compile_patched(module.units[0], tmp_path / "out"))
    assert units_for([folder / "new.h"], module, tmp_path / "out").units == module.units


def test_a_cancelled_compile_takes_its_compiler_along(debian_kernel: KernelTree, tmp_path: Path) -> None:
    folder = write(tmp_path / "drv", {"Kbuild": "obj-m := m.o\n", "m.c": ONE})
    module, _ = built(debian_kernel, folder)
    # gcc waits for someone to write into this pipe.
    os.mkfifo(folder / "never.h")
    write(folder, {"m.c": '#include "never.h"\n' + ONE})

    async def give_up() -> None:
        async with asyncio.timeout(0.5):
            await compile_patched(module.units[0], tmp_path / "out")

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    deadline = time.monotonic() + 5
    while (running := compilers_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running == []
    assert list((tmp_path / "out").iterdir()) == []


def compilers_of(folder: Path) -> list[str]:
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes()
        except OSError:
            continue
        if b"cc1" in words and bytes(folder) in words:
            found.append(str(command))
    return found
