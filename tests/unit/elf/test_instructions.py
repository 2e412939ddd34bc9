# SPDX-License-Identifier: MIT
"""Instruction lengths, on bytes picked by hand. tests/objects asks objdump about real code."""

from __future__ import annotations

import pytest

from hotreload.elf.instructions import Instruction, UndecodableError, decode, instructions


# The bytes, and how many of them are the immediate at the end.
@pytest.mark.parametrize(
    ("code", "immediate"),
    [
        pytest.param("90", 0, id="nop"),
        pytest.param("0f 1f 84 00 00 00 00 00", 0, id="nop of 8 bytes"),
        pytest.param("f3 0f 1e fa", 0, id="endbr64"),
        pytest.param("e8 00 00 00 00", 4, id="call"),
        pytest.param("eb fe", 1, id="jmp short"),
        pytest.param("0f 84 00 00 00 00", 4, id="je near"),
        pytest.param("2e e9 00 00 00 00", 4, id="jmp with a cs prefix"),
        pytest.param("c6 05 00 00 00 00 01", 1, id="movb $1, x(%rip)"),
        pytest.param("66 c7 05 00 00 00 00 01 00", 2, id="movw $1, x(%rip)"),
        pytest.param("c7 05 00 00 00 00 01 00 00 00", 4, id="movl $1, x(%rip)"),
        pytest.param("48 c7 05 00 00 00 00 01 00 00 00", 4, id="movq $1, x(%rip)"),
        pytest.param("66 81 c1 34 12", 2, id="add $0x1234, %cx"),
        pytest.param("66 48 81 c1 34 12 00 00", 4, id="REX.W outweighs the 66 prefix"),
        pytest.param("66 b8 34 12", 2, id="mov $0x1234, %ax"),
        pytest.param("b8 00 00 00 00", 4, id="mov $0, %eax"),
        pytest.param("48 b8 00 00 00 00 00 00 00 00", 8, id="movabs $0, %rax"),
        pytest.param("48 a1 00 00 00 00 00 00 00 00", 8, id="movabs x, %rax"),
        pytest.param("67 a1 00 00 00 00", 4, id="addr32 mov x, %eax"),
        pytest.param("f6 05 00 00 00 00 01", 1, id="testb $1, x(%rip)"),
        pytest.param("f6 1d 00 00 00 00", 0, id="negb x(%rip)"),
        pytest.param("f7 05 00 00 00 00 01 00 00 00", 4, id="testl $1, x(%rip)"),
        pytest.param("66 f7 c1 34 12", 2, id="test $0x1234, %cx"),
        pytest.param("f7 25 00 00 00 00", 0, id="mull x(%rip)"),
        pytest.param("83 3d 00 00 00 00 05", 1, id="cmpl $5, x(%rip)"),
        pytest.param("69 05 00 00 00 00 0a 00 00 00", 4, id="imul $10, x(%rip), %eax"),
        pytest.param("6b c0 0a", 1, id="imul $10, %eax, %eax"),
        pytest.param("c8 10 00 01", 3, id="enter $16, $1"),
        pytest.param("c2 08 00", 2, id="ret $8"),
        pytest.param("8b 04 c5 00 00 00 00", 0, id="mov x(,%rax,8), %eax"),
        pytest.param("8b 44 24 08", 0, id="mov 8(%rsp), %eax"),
        pytest.param("8b 84 24 00 01 00 00", 0, id="mov 0x100(%rsp), %eax"),
        pytest.param("65 48 8b 04 25 28 00 00 00", 0, id="mov %gs:40, %rax"),
        pytest.param("0f ba 2d 00 00 00 00 03", 1, id="btsl $3, x(%rip)"),
        pytest.param("0f 0b", 0, id="ud2"),
        pytest.param("0f b9 40 10", 0, id="ud1 16(%rax), %eax"),
        pytest.param("66 0f 38 00 05 00 00 00 00", 0, id="pshufb x(%rip), %xmm0"),
        pytest.param("66 0f 3a 0f c1 08", 1, id="palignr $8, %xmm1, %xmm0"),
        pytest.param("c5 f9 6f 05 00 00 00 00", 0, id="vmovdqa x(%rip), %xmm0"),
        pytest.param("c5 f8 77", 0, id="vzeroupper"),
        pytest.param("c5 f9 70 c0 4e", 1, id="vpshufd $0x4e, %xmm0, %xmm0"),
        pytest.param("c4 e2 79 00 05 00 00 00 00", 0, id="vpshufb x(%rip), %xmm0, %xmm0"),
        pytest.param("c4 e3 7d 46 c1 20", 1, id="vperm2i128 $32, %ymm1, %ymm0, %ymm0"),
        pytest.param("c4 e3 fb f0 c0 0e", 1, id="rorx $14, %rax, %rax"),
        pytest.param("62 f1 7d 48 6f 05 00 00 00 00", 0, id="vmovdqa32 x(%rip), %zmm0"),
        pytest.param("62 f1 7d 48 72 f0 07", 1, id="vpslld $7, %zmm0, %zmm0"),
        pytest.param("62 f3 fd 48 43 c1 b1", 1, id="vshufi64x2 $0xb1, %zmm1, %zmm0, %zmm0"),
    ],
)
def test_an_instruction_ends_where_its_immediate_ends(code: str, immediate: int) -> None:
    data = bytes.fromhex(code)
    found = decode(data + b"\xcc" * 8, 0)
    assert (found.end, found.immediate) == (len(data), immediate)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("06", id="push %es, gone in 64-bit mode"),
        pytest.param("62 f6 7d 48 6f 05", id="an opcode map of AVX512-FP16"),
        pytest.param("e8 00 00", id="a call cut short"),
        pytest.param("66", id="a prefix and nothing"),
        pytest.param("8b", id="no ModRM"),
        pytest.param("8b 04", id="no SIB"),
        pytest.param("8b 05 00", id="half a displacement"),
        pytest.param("", id="nothing"),
    ],
)
def test_bytes_that_are_no_instruction_are_told_so(code: str) -> None:
    with pytest.raises(UndecodableError):
        decode(bytes.fromhex(code), 0)


def test_a_stream_is_cut_at_each_end_and_must_not_run_past_the_last() -> None:
    code = bytes.fromhex("55  48 89 e5  5d  c3")
    assert [(i.start, i.end) for i in instructions(code)] == [(0, 1), (1, 4), (4, 5), (5, 6)]
    assert [i.start for i in instructions(code, 1, 5)] == [1, 4]
    with pytest.raises(UndecodableError, match="past 0x3"):
        list(instructions(code, 0, 3))


@pytest.mark.parametrize("code", ["e8 00000000", "e9 00000000", "eb 00", "74 00", "e3 00", "0f85 00000000"])
def test_relative_branches_are_known(code: str) -> None:
    assert decode(bytes.fromhex(code), 0).is_relative_branch


@pytest.mark.parametrize("code", ["ff 25 00000000", "ff d0", "b8 00000000", "0f94 c0", "c3"])
def test_other_instructions_are_no_relative_branches(code: str) -> None:
    assert not decode(bytes.fromhex(code), 0).is_relative_branch


def test_the_opcode_tells_its_map() -> None:
    assert decode(bytes.fromhex("660f3a0fc108"), 0) == Instruction(0, 6, 0x0F3A0F, 1)
