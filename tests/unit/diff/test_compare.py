# SPDX-License-Identifier: MIT
"""Whether two symbols say the same, on symbols made as data."""

from __future__ import annotations

from hotreload.diff.compare import Comparison
from hotreload.diff.correlate import Correlation
from hotreload.diff.special_sections import EntryTable
from hotreload.elf.constants import R_X86_64_64, SHF_ALLOC, STT_NOTYPE, STT_OBJECT
from hotreload.elf.model import Relocation, Section, Symbol, SymbolRef


def circle(value: int) -> tuple[Symbol, Symbol]:
    """Two constants, each with the address of the other; the first with one of ``outside`` and the value."""
    found = []
    for name in ("a", "b"):
        section = Section(1, f".rodata.{name}", 1, SHF_ALLOC, 8, 0, 24, bytes(24))
        found.append(Symbol(name, STT_OBJECT, 0, section, 0, 24))
    extra = Symbol(f"outside{value}", STT_NOTYPE, 1, None, 0, 0)
    for one, other in (found, found[::-1]):
        assert one.section is not None
        one.section.relocations.append(Relocation(0, R_X86_64_64, SymbolRef(other), 0))
    assert found[0].section is not None
    found[0].section.relocations.append(Relocation(8, R_X86_64_64, SymbolRef(extra), 0))
    return found[0], found[1]


def compared() -> Comparison:
    nothing = EntryTable({}, ())
    return Comparison(Correlation(), nothing, nothing)


def test_a_circle_that_says_the_same_is_the_same() -> None:
    (a, b), (c, d) = circle(5), circle(5)
    assert compared().same(a, c)
    assert compared().same(b, d)


def test_what_was_the_same_only_on_a_wrong_assumption_is_looked_at_again() -> None:
    # b refers to a, and a differs: b must not stay equal because a was taken to be while it was looked at.
    (a, b), (c, d) = circle(5), circle(6)
    comparison = compared()
    assert (comparison.same(a, c), comparison.same(b, d)) == (False, False)


def test_undefined_names_are_the_same_by_name_absolute_ones_by_value() -> None:
    def undefined(name: str, value: int = 0) -> SymbolRef:
        return SymbolRef(Symbol(name, STT_NOTYPE, 1, None, value, 0))

    comparison = compared()
    assert comparison.same_target(undefined("x"), undefined("x"))
    assert not comparison.same_target(undefined("x"), undefined("y"))
    assert not comparison.same_target(undefined("x", 5), undefined("x", 6))
