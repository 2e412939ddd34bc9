# SPDX-License-Identifier: MIT
"""What QEMU's registers tell of a processor."""

from __future__ import annotations

from hotreload.vm.processors import InKernel, in_kernel

IDLE = """\
EIP=00000000
RIP=ffffffff81a3b2cb RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
"""
CLOSED = "RAX=1\nRIP=ffffffffc0201015 RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\nES =0000\n"
USER = "RIP=00007f0000001000 RFL=00000046 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0\n"


AT = 0xFFFFFFFFC0201015


def test_a_processor_in_the_kernel_is_told_with_whether_it_takes_interrupts() -> None:
    assert in_kernel(CLOSED) == {0: InKernel(AT, closed=True)}
    assert in_kernel(CLOSED.replace("RFL=00000002", "RFL=00000202")) == {0: InKernel(AT, closed=False)}


def test_one_that_waits_or_runs_a_program_is_not() -> None:
    assert in_kernel(IDLE) == in_kernel(USER) == {}


def test_of_several_each_has_its_number() -> None:
    text = f"\nCPU#0\n{IDLE}\nCPU#1\n{CLOSED}\nCPU#2\n{USER}"
    assert in_kernel(text) == {1: InKernel(AT, closed=True)}
