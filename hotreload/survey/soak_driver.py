# SPDX-License-Identifier: MIT
"""The driver that the soak edits, as data: four units and two headers. Pure.

    gamma.c  beta.c  alpha.c  main.c      each may call global functions of those to its left
    soak.h                                included by every unit
    scale.h                               included by alpha.c and beta.c
    fixed.c  Kbuild                       never edited

soak_texts.py generates its files, and soak_program.py computes its output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hotreload.survey.soak_statements import (
    Arithmetic,
    Called,
    Mixed,
    Scaled,
    Statement,
    Text,
)

MODULE = "soak"
UNITS = ("gamma", "beta", "alpha", "main")
SCALED = ("alpha", "beta")
SHARED_FILE, SCALE_FILE = "soak.h", "scale.h"
PROBES = (1, 2, 1000003)
TICK = "tick"  # a function of main.c that a timer calls, too


@dataclass(frozen=True, slots=True)
class Function:
    """A function ``u32 NAME(struct seq_file *m, u32 n)``."""

    name: str
    body: tuple[Statement, ...]
    is_static: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """One C file.

    ``functions``  the first is called when /proc/soak is read; each calls only later ones, so they are in
                   reverse order in the file
    ``word``       in the line that the unit prints
    ``limit``      the initial value of a variable that nothing writes
    ``start``      the initial value of a variable that changes with each read
    ``members``    the number of additional members of a structure that is in use
    ``banner``     printed once when the module is loaded
    ``second``     the function in the second slot of the unit's table
    ``exported``   the return type of the function that main.c exports
    ``stride``     a constant of a thread of main.c that never leaves its function
    ``comment``    makes no difference to the code
    ``error``      does not compile
    """

    name: str
    functions: tuple[Function, ...]
    word: str = "plain"
    limit: int = 5
    start: int = 100
    members: int = 0
    banner: str = "here"
    second: str | None = None
    exported: str = "u32"
    stride: int = 1
    comment: str = "as it was"
    error: str = ""

    def function(self, name: str) -> Function | None:
        return next((function for function in self.functions if function.name == name), None)

    def with_function(self, function: Function) -> Unit:
        """Return the unit with the function of that name replaced."""
        others = (function if each.name == function.name else each for each in self.functions)
        return replace(self, functions=tuple(others))

    @property
    def statements(self) -> Iterator[Statement]:
        for function in self.functions:
            yield from function.body

    @property
    def reached(self) -> tuple[Function, ...]:
        """The functions without unused static ones, for which the compiler generates no code."""
        needed = {each.name for each in self.functions if not each.is_static}
        needed |= {self.functions[0].name, self.second or "", TICK}
        found = []
        for function in self.functions:  # callers come first
            if function.name in needed:
                found.append(function)
                needed |= {name for statement in function.body for name in statement.calls}
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Shared:
    """The header soak.h with its inline function."""

    mix: tuple[Arithmetic, ...] = (Arithmetic("*", 31), Arithmetic("^", 77))
    comment: str = "as it was"


@dataclass(frozen=True, slots=True)
class Scale:
    """The header scale.h with its macro."""

    factor: int = 3
    offset: int = 1
    comment: str = "as it was"


@dataclass(frozen=True, slots=True)
class Driver:
    """All sources that are edited."""

    units: tuple[Unit, ...]
    shared: Shared = field(default_factory=Shared)
    scale: Scale = field(default_factory=Scale)

    def unit(self, name: str) -> Unit:
        return self.units[UNITS.index(name)]

    def with_unit(self, unit: Unit) -> Driver:
        return replace(self, units=tuple(unit if each.name == unit.name else each for each in self.units))


def first_driver() -> Driver:
    """Return the driver that the guest boots."""

    def unit(name: str, *below: Statement) -> Unit:
        steps = (Arithmetic("*", 17), Text(f"{name} was here"), *below, Mixed())
        first = Function(f"{name}_0", (*steps, Called(f"{name}_1"), Called(f"{name}_2")))
        second = Function(f"{name}_1", (Arithmetic("+", 4711),))
        third = Function(f"{name}_2", (Arithmetic("^", 0x5A5A), Arithmetic("-", 3)), is_static=True)
        return Unit(name, (first, second, third))

    main = unit("main", Called("alpha_1"), Called(TICK))
    tick = Function(TICK, (Arithmetic("*", 5), Arithmetic("+", 9)), is_static=True)
    return Driver(
        (
            unit("gamma"),
            unit("beta", Scaled(), Called("gamma_1")),
            unit("alpha", Scaled(), Called("beta_1")),
            replace(main, functions=(*main.functions, tick)),
        )
    )


def users(file: str) -> tuple[str, ...]:
    """Return the units that a file is part of."""
    if file == SHARED_FILE:
        return UNITS
    return SCALED if file == SCALE_FILE else (file.removesuffix(".c"),)
