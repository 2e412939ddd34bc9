# SPDX-License-Identifier: MIT
"""The kernel's own modules: under a patch before they are loaded, beside vmlinux, and loaded again."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotreload.build.guest_base import GuestBase
from hotreload.build.in_tree_modules import build_in_tree
from hotreload.build.kernel_record import kernel_base
from hotreload.build.kernel_sources import module_files
from hotreload.report.outcome import Outcome
from tests.guest.kernel.conftest import Kernel

BRD = "drivers/block/brd.c"
# What a RAM disk that was never written to is read as.
FILL = (
    "\t} else\n\t\tmemset(dst, 0, copy);\n\n\tif (copy < n)",
    "\t} else\n\t\tmemset(dst, 'A', copy);\n\n\tif (copy < n)",
)
READ = "dd if=/dev/ram0 bs=512 count=1 skip=64 2>/dev/null | head -c 2 | xxd -p"
OLD, NEW = "0000", "4141"


@pytest.fixture(autouse=True)
def _no_module_stays(kernel: Kernel) -> Iterator[None]:
    yield
    kernel.restore_all()
    kernel.run("ip link del dummy0; rmmod brd dummy; true")


def test_a_module_that_is_loaded_after_the_patch_is_patched(kernel: Kernel) -> None:
    kernel.edit({BRD: FILL})
    assert kernel.patched == {}
    kernel.load("brd")
    assert kernel.run(READ) == NEW
    assert len(kernel.patched["brd"]) == 1
    kernel.restore()
    kernel.run("blockdev --flushbufs /dev/ram0")
    assert kernel.run(READ) == OLD


def test_one_patch_is_of_vmlinux_and_of_two_modules(kernel: Kernel) -> None:
    kernel.load("brd")
    kernel.load("dummy", "numdummies=1")
    kernel.run("ip addr add 10.77.0.1/24 dev dummy0; ip link set dummy0 up")
    send = "ping -c 1 -W 1 -s 56 10.77.0.2 >/dev/null; cat /sys/class/net/dummy0/statistics/tx_bytes"
    sent = int(kernel.run(send))
    kernel.edit(
        {
            BRD: FILL,
            "drivers/net/dummy.c": (
                "dev_lstats_add(dev, skb->len);",
                "dev_lstats_add(dev, skb->len + 1000);",
            ),
            "fs/proc/version.c": ("seq_printf(m,", 'seq_puts(m, "edited: ");\n\tseq_printf(m,'),
        }
    )
    assert sorted(kernel.patched) == ["brd", "dummy", "vmlinux"]
    assert len(kernel.run("ls /sys/kernel/livepatch").split()) == 1
    assert kernel.run(READ) == NEW
    assert int(kernel.run(send)) > sent + 1000
    assert kernel.run("cat /proc/version").startswith("edited: ")


def test_a_patched_module_is_patched_again_when_it_is_loaded_again_where_the_kernel_can(
    kernel: Kernel,
) -> None:
    kernel.load("brd")
    report = kernel.edit({BRD: FILL})
    assert kernel.run(READ) == NEW
    kernel.run("rmmod brd")
    assert "brd" not in kernel.patched
    mark = kernel.mark()
    if kernel.series != "6.1":
        kernel.load("brd")
        assert kernel.run(READ) == NEW
        assert "brd" in kernel.patched
        return
    # Linux commit 0c05e7bd2d01 ("livepatch,x86: Clear relocation targets on a module removal") is in v6.3.
    kernel.put_module("brd")
    kernel.fails("insmod /tmp/brd.ko")
    assert "refusing to load module 'brd'" in kernel.log_since(mark)
    # A new patch module has relocations that nothing was written to yet.
    kernel.edit({BRD: ("memset(dst, 'A', copy);", "memset(dst, 'B', copy);")})
    kernel.load("brd")
    assert kernel.run(READ) == "4242"
    assert any("brd" in note and "loaded again" in note for note in report.notes), report.notes


# A member in the middle of what each disk has, and what shows that the new code runs.
GROWN = (("\tint\t\t\tbrd_number;\n", "\tint\t\t\tbrd_number;\n\tlong\t\t\tbrd_spare[3];\n"), FILL)


def test_a_struct_of_a_module_that_grows_has_that_module_loaded_anew(kernel: Kernel) -> None:
    kernel.load("brd", "rd_nr=2")
    kernel.edit({"fs/proc/version.c": ("seq_printf(m,", 'seq_puts(m, "edited: ");\n\tseq_printf(m,')})
    made = {file: file.stat().st_mtime_ns for file in (kernel.tree.output / "drivers/block").iterdir()}

    grown = kernel.save({BRD: GROWN})
    assert (grown.outcome, grown.symbols) == (Outcome.RELOADED, ("brd.ko",)), grown
    (reason,) = kernel.told.events["refused"]["reasons"]
    assert (reason["code"], reason["hint"]) == ("HR2101", "needs a module reload: brd.ko; its state is lost")
    assert kernel.run(READ) == NEW
    (note,) = (each for each in grown.notes if "rd_nr" in each)
    assert note.startswith("brd had rd_nr=2, and was reloaded without")
    # What is live of vmlinux stays, and so does the folder where kbuild builds.
    assert kernel.patched == {"vmlinux": {"version_proc_show,1"}}
    assert {file: file.stat().st_mtime_ns for file in made} == made

    # No patch is made of it: whoever loads the tree's module would have it patched.
    again = kernel.save({BRD: ("memset(dst, 'A', copy);", "memset(dst, 'B', copy);")})
    assert (again.outcome, again.symbols) == (Outcome.RELOADED, ("brd.ko",)), again
    assert [each.code for each in kernel.told.climbs[0].reasons] == ["HR2305"]
    assert kernel.run(READ) == "4242"
    assert kernel.after("undo").outcome is Outcome.UNDONE
    assert kernel.run(READ) == NEW
    back = kernel.after("undo")
    assert (back.outcome, kernel.run(READ)) == (Outcome.UNDONE, OLD), back
    assert kernel.run("cat /proc/version").startswith("edited: ")


def test_built_beside_the_tree_a_module_is_byte_for_byte_what_kbuild_makes(
    kernel: Kernel, tmp_path: Path
) -> None:
    # Comments on a line's end have these compiled, and change nothing.
    for file, line in ((BRD, "module_exit(brd_exit);"), (ROMFS, "module_exit(exit_romfs_fs)")):
        assert kernel.save({file: (line, f"{line} /* The end. */")}).outcome is Outcome.NO_CHANGE
    base = kernel.wait(kernel_base(kernel.tree))
    names = {built.name for built in base.modules if built.name != "vmlinux"}
    assert names > {"brd", "romfs", "dummy", "veth"}
    anew = kernel.wait(build_in_tree(GuestBase.booted(base.build, base), names, tmp_path))
    assert {built.name for built in anew.modules} == names
    for file in module_files(kernel.tree):
        (built,) = (each for each in anew.modules if each.name == file.stem.replace("-", "_"))
        assert built.ko.read_bytes() == file.read_bytes(), built.name


ROMFS, SHARED = "fs/romfs/super.c", "fs/romfs/internal.h"
MEMBER = {
    SHARED: ("\tstruct inode\tvfs_inode;\n", "\tlong\t\ti_spare;\n\tstruct inode\tvfs_inode;\n"),
    ROMFS: ("buf->f_namelen = ROMFS_MAXFN;", "buf->f_namelen = 77;"),
}


def romfs(name: str, content: bytes) -> bytes:
    """A file system of one file (Linux Documentation/filesystems/romfs.rst)."""

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 16)

    def entry(following: int, kind: int, spec: int, name: str, content: bytes) -> bytes:
        words = struct.pack(">4I", following | kind, spec, len(content), 0) + padded(name.encode() + b"\0")
        return summed(words, len(words)) + padded(content)

    def summed(data: bytes, length: int) -> bytes:
        total = -sum(struct.unpack(f">{length // 4}I", data[:length])) & 0xFFFFFFFF
        return data[:12] + struct.pack(">I", total) + data[16:]

    root = entry(64, 1 | 8, 64, ".", b"")
    files = root + entry(0, 2, 0, name, content)
    size = 32 + len(files)
    head = b"-rom1fs-" + struct.pack(">2I", size, 0) + padded(b"test\0")
    return summed(head + files, min(512, size)) + bytes(1024)


def test_a_module_of_several_units_is_loaded_anew_once_nobody_uses_it(kernel: Kernel) -> None:
    kernel.load("brd")
    kernel.load("romfs")
    kernel.put(romfs("hello", b"content"), "/dev/ram0")
    kernel.run("mkdir -p /tmp/rom; mount -t romfs -o ro /dev/ram0 /tmp/rom")
    in_use = kernel.save(MEMBER)
    assert in_use.outcome is Outcome.REJECTED, in_use
    assert [each.code for each in in_use.reasons] == ["HR2301"]
    assert kernel.run("cat /tmp/rom/hello") == "content"

    kernel.run("umount /tmp/rom")
    grown = kernel.after("push")
    assert (grown.outcome, grown.symbols) == (Outcome.RELOADED, ("romfs.ko",)), grown
    kernel.run("mount -t romfs -o ro /dev/ram0 /tmp/rom")
    assert kernel.run("cat /tmp/rom/hello") == "content"
    assert kernel.run("stat -f -c %l /tmp/rom") == "77"
    kernel.run("umount /tmp/rom; rmmod romfs")


def test_a_module_that_is_not_loaded_is_not_built_anew(kernel: Kernel) -> None:
    (reason, *_) = kernel.refusal({BRD: GROWN})
    assert reason.code == "HR2101"
    assert (reason.hint or "").startswith("brd is not loaded: ")
    kernel.load("brd")
    assert kernel.run(READ) == OLD
    grown = kernel.after("push")
    assert (grown.outcome, kernel.run(READ)) == (Outcome.RELOADED, NEW), grown
    # Who takes the tree's module has that of before, and edits are compared with it again.
    kernel.run("rmmod brd")
    kernel.load("brd")
    assert kernel.run(READ) == OLD
    assert kernel.restore() is not None
    kernel.edit({BRD: FILL})
    assert kernel.run(READ) == NEW


def test_a_header_that_a_module_includes_since_it_was_loaded_anew_is_known(kernel: Kernel) -> None:
    kernel.load("brd")
    new = kernel.tree.source / "drivers/block/brd_fill.h"
    new.write_text("#define BRD_FILL 'A'\n")
    try:
        include = ("#include <linux/init.h>\n", '#include <linux/init.h>\n#include "brd_fill.h"\n')
        fill = (FILL[0], FILL[1].replace("'A'", "BRD_FILL"))
        assert kernel.save({BRD: (GROWN[0], include, fill)}).outcome is Outcome.RELOADED
        assert kernel.run(READ) == NEW
        assert kernel.save({"drivers/block/brd_fill.h": ("'A'", "'B'")}).outcome is Outcome.RELOADED
        assert kernel.run(READ) == "4242"
    finally:
        kernel.restore(BRD)
        new.unlink()


def test_no_module_is_loaded_anew_for_what_vmlinux_refuses(kernel: Kernel) -> None:
    kernel.load("brd")
    inode = ("\tu8 namelen;\n", "\tu8 namelen;\n\tlong spare;\n")
    reasons = kernel.refusal({BRD: GROWN, "fs/proc/internal.h": inode})
    assert {each.file.name for each in reasons if each.code == "HR2101" and each.file} == {
        "brd.c",
        "internal.h",
    }
    assert all("kernel build" in (each.hint or "") for each in reasons if each.code == "HR2101")
    assert kernel.run(READ) == OLD
