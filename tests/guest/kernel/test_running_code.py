# SPDX-License-Identifier: MIT
"""What the guest's memory shows before a function is replaced."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest.kernel.conftest import Kernel

EDIT = ('seq_printf(m, "%s\\t%s\\n",', 'seq_printf(m, "hot %s\\t%s\\n",')
EVENTS = "/sys/kernel/tracing/kprobe_events"
# The first place behind the entry that the kernel takes a probe at: an INT3, or a jump, stands there then.
PROBE = f"""
[ -e {EVENTS} ] || mount -t tracefs none /sys/kernel/tracing
for offset in $(seq 8 60); do
    echo "p:hot/probe filesystems_proc_show+$offset" >{EVENTS} 2>/dev/null && break
done
echo 1 >/sys/kernel/tracing/events/hot/probe/enable
cat {EVENTS}
"""


@pytest.fixture
def probe(kernel: Kernel) -> Iterator[int]:
    """The offset of a probe in filesystems_proc_show()."""
    try:
        yield int(kernel.run(PROBE).rpartition("+")[2])
    finally:
        remove_probe(kernel)


def remove_probe(kernel: Kernel) -> None:
    kernel.run(f"echo 0 >/sys/kernel/tracing/events/hot/probe/enable; echo >{EVENTS}; true")


def test_a_function_that_does_not_run_as_it_was_built_is_not_replaced(kernel: Kernel, probe: int) -> None:
    (reason,) = kernel.refusal({"fs/filesystems.c": EDIT})
    assert (reason.code, reason.symbol) == ("HR3101", "filesystems_proc_show")
    assert f"filesystems_proc_show+{probe:#x}" in reason.message
    assert "hot" not in kernel.run("cat /proc/filesystems")
    remove_probe(kernel)
    kernel.edit({"fs/filesystems.c": ("hot %s", "again hot %s")})
    assert kernel.run("cat /proc/filesystems").startswith("again hot ")
