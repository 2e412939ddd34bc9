# SPDX-License-Identifier: MIT
"""Where the guest has what a unit refers to: as it was told, or as it was found out."""

from __future__ import annotations

from collections.abc import Callable

from hotreload.elf.constants import SHN_ABS, STB_WEAK
from hotreload.elf.model import Section, Symbol

# Where the running kernel has a symbol of the unit's object, by its name and, for a local one, its file; None
# when that is not known.
AddressOf = Callable[[Symbol], int | None]
# Which function starts at an address of the guest; None where none does.
NameAt = Callable[[int], str | None]

Solved = tuple[dict[Section, int], dict[Symbol, int]]


class UnitAddresses:
    """The addresses of one unit. A section lies in one piece: one symbol of it tells where all of it is."""

    def __init__(self, address_of: AddressOf, name_at: NameAt) -> None:
        self._address_of = address_of
        self._name_at = name_at
        self._told: dict[Symbol, int | None] = {}
        self._bases: dict[Section, int] = {}
        self._others: dict[Symbol, int] = {}

    def solved(self) -> Solved:
        """What was found out so far."""
        return dict(self._bases), dict(self._others)

    def go_back(self, before: Solved) -> None:
        """Forget what was found out since."""
        self._bases, self._others = before

    def name_at(self, address: int) -> str | None:
        return self._name_at(address)

    def told(self, symbol: Symbol) -> int | None:
        """The address of a symbol that is known without looking."""
        if symbol not in self._told:
            self._told[symbol] = self._address_of(symbol)
        return self._told[symbol]

    def place(self, section: Section, base: int) -> bool:
        """Note where a section begins; False when it was known to begin elsewhere."""
        return self._bases.setdefault(section, base) == base

    def base(self, section: Section) -> int | None:
        """Where a section begins: as found before, or by any symbol of it that is known."""
        if section not in self._bases:
            for symbol in section.symbols:
                # A weak one may be known as what took its place.
                if symbol.binding != STB_WEAK and (address := self.told(symbol)) is not None:
                    self._bases[section] = address - symbol.value
                    break
        return self._bases.get(section)

    def own(self, symbol: Symbol) -> int | None:
        """Where the unit has a symbol that it defines; for a weak one, whatever took over its name."""
        assert symbol.section is not None
        base = self.base(symbol.section)
        if base is not None:
            return base + symbol.value
        return None if symbol.binding == STB_WEAK else self.told(symbol)

    def where(self, symbol: Symbol) -> list[int]:
        """What a reference to a symbol may mean: one address, or none while it is unknown.

        Two for a weak symbol that another unit replaces: a jump from ``foo.cold`` back into a weak ``foo``
        stays in its own unit, and says so by its section; all others go to what has the name.
        """
        if symbol.index == SHN_ABS:
            return [symbol.value]
        told = self.told(symbol)
        if told is not None and (symbol.binding != STB_WEAK or symbol.section is None):
            return [told]
        own = self._others.get(symbol) if symbol.section is None else self.own(symbol)
        return list(dict.fromkeys(address for address in (told, own) if address is not None))

    def note(self, symbol: Symbol, address: int) -> None:
        """Remember what an unknown symbol's address turned out to be."""
        if symbol.section is None:
            self._others[symbol] = address
        else:
            self.place(symbol.section, address - symbol.value)
