# SPDX-License-Identifier: MIT
"""The soak's driver as it was compiled, unit by unit, and what it answers when it runs. Pure.

What the units count is told beside the answers: of that it is only known that it never goes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hotreload.survey.soak_driver import PROBES, UNITS, Driver, Scale, Shared, Unit, users
from hotreload.survey.soak_statements import MASK, Call, Mixed, Scaled, Warned
from hotreload.survey.soak_texts import texts, unit_text


@dataclass(frozen=True, slots=True)
class Compiled:
    """A unit with the headers that it was compiled with; ``headers``: their texts, by name."""

    unit: Unit
    shared: Shared
    scale: Scale
    headers: Mapping[str, str]

    @property
    def code(self) -> tuple[object, ...]:
        """Equal for those of which the compiler makes the same code, what runs once apart.

        A line that the base does not have has the number of its place, and a warning tells it.
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
    """The unit as it would be compiled now."""
    headers = {
        file: text for file, text in texts(driver).items() if file.endswith(".h") and name in users(file)
    }
    return Compiled(driver.unit(name), driver.shared, driver.scale, headers)


def program_of(driver: Driver) -> dict[str, Compiled]:
    """All units as they would be compiled now."""
    return {name: compiled(driver, name) for name in UNITS}


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading /proc/soak gives: the line of each unit, and what is told beside them.

    ``kept``: by name, where it is kept and how it began; equal for what must go on from one program to the
    next. ``calls``: how many functions have run for it.
    """

    lines: dict[str, str]
    kept: dict[str, object]
    calls: int


def reading(program: Program) -> Reading:
    """Raises GuestDiesError; KeyError: a function is called that is not there."""
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
        """As the unit ``caller`` would."""
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
