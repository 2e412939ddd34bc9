# SPDX-License-Identifier: MIT
"""The addresses in the guest of what a unit refers to: known beforehand, or found out while checking."""

from __future__ import annotations

from collections.abc import Callable

from hotreload.elf.constants import SHN_ABS, STB_WEAK
from hotreload.elf.model import Section, Symbol

# The address in the running kernel of a symbol of the unit, by its name and, for a local one, its file; None
# if it is unknown.
AddressOf = Callable[[Symbol], int | None]
# The function that starts at an address of the guest. None if none does.
NameAt = Callable[[int], str | None]

Solved = tuple[dict[Section, int], dict[Symbol, int]]


class UnitAddresses:
    """The addresses of one unit.

    Each section is contiguous in memory, so the address of one symbol gives the address of its whole section.
    """

    def __init__(self, address_of: AddressOf, name_at: NameAt) -> None:
        self._address_of = address_of
        self._name_at = name_at
        self._told: dict[Symbol, int | None] = {}
        self._bases: dict[Section, int] = {}
        self._others: dict[Symbol, int] = {}

    def solved(self) -> Solved:
        """Return what was found out so far."""
        return dict(self._bases), dict(self._others)

    def go_back(self, before: Solved) -> None:
        """Restore an earlier result of solved()."""
        self._bases, self._others = before

    def name_at(self, address: int) -> str | None:
        return self._name_at(address)

    def told(self, symbol: Symbol) -> int | None:
        """Return the address of a symbol as known beforehand, without what was found out."""
        if symbol not in self._told:
            self._told[symbol] = self._address_of(symbol)
        return self._told[symbol]

    def place(self, section: Section, base: int) -> bool:
        """Record where a section begins. Return False if it is known to begin elsewhere."""
        return self._bases.setdefault(section, base) == base

    def base(self, section: Section) -> int | None:
        """Return where a section begins: as found before, or from any symbol whose address is known."""
        if section not in self._bases:
            for symbol in section.symbols:
                # The known address of a weak symbol may be that of its replacement.
                if symbol.binding != STB_WEAK and (address := self.told(symbol)) is not None:
                    self._bases[section] = address - symbol.value
                    break
        return self._bases.get(section)

    def own(self, symbol: Symbol) -> int | None:
        """Return the address of the unit's own definition of a symbol.

        If the section of a weak symbol was not located, return None, because another unit may define its
        name.
        """
        assert symbol.section is not None
        base = self.base(symbol.section)
        if base is not None:
            return base + symbol.value
        return None if symbol.binding == STB_WEAK else self.told(symbol)

    def where(self, symbol: Symbol) -> list[int]:
        """Return the addresses that a reference to a symbol may mean: one, or none while it is unknown.

        There are two for a weak symbol that another unit replaces. A jump from ``foo.cold`` back into a weak
        ``foo`` refers to the section and stays in its own unit. All other references go to the symbol that
        has the name.
        """
        if symbol.index == SHN_ABS:
            return [symbol.value]
        told = self.told(symbol)
        if told is not None and (symbol.binding != STB_WEAK or symbol.section is None):
            return [told]
        own = self._others.get(symbol) if symbol.section is None else self.own(symbol)
        return list(dict.fromkeys(address for address in (told, own) if address is not None))

    def note(self, symbol: Symbol, address: int) -> None:
        """Record the address of a symbol that was unknown."""
        if symbol.section is None:
            self._others[symbol] = address
        else:
            self.place(symbol.section, address - symbol.value)
