# SPDX-License-Identifier: MIT
"""The statements of the soak's driver: each as C code, and as the computation that it does. Pure.

Every function is a list of these, and takes and returns a u32. So the output of a driver can be computed
without compiling it, with arithmetic modulo 2^32. If a statement counts in a variable how often it ran, it
prints that number, but does not compute with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

MASK = 0xFFFFFFFF
FNV_BASIS, FNV_PRIME = 0x811C9DC5, 0x01000193  # of the 32-bit FNV-1a hash

# Calls a function of the driver by its name.
Call = Callable[[str, int], int]


class GuestDiesError(Exception):
    """The guest would not survive the call."""


def hashed(number: int, text: str) -> int:
    """Return what soak_hash() of main.c returns: FNV-1a with a number mixed into the offset basis."""
    value = (FNV_BASIS ^ number) & MASK
    for byte in text.encode():
        value = (value ^ byte) * FNV_PRIME & MASK
    return value


@dataclass(frozen=True, slots=True)
class Statement(ABC):
    """A statement that changes the number ``n``. ``c`` is its C code, ``run`` computes the new number."""

    @property
    @abstractmethod
    def c(self) -> str:
        """The C code: one statement or a block."""

    def run(self, n: int, call: Call) -> int:  # noqa: ARG002 - most call nothing
        return n

    @property
    def calls(self) -> tuple[str, ...]:
        """The functions of the driver that it calls or takes the address of."""
        return ()

    @property
    def keeps(self) -> str | None:
        """The name under which it prints how often it ran."""
        return None

    @property
    def global_c(self) -> str:
        """C code that it needs above the functions of its file."""
        return ""


@dataclass(frozen=True, slots=True)
class Arithmetic(Statement):
    """An operation with a constant. ``sign`` is a key of OPERATIONS."""

    sign: str
    constant: int

    @property
    def c(self) -> str:
        return f"n {self.sign}= {self.constant}u;"

    def run(self, n: int, call: Call) -> int:  # noqa: ARG002
        return OPERATIONS[self.sign](n, self.constant) & MASK


OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda n, c: n + c,
    "-": lambda n, c: n - c,
    "*": lambda n, c: n * c,
    "^": lambda n, c: n ^ c,
}


@dataclass(frozen=True, slots=True)
class Branch(Statement):
    """A branch on some bits."""

    mask: int
    then: int
    other: int

    @property
    def c(self) -> str:
        return f"if (n & {self.mask}u)\n\t\tn += {self.then}u;\n\telse\n\t\tn ^= {self.other}u;"

    def run(self, n: int, call: Call) -> int:  # noqa: ARG002
        return (n + self.then if n & self.mask else n ^ self.other) & MASK


@dataclass(frozen=True, slots=True)
class Loop(Statement):
    """A loop that gcc may unroll."""

    rounds: int
    constant: int

    @property
    def c(self) -> str:
        step = f"n = n * 5 + (n >> 7) + i * {self.constant}u;"
        return f"{{\n\t\tu32 i;\n\n\t\tfor (i = 0; i < {self.rounds}; i++)\n\t\t\t{step}\n\t}}"

    def run(self, n: int, call: Call) -> int:  # noqa: ARG002
        for i in range(self.rounds):
            n = (n * 5 + (n >> 7) + i * self.constant) & MASK
        return n


@dataclass(frozen=True, slots=True)
class Switch(Statement):
    """A switch over three bits. gcc may make it a jump table, a table of constants, or comparisons."""

    values: tuple[int, ...]

    @property
    def c(self) -> str:
        cases = "".join(
            f"\tcase {number}:\n\t\tn {'^' if number % 3 else '+'}= {value}u;\n\t\tbreak;\n"
            for number, value in enumerate(self.values)
        )
        return f"switch (n & 7) {{\n{cases}\tdefault:\n\t\tn *= 3;\n\t}}"

    def run(self, n: int, call: Call) -> int:  # noqa: ARG002
        number = n & 7
        if number >= len(self.values):
            return n * 3 & MASK
        return (n ^ self.values[number] if number % 3 else n + self.values[number]) & MASK


@dataclass(frozen=True, slots=True)
class Table(Statement):
    """A lookup in a static table of constants."""

    name: str
    values: tuple[int, ...]

    @property
    def c(self) -> str:
        values = ", ".join(f"{value}u" for value in self.values)
        return (
            f"{{\n\t\tstatic const u32 {self.name}[8] = {{ {values} }};\n\n\t\tn += {self.name}[n & 7];\n\t}}"
        )

    def run(self, n: int, call: Call) -> int:  # noqa: ARG002
        return (n + self.values[n & 7]) & MASK


@dataclass(frozen=True, slots=True)
class Text(Statement):
    """A hash of a string literal."""

    text: str

    @property
    def c(self) -> str:
        return f'n = soak_hash(n, "{self.text}");'

    def run(self, n: int, call: Call) -> int:  # noqa: ARG002
        return hashed(n, self.text)


@dataclass(frozen=True, slots=True)
class Format(Statement):
    """A hash of a text that scnprintf() formats."""

    word: str
    constant: int

    @property
    def c(self) -> str:
        line = f'scnprintf(text, sizeof(text), "%u {self.word} %x %d", n & 255, n, {self.constant});'
        return f"{{\n\t\tchar text[64];\n\n\t\t{line}\n\t\tn = soak_hash(n, text);\n\t}}"

    def run(self, n: int, call: Call) -> int:  # noqa: ARG002
        return hashed(n, f"{n & 255} {self.word} {n:x} {self.constant}")


@dataclass(frozen=True, slots=True)
class Record(Statement):
    """A structure that is local to the function. ``wide``: with another member in the middle."""

    name: str
    factor: int
    wide: bool = False

    @property
    def c(self) -> str:
        between = "\t\t\tu64 more;\n" if self.wide else ""
        return (
            f"{{\n\t\tstruct {self.name} {{\n\t\t\tu8 low;\n{between}\t\t\tu32 high;\n"
            f"\t\t}} it = {{ .low = n, .high = n * {self.factor}u }};\n\n"
            f"\t\tbarrier_data(&it);\n\t\tn = it.high - it.low + sizeof(it);\n\t}}"
        )

    def run(self, n: int, call: Call) -> int:  # noqa: ARG002
        return (n * self.factor - (n & 255) + (24 if self.wide else 8)) & MASK


@dataclass(frozen=True, slots=True)
class Called(Statement):
    """A call of another function of the driver, static or not, in this file or another."""

    function: str

    @property
    def c(self) -> str:
        return f"n = {self.function}(m, n);"

    def run(self, n: int, call: Call) -> int:
        return call(self.function, n)

    @property
    def calls(self) -> tuple[str, ...]:
        return (self.function,)


@dataclass(frozen=True, slots=True)
class Pointers(Statement):
    """A call through a static table of functions."""

    name: str
    functions: tuple[str, str]

    @property
    def c(self) -> str:
        table = f"static u32 (*const {self.name}[2])(struct seq_file *, u32) = {{"
        names = ", ".join(self.functions)
        return f"{{\n\t\t{table} {names} }};\n\n\t\tn = {self.name}[n & 1](m, n);\n\t}}"

    def run(self, n: int, call: Call) -> int:
        return call(self.functions[n & 1], n)

    @property
    def calls(self) -> tuple[str, ...]:
        return self.functions


@dataclass(frozen=True, slots=True)
class Mixed(Statement):
    """A call of the inline function of soak.h."""

    @property
    def c(self) -> str:
        return "n = soak_mix(n);"

    def run(self, n: int, call: Call) -> int:
        return call("soak_mix", n)


@dataclass(frozen=True, slots=True)
class Scaled(Statement):
    """A use of the macro of scale.h."""

    @property
    def c(self) -> str:
        return "n = SCALE(n);"

    def run(self, n: int, call: Call) -> int:
        return call("SCALE", n)


@dataclass(frozen=True, slots=True)
class Limited(Statement):
    """A use of a module parameter, which nothing writes, though anything could."""

    @property
    def c(self) -> str:
        return "n += limit;"

    def run(self, n: int, call: Call) -> int:
        return call("limit", n)


@dataclass(frozen=True, slots=True)
class Seen(Statement):
    """A counter in a static local variable."""

    name: str

    @property
    def c(self) -> str:
        return f'{{\n\t\tstatic u32 {self.name};\n\n\t\tsoak_tell(m, "{self.name}", ++{self.name});\n\t}}'

    @property
    def keeps(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Counted(Statement):
    """A counter in a variable of the file, starting at an initial value."""

    name: str
    start: int

    @property
    def c(self) -> str:
        return f'soak_tell(m, "{self.name}", ++{self.name});'

    @property
    def keeps(self) -> str:
        return self.name

    @property
    def global_c(self) -> str:
        return f"static u32 {self.name} = {self.start};\n"


@dataclass(frozen=True, slots=True)
class Warned(Statement):
    """A WARN_ONCE() that never fires, but has an entry in the bug table and a static flag."""

    text: str

    @property
    def c(self) -> str:
        return f'WARN_ONCE(!n && (unsigned long)m == 1, "soak: {self.text} %u\\n", n);'


@dataclass(frozen=True, slots=True)
class Allocated(Statement):
    """Memory that is allocated and freed, in any context."""

    constant: int

    @property
    def c(self) -> str:
        return (
            "{\n\t\tu32 *cell = kmalloc(sizeof(*cell), GFP_ATOMIC);\n\n\t\tif (cell) {\n"
            f"\t\t\tWRITE_ONCE(*cell, n ^ {self.constant}u);\n\t\t\tn = READ_ONCE(*cell);\n"
            "\t\t\tkfree(cell);\n\t\t}\n\t}"
        )

    def run(self, n: int, call: Call) -> int:  # noqa: ARG002
        return n ^ self.constant


@dataclass(frozen=True, slots=True)
class Crash(Statement):
    """A statement that kills the kernel. ``how`` is a key of CRASHES."""

    how: str

    @property
    def c(self) -> str:
        return CRASHES[self.how]

    def run(self, n: int, call: Call) -> int:  # noqa: ARG002
        raise GuestDiesError(self.how)


CRASHES = {
    "null": "n += *(volatile u32 *)8;",
    "wild": "WRITE_ONCE(*(u32 *)0xffff00000000beef, n);",
    "bug": "BUG_ON(n == READ_ONCE(n));",
    "panic": 'panic("soak: %u\\n", n);',
}
