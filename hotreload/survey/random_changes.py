# SPDX-License-Identifier: MIT
"""Random changes of the soak's driver. Each edit consists of some. Pure, except for a random.Random.

A change returns an edited driver, or None if it does not apply.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from hotreload.survey.soak_driver import SCALED, TICK, UNITS, Driver, Function, Unit
from hotreload.survey.soak_statements import (
    CRASHES,
    OPERATIONS,
    Allocated,
    Arithmetic,
    Branch,
    Called,
    Counted,
    Crash,
    Format,
    Limited,
    Loop,
    Mixed,
    Pointers,
    Record,
    Scaled,
    Seen,
    Statement,
    Switch,
    Table,
    Text,
    Warned,
)

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty")
MOST_STATEMENTS = 9
MOST_FUNCTIONS = 9

Change = Callable[[Driver], Driver | None]


class Changes:
    """The kinds of changes. Each public method that takes only a driver is a Change."""

    def __init__(self, source: random.Random) -> None:
        self._random = source
        self._serial = 0

    def good(self, driver: Driver) -> Driver | None:
        kinds: dict[Change, int] = {
            self.constant: 8,
            self._insert: 9,
            self._remove: 5,
            self._new_function: 3,
            self.word: 2,
            self._drop_function: 2,
        }
        return self._random.choices([*kinds], [*kinds.values()])[0](driver)

    def maybe_good(self, driver: Driver) -> Driver | None:
        return self.good(driver) if self._random.random() < 0.3 else driver

    def _any_unit(self, driver: Driver) -> Unit:
        return driver.unit(self._random.choice(UNITS))

    def _any_function(self, driver: Driver) -> tuple[Unit, Function]:
        unit = self._any_unit(driver)
        return unit, self._random.choice(unit.reached)

    def constant(self, driver: Driver) -> Driver | None:
        """Change a constant, a string or a table in any unit."""
        return self.constant_in(driver, self._any_unit(driver).name)

    def constant_in(self, driver: Driver, name: str) -> Driver | None:
        """Change a constant, a string or a table in the unit of that name."""
        unit = driver.unit(name)
        function = self._random.choice(unit.reached)
        place = self._random.randrange(len(function.body))
        changed = self._like(function.body[place])
        if changed is None:
            return None
        body = (*function.body[:place], changed, *function.body[place + 1 :])
        return driver.with_unit(unit.with_function(replace(function, body=body)))

    def _insert(self, driver: Driver) -> Driver | None:
        unit, function = self._any_function(driver)
        if len(function.body) >= MOST_STATEMENTS:
            return None
        statement = self._statement(driver, unit, function)
        return driver.with_unit(unit.with_function(self._with(function, statement)))

    def _with(self, function: Function, statement: Statement) -> Function:
        place = self._random.randint(0, len(function.body))
        return replace(function, body=(*function.body[:place], statement, *function.body[place:]))

    def _remove(self, driver: Driver) -> Driver | None:
        unit, function = self._any_function(driver)
        place = self._random.randrange(len(function.body))
        if len(function.body) == 1 or TICK in function.body[place].calls:
            return None
        body = (*function.body[:place], *function.body[place + 1 :])
        return driver.with_unit(unit.with_function(replace(function, body=body)))

    def _new_function(self, driver: Driver) -> Driver | None:
        """Add a function, static or global, and a call of it in its file or in another one."""
        unit, caller = self._any_function(driver)
        if len(unit.functions) >= MOST_FUNCTIONS:
            return None
        is_static = self._random.random() < 0.5
        name = f"{unit.name}_{self._next()}"
        body = tuple(self._leaf(unit) for _ in range(self._random.randint(1, 3)))
        functions = (*unit.functions, Function(name, body, is_static))
        driver = driver.with_unit(replace(unit, functions=functions))
        if not is_static and unit.name != UNITS[-1] and self._random.random() < 0.7:
            above = UNITS[UNITS.index(unit.name) + 1 :]
            unit = driver.unit(self._random.choice(above))
            caller = self._random.choice(unit.reached)
        else:
            unit = driver.unit(unit.name)
        return driver.with_unit(unit.with_function(self._with(caller, Called(name))))

    def _drop_function(self, driver: Driver) -> Driver | None:
        """Remove a function that an edit has added, and all statements that call it."""
        added = [
            each.name
            for unit in driver.units
            for each in unit.functions
            if _number_of(each.name) >= FIRST_NEW
        ]
        return _without(driver, self._random.choice(added)) if added else None

    def word(self, driver: Driver) -> Driver | None:
        unit = self._any_unit(driver)
        return driver.with_unit(replace(unit, word=self._a_word()))

    def header(self, driver: Driver) -> Driver | None:
        if self._random.random() < 0.5:
            scale = replace(driver.scale, factor=self._odd(), offset=self._number_below(1000))
            return replace(driver, scale=scale)
        mix = tuple(self._arithmetic() for _ in range(self._random.randint(1, 3)))
        return replace(driver, shared=replace(driver.shared, mix=mix))

    def limit(self, driver: Driver) -> Driver | None:
        unit = self._any_unit(driver)
        if not any(isinstance(statement, Limited) for each in unit.reached for statement in each.body):
            function = unit.functions[0]
            unit = unit.with_function(self._with(function, Limited()))
        return driver.with_unit(replace(unit, limit=self._number_below(100000)))

    def second(self, driver: Driver) -> Driver | None:
        unit = self._any_unit(driver)
        names = [each.name for each in unit.functions[1:] if each.name != TICK]
        others = [name for name in (None, *names) if name != unit.second]
        return driver.with_unit(replace(unit, second=self._random.choice(others)))

    def comment(self, driver: Driver) -> Driver | None:
        comment = f"{self._a_word()} {self._next()}" + "\n * and more" * self._random.randint(0, 3)
        place = self._random.randrange(len(UNITS) + 2)
        if place == len(UNITS):
            return replace(driver, shared=replace(driver.shared, comment=comment))
        if place > len(UNITS):
            return replace(driver, scale=replace(driver.scale, comment=comment))
        return driver.with_unit(replace(driver.units[place], comment=comment))

    def error(self, driver: Driver) -> Driver | None:
        """Add a compile error to any unit."""
        return self.error_in(driver, self._any_unit(driver).name)

    def error_in(self, driver: Driver, name: str) -> Driver:
        """Add a compile error to the unit of that name."""
        errors = ("\n\tcount++", "\n\tnobody_knows_this(m);}", "\n\tcount = state;", "\n\t{")
        return driver.with_unit(replace(driver.unit(name), error=self._random.choice(errors)))

    def refused(self, driver: Driver) -> Driver | None:
        unit = self._any_unit(driver)
        what = self._random.choice(("members", "members", "start", "start", "banner", "exported", "stride"))
        if what == "members":
            return driver.with_unit(replace(unit, members=unit.members + self._random.randint(1, 3)))
        if what == "start":
            return driver.with_unit(replace(unit, start=unit.start + self._random.randint(1, 100)))
        main = driver.unit("main")
        if what == "stride":
            return driver.with_unit(replace(main, stride=main.stride + 1))
        if what == "banner":
            return driver.with_unit(replace(main, banner=f"{self._a_word()} {self._next()}"))
        return driver.with_unit(replace(main, exported=self._random.choice(("u64", "unsigned long"))))

    def crash(self, driver: Driver) -> Driver | None:
        unit, function = self._any_function(driver)
        crash = Crash(self._random.choice([*CRASHES]))
        return driver.with_unit(unit.with_function(self._with(function, crash)))

    def good_where_it_crashes(self, driver: Driver) -> Driver | None:
        unit = next(unit for unit in driver.units if any(isinstance(each, Crash) for each in unit.statements))
        function = unit.functions[0]
        return driver.with_unit(unit.with_function(self._with(function, self._arithmetic())))

    # --- statements ---

    def _like(self, statement: Statement) -> Statement | None:
        """Return a statement of the same kind with other values, or None if it has no values."""
        match statement:
            case Arithmetic():
                return self._arithmetic()
            case Branch():
                return self._branch()
            case Loop():
                return self._loop()
            case Switch():
                return self._switch()
            case Table():
                return replace(statement, values=self._values(8))
            case Text():
                return self._text()
            case Format():
                return self._format()
            case Record():
                wide = statement.wide != (self._random.random() < 0.3)
                return replace(statement, factor=self._odd(), wide=wide)
            case Warned():
                return Warned(f"{self._a_word()} {self._next()}")
            case Allocated():
                return Allocated(self._number_below(1 << 30))
        return None

    def _leaf(self, unit: Unit) -> Statement:
        """Return a statement that calls no function of the driver."""
        makers: list[Callable[[], Statement]] = [
            self._arithmetic,
            self._arithmetic,
            self._branch,
            self._loop,
            self._switch,
            lambda: Table(f"table_{self._next()}", self._values(8)),
            self._text,
            self._format,
            lambda: Record(f"record_{self._next()}", self._odd(), self._random.random() < 0.5),
            Mixed,
            Limited,
            lambda: Seen(f"seen_{self._next()}"),
            lambda: Counted(f"counted_{self._next()}", self._number_below(1000) * self._random.randint(0, 1)),
            lambda: Warned(f"{self._a_word()} {self._next()}"),
            lambda: Allocated(self._number_below(1 << 30)),
        ]
        if unit.name in SCALED:
            makers.append(Scaled)
        return self._random.choice(makers)()

    def _statement(self, driver: Driver, unit: Unit, function: Function) -> Statement:
        if self._random.random() < 0.75:
            return self._leaf(unit)
        behind = unit.functions[unit.functions.index(function) + 1 :]
        names = [each.name for each in behind]
        for name in UNITS[: UNITS.index(unit.name)]:
            names += [each.name for each in driver.unit(name).functions if not each.is_static]
        if not names:
            return self._arithmetic()
        if self._random.random() < 0.4:
            two = self._random.choice(names), self._random.choice(names)
            return Pointers(f"pointers_{self._next()}", two)
        return Called(self._random.choice(names))

    def _arithmetic(self) -> Arithmetic:
        sign = self._random.choice([*OPERATIONS])
        return Arithmetic(sign, self._odd() if sign == "*" else self._number_below(1 << 30))

    def _branch(self) -> Branch:
        return Branch(1 << self._random.randrange(12), *self._values(2))

    def _loop(self) -> Loop:
        return Loop(self._random.randint(2, 40), self._number_below(1 << 20))

    def _switch(self) -> Switch:
        return Switch(self._values(self._random.randint(4, 8)))

    def _text(self) -> Text:
        return Text(f"{self._a_word()} {self._next()}")

    def _format(self) -> Format:
        return Format(self._a_word(), self._number_below(1000))

    def _values(self, count: int) -> tuple[int, ...]:
        return tuple(self._number_below(1 << 30) for _ in range(count))

    def _number_below(self, bound: int) -> int:
        return self._random.randrange(1, bound)

    def _odd(self) -> int:
        return self._random.randrange(5, 1 << 16, 2)

    def _a_word(self) -> str:
        return self._random.choice(WORDS)

    def _next(self) -> int:
        self._serial += 1
        return FIRST_NEW + self._serial


# Names with a number from here on were added by edits.
FIRST_NEW = 100


def _number_of(name: str) -> int:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else 0


def _without(driver: Driver, gone: str) -> Driver | None:
    for unit in driver.units:
        functions = []
        for each in unit.functions:
            body = tuple(statement for statement in each.body if gone not in statement.calls)
            if not body:
                return None
            functions += [replace(each, body=body)] * (each.name != gone)
        second = None if unit.second == gone else unit.second
        driver = driver.with_unit(replace(unit, functions=tuple(functions), second=second))
    return driver


def mended(driver: Driver) -> Driver:
    """Return the driver without crashes, compile errors and edits that are refused."""
    for unit in driver.units:
        for each in unit.functions:
            body = tuple(statement for statement in each.body if not isinstance(statement, Crash))
            unit = unit.with_function(replace(each, body=body))
        plain = Unit(unit.name, ())
        as_booted = replace(
            unit,
            stride=plain.stride,
            error="",
            members=plain.members,
            start=plain.start,
            banner=plain.banner,
            exported=plain.exported,
        )
        driver = driver.with_unit(as_booted)
    return driver


def dies(driver: Driver) -> bool:
    """Return whether the driver contains a statement that kills the guest."""
    return any(isinstance(statement, Crash) for unit in driver.units for statement in unit.statements)
