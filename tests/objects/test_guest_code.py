# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""An object against the memory of a guest: what matches, what the kernel may have written, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.diff.guest_code import Matched, Mismatch
from tests.objects.guest_memory import TEXT, GuestMemory, of_assembly, of_c

DRIVER = """
int helper(int); static int total; static const char *names[2] = { "in", "out" };
static noinline int scale(int a) { total += a; return a * 3; }
int step(int a) { if (a < 0) { printk("below zero"); return helper(a); } return scale(a) + total; }
const char *name(int a) { return names[a & 1]; }
__attribute__((weak)) int limit(int a) { return helper(a) + 1; }
"""


def test_every_function_of_a_linked_unit_matches_and_says_what_strings_it_needs(tmp_path: Path) -> None:
    guest = of_c(tmp_path, DRIVER)
    found = {function.name: guest.check(function.name) for function in guest.obj.functions}
    assert {"scale", "step", "name", "limit"} <= found.keys()
    assert all(isinstance(result, Matched) for result in found.values()), found
    step = found["step"]
    assert isinstance(step, Matched)
    assert [pointed.content for pointed in step.pointed] == [b"below zero\0"]
    at = step.pointed[0].address - TEXT
    assert guest.memory[at : at + 11] == b"below zero\0"


def test_an_altered_byte_is_told_with_function_offset_and_both_texts(tmp_path: Path) -> None:
    guest = of_assembly(tmp_path, "mov $1, %eax; add $2, %eax; ret")
    guest.poke("f", 7, "03")
    assert guest.why("f") == "f+0x7: expected 02 c3, found 03 c3"


def test_a_call_that_goes_elsewhere_is_told_by_both_names(tmp_path: Path) -> None:
    guest = of_assembly(tmp_path, "call helper; ret")
    guest.branch("f", 0, "e8", "another")
    helper, another = guest.addresses["helper"], guest.addresses["another"]
    assert guest.why("f") == f"f+0x1: expected helper ({helper:#x}), found another ({another:#x})"


def test_an_address_that_nobody_told_is_solved_and_must_be_the_same_everywhere(tmp_path: Path) -> None:
    body = "mov counter(%rip), %eax; add $5, counter(%rip); mov $counter, %rcx; ret"
    tables = ".bss\n.type counter, @object\n.size counter, 4\ncounter: .zero 4\n"
    guest = of_assembly(tmp_path, body, tables)
    guest.unknown = frozenset(("counter",))
    assert guest.why("f") == ""
    right = guest.addresses["counter"]
    guest = of_assembly(tmp_path, body, tables)
    guest.unknown = frozenset(("counter",))
    guest.memory[16] += 4  # the operand of the last one
    assert guest.why("f") == f"f+0x10: expected counter ({right:#x}), found {right + 4:#x}"


def test_what_one_function_tells_of_the_units_place_binds_the_next(tmp_path: Path) -> None:
    guest = of_c(tmp_path, DRIVER)
    assert isinstance(guest.check("step"), Matched)
    moved = guest.check("scale", shift=16)
    assert isinstance(moved, Mismatch)
    assert moved.why.endswith("the unit's .text is elsewhere")


def test_a_mismatch_leaves_nothing_behind_that_a_later_check_is_held_to(tmp_path: Path) -> None:
    guest = of_c(tmp_path, DRIVER, unknown=frozenset(("scale", "step", "name", "limit")))
    assert isinstance(guest.check("scale", shift=16), Mismatch)
    assert isinstance(guest.check("scale"), Matched)


def test_namesakes_with_the_same_bytes_are_told_apart_by_what_they_refer_to(tmp_path: Path) -> None:
    body = "static int {v}; static noinline int set(int a) {{ return {v} += a; }} int {f}(int a) {{ return set(a) + 1; }}"
    guest = of_c(tmp_path, body.format(v="mine", f="use"))
    other = of_c(tmp_path / "other", body.format(v="theirs", f="other"))
    assert guest.function("set").content == other.function("set").content
    theirs = guest.addresses["mine"] + 64
    guest.memory[0x8000:0x8040] = guest.memory[:0x40]
    at = guest.addresses["set"] - TEXT
    field = next(r.offset for r in guest.function("set").relocations if r.offset > 5)
    place = 0x8000 + at + field
    guest.memory[place : place + 4] = (theirs - TEXT - place - 4).to_bytes(4, "little", signed=True)
    assert isinstance(guest.check("set"), Matched)
    wrong = guest.check("set", shift=0x8000)
    assert isinstance(wrong, Mismatch)


def test_a_weak_function_that_another_unit_replaces_still_is_its_own(tmp_path: Path) -> None:
    guest = of_c(
        tmp_path,
        "int helper(int); __attribute__((weak)) int limit(int a) { return helper(a) + 1; } int f(int a) { return limit(a) + 2; }",
    )
    own, strong = guest.addresses["limit"], guest.addresses["another"]
    guest.addresses["limit"] = strong
    call = next(r.offset for r in guest.function("f").relocations if r.offset > 5)
    guest.branch("f", call - 1, "e8", "another")
    assert guest.why("f") == ""
    assert guest.unit.address_of_function(guest.function("limit")) == own


# --- what the kernel rewrites ---

JUMP_LABEL = (
    ".byte 0x0f, 0x1f, 0x44, 0, 0; mov $1, %eax; ret; there: mov $2, %eax; ret",
    '.section __jump_table, "aw"\n.balign 8\n.long f - ., there - .\n.quad key - .\n.data\nkey: .zero 16\n',
)
SHORT_LABEL = (
    ".byte 0x66, 0x90; mov $1, %eax; ret; there: mov $2, %eax; ret",
    '.section __jump_table, "aw"\n.balign 8\n.long f - ., there - .\n.quad key - .\n.data\nkey: .zero 16\n',
)
LOCK = ("1: lock incl (%rdi); ret", '.section .smp_locks, "a"\n.long 1b - .\n')
RETURN = ("jmp __x86_return_thunk", "")
RETPOLINE = ("mov (%rdi), %r11; call __x86_indirect_thunk_r11; ret", "")
PREFIXED = ("mov (%rdi), %r11; .byte 0x2e; call __x86_indirect_thunk_r11; ret", "")
RETPOLINE_JUMP = ("jmp __x86_indirect_thunk_rax", "")
STATIC_CALL = ("call __SCT__hook; ret", "")
STATIC_TAIL = ("jmp __SCT__hook", "")
STATIC_JCC = ("test %eax, %eax; je __SCT__hook; ret", "")
FTRACE = ("1: call __fentry__; ret", '.section __mcount_loc, "a"\n.quad 1b\n')
ENDBR = ("endbr64; ret", "")
PARAVIRT = (
    "1: call *pv_ops+8(%rip); ret",
    '.section .parainstructions, "a"\n.balign 8\n.quad 1b\n.byte 1, 6\n.balign 8\n',
)
CONSTANT = (
    "movabs $0x0123456789abcdef, %rax; 1: ret",
    '.section runtime_ptr_table, "a"\n.long 1b - 8 - .\n',
)


@pytest.mark.parametrize(
    ("unit", "offset", "found"),
    [
        pytest.param(JUMP_LABEL, 0, "e9 06 00 00 00", id="a jump label's jump to its label"),
        pytest.param(SHORT_LABEL, 0, "eb 06", id="a short jump label's jump"),
        pytest.param(LOCK, 0, "3e", id="a DS prefix for LOCK on one processor"),
        pytest.param(RETURN, 0, "c3 cc cc cc cc", id="a return without thunk"),
        pytest.param(RETPOLINE, 3, "41 ff d3 66 90", id="the indirect call of a retpoline"),
        pytest.param(PREFIXED, 3, "41 ff d3 0f 1f 00", id="the same with a prefix"),
        pytest.param(PREFIXED, 3, "0f ae e8 41 ff d3", id="the same behind LFENCE"),
        pytest.param(RETPOLINE_JUMP, 0, "ff e0 cc 66 90", id="the indirect jump of a retpoline"),
        pytest.param(STATIC_CALL, 0, "0f 1f 44 00 00", id="a static call of nothing"),
        pytest.param(STATIC_CALL, 0, "2e 2e 2e 31 c0", id="a static call that returns 0"),
        pytest.param(STATIC_TAIL, 0, "c3 cc cc cc cc", id="a static tail call of nothing"),
        pytest.param(FTRACE, 0, "0f 1f 44 00 00", id="nobody traces"),
        pytest.param(ENDBR, 0, "66 0f 1f 00", id="an ENDBR64 that was sealed"),
        pytest.param(ENDBR, 0, "0f 1f 40 d6", id="an ENDBR64 that a newer kernel sealed"),
        pytest.param(PARAVIRT, 0, "66 0f 1f 44 00 00", id="a paravirt call of nothing"),
        pytest.param(CONSTANT, 2, "00 10 20 30 40 88 ff ff", id="a constant of this boot"),
    ],
)
def test_what_the_kernel_may_have_written_is_taken(
    tmp_path: Path, unit: tuple[str, str], offset: int, found: str
) -> None:
    guest = of_assembly(tmp_path, *unit)
    assert guest.why("f") == ""
    guest.poke("f", offset, found)
    assert guest.why("f") == ""


@pytest.mark.parametrize(
    ("unit", "offset", "found", "why"),
    [
        pytest.param(JUMP_LABEL, 0, "e9 07 00 00 00", "f+0x0: a jump label that", id="a jump label's jump elsewhere"),
        pytest.param(JUMP_LABEL, 0, "0f 1f 44 00 01", "f+0x0: a jump label that", id="a NOP that is not the kernel's"),
        pytest.param(JUMP_LABEL, 5, "b8 07", "f+0x6: expected 01", id="behind a jump label"),
        pytest.param(SHORT_LABEL, 0, "eb 05", "f+0x0: a jump label that", id="a short jump elsewhere"),
        pytest.param(LOCK, 0, "f2", "f+0x0: a lock prefix that", id="another prefix for LOCK"),
        pytest.param(LOCK, 1, "fe", "f+0x1: expected ff", id="what is locked"),
        pytest.param(RETURN, 0, "c3 90 90 90 90", "f+0x0: a return that", id="another return"),
        pytest.param(RETPOLINE, 3, "41 ff d2 66 90", "f+0x3: a retpoline that", id="a call by another register"),
        pytest.param(RETPOLINE, 3, "41 ff d3 26 90", "f+0x3: a retpoline that", id="a NOP with a prefix"),
        pytest.param(RETPOLINE_JUMP, 0, "ff d0 0f 1f 00", "f+0x0: a retpoline that", id="a call for a jump"),
        pytest.param(STATIC_CALL, 0, "c3 cc cc cc cc", "f+0x0: a static call that", id="a return for a call"),
        pytest.param(STATIC_TAIL, 0, "0f 1f 44 00 00", "f+0x0: a static call that", id="a NOP for a tail call"),
        pytest.param(FTRACE, 0, "66 90 0f 1f 00", "f+0x0: an ftrace site that", id="another NOP for ftrace"),
        pytest.param(ENDBR, 0, "f3 0f 1e fb", "f+0x0: an ENDBR64 that", id="an ENDBR32"),
        pytest.param(PARAVIRT, 0, "e8 00 00 00 00 90", "f+0x0: a paravirt call that", id="a paravirt call of no function"),
        pytest.param(CONSTANT, 1, "b9", "f+0x1: expected b8", id="beside a constant"),
        pytest.param(FTRACE, 5, "cc", "f+0x5: there is a breakpoint", id="a kprobe"),
    ],
)  # fmt: skip
def test_anything_else_at_such_a_place_is_refused(
    tmp_path: Path, unit: tuple[str, str], offset: int, found: str, why: str
) -> None:
    guest = of_assembly(tmp_path, *unit)
    guest.poke("f", offset, found)
    assert guest.why("f").startswith(why)


@pytest.mark.parametrize(
    ("unit", "offset", "opcode", "right", "wrong"),
    [
        pytest.param(STATIC_CALL, 0, "e8", ("helper", 0), ("helper", 1), id="a static call"),
        pytest.param(STATIC_TAIL, 0, "e9", ("helper", 0), ("helper", 1), id="a static tail call"),
        pytest.param(STATIC_JCC, 2, "0f84", ("helper", 0), ("helper", 1), id="a static tail call on condition"),
        pytest.param(STATIC_TAIL, 0, "e9", ("helper", 0), ("helper", -1), id="before a function"),
        pytest.param(RETURN, 0, "e9", ("srso_return_thunk", 0), ("helper", 0), id="a return's thunk"),
        pytest.param(RETPOLINE, 3, "e8", ("__x86_indirect_its_thunk_r11", 0), ("helper", 0), id="a retpoline's thunk"),
        pytest.param(PARAVIRT, 0, "e8", ("helper", 0), ("helper", 1), id="a paravirt call"),
    ],
)  # fmt: skip
def test_a_branch_that_the_kernel_redirected_goes_to_a_function_of_its_kind(
    tmp_path: Path, unit: tuple[str, str], offset: int, opcode: str, right: tuple[str, int], wrong: tuple[str, int]
) -> None:  # fmt: skip
    guest = of_assembly(tmp_path, *unit)
    if unit is PARAVIRT:
        guest.poke("f", 5, "90")
    guest.branch("f", offset, opcode, *right)
    assert guest.why("f") == ""
    guest.branch("f", offset, opcode, *wrong)
    assert "that the kernel would not write" in guest.why("f")


def test_a_function_that_somebody_traces_matches_and_says_so(tmp_path: Path) -> None:
    guest = of_assembly(tmp_path, *FTRACE)
    guest.poke("f", 0, "0f 1f 44 00 00")
    quiet = guest.check("f")
    guest.branch("f", 0, "e8", "tracer")
    traced = guest.check("f")
    assert isinstance(quiet, Matched)
    assert isinstance(traced, Matched)
    assert (quiet.traced, traced.traced) == (False, True)


def test_a_jump_that_somebody_put_over_the_code_is_named(tmp_path: Path) -> None:
    guest = of_assembly(tmp_path, "mov $1, %eax; mov $2, %edx; ret")
    guest.branch("f", 0, "e9", "tracer")
    assert guest.why("f") == f"f+0x0: a jump to tracer ({guest.addresses['tracer']:#x}) was written there"


# --- alternatives ---


def alternatives(*replacements: str, original: str, flags: str = "") -> tuple[str, str]:
    """A function that begins with ``original``, which each replacement may take the place of."""
    entries = codes = ""
    for number, replacement in enumerate(replacements):
        codes += f".R{number}: {replacement}\n.E{number}:\n"
        entries += f".long .Lsite - ., .R{number} - .\n.2byte 1{flags}\n.byte .Lend - .Lsite, .E{number} - .R{number}\n"
    body = f".Lsite: {original}\n.Lend: ret"
    tables = f'.section .altinstr_replacement, "ax"\n{codes}.section .altinstructions, "a"\n{entries}'
    return body, tables


CLEAR = alternatives("call another", "rep stosb", original="call helper")


def test_an_alternative_is_the_original_or_a_replacement_with_its_call_moved(tmp_path: Path) -> None:
    guest = of_assembly(tmp_path, *CLEAR)
    assert guest.why("f") == ""
    guest.branch("f", 0, "e8", "another")
    assert guest.why("f") == ""
    guest.poke("f", 0, "f3 aa 0f 1f 00")
    assert guest.why("f") == ""


@pytest.mark.parametrize("found", ["f3 ab 0f 1f 00", "f3 aa 90 90 c3", "0f 1f 44 00 00", "f3 aa 0f 1f 01"])
def test_an_alternative_of_another_text_is_refused(tmp_path: Path, found: str) -> None:
    guest = of_assembly(tmp_path, *CLEAR)
    guest.poke("f", 0, found)
    assert guest.why("f") == f"f+0x0: an alternative that the kernel would not write: {found}"


def test_an_alternative_that_calls_something_else_is_refused(tmp_path: Path) -> None:
    guest = of_assembly(tmp_path, *CLEAR)
    guest.branch("f", 0, "e8", "tracer")
    assert "an alternative that the kernel would not write" in guest.why("f")


@pytest.mark.parametrize("found", ["eb 07 0f 1f 00", "eb 07 cc cc cc", "e9 04 00 00 00", "0f 1f 44 00 00"])
def test_a_jump_of_an_alternative_may_be_made_shorter_and_padded(tmp_path: Path, found: str) -> None:
    body, tables = alternatives("jmp there", "", original=".skip 5, 0x90")
    guest = of_assembly(tmp_path, f"{body}; xor %eax, %eax; nop; there: ret", tables)
    guest.poke("f", 0, found)
    assert guest.why("f") == ""


def test_a_call_through_pv_ops_may_become_a_direct_one_to_any_function(tmp_path: Path) -> None:
    body, tables = alternatives("call BUG_func", original="call *pv_ops(%rip)", flags=", 2")
    guest = of_assembly(tmp_path, body, tables)
    guest.branch("f", 0, "e8", "helper")
    guest.poke("f", 5, "90")
    assert guest.why("f") == ""
    guest.branch("f", 0, "e8", "helper", 1)
    assert "an alternative that the kernel would not write" in guest.why("f")


def test_every_altered_bit_of_a_unit_is_noticed(tmp_path: Path) -> None:
    guest: GuestMemory = of_c(tmp_path, DRIVER)
    unnoticed = []
    for function in guest.obj.functions:
        start = guest.addresses[function.name] - TEXT
        for offset in range(5, function.size):  # the first five are ftrace's
            for bit in range(8):
                guest.memory[start + offset] ^= 1 << bit
                result = guest.check(function.name)
                if isinstance(result, Matched) and all(
                    guest.memory[p.address - TEXT :].startswith(p.content)
                    for p in result.pointed
                    if 0 <= p.address - TEXT < len(guest.memory)
                ) and all(0 <= p.address - TEXT < len(guest.memory) for p in result.pointed):  # fmt: skip
                    unnoticed.append((function.name, offset, bit))
                guest.memory[start + offset] ^= 1 << bit
    assert unnoticed == []
