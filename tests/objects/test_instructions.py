# SPDX-License-Identifier: MIT
"""objdump says where each instruction of real kernel code ends; so must we."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hotreload.elf.instructions import UndecodableError, decode

if TYPE_CHECKING:
    from hotreload.build.kernel_tree import KernelTree

# An address, the bytes, and what objdump makes of them.
LINE = re.compile(r"^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t(.*)$", re.MULTILINE)
MODULES = """aesni-intel aegis128-aesni serpent-avx2 camellia-aesni-avx2 nhpoly1305-avx2 twofish-avx-x86_64
    chacha-x86_64 sha512-ssse3 xfs nf_tables kvm virtio_net""".split()


@pytest.mark.parametrize("name", MODULES)
def test_every_instruction_of_a_kernel_module_has_the_length_that_objdump_gives(
    name: str, debian_kernel: KernelTree
) -> None:
    assert debian_kernel.modules is not None
    file = next(debian_kernel.modules.rglob(f"{name}.ko"), None)
    if file is None:
        pytest.skip(f"this kernel has no module {name}")
    listing = disassembled(file)
    assert len(listing) > 100
    wrong = [f"{code.hex(' ')}  {text}" for code, text in listing if length(code) != len(code)]
    assert wrong == []


def disassembled(file: Path) -> list[tuple[bytes, str]]:
    command = ["objdump", "-d", "--insn-width=16", "--section=.text", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [
        (bytes.fromhex(code), words) for _, code, words in LINE.findall(text) if not words.startswith("(bad)")
    ]


def length(code: bytes) -> int | str:
    try:
        return decode(code, 0).end
    except UndecodableError as error:
        return str(error)
