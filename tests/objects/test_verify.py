# SPDX-License-Identifier: MIT
"""Functions against the memory of a guest, before a patch is put over them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hotreload.deploy.verify import Checked, Verdict, check_functions, functions_of, offset_of_kernel
from tests.objects.guest_memory import TEXT, GuestMemory, of_assembly, of_c

DRIVER = """
int helper(int); static noinline int scale(int a) { return helper(a) * 3; }
int step(int a) { if (a < 0) printk("below zero"); return scale(a) + 1; }
"""


def checked(guest: GuestMemory, *names: str) -> Verdict:
    wanted = [Checked(guest.unit, guest.function(name), guest.addresses[name]) for name in names]
    return asyncio.run(check_functions(guest.read, wanted))


def told(verdict: Verdict) -> list[str]:
    return [str(mismatch) for mismatch in verdict.mismatches]


def test_functions_of_one_page_and_their_strings_are_read_at_once(tmp_path: Path) -> None:
    guest = of_c(tmp_path, DRIVER)
    assert checked(guest, "scale", "step") == Verdict((), ())
    assert len(guest.reads) == 2  # the code, and the string
    assert guest.reads[1][1] == len(b"below zero\0")


def test_a_string_that_is_another_one_is_told_with_the_function_that_prints_it(tmp_path: Path) -> None:
    guest = of_c(tmp_path, DRIVER)
    at = guest.memory.index(b"below zero\0")
    guest.memory[at : at + 5] = b"above"
    (mismatch,) = checked(guest, "scale", "step").mismatches
    assert mismatch.function == "step"
    assert mismatch.why == f"expected 'below zero\\x00' at {TEXT + at:#x}, found 'above zero\\x00'"


def test_only_the_function_that_differs_is_told(tmp_path: Path) -> None:
    guest = of_c(tmp_path, DRIVER)
    guest.poke("scale", 5, "cc")
    assert told(checked(guest, "scale", "step")) == [
        "scale+0x5: there is a breakpoint: a kprobe, or a debugger"
    ]


def test_what_the_kernel_is_just_rewriting_is_read_again(tmp_path: Path) -> None:
    guest = of_assembly(tmp_path, "call __SCT__hook; ret")
    start = guest.addresses["f"] - TEXT
    written = bytes(guest.memory[start : start + 5])
    guest.poke("f", 0, "cc")
    reads = 0

    async def read(address: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 2:
            guest.memory[start : start + 5] = written
        return await guest.read(address, size)

    wanted = [Checked(guest.unit, guest.function("f"), guest.addresses["f"])]
    assert asyncio.run(check_functions(read, wanted)) == Verdict((), ())
    assert reads == 2


STATIC = ("call __SCT__hook; ret", ".data\n.quad __SCK__hook\n")
PARAVIRT = (
    "1: call *pv_ops+8(%rip); ret",
    '.section .parainstructions, "a"\n.balign 8\n.quad 1b\n.byte 1, 6\n.balign 8\n',
)


@pytest.mark.parametrize("target", ["helper", "another"])
def test_a_static_call_goes_where_its_key_says(tmp_path: Path, target: str) -> None:
    guest = of_assembly(tmp_path, *STATIC)
    guest.poke("__SCK__hook", 0, guest.addresses["helper"].to_bytes(8, "little").hex())
    guest.branch("f", 0, "e8", target)
    assert [mismatch.offset for mismatch in checked(guest, "f").mismatches] == [0] * (target != "helper")


def test_a_static_call_beyond_the_last_address_is_a_mismatch(tmp_path: Path) -> None:
    guest = of_assembly(tmp_path, *STATIC)
    guest.poke("f", 0, "e8 ff ff ff 7f")
    assert [mismatch.offset for mismatch in checked(guest, "f").mismatches] == [0]


@pytest.mark.parametrize(("key", "offsets"), [(0, []), (1, [0])])
def test_a_static_tail_call_that_just_returns_has_no_function_in_its_key(
    tmp_path: Path, key: int, offsets: list[int]
) -> None:
    guest = of_assembly(tmp_path, "jmp __SCT__hook", ".data\n.quad __SCK__hook\n")
    guest.poke("__SCK__hook", 0, f"{key:02x}")
    guest.branch("f", 0, "e9", "srso_return_thunk")
    assert [mismatch.offset for mismatch in checked(guest, "f").mismatches] == offsets


@pytest.mark.parametrize("target", ["helper", "another"])
def test_a_paravirt_call_goes_where_pv_ops_says(tmp_path: Path, target: str) -> None:
    guest = of_assembly(tmp_path, *PARAVIRT)
    guest.poke("pv_ops", 8, guest.addresses["helper"].to_bytes(8, "little").hex())
    guest.branch("f", 0, "e8", target)
    guest.poke("f", 5, "90")
    assert [mismatch.offset for mismatch in checked(guest, "f").mismatches] == [0] * (target != "helper")


@pytest.mark.parametrize(("before", "offsets"), [("65 48 c1", []), ("90 90 90", [0])])
def test_a_call_may_be_led_through_what_counts_calls_before_the_function(
    tmp_path: Path, before: str, offsets: list[int]
) -> None:
    guest = of_assembly(tmp_path, "call helper; ret")
    guest.poke("helper", -9, before)
    guest.branch("f", 0, "e8", "helper", -9)
    assert [mismatch.offset for mismatch in checked(guest, "f").mismatches] == offsets


def test_a_function_where_nothing_is_mapped_is_a_mismatch(tmp_path: Path) -> None:
    guest = of_c(tmp_path, DRIVER)
    far = Checked(guest.unit, guest.function("scale"), TEXT + 0x100000)
    assert told(asyncio.run(check_functions(guest.read, [far]))) == ["scale+0x0: nothing is mapped there"]


def test_pages_between_two_functions_are_not_read(tmp_path: Path) -> None:
    guest = of_c(tmp_path, DRIVER + '__section(".far") int far(int a) { return a + 1; }')
    guest.addresses["far"] = TEXT + 0x9000
    size = guest.function("far").size
    far = Checked(guest.unit, guest.function("far"), TEXT + 0x9000)
    near = Checked(guest.unit, guest.function("scale"), guest.addresses["scale"])
    asyncio.run(check_functions(guest.read, [far, near]))
    assert guest.reads[:2] == [(near.address, near.function.size), (far.address, size)]


def test_nothing_to_check_reads_nothing() -> None:
    async def read(address: int, size: int) -> bytes:
        raise AssertionError(address, size)

    assert asyncio.run(check_functions(read, [])) == Verdict((), ())


def test_where_functions_start_comes_from_either_listing() -> None:
    assert functions_of("ffffffff81000000 T _stext\nffffffff82000000 D jiffies\n") == {
        0xFFFFFFFF81000000: "_stext"
    }
    assert functions_of("ffffffffc0002000 t dummy_xmit\t[dummy]\n") == {0xFFFFFFFFC0002000: "dummy_xmit"}


def test_the_first_gate_of_the_descriptor_table_tells_how_far_the_kernel_was_moved() -> None:
    gate = bytes.fromhex("b0081000008ee081ffffffff00000000")  # read of a guest
    assert offset_of_kernel(gate, 0xFFFFFFFF81E008B0) == 0
    assert offset_of_kernel(gate, 0xFFFFFFFF810008B0) == 0xE00000
