# SPDX-License-Identifier: MIT
"""The memory of a running guest, read from outside."""

from __future__ import annotations

import pytest

from hotreload.deploy.verify import offset_of_kernel
from hotreload.errors import EnvironmentFault
from hotreload.vm.memory import idt_base
from tests.guest.conftest import Booted


def address(booted: Booted, name: str) -> int:
    return int(booted.run(f"grep -m1 ' {name}$' /proc/kallsyms").text.split()[0], 16)


def test_a_string_of_the_kernel_is_read_as_the_guest_itself_sees_it(booted: Booted) -> None:
    version = booted.run("cat /proc/version").stdout
    found = booted.wait(booted.machine.read_memory(address(booted, "linux_banner"), len(version)))
    assert found == version


def test_where_nothing_is_mapped_is_told(booted: Booted) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        booted.wait(booted.machine.read_memory(0x1000, 16))
    assert caught.value.code == "HR5111"


def test_the_descriptor_table_leads_to_the_kernels_own_handler(booted: Booted) -> None:
    table = booted.wait(idt_base(booted.machine.monitor))
    gate = booted.wait(booted.machine.read_memory(table, 16))
    assert offset_of_kernel(gate, address(booted, "asm_exc_divide_error")) == 0
