# SPDX-License-Identifier: MIT
"""Recognize what a running kernel writes into its own code, kind by kind.

The code that writes it is in alternative.c, jump_label.c, static_call.c and ftrace.c of arch/x86/kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from hotreload.diff.special_sections import Entry
from hotreload.elf.instructions import Instruction, UndecodableError, decode, instructions
from hotreload.elf.model import Symbol, SymbolRef

# BYTES_NOP1 to BYTES_NOP11 of arch/x86/include/asm/nops.h; the kernel writes no others.
NOPS: Final = tuple(
    bytes.fromhex(text)
    for text in """90 6690 0f1f00 0f1f4000 0f1f440000 660f1f440000 0f1f8000000000 0f1f840000000000
    660f1f840000000000 662e0f1f840000000000 66662e0f1f840000000000""".split()
)
NOP2, NOP5 = NOPS[1], NOPS[4]
ENDBR64: Final = bytes.fromhex("f30f1efa")
# Replaces an ENDBR64 that nothing jumps to: gen_endbr_poison() of arch/x86/include/asm/ibt.h, "osp nopl
# (%rax)" at first, "nopl -42(%rax)" in newer kernels.
SEALED: Final = (bytes.fromhex("660f1f00"), bytes.fromhex("0f1f40d6"))
# RET, and INT3s that stop speculation behind it.
RETURN5: Final = bytes.fromhex("c3cccccccc")
# "cs cs cs xorl %eax, %eax": replaces a static call of __static_call_return0.
RETURN_ZERO5: Final = bytes.fromhex("2e2e2e31c0")
LFENCE: Final = bytes.fromhex("0faee8")
# "sarq $5, %gs:..." before a function, which its callers run first under call depth tracking (callthunks.c):
# its first bytes, and its sizes with a RIP-relative and an absolute operand.
COUNT_CALL: Final = bytes.fromhex("6548c1")
THUNK_SIZES: Final = (9, 10)
CALL_POINTER: Final = bytes.fromhex("ff15")  # call *disp32(%rip)
INT3: Final = 0xCC
LOCK, DS_PREFIX, CS_PREFIX = 0xF0, 0x3E, 0x2E
CALL, JMP, JMP_SHORT, RET = 0xE8, 0xE9, 0xEB, 0xC3

REGISTERS: Final = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()


class Addresses(Protocol):
    """What is at which address of the guest."""

    def where(self, symbol: Symbol) -> Sequence[int]:
        """Return the addresses that a reference to a symbol of the unit may mean; none while unknown."""
        ...

    def name_at(self, address: int) -> str | None:
        """Return the function that starts at an address; None if none does."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """The bytes at ``address``: ``expected`` as in the relocated object, and ``found`` in the guest.

    Accepting them may depend on other memory: ``needs`` collects (address, bytes that must be there).
    """

    expected: bytes
    found: bytes
    address: int
    guest: Addresses
    needs: list[tuple[int, bytes]] = field(default_factory=list)

    def destination(self, end: int) -> int:
        """Return the destination of the branch whose operand is the four bytes before ``end``."""
        distance = int.from_bytes(self.found[end - 4 : end], "little", signed=True)
        return (self.address + end + distance) % 2**64

    def behind(self, count: int) -> Text:
        """Return the text without its first ``count`` bytes."""
        return Text(self.expected[count:], self.found[count:], self.address + count, self.guest, self.needs)

    def calls_pointer(self, end: int, pointer: int | None) -> bool:
        """Return whether the branch goes to the start of a function.

        ``pointer``: if given, the address of a pointer that must contain that function; this is added to
        ``needs``.
        """
        there = self.function_called(end)
        if pointer is not None:
            self.needs.append((pointer, there.to_bytes(8, "little")))
        return self.guest.name_at(there) is not None

    def function_called(self, end: int) -> int:
        """Return the destination of a branch.

        If it is the code before a function that counts its calls, return the function.
        """
        there = self.destination(end)
        if self.guest.name_at(there) is None:
            for size in THUNK_SIZES:
                if self.guest.name_at(there + size):
                    self.needs.append((there, COUNT_CALL))
                    return there + size
        return there


# --- what may be at a place ---


def is_anything(_text: Text) -> bool:
    return True


def is_ftrace(text: Text) -> bool:
    return text.found == NOP5 or text.found[0] == CALL


def is_return(text: Text) -> bool:
    if text.found[0] == JMP:
        return _returns(text.guest.name_at(text.destination(5)))
    return text.found == RETURN5


def _returns(name: str | None) -> bool:
    """Return whether a function only returns: a return thunk, or the one for static calls of nothing."""
    return name is not None and ("return_thunk" in name or name == "__static_call_return")


def static_call(key: Symbol | None) -> Callable[[Text], bool]:
    """Return a test for a branch to the function that a static call's key points at, or for no call.

    struct static_call_key begins with that pointer.
    """

    def accepts(text: Text) -> bool:
        first, found = text.expected[0], text.found
        if first == CALL and found in (NOP5, RETURN_ZERO5):
            return True
        if first == JMP and found == RETURN5:
            return True
        end = len(found)
        if found[: end - 4] != text.expected[: end - 4]:
            return False
        pointers = text.guest.where(key) if key is not None else ()
        pointer = pointers[0] if pointers else None
        if first != CALL and _returns(text.guest.name_at(text.destination(end))):
            if pointer is not None:
                text.needs.append((pointer, bytes(8)))
            return True
        return text.calls_pointer(end, pointer)

    return accepts


def is_direct_call(text: Text) -> bool:
    """Return whether a direct call of the function in the original's pointer was written, or NOPs."""
    if text.found[0] != CALL:
        return is_nops(text.found)
    pointer = None
    if text.expected.startswith(CALL_POINTER):
        displacement = int.from_bytes(text.expected[2:6], "little", signed=True)
        pointer = text.address + 6 + displacement
    return text.calls_pointer(5, pointer) and is_nops(text.found[5:])


def retpoline(register: str) -> Callable[[Text], bool]:
    """Return a test for the indirect branch that a retpoline stands for.

    The kernel writes it in patch_retpoline() of alternative.c.
    """
    number = REGISTERS.index(register) if register in REGISTERS else None

    def accepts(text: Text) -> bool:
        if text.expected[0] == text.found[0] == CS_PREFIX and accepts(text.behind(1)):
            # The first byte may be the end of the instruction before instead of a prefix.
            return True
        opcode, found = text.expected[text.expected[0] == CS_PREFIX], text.found
        if found[: len(found) - 4] == text.expected[: len(found) - 4]:
            # Another thunk of the same kind, for call depth tracking or against ITS.
            thunk = text.guest.name_at(text.destination(len(found))) or ""
            return thunk.startswith("__x86_indirect_")
        if number is None:
            return False
        if opcode == 0x0F:
            if found[:2] != bytes((0x70 + (text.expected[1] & 0xF ^ 1), len(found) - 2)):
                return False
            found = found[2:]
        branch = bytes((0xFF, (0xD0 if opcode == CALL else 0xE0) + (number & 7)))
        found = found.removeprefix(LFENCE)
        branch = (b"\x41" if number >= 8 else b"") + branch
        if not found.startswith(branch):
            return False
        rest = found[len(branch) :]
        return is_nops(rest if opcode == CALL else rest.removeprefix(b"\xcc"))

    return accepts


def jump_label(entry: Entry) -> Callable[[Text], bool]:
    """Return a test for a NOP or a jump to the entry's target, in the size that the compiler chose."""
    target = entry.relocations[1]
    assert isinstance(target.target, SymbolRef)
    label = target.target.symbol

    def accepts(text: Text) -> bool:
        size = len(text.found)
        if text.found == (NOP2 if size == 2 else NOP5):
            return True
        jump = int.from_bytes(text.found[1:], "little", signed=True)
        there = text.address + size + jump - target.addend
        return text.found[0] == (JMP_SHORT if size == 2 else JMP) and there in text.guest.where(label)

    return accepts


# --- alternatives ---


def is_nops(code: bytes) -> bool:
    """Return whether code consists of NOPs that the kernel uses."""
    try:
        return all(_is_nop(code, instruction) for instruction in instructions(code))
    except UndecodableError:
        return False


def _is_nop(code: bytes, instruction: Instruction) -> bool:
    return code[instruction.start : instruction.end] in NOPS


def meaning(code: bytes, address: int, guest: Addresses) -> list[object] | None:
    """Return what code at ``address`` does, independent of its padding; None if it cannot be decoded.

    NOPs are left out, and so are jumps over nothing but padding. A branch is represented by its kind and its
    destination.
    """
    said: list[object] = []
    at = 0
    try:
        while at < len(code):
            instruction = decode(code, at)
            at = instruction.end
            if instruction.is_relative_branch:
                field = code[at - instruction.immediate : at]
                end = at + int.from_bytes(field, "little", signed=True)
                if instruction.opcode in (JMP, JMP_SHORT):
                    if at <= end <= len(code) and _is_padding(code[at:end]):
                        at = end
                        continue
                    at = _behind_int3(code, at)
                    if _returns(guest.name_at(address + end)):
                        said.append("return")
                        continue
                said.append((_kind(instruction.opcode), address + end))
            elif instruction.opcode == RET:
                said.append("return")
                at = _behind_int3(code, at)
            elif not _is_nop(code, instruction):
                said.append(code[instruction.start : instruction.end])
    except UndecodableError:
        return None
    return said


def _is_padding(code: bytes) -> bool:
    return code.count(INT3) == len(code) or is_nops(code)


def _behind_int3(code: bytes, at: int) -> int:
    while at < len(code) and code[at] == INT3:
        at += 1
    return at


def _kind(opcode: int) -> int:
    """Return a branch's kind, independent of the size of its operand."""
    if opcode in (JMP, JMP_SHORT):
        return JMP
    return opcode - 0x0F80 + 0x70 if 0x0F80 <= opcode <= 0x0F8F else opcode
