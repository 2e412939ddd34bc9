# SPDX-License-Identifier: MIT
"""The template of all patch modules: it builds for the kernel, and is laid out as the writer expects."""

from __future__ import annotations

import asyncio
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotreload.build.kernel_tree import KernelTree
from hotreload.errors import KernelUnfitError
from hotreload.patch import glue
from tests.conftest import require

STRUCT_MODULE_NAME = 56


@pytest.fixture(scope="module")
def template(debian_kernel: KernelTree) -> Path:
    require(shutil.which("make"), "make", "apt-get install make")
    return asyncio.run(glue.build_glue(debian_kernel))


class Elf:
    """The template's sections and symbols, as pyelftools reads them."""

    def __init__(self, path: Path) -> None:
        from elftools.elf.elffile import ELFFile
        from elftools.elf.sections import SymbolTableSection

        self.file = ELFFile(path.open("rb"))
        self.sections = {section.name: section for section in self.file.iter_sections()}
        table = self.sections[".symtab"]
        assert isinstance(table, SymbolTableSection)
        self.symbols = list(table.iter_symbols())

    def data(self, name: str) -> bytes:
        data: bytes = self.sections[name].data()
        return data

    def close(self) -> None:
        self.file.stream.close()


@pytest.fixture
def elf(template: Path) -> Iterator[Elf]:
    opened = Elf(template)
    yield opened
    opened.close()


def test_the_table_is_writable_zero_and_in_the_file(elf: Elf) -> None:
    table = elf.sections[glue.TABLE_SECTION]
    assert table["sh_type"] == "SHT_PROGBITS"
    assert table["sh_flags"] == 0x3  # SHF_WRITE | SHF_ALLOC
    assert elf.data(glue.TABLE_SECTION) == bytes(glue.TABLE_SIZE)
    assert f".rela{glue.TABLE_SECTION}" not in elf.sections


def test_the_name_stands_in_two_places_and_no_third(elf: Elf) -> None:
    name = glue.TEMPLATE_NAME.encode()
    this_module = elf.data(".gnu.linkonce.this_module")
    at = this_module.index(name)
    assert this_module[at : at + STRUCT_MODULE_NAME].rstrip(b"\0") == name
    assert b"name=" + name in elf.data(".modinfo").split(b"\0")
    told = [section for section in elf.sections if name in elf.data(section)]
    # The symbol table names the source file, which the kernel does not mind.
    assert sorted(told) == [".gnu.linkonce.this_module", ".modinfo", ".strtab"]


def test_it_is_a_livepatch_module_of_this_kernel(elf: Elf, debian_kernel: KernelTree) -> None:
    facts = dict(pair.split(b"=", 1) for pair in elf.data(".modinfo").split(b"\0") if pair)
    assert facts[b"livepatch"] == b"Y"
    assert facts[b"license"] == b"GPL"
    assert facts[b"vermagic"].split()[0] == debian_kernel.release.encode()


def test_the_kernel_exports_all_that_it_calls(elf: Elf, debian_kernel: KernelTree) -> None:
    exports = (debian_kernel.output / "Module.symvers").read_text().splitlines()
    of_vmlinux = {line.split("\t")[1] for line in exports if line.split("\t")[2] == "vmlinux"}
    undefined = {symbol.name for symbol in elf.symbols if symbol["st_shndx"] == "SHN_UNDEF"} - {""}
    assert "klp_enable_patch" in undefined
    assert undefined <= of_vmlinux


def test_every_call_has_its_version(elf: Elf, debian_kernel: KernelTree) -> None:
    require(debian_kernel.option("MODVERSIONS") == "y", "a kernel with MODVERSIONS", "hotreload -K debian")
    entries = struct.iter_unpack("<Q56s", elf.data("__versions"))
    undefined = {symbol.name for symbol in elf.symbols if symbol["st_shndx"] == "SHN_UNDEF"} - {""}
    assert {name.rstrip(b"\0").decode() for _crc, name in entries} == undefined | {"module_layout"}


def test_it_has_none_of_the_sections_that_are_hard_to_merge(elf: Elf) -> None:
    unwanted = (
        "__bug_table",
        "__jump_table",
        ".static_call_sites",
        ".data..percpu",
        "__mcount_loc",
        ".init.text",
    )
    assert not set(unwanted) & elf.sections.keys()
    assert not [name for name in elf.sections if name.startswith((".debug_", ".BTF"))]


def test_a_second_template_costs_nothing(debian_kernel: KernelTree, template: Path) -> None:
    before = template.stat().st_mtime_ns
    started = time.monotonic()
    assert asyncio.run(glue.build_glue(debian_kernel)) == template
    assert time.monotonic() - started < 0.5
    assert template.stat().st_mtime_ns == before


@pytest.fixture
def own_kernel(debian_kernel: KernelTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelTree:
    """The packaged kernel's build folder as links, so that a test may spoil it, and an empty cache."""
    import dataclasses

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    output = tmp_path / "output"
    output.mkdir()
    for file in debian_kernel.output.iterdir():
        (output / file.name).symlink_to(file)
    (tmp_path / "cache").mkdir()
    return dataclasses.replace(debian_kernel, output=output, config=output / ".config")


def test_another_symbol_version_or_header_makes_another_template(
    own_kernel: KernelTree, tmp_path: Path
) -> None:
    first = asyncio.run(glue.build_glue(own_kernel))
    stamps = (first.parent / "headers.json").read_text()
    assert "livepatch.h" in stamps
    symvers = own_kernel.output / "Module.symvers"
    text = symvers.read_text()
    symvers.unlink()
    symvers.write_text(text + "0x00000001\tone_more\tvmlinux\tEXPORT_SYMBOL\t\n")
    assert asyncio.run(glue.build_glue(own_kernel)) != first

    (first.parent / "headers.json").write_text(stamps.replace("[", "[1", 1))
    symvers.write_text(text)
    first.write_bytes(b"stale")
    assert asyncio.run(glue.build_glue(own_kernel)).read_bytes() != b"stale"
    left = [
        path.name for path in (tmp_path / "cache/hotreload/glue").iterdir() if path.name.startswith(".new")
    ]
    assert not left


def test_a_kernel_that_cannot_compile_it_is_unfit(own_kernel: KernelTree) -> None:
    symvers = own_kernel.output / "Module.symvers"
    lines = symvers.read_text().splitlines(keepends=True)
    symvers.unlink()
    symvers.write_text("".join(line for line in lines if "\tklp_enable_patch\t" not in line))
    with pytest.raises(KernelUnfitError, match="klp_enable_patch"):
        asyncio.run(glue.build_glue(own_kernel))
