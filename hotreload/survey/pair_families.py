# SPDX-License-Identifier: MIT
"""Small stateful things of drivers, each of a kind that a reload can get wrong without a crash. Pure.

An element is C, and a model of what it answers. ``loaded`` is its state when the module was just loaded;
``carried`` is what the sources before and after leave of it in a guest that goes on: the states that are
right, more than one where nobody could know better. ``read`` is what it prints in such a state, and the state
after that, for to read is to run. So what is right follows from the sources and from what the tool says it
has done, and from nothing that the differ knows.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

MASK = 0xFFFFFFFF
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron")

State = Mapping[str, object]


def _number(state: State, name: str) -> int:
    value = state[name]
    assert isinstance(value, int)
    return value


@dataclass(frozen=True, slots=True)
class Element(ABC):
    """``name``: a C identifier that no other element has. The texts may be empty."""

    name: str

    @property
    @abstractmethod
    def code(self) -> str:
        """Before the function that shows all."""

    @property
    @abstractmethod
    def show(self) -> str:
        """Statements that print ``NAME VALUE..`` to ``m``."""

    @property
    def start(self) -> str:
        """Statements of the init function."""
        return ""

    @property
    def stop(self) -> str:
        """Statements of the exit function."""
        return ""

    @abstractmethod
    def loaded(self) -> State:
        """What the state is when the module was loaded with these sources."""

    def carried(self, state: State, before: Self) -> list[State]:  # noqa: ARG002
        """What it may be when these sources replaced those ``before`` in a guest that goes on.

        None: they cannot run there.
        """
        return [state]

    @abstractmethod
    def read(self, state: State) -> tuple[str, State]:
        """What is printed, without the name, and the state afterwards."""

    @abstractmethod
    def edited(self, source: random.Random) -> Self:
        """Another of the kind."""


@dataclass(frozen=True, slots=True)
class InlinedStatic(Element):
    """Static variables of two types in a function that gcc inlines twice; they may change their order."""

    step: int = 1
    turned: bool = False
    greeting: str = "plain"

    @property
    def code(self) -> str:
        statics = ["\tstatic u32 calls = 5;", "\tstatic u64 total;"]
        lines = "\n".join(statics[::-1] if self.turned else statics)
        return (
            f"static __always_inline void {self.name}_count(struct seq_file *m)\n{{\n{lines}\n\n"
            f"\tcalls++;\n\ttotal += {self.step};\n"
            f'\tseq_printf(m, " {self.greeting} %u %llu", calls, total);\n}}\n'
        )

    @property
    def show(self) -> str:
        return f"if (which & 1)\n\t\t{self.name}_count(m);\n\telse\n\t\t{self.name}_count(m);"

    def loaded(self) -> State:
        return {"calls": 5, "total": 0}

    def read(self, state: State) -> tuple[str, State]:
        calls, total = _number(state, "calls") + 1, _number(state, "total") + self.step
        return f"{self.greeting} {calls} {total}", {"calls": calls, "total": total}

    def edited(self, source: random.Random) -> Self:
        kind = source.randrange(3)
        if kind == 0:
            return replace(self, turned=not self.turned)
        if kind == 1:
            return replace(self, step=source.randint(1, 99))
        return replace(self, greeting=source.choice(WORDS))


@dataclass(frozen=True, slots=True)
class HeldTable(Element):
    """A table of constants that a live object points at since init."""

    values: tuple[int, ...] = (1, 2, 3)
    words: tuple[str, ...] = ("one", "two")

    @property
    def code(self) -> str:
        values, words = ", ".join(map(str, self.values)), ", ".join(f'"{word}"' for word in self.words)
        return (
            f"static const u32 {self.name}_values[] = {{ {values} }};\n"
            f"static const char *const {self.name}_words[] = {{ {words} }};\n"
            f"static struct {{ const u32 *values; const char *const *words; u32 reads; }} *{self.name};\n"
        )

    @property
    def start(self) -> str:
        it = self.name
        return (
            f"{it} = kzalloc(sizeof(*{it}), GFP_KERNEL);\n\tif (!{it})\n\t\treturn -ENOMEM;"
            f"\n\t{it}->values = {it}_values;\n\t{it}->words = {it}_words;"
        )

    @property
    def stop(self) -> str:
        return f"kfree({self.name});"

    @property
    def show(self) -> str:
        it = self.name
        return (
            f'seq_printf(m, " %u %u %s %s %u", {it}->values[0], {it}->values[2], {it}->words[0],\n'
            f"\t\t   {it}->words[1], ++{it}->reads);"
        )

    def loaded(self) -> State:
        return {"reads": 0}

    def read(self, state: State) -> tuple[str, State]:
        reads = _number(state, "reads") + 1
        return f"{self.values[0]} {self.values[2]} {' '.join(self.words)} {reads}", {"reads": reads}

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.5:
            return replace(self, values=tuple(source.randint(1, 999) for _ in range(3)))
        return replace(self, words=tuple(source.sample(WORDS, 2)))


@dataclass(frozen=True, slots=True)
class RenamedCallback(Element):
    """A function whose address a live object has since init; it is renamed, changed, or both."""

    function: str = "first"
    factor: int = 3

    @property
    def code(self) -> str:
        name = f"{self.name}_{self.function}"
        return (
            f"static noinline u32 {name}(u32 n)\n{{\n\treturn n * {self.factor} + 1;\n}}\n"
            f"static u32 (*{self.name}_called)(u32 n);\n"
        )

    @property
    def start(self) -> str:
        return f"{self.name}_called = {self.name}_{self.function};"

    @property
    def show(self) -> str:
        return f'seq_printf(m, " %u", {self.name}_called(which));'

    def loaded(self) -> State:
        return {}

    def read(self, state: State) -> tuple[str, State]:
        return f"{self.factor + 1}", state

    def edited(self, source: random.Random) -> Self:
        renamed = replace(self, function=source.choice([w for w in WORDS if w != self.function]))
        changed = replace(self, factor=source.randint(2, 99))
        return source.choice((renamed, changed, replace(renamed, factor=source.randint(2, 99))))


@dataclass(frozen=True, slots=True)
class SizeOfInit(Element):
    """An array that init allocates, with a size that other code goes by."""

    count: int = 6
    added: int = 1

    @property
    def code(self) -> str:
        return f"#define {self.name.upper()}_COUNT {self.count}\nstatic u32 *{self.name};\n"

    @property
    def start(self) -> str:
        count = f"{self.name.upper()}_COUNT"
        return (
            f"{self.name} = kcalloc({count}, sizeof(*{self.name}), GFP_KERNEL);\n\tif (!{self.name})\n"
            f"\t\treturn -ENOMEM;\n\tfor (i = 0; i < {count}; i++)\n\t\t{self.name}[i] = 10 + i;"
        )

    @property
    def stop(self) -> str:
        return f"kfree({self.name});"

    @property
    def show(self) -> str:
        return (
            f"for (i = 0, sum = {self.added}; i < {self.name.upper()}_COUNT; i++)\n\t\tsum += {self.name}[i];"
            f'\n\tseq_printf(m, " %u", sum);'
        )

    def loaded(self) -> State:
        return {"count": self.count}

    def carried(self, state: State, before: Self) -> list[State]:  # noqa: ARG002
        return [state] if state["count"] == self.count else []

    def read(self, state: State) -> tuple[str, State]:
        return str(self.added + sum(10 + i for i in range(self.count))), state

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.4:
            return replace(self, count=source.randint(3, 40))
        return replace(self, added=source.randint(1, 99))


@dataclass(frozen=True, slots=True)
class Folded(Element):
    """A variable whose only writer, or only reader, comes and goes."""

    writes: bool = True
    reads: bool = True
    word: str = "level"

    @property
    def code(self) -> str:
        return f"static u32 {self.name}_level = 40;\n"

    @property
    def show(self) -> str:
        write = f"{self.name}_level += 2;\n\t" if self.writes else ""
        value = f"{self.name}_level" if self.reads else "0"
        keep = "" if self.writes or self.reads else f"(void){self.name}_level;\n\t"
        return f'{write}{keep}seq_printf(m, " {self.word} %u", {value});'

    def loaded(self) -> State:
        return {"level": 40}

    def read(self, state: State) -> tuple[str, State]:
        level = _number(state, "level") + 2 * self.writes
        return f"{self.word} {level if self.reads else 0}", {"level": level}

    def edited(self, source: random.Random) -> Self:
        kind = source.randrange(3)
        if kind == 0:
            return replace(self, writes=not self.writes)
        return replace(self, reads=not self.reads) if kind == 1 else replace(self, word=source.choice(WORDS))


@dataclass(frozen=True, slots=True)
class Bytes(Element):
    """An array of bytes that live code writes to, and whose initial value is edited."""

    initial: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    place: int = 5

    @property
    def code(self) -> str:
        return f"static u8 {self.name}_mac[6] = {{ {', '.join(map(str, self.initial))} }};\n"

    @property
    def show(self) -> str:
        return f'{self.name}_mac[{self.place}]++;\n\tseq_printf(m, " %pM", {self.name}_mac);'

    def loaded(self) -> State:
        return {"mac": self.initial}

    def carried(self, state: State, before: Self) -> list[State]:
        # One value: all of it is the guest's, or, where that never changed, all of it is the new one.
        fresh: list[State] = [{"mac": self.initial}] if state["mac"] == before.initial else []
        return [state, *fresh]

    def read(self, state: State) -> tuple[str, State]:
        mac = state["mac"]
        assert isinstance(mac, tuple)
        mac = tuple((b + (i == self.place)) & 255 for i, b in enumerate(mac))
        return ":".join(f"{byte:02x}" for byte in mac), {"mac": mac}

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.5:
            return replace(self, initial=tuple(source.randint(0, 255) for _ in range(6)))
        return replace(self, place=source.randrange(6))


@dataclass(frozen=True, slots=True)
class MacroStatic(Element):
    """Variables that a macro of the driver's own makes, named as a macro of the kernel's names its own."""

    variable: str = "_entry"
    step: int = 1
    word: str = "macro"

    @property
    def code(self) -> str:
        return (
            f"#define {self.name.upper()}(n) ({{ static u32 {self.variable}; {self.variable} += (n); }})\n"
            f"static noinline u32 {self.name}_one(void)\n{{\n\treturn {self.name.upper()}({self.step});\n}}\n"
            f"static noinline u32 {self.name}_two(void)\n{{\n\treturn {self.name.upper()}(7);\n}}\n"
        )

    @property
    def show(self) -> str:
        return f'seq_printf(m, " {self.word} %u %u", {self.name}_one(), {self.name}_two());'

    def loaded(self) -> State:
        return {"one": 0, "two": 0}

    def read(self, state: State) -> tuple[str, State]:
        one, two = _number(state, "one") + self.step, _number(state, "two") + 7
        return f"{self.word} {one} {two}", {"one": one, "two": two}

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.5:
            return replace(self, step=source.randint(1, 50))
        return replace(self, word=source.choice(WORDS))


@dataclass(frozen=True, slots=True)
class LineNamed(Element):
    """Variables named after their lines, and a line as a value."""

    above: int = 0
    step: int = 3

    @property
    def code(self) -> str:
        name = self.name.upper()
        return (
            f"#define {name}_PASTE(a, b) a##b\n#define {name}_NAME(a, b) {name}_PASTE(a, b)\n"
            f"#define {name}_HIT() ({{ static u32 {name}_NAME(hits_, __LINE__); "
            f"++{name}_NAME(hits_, __LINE__); }})\n"
            f"static noinline u32 {self.name}_sum(void)\n{{\n\tu32 n = 0;\n"
            + "\tn += 1;\n" * self.above
            + f"\tn += 100 * {name}_HIT();\n\tn += {self.step};\n\tn += 10000 * {name}_HIT();\n"
            + "\treturn n;\n}\n"
        )

    @property
    def show(self) -> str:
        return f'seq_printf(m, " %u", {self.name}_sum());'

    def loaded(self) -> State:
        return {"first": 0, "second": 0}

    def carried(self, state: State, before: Self) -> list[State]:  # noqa: ARG002
        # On another line it is another variable: to keep the two apart, with their values or anew, is right.
        first, second = (dict.fromkeys((state[name], 0)) for name in ("first", "second"))
        return [{"first": one, "second": other} for one in first for other in second]

    def read(self, state: State) -> tuple[str, State]:
        first, second = _number(state, "first") + 1, _number(state, "second") + 1
        total = self.above + 100 * first + self.step + 10000 * second
        return str(total & MASK), {"first": first, "second": second}

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.5:
            return replace(self, above=source.randint(0, 4))
        return replace(self, step=source.randint(1, 90))


FAMILIES: tuple[type[Element], ...] = (
    InlinedStatic,
    HeldTable,
    RenamedCallback,
    SizeOfInit,
    Folded,
    Bytes,
    MacroStatic,
    LineNamed,
)
