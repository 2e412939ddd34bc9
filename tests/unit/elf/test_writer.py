# SPDX-License-Identifier: MIT
"""What is written is what is read. tests/objects/test_module.py asks readelf about whole modules."""

from __future__ import annotations

from hotreload.elf.constants import (
    R_X86_64_64,
    R_X86_64_PLT32,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHT_NOBITS,
    SHT_PROGBITS,
    STB_GLOBAL,
    STB_LOCAL,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
)
from hotreload.elf.model import SymbolRef
from hotreload.elf.reader import parse_object
from hotreload.elf.writer import OutputRelocation, OutputSection, OutputSymbol, write_object


def test_an_object_that_is_written_is_read_as_it_was_meant() -> None:
    text = OutputSection(
        ".text", SHT_PROGBITS, SHF_ALLOC | SHF_EXECINSTR, 16, data=bytearray(b"\xe8\0\0\0\0\xc3")
    )
    data = OutputSection(".data", SHT_PROGBITS, SHF_ALLOC | SHF_WRITE, 8, data=bytearray(8))
    bss = OutputSection(".bss", SHT_NOBITS, SHF_ALLOC | SHF_WRITE, 32, zeros=40)
    outside = OutputSymbol("outside", STT_NOTYPE, STB_GLOBAL)
    function = OutputSymbol("f", STT_FUNC, STB_GLOBAL, text, 0, 6)
    pointer = OutputSymbol("pointer", STT_OBJECT, STB_LOCAL, data, 0, 8)
    buffer = OutputSymbol("buffer", STT_OBJECT, STB_LOCAL, bss, 8, 32)
    text.relocations.append(OutputRelocation(1, R_X86_64_PLT32, outside, -4))
    data.relocations.append(OutputRelocation(0, R_X86_64_64, buffer, 1 << 40))

    obj = parse_object(write_object([text, data, bss], [outside, function, pointer, buffer]), "written.o")

    assert [(s.name, s.type, s.flags, s.align, s.size) for s in obj.sections if s.name != ".shstrtab"] == [
        (".text", SHT_PROGBITS, SHF_ALLOC | SHF_EXECINSTR, 16, 6),
        (".data", SHT_PROGBITS, SHF_ALLOC | SHF_WRITE, 8, 8),
        (".bss", SHT_NOBITS, SHF_ALLOC | SHF_WRITE, 32, 40),
    ]
    found = {symbol.name: symbol for symbol in obj.symbols if not symbol.anonymous}
    assert set(found) == {"outside", "f", "pointer", "buffer"}
    assert [symbol.is_local for symbol in obj.symbols[:4]] == [True, True, False, False]
    (call,), (address,) = found["f"].relocations, found["pointer"].relocations
    assert (call.offset, call.type, call.target, call.addend) == (
        1,
        R_X86_64_PLT32,
        SymbolRef(found["outside"]),
        -4,
    )
    assert (address.target, address.addend) == (SymbolRef(found["buffer"]), 1 << 40)
    assert found["buffer"].content == bytes(32)


def test_content_is_appended_at_its_alignment_behind_filling() -> None:
    text = OutputSection(".text", SHT_PROGBITS, SHF_ALLOC | SHF_EXECINSTR)
    assert [text.append(b"\xc3", 16, b"\xcc"), text.append(b"\xc3", 4, b"\xcc")] == [0, 4]
    assert (bytes(text.data), text.align) == (b"\xc3\xcc\xcc\xcc\xc3", 16)
    bss = OutputSection(".bss", SHT_NOBITS, SHF_ALLOC | SHF_WRITE)
    assert [bss.append(bytes(3)), bss.append(bytes(8), 8), bss.size, len(bss.data)] == [0, 8, 16, 0]
