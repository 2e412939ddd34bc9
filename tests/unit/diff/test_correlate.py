# SPDX-License-Identifier: MIT
"""Which symbol is which: on symbols made as data. tests/objects/test_diff.py has the same from C."""

from __future__ import annotations

import pytest

from hotreload.diff.correlate import base_name, correlate, is_place_static, parent_name
from hotreload.elf.constants import R_X86_64_32S, SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, STT_FUNC, STT_OBJECT
from hotreload.elf.model import ObjectFile, Relocation, Section, Symbol, SymbolRef

# With the section and the size in bytes that the macro gives it.
PLACE_STATICS = (
    ("__already_done.1", ".data.once", 1),
    ("__key.22", ".bss.__key.22", 40),
    ("_rs.0", ".data._rs.0", 40),
    ("_entry.7", ".rodata._entry.7", 48),
    ("__UNIQUE_ID_license12", ".modinfo", 4),
    ("CSWTCH.4", ".rodata.CSWTCH.4", 4),
)


def made(functions: dict[str, list[str]], *, code: bytes = b"") -> ObjectFile:
    """An object of functions that refer to variables, in that order; each variable has four bytes."""
    variables: dict[str, Symbol] = {}
    sections, symbols = [], []
    for name, used in functions.items():
        text = Section(
            len(sections) + 1,
            f".text.{name}",
            1,
            SHF_ALLOC | SHF_EXECINSTR,
            16,
            0,
            64,
            code.ljust(64, b"\x90"),
        )
        function = Symbol(name, STT_FUNC, 1, text, 0, 64)
        text.symbols.append(function)
        sections.append(text)
        symbols.append(function)
        for place, variable in enumerate(used):
            if variable not in variables:
                data = Section(
                    100 + len(variables), f".data.{variable}", 1, SHF_ALLOC | SHF_WRITE, 4, 0, 4, bytes(4)
                )
                variables[variable] = Symbol(variable, STT_OBJECT, 0, data, 0, 4)
                data.symbols.append(variables[variable])
                sections.append(data)
                symbols.append(variables[variable])
            text.relocations.append(Relocation(8 * place, R_X86_64_32S, SymbolRef(variables[variable]), 0))
    return ObjectFile("made.o", sections, symbols)


def pairs(before: ObjectFile, after: ObjectFile) -> dict[str, str]:
    return {o.name: p.name for o, p in correlate(before, after).patched_of.items() if o.is_object}


def doubts(before: ObjectFile, after: ObjectFile) -> list[tuple[str, str]]:
    return [(obstacle.code, obstacle.symbol) for obstacle in correlate(before, after).obstacles]


@pytest.mark.parametrize(("name", "section", "size"), PLACE_STATICS)
def test_no_static_of_a_macro_is_ever_paired_by_name(name: str, section: str, size: int) -> None:
    one, two = (formed(made({"f": [name, "mine"]}), name, section, size) for _ in range(2))
    assert pairs(one, two) == {"mine": "mine"}
    assert is_place_static(one.symbol(name))


def formed(obj: ObjectFile, name: str, section: str, size: int) -> ObjectFile:
    """The object with this section and size of a variable."""
    symbol = obj.symbol(name)
    assert symbol is not None
    assert symbol.section is not None
    symbol.size, symbol.section.name = size, section
    if section.startswith(".rodata"):
        symbol.section.flags = SHF_ALLOC
    return obj


@pytest.mark.parametrize(
    "name",
    ["descriptor", "_rs", "_entry", "descriptor.3", "mine.4", "_entry.1", "__already_done.2", "__key.1"],
)
def test_a_variable_of_the_user_is_paired_whatever_its_name(name: str) -> None:
    assert pairs(made({"f": [name]}), made({"f": [name]})) == {name: name}


def test_a_static_local_is_paired_by_its_function_whatever_its_number() -> None:
    before = made({"f": ["n.0"], "g": ["n.1"]})
    after = made({"f": ["n.1"], "g": ["n.0"]})
    assert (pairs(before, after), doubts(before, after)) == ({"n.0": "n.1", "n.1": "n.0"}, [])


def test_several_of_one_name_are_paired_in_order_when_the_code_is_the_same() -> None:
    before, after = made({"f": ["n.3", "n.8"]}), made({"f": ["n.4", "n.9"]})
    assert (pairs(before, after), doubts(before, after)) == ({"n.3": "n.4", "n.8": "n.9"}, [])


def test_several_of_one_name_whose_numbers_tell_another_order_are_doubtful() -> None:
    before, after = made({"f": ["n.3", "n.8"]}), made({"f": ["n.9", "n.4"]})
    assert (pairs(before, after), doubts(before, after)) == ({}, [("HR2104", "n")])


def test_several_of_one_name_in_changed_code_are_doubtful() -> None:
    before, after = made({"f": ["n.3", "n.8"]}), made({"f": ["n.3", "n.8"]}, code=b"\x55")
    assert (pairs(before, after), doubts(before, after)) == ({}, [("HR2104", "n")])


def test_a_doubt_says_which_function_has_several() -> None:
    (obstacle,) = correlate(made({"f": ["n.3", "n.8"]}), made({"f": ["n.3", "n.8"]}, code=b"\x55")).obstacles
    assert obstacle.message.endswith("f has several static variables of that name")


def test_several_of_one_name_are_settled_by_functions_that_use_one_each() -> None:
    before = made({"f": ["n.3", "n.8"], "g": ["n.3"], "h": ["n.8"]})
    after = made({"f": ["n.4", "n.9"], "g": ["n.9"], "h": ["n.4"]}, code=b"\x55")
    assert (pairs(before, after), doubts(before, after)) == ({"n.3": "n.9", "n.8": "n.4"}, [])


def test_functions_that_disagree_make_a_doubt_even_when_all_are_paired() -> None:
    before = made({"f": ["n.0"], "g": ["n.0"]})
    after = made({"f": ["n.0"], "g": ["n.1"]})
    assert doubts(before, after) == [("HR2104", "n")]


def test_functions_of_one_base_name_are_paired_only_when_there_is_one_of_each() -> None:
    one = correlate(made({"f.isra.0": []}), made({"f.isra.3": []}))
    assert [o.name for o in one.original_of.values()] == ["f.isra.0"]
    many = correlate(made({"f.isra.0": [], "f.isra.1": []}), made({"f.isra.2": [], "f.isra.3": []}))
    assert many.original_of == {}


@pytest.mark.parametrize(
    ("name", "base", "parent"),
    [
        ("f", "f", "f"),
        ("count.3", "count", "count.3"),
        ("f.isra.0", "f.isra", "f.isra.0"),
        ("f.cold", "f.cold", "f"),
        ("f.part.2", "f.part", "f"),
        ("f.isra.0.cold", "f.isra.cold", "f.isra.0"),
        ("f.constprop.0.isra.1", "f.constprop.isra", "f.constprop.0.isra.1"),
        ("__UNIQUE_ID_license123", "__UNIQUE_ID_license", "__UNIQUE_ID_license123"),
    ],
)
def test_names_without_what_the_compiler_adds(name: str, base: str, parent: str) -> None:
    assert (base_name(name), parent_name(name)) == (base, parent)
