# SPDX-License-Identifier: MIT
"""The kernel's own modules: under a patch before they are loaded, beside vmlinux, and loaded again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
