# SPDX-License-Identifier: MIT
"""The soak's driver as it was compiled, unit by unit, and what it prints when it runs. Pure.

The units also print counters. Their values are not predicted, but they must never go back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hotreload.survey.soak_driver import PROBES, UNITS, Driver, Scale, Shared, Unit, users
from hotreload.survey.soak_statements import MASK, Call, Mixed, Scaled, Warned
from hotreload.survey.soak_texts import texts, unit_text


@dataclass(frozen=True, slots=True)
class Compiled:
    """A unit and the headers that it was compiled with. ``headers``: their texts, by name."""

    unit: Unit
    shared: Shared
    scale: Scale
    headers: Mapping[str, str]

    @property
    def code(self) -> tuple[object, ...]:
        """Equal for units that compile to the same code, apart from code that runs only once.

        Lines of warnings are part of it, because a line that the base does not have gets its own number.
        """
        unit = replace(self.unit, functions=self.unit.reached, comment="", error="", banner="")
        used = {type(statement) for statement in unit.statements}
        mix = self.shared.mix if Mixed in used else None
        scale = (self.scale.factor, self.scale.offset) if Scaled in used else None
        warnings = {each.c for each in unit.statements if isinstance(each, Warned)}
        lines = enumerate(unit_text(self.unit).splitlines()) if warnings else ()
        return unit, mix, scale, tuple(number for number, line in lines if line.strip() in warnings)


Program = Mapping[str, Compiled]


def compiled(driver: Driver, name: str) -> Compiled:
    """Return a unit as it would be compiled now."""
    headers = {
        file: text for file, text in texts(driver).items() if file.endswith(".h") and name in users(file)
    }
    return Compiled(driver.unit(name), driver.shared, driver.scale, headers)


def program_of(driver: Driver) -> dict[str, Compiled]:
    """Return all units as they would be compiled now."""
    return {name: compiled(driver, name) for name in UNITS}


@dataclass(frozen=True, slots=True)
class Reading:
    """The output of /proc/soak.

    ``lines``: the line of each unit. ``kept``: for each counter, what identifies its variable. If that is the
    same in two programs, the counter must go on. ``calls``: how many functions were called.
    """

    lines: dict[str, str]
    kept: dict[str, object]
    calls: int


def reading(program: Program) -> Reading:
    """Compute the output of a program.

    Raises GuestDiesError, and KeyError if a function that does not exist is called.
    """
    run = _Run(program)
    lines = {}
    for name in UNITS:
        unit = program[name].unit
        first = unit.functions[0].name
        numbers = [run.call(name, first, probe) for probe in PROBES]
        numbers.append(run.call(name, unit.second, PROBES[0]) if unit.second else 0)
        lines[name] = f"{name} {unit.word} {' '.join(map(str, numbers))}"
        run.kept |= {f"{name}.{what}": None for what in ("reads", "count")}
    return Reading(lines, run.kept, run.calls)


class _Run:
    """One run of a program."""

    def __init__(self, program: Program) -> None:
        self.kept: dict[str, object] = {}
        self.calls = 0
        self._program = program

    def call(self, caller: str, function: str, n: int) -> int:
        """Call a function from the unit ``caller``, and return its result."""
        found = self._program[caller].unit.function(function)
        home = caller
        if found is None:
            home = function.partition("_")[0]
            found = self._program[home].unit.function(function)
            if found is None or found.is_static:
                raise KeyError(function)
        self.calls += 1
        call = self._caller(self._program[home])
        for statement in found.body:
            if statement.keeps:
                self.kept[statement.keeps] = home, function, statement
            n = statement.run(n, call)
        return n

    def _caller(self, it: Compiled) -> Call:
        def call(what: str, n: int) -> int:
            if what == "limit":
                return n + it.unit.limit & MASK
            if what == "SCALE":
                return n * it.scale.factor + it.scale.offset & MASK
            if what == "soak_mix":
                for statement in it.shared.mix:
                    n = statement.run(n, call)
                return n
            return self.call(it.unit.name, what, n)

        return call
