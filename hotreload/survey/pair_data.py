# SPDX-License-Identifier: MIT
"""Elements with variables that a reload must recognize, so that they keep their values. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Self

from hotreload.survey.pair_element import MASK, WORDS, Element, State, number


@dataclass(frozen=True, slots=True)
class InlinedStatic(Element):
    """Two static variables of different types in a function that gcc inlines twice. Edits may swap them."""

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
        calls, total = number(state, "calls") + 1, number(state, "total") + self.step
        return f"{self.greeting} {calls} {total}", {"calls": calls, "total": total}

    def edited(self, source: random.Random) -> Self:
        kind = source.randrange(3)
        if kind == 0:
            return replace(self, turned=not self.turned)
        if kind == 1:
            return replace(self, step=source.randint(1, 99))
        return replace(self, greeting=source.choice(WORDS))


@dataclass(frozen=True, slots=True)
class Folded(Element):
    """A variable whose only writer or only reader is removed and added again."""

    writes: bool = True
    reads: bool = True
    word: str = "level"
    initial: int = 40

    @property
    def code(self) -> str:
        return f"static u32 {self.name}_level = {self.initial};\n"

    @property
    def show(self) -> str:
        write = f"{self.name}_level += 2;\n\t" if self.writes else ""
        value = f"{self.name}_level" if self.reads else "0"
        keep = "" if self.writes or self.reads else f"(void){self.name}_level;\n\t"
        return f'{write}{keep}seq_printf(m, " {self.word} %u", {value});'

    def loaded(self) -> State:
        return {"level": self.initial}

    def carried(self, state: State, before: Self) -> list[State]:
        # If the variable still has its initial value, it may get the new one. Otherwise it keeps its value.
        return [state, self.loaded()] if state == before.loaded() else [state]

    def must_begin_anew(self, state: State, before: Self) -> bool:
        # The initial value was edited, but the variable's value has changed since.
        return self.loaded() != before.loaded() and state != before.loaded()

    def read(self, state: State) -> tuple[str, State]:
        level = number(state, "level") + 2 * self.writes
        return f"{self.word} {level if self.reads else 0}", {"level": level}

    def edited(self, source: random.Random) -> Self:
        kind = source.randrange(4)
        if kind == 3:
            return replace(self, initial=source.randint(10, 90))
        if kind == 0:
            return replace(self, writes=not self.writes)
        return replace(self, reads=not self.reads) if kind == 1 else replace(self, word=source.choice(WORDS))


@dataclass(frozen=True, slots=True)
class Bytes(Element):
    """An array of bytes that live code writes. Edits change its initial value."""

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
        # The array is one value. Either all of it is kept or, if it has not changed, all of it may be new.
        fresh: list[State] = [{"mac": self.initial}] if state["mac"] == before.initial else []
        return [state, *fresh]

    def must_begin_anew(self, state: State, before: Self) -> bool:
        # The initial value was edited, but the variable's value has changed since.
        return self.loaded() != before.loaded() and state != before.loaded()

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
    """Variables that a macro of the driver defines, with a name that a macro of the kernel uses, too."""

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
        one, two = number(state, "one") + self.step, number(state, "two") + 7
        return f"{self.word} {one} {two}", {"one": one, "two": two}

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.5:
            return replace(self, step=source.randint(1, 50))
        return replace(self, word=source.choice(WORDS))


@dataclass(frozen=True, slots=True)
class LineNamed(Element):
    """Variables whose names contain their line numbers, and a line number as a value."""

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
            + f"\tconst u32 here = __LINE__;\n\tn += 100 * {name}_HIT();\n\tn += {self.step};\n"
            + f"\tn += 10000 * {name}_HIT();\n\tn += 1000000 * (here != __LINE__);\n\treturn n;\n}}\n"
        )

    @property
    def show(self) -> str:
        return f'seq_printf(m, " %u", {self.name}_sum());'

    def loaded(self) -> State:
        return {"first": 0, "second": 0}

    def carried(self, state: State, before: Self) -> list[State]:  # noqa: ARG002
        # On another line, it is another variable. Each may keep its value or start again.
        first, second = (dict.fromkeys((state[name], 0)) for name in ("first", "second"))
        return [{"first": one, "second": other} for one in first for other in second]

    def read(self, state: State) -> tuple[str, State]:
        first, second = number(state, "first") + 1, number(state, "second") + 1
        total = self.above + 100 * first + self.step + 10000 * second + 1000000
        return str(total & MASK), {"first": first, "second": second}

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.5:
            return replace(self, above=source.randint(0, 4))
        return replace(self, step=source.randint(1, 90))


@dataclass(frozen=True, slots=True)
class Label(Element):
    """An array of characters, which is one value, and which live code may write."""

    word: str = "plain"
    writes: bool = True

    @property
    def code(self) -> str:
        return f'static char {self.name}_label[12] = "{self.word}";\n'

    @property
    def show(self) -> str:
        write = f"{self.name}_label[0] ^= 0x20;\n\t" if self.writes else ""
        return f'{write}seq_printf(m, " %s", {self.name}_label);'

    def loaded(self) -> State:
        return {"label": self.word}

    def carried(self, state: State, before: Self) -> list[State]:
        fresh: list[State] = [{"label": self.word}] if state["label"] == before.word else []
        return [state, *fresh]

    def must_begin_anew(self, state: State, before: Self) -> bool:
        # The initial value was edited, but the variable's value has changed since.
        return self.loaded() != before.loaded() and state != before.loaded()

    def read(self, state: State) -> tuple[str, State]:
        label = str(state["label"])
        label = label[0].swapcase() + label[1:] if self.writes else label
        return label, {"label": label}

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.6:
            return replace(self, word=source.choice(WORDS))
        return replace(self, writes=not self.writes)


@dataclass(frozen=True, slots=True)
class Moving(Element):
    """A variable that moves between function and file scope, or becomes global, and keeps its value."""

    place: str = "file"
    section: str = ""
    function: str = "count"
    is_global: bool = False
    step: int = 1

    @property
    def code(self) -> str:
        static = "" if self.place == "global" else "static "
        variable = f"{static}u32 {self.name}_level{self.section} = 20;\n"
        outside, inside = ("", f"\t{variable}\n") if self.place == "function" else (variable, "")
        scope = "u32" if self.is_global else "static noinline u32"
        return (
            f"{outside}{scope} {self.name}_{self.function}(void);\n"
            f"{scope} {self.name}_{self.function}(void)\n{{\n"
            f"{inside}\treturn {self.name}_level += {self.step};\n}}\n"
        )

    @property
    def show(self) -> str:
        return f'seq_printf(m, " %u", {self.name}_{self.function}());'

    def loaded(self) -> State:
        return {"level": 20}

    def read(self, state: State) -> tuple[str, State]:
        level = number(state, "level") + self.step
        return str(level), {"level": level}

    def edited(self, source: random.Random) -> Self:
        changed = replace(self, step=source.randint(1, 50)) if source.random() < 0.3 else self
        kind = source.randrange(5)
        if kind == 0:
            return replace(changed, section="" if self.section else " __read_mostly")
        if kind == 1:
            return replace(changed, function=source.choice(WORDS))
        if kind == 2:
            return replace(changed, is_global=not self.is_global)
        return replace(changed, place=source.choice(("file", "global", "function")))


@dataclass(frozen=True, slots=True)
class Added(Element):
    """A variable that edits add, remove, or give another type."""

    type: str = ""
    step: int = 1

    @property
    def code(self) -> str:
        variable, used = (f"\tstatic {self.type} extra;\n\n", " + ++extra") if self.type else ("", "")
        body = f"{variable}\treturn n * {self.step}{used};"
        return f"static noinline u32 {self.name}_count(u32 n)\n{{\n{body}\n}}\n"

    @property
    def show(self) -> str:
        return f'seq_printf(m, " %u", {self.name}_count(which));'

    def loaded(self) -> State:
        return {"type": self.type, "extra": 0}

    def carried(self, state: State, before: Self) -> list[State]:
        if not self.type:
            return [state]
        fresh = self.loaded()
        if before.type:
            return [state] if before.type == self.type else []
        # It had been removed in between, so its value may have been kept or not.
        return [state, fresh] if state["type"] == self.type else [fresh]

    def read(self, state: State) -> tuple[str, State]:
        if not self.type:
            return str(self.step), state
        extra = number(state, "extra") + 1
        return str(self.step + extra), {"type": self.type, "extra": extra}

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.5:
            return replace(self, step=source.randint(1, 50))
        return replace(self, type=source.choice(("", "u16", "u32", "u32", "u64")))


@dataclass(frozen=True, slots=True)
class Once(Element):
    """The flag with which DO_ONCE_LITE() notes that it has run. Edits may add another one above it."""

    word: str = "once"
    before: bool = False

    @property
    def code(self) -> str:
        up = f"\tDO_ONCE_LITE({self.name}_up);\n"
        return (
            f"static u32 {self.name}_done;\n"
            f"static noinline void {self.name}_up(void)\n{{\n\t{self.name}_done++;\n}}\n"
            f"static noinline void {self.name}_look(struct seq_file *m)\n{{\n"
            f"{up * (1 + self.before)}"
            f'\tseq_printf(m, " {self.word} %u", {self.name}_done);\n}}\n'
        )

    @property
    def show(self) -> str:
        return f"{self.name}_look(m);"

    def loaded(self) -> State:
        return {"done": 0, "places": 0}

    def carried(self, state: State, before: Self) -> list[State]:
        # When a removed place is added again, its flag may still be set or not.
        if self.before and not before.before:
            return [state, {**state, "places": min(1, number(state, "places"))}]
        return [state]

    def restarted(self, state: State) -> list[State]:
        # One flag starts again, or both. The count is a variable of the driver, so it keeps its value.
        return [{**state, "places": places} for places in range(number(state, "places"))]

    def read(self, state: State) -> tuple[str, State]:
        fresh = max(0, 1 + self.before - number(state, "places"))
        state = {"done": number(state, "done") + fresh, "places": number(state, "places") + fresh}
        return f"{self.word} {state['done']}", state

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.6:
            return replace(self, word=source.choice(WORDS))
        return replace(self, before=not self.before)
