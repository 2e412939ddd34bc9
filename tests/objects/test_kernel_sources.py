# SPDX-License-Identifier: MIT
"""A kernel's own tree: what it was built from, its record, and edits of its headers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hotreload.build.base import Base
from hotreload.build.compile import rebuild
from hotreload.build.kernel_record import kernel_base, record_kernel
from hotreload.build.kernel_sources import read_kernel_build, thin_archive_members
from hotreload.build.kernel_tree import watched_kernel
from hotreload.build.units import units_for
from hotreload.compared import read_original
from hotreload.elf.build_id import read_build_id
from hotreload.errors import InputError, KernelUnfitError
from hotreload.plan_units import compare_unit
from tests.objects.compiling import run
from tests.objects.miniature import Miniature

pytestmark = pytest.mark.objects

# A line number in the code, as WARN() and lockdep have one.
SOURCES = {
    "include/shared.h": "static inline int twice(int x) { return 2 * x + 0 * __LINE__; }\n"
    "static inline int where(void) { return __LINE__; }\n",
    "fs/ext/one.c": '#include <shared.h>\n#include "own.h"\n'
    "int one(int x) { return twice(x) + own(x) + where(); }\n",
    "fs/ext/own.h": '#include "../../kernel/deep.h"\n'
    "static inline int own(int x) { return deep(x) + __LINE__; }\n",
    "kernel/deep.h": '#include "deeper.h"\nstatic inline int deep(int x) { return x ^ DEEPER; }\n',
    "kernel/deeper.h": "#define DEEPER 3\n",
    "kernel/two.c": "#include <shared.h>\nint two(int x) { return twice(x) - 1; }\n",
    "mod/three.c": '#include "../fs/ext/own.h"\nint three(int x) { return own(x) - 3; }\n',
}


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Miniature(tmp_path, SOURCES)


def test_the_members_of_a_thin_archive_are_those_that_ar_lists(tmp_path: Path) -> None:
    names = ["a.o", "a-name-that-is-longer-than-sixteen-bytes.o", "sub/b.o"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"odd")
    run(["ar", "cDPrST", "inner.a", *names[1:]], tmp_path)
    run(["ar", "cDPrST", "outer.a", names[0], "inner.a"], tmp_path)
    listed = run(["ar", "t", "outer.a"], tmp_path).split()
    assert thin_archive_members((tmp_path / "outer.a").read_bytes()) == listed == names


def test_vmlinux_and_the_modules_are_read_in_the_order_of_the_link(kernel: Miniature) -> None:
    build = read_kernel_build(kernel.tree)
    assert [(module.name, [unit.source.name for unit in module.units]) for module in build.modules] == [
        ("vmlinux", ["one.c", "two.c"]),
        ("three", ["three.c"]),
    ]
    assert build.is_kernel
    one = build.modules[0].units[0]
    names = [os.path.relpath(os.path.normpath(file), kernel.source) for file in build.inputs[one.object]]
    assert names == ["fs/ext/one.c", "include/shared.h", "fs/ext/own.h", "kernel/deep.h", "kernel/deeper.h"]


def test_a_header_goes_into_every_unit_that_includes_it(kernel: Miniature) -> None:
    build = read_kernel_build(kernel.tree)

    def users(name: str) -> list[str]:
        return [unit.source.name for unit in units_for([kernel.source / name], build).units]

    assert users("include/shared.h") == ["one.c", "two.c"]
    assert users("fs/ext/own.h") == ["one.c", "three.c"]
    assert users("kernel/deeper.h") == ["one.c", "three.c"]


def test_a_record_is_found_again_after_an_edit_and_knows_what_was_edited(kernel: Miniature) -> None:
    base = asyncio.run(record_kernel(kernel.tree))
    kernel.write("include/shared.h", "#error not this\n")
    again = asyncio.run(kernel_base(kernel.tree))
    assert again.folder == base.folder
    assert again.digests == base.digests
    recorded = again.source(kernel.source / "include/shared.h")
    assert recorded is not None
    assert recorded.read_text() == SOURCES["include/shared.h"]


def test_a_kernel_with_an_edit_that_was_not_built_has_no_base(kernel: Miniature) -> None:
    kernel.write("kernel/deep.h", SOURCES["kernel/deep.h"])
    with pytest.raises(InputError, match=r"edited since the kernel was built: kernel/deep\.h") as refused:
        asyncio.run(kernel_base(kernel.tree))
    assert refused.value.code == "HR1006"


def test_objects_that_were_not_linked_have_no_base(kernel: Miniature) -> None:
    os.utime(kernel.output / "kernel/two.o")
    with pytest.raises(InputError, match="not linked since its objects were compiled: vmlinux"):
        asyncio.run(kernel_base(kernel.tree))


def test_an_option_that_was_changed_after_the_build_has_no_base(kernel: Miniature) -> None:
    kernel.write("include/config/SMP", "")
    with pytest.raises(InputError, match=r"CONFIG_SMP was changed after fs/ext/one\.o was built"):
        asyncio.run(kernel_base(kernel.tree))


def test_a_module_that_is_built_anew_without_vmlinux_has_a_base_of_now(kernel: Miniature) -> None:
    before = asyncio.run(kernel_base(kernel.tree))
    kernel.write("mod/three.c", SOURCES["mod/three.c"].replace("- 3", "- 4"))
    kernel.build()
    after = asyncio.run(kernel_base(kernel.tree))
    assert read_build_id(before.modules[0].ko) == read_build_id(after.modules[0].ko)
    recorded = after.source(kernel.source / "mod/three.c")
    assert recorded is not None
    assert "- 4" in recorded.read_text()


def test_a_kernel_whose_vmlinux_objtool_finishes_as_a_whole_is_refused(kernel: Miniature) -> None:
    kernel.write(".config", "CONFIG_X86_KERNEL_IBT=y\n")
    with pytest.raises(KernelUnfitError, match="X86_KERNEL_IBT is set"):
        asyncio.run(record_kernel(kernel.tree))


def test_a_copy_of_a_kernel_has_its_own_sources(kernel: Miniature, tmp_path: Path) -> None:
    base = asyncio.run(kernel_base(kernel.tree))
    copy = asyncio.run(kernel_base(Miniature(tmp_path / "copy", SOURCES).tree))
    assert (base.users_folder, copy.users_folder) == (tmp_path / "linux", tmp_path / "copy/linux")


def test_a_kernel_that_is_built_anew_has_a_record_of_its_own_that_shares_the_files(kernel: Miniature) -> None:
    first = asyncio.run(record_kernel(kernel.tree))
    kernel.write("kernel/two.c", SOURCES["kernel/two.c"].replace("- 1", "- 2"))
    kernel.build()
    second = asyncio.run(kernel_base(kernel.tree))
    assert first.folder != second.folder
    shared = kernel.source / "include/shared.h"
    assert os.path.samefile(str(first.source(shared)), str(second.source(shared)))


def test_a_record_whose_base_was_swept_is_made_again_and_what_is_left_of_it_goes(kernel: Miniature) -> None:
    first = asyncio.run(record_kernel(kernel.tree))
    (record,) = first.folder.parent.glob("vmlinux-*")
    long_ago = 1_000_000_000
    os.utime(first.folder, (long_ago, long_ago))
    asyncio.run(record_kernel(Miniature(kernel.source.parent / "other", SOURCES).tree))
    assert not first.folder.exists()
    asyncio.run(record_kernel(Miniature(kernel.source.parent / "third", SOURCES).tree))
    assert not record.is_symlink()
    assert asyncio.run(kernel_base(kernel.tree)).folder == first.folder


def changed(kernel: Miniature, base: Base, into: Path, *names: str) -> dict[str, tuple[str, ...]]:
    """The functions that the edit of some files changes, by unit."""
    units = units_for([kernel.source / name for name in names], base.build).units
    pairs = asyncio.run(rebuild(base, units, into))
    found = {}
    for pair in pairs:
        original = read_original(pair.original, base.plain_object(pair.unit))
        found[pair.unit.source.name] = compare_unit(pair, original, {}).diff.changed_functions
    return found


def test_how_far_a_compile_is_can_be_told_before_all_originals_are_there(
    kernel: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    base = asyncio.run(record_kernel(kernel.tree))
    store = base.folder.parent / "objects"
    originals: list[int] = []
    units = base.modules[0].units
    asyncio.run(
        rebuild(base, units, tmp_path / "now", lambda _done: originals.append(len([*store.glob("*.o")])))
    )
    assert originals == [1, 2]


def test_what_the_next_build_is_called_is_no_part_of_an_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    release, name = "include/generated/utsrelease.h", "init/version.c"
    text = (
        "#include <generated/utsrelease.h>\n"
        "const char *release(void);\nconst char *release(void)\n{\n\treturn UTS_RELEASE;\n}\n"
        "int other(void);\nint other(void)\n{\n\treturn 1;\n}\n"
    )
    kernel = Miniature(tmp_path, {release: '#define UTS_RELEASE "6.1"\n', name: text})
    base = asyncio.run(record_kernel(kernel.tree))
    kernel.write(release, '#define UTS_RELEASE "6.1+"\n')
    kernel.write(name, text.replace("return 1", "return 2"))
    assert changed(kernel, base, tmp_path / "now", name) == {"version.c": ("other",)}


@pytest.mark.parametrize("header", ["include/shared.h", "fs/ext/own.h", "kernel/deep.h", "kernel/deeper.h"])
def test_a_comment_on_top_of_a_header_changes_no_function(
    kernel: Miniature, tmp_path: Path, header: str
) -> None:
    base = asyncio.run(record_kernel(kernel.tree))
    kernel.write(header, "/* a comment */\n\n" + SOURCES[header])
    found = changed(kernel, base, tmp_path / "now", header)
    assert found
    assert set(found.values()) == {()}


def test_an_edit_below_a_comment_changes_what_it_changes(kernel: Miniature, tmp_path: Path) -> None:
    base = asyncio.run(record_kernel(kernel.tree))
    text = "/* a comment */\n" + SOURCES["include/shared.h"].replace("2 * x", "4 * x")
    kernel.write("include/shared.h", text)
    found = changed(kernel, base, tmp_path / "now", "include/shared.h")
    assert found == {"one.c": ("one",), "two.c": ("two",)}


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        # Found in the folder of the file that includes it, though that file is shown elsewhere.
        ("fs/ext/own.h", lambda text: "\n\n" + text.replace('"../../kernel/deep.h"', '"new.h"')),
        ("fs/ext/one.c", lambda text: "\n\n" + text.replace('"own.h"', '"new.h"')),
    ],
)
def test_an_include_that_is_new_is_what_a_plain_compile_finds(
    kernel: Miniature, tmp_path: Path, name: str, edit: Callable[[str], str]
) -> None:
    base = asyncio.run(record_kernel(kernel.tree))
    kernel.write("fs/ext/new.h", "static inline int own(int x) { return x; }\n#define deep(x) (x)\n")
    kernel.write("include/new.h", "#error the one beside it is meant\n")
    text = edit(SOURCES[name])
    kernel.write(name, text.replace("static inline int own", "static inline int other"))
    assert changed(kernel, base, tmp_path / "now", name)["one.c"] == ("one",)


def test_a_folder_of_a_kernel_is_that_kernel_when_it_is_built(kernel: Miniature, tmp_path: Path) -> None:
    assert watched_kernel(kernel.source / "fs", None) == (kernel.source, str(kernel.source))
    assert watched_kernel(tmp_path, None) is None
    (kernel.output / "vmlinux").unlink()
    assert watched_kernel(kernel.source / "fs", None) is None
    with pytest.raises(InputError, match="is not built"):
        watched_kernel(kernel.source, None)
