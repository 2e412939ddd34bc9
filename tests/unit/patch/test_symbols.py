# SPDX-License-Identifier: MIT
"""What a patch may refer to, from Module.symvers and a module's symbol table."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.elf.constants import (
    SHF_ALLOC,
    SHF_WRITE,
    SHN_UNDEF,
    SHT_PROGBITS,
    STB_GLOBAL,
    STB_LOCAL,
    STT_FILE,
    STT_OBJECT,
)
from hotreload.elf.writer import OutputSection, OutputSymbol, write_object
from hotreload.errors import InputError
from hotreload.patch.symbols import Export, ModuleSymbols, SymbolPosition, module_name, read_symvers


def test_module_symvers_tells_crc_and_module(tmp_path: Path) -> None:
    file = tmp_path / "Module.symvers"
    file.write_text(
        "0xbf9a41cf\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n"
        "0x00000000\tled_on\tdrivers/leds/led-core\tEXPORT_SYMBOL_GPL\tLEDS\n"
    )
    assert read_symvers(file) == {
        "_printk": Export(0xBF9A41CF, "vmlinux"),
        "led_on": Export(0, "led_core", "LEDS"),
    }


@pytest.mark.parametrize("text", ["no tabs here\n", "zz\tname\tvmlinux\tEXPORT_SYMBOL\n"])
def test_a_broken_module_symvers_is_an_input_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "Module.symvers").write_text(text)
    with pytest.raises(InputError, match=r"Module\.symvers"):
        read_symvers(tmp_path / "Module.symvers")


@pytest.mark.parametrize("path", ["drivers/net/e-1.ko", "drivers/net/e-1", "e_1.o"])
def test_a_module_has_one_name(path: str) -> None:
    assert module_name(path) == "e_1"


def made(folder: Path) -> ModuleSymbols:
    """A module of a.c and b.c with a static ``same`` each, one freed after init, and a global ``same``."""
    data = OutputSection(".data", SHT_PROGBITS, SHF_ALLOC | SHF_WRITE, data=bytearray(64))
    init = OutputSection(".init.data", SHT_PROGBITS, SHF_ALLOC | SHF_WRITE, data=bytearray(64))
    note = OutputSection(".comment", SHT_PROGBITS, 0, data=bytearray(64))
    symbols = [
        OutputSymbol("a.c", STT_FILE, STB_LOCAL, index=0xFFF1),
        OutputSymbol("same", STT_OBJECT, STB_LOCAL, init, 0, 4),
        OutputSymbol("same", STT_OBJECT, STB_LOCAL, data, 0, 4),
        OutputSymbol("b.c", STT_FILE, STB_LOCAL, index=0xFFF1),
        OutputSymbol("same", STT_OBJECT, STB_LOCAL, note, 0, 4),
        OutputSymbol("same", STT_OBJECT, STB_LOCAL, data, 8, 8),
        OutputSymbol("a.c", STT_FILE, STB_LOCAL, index=0xFFF1),
        OutputSymbol("same", STT_OBJECT, STB_GLOBAL, data, 16, 4),
        OutputSymbol("needed", STT_OBJECT, STB_GLOBAL, index=SHN_UNDEF),
    ]
    (folder / "drv.ko").write_bytes(write_object([data, init, note], symbols))
    return ModuleSymbols("drv", folder / "drv.ko")


def test_a_rank_counts_what_kallsyms_shows_only(tmp_path: Path) -> None:
    module = made(tmp_path)
    in_a, in_b = module.block_of("a.c", 0), module.block_of("b.c", 0)
    assert module.position("same", in_a) == SymbolPosition("drv", "same", 1)
    assert module.position("same", in_b) == SymbolPosition("drv", "same", 2)
    assert module.position("same", None) == SymbolPosition("drv", "same", 3)
    assert (module.position("needed", None), module.has_global("needed")) == (None, False)


def test_a_unit_without_the_name_does_not_get_another_ones(tmp_path: Path) -> None:
    module = made(tmp_path)
    assert module.position("same", module.block_of("a.c", 1)) is None


def test_a_symbol_of_another_size_is_another_symbol(tmp_path: Path) -> None:
    module = made(tmp_path)
    assert module.position("same", module.block_of("b.c", 0), 4) is None
    assert module.position("same", module.block_of("b.c", 0), 8) == SymbolPosition("drv", "same", 2)


def test_units_of_one_file_name_are_counted(tmp_path: Path) -> None:
    module = made(tmp_path)
    assert [module.block_of("a.c", n) for n in range(3)] == [0, 2, None]


def test_what_is_no_module_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "drv.ko").write_bytes(b"\x7fELF and nothing more")
    for name in ("drv.ko", "missing.ko"):
        with pytest.raises(InputError, match=name):
            ModuleSymbols("drv", tmp_path / name)
