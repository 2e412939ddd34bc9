# SPDX-License-Identifier: MIT
"""Elements with constants and functions whose addresses are held in the guest. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Self

from hotreload.survey.pair_element import WORDS, Element, State, number


@dataclass(frozen=True, slots=True)
class HeldTable(Element):
    """A table of constants to which a live object has pointed since init."""

    values: tuple[int, ...] = (1, 2, 3)
    words: tuple[str, ...] = ("one", "two")
    const: str = "const "

    @property
    def code(self) -> str:
        values, words = ", ".join(map(str, self.values)), ", ".join(f'"{word}"' for word in self.words)
        return (
            f"static {self.const}u32 {self.name}_values[] = {{ {values} }};\n"
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

    def must_begin_anew(self, state: State, before: Self) -> bool:  # noqa: ARG002
        # A table that becomes const or not, or changes its size, cannot be written in place.
        return (self.const, len(self.values)) != (before.const, len(before.values))

    def read(self, state: State) -> tuple[str, State]:
        reads = number(state, "reads") + 1
        return f"{self.values[0]} {self.values[2]} {' '.join(self.words)} {reads}", {"reads": reads}

    def edited(self, source: random.Random) -> Self:
        if (draw := source.random()) < 0.1:
            return replace(self, const="" if self.const else "const ")
        if draw < 0.5:
            count = source.choice((len(self.values), len(self.values), 3, 4))
            return replace(self, values=tuple(source.randint(1, 999) for _ in range(count)))
        return replace(self, words=tuple(source.sample(WORDS, 2)))


@dataclass(frozen=True, slots=True)
class RenamedCallback(Element):
    """A function whose address has been held since init. Edits rename it, change it, or both."""

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
    def of_init(self) -> object:
        return None  # the names of the functions do not matter

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
class HeldOps(Element):
    """A table of functions to which a live object has pointed since init."""

    factors: tuple[int, int] = (2, 5)
    words: tuple[str, str] = ("get", "put")
    exchanged: bool = False

    @property
    def code(self) -> str:
        it = self.name
        functions = "".join(
            f"static noinline u32 {it}_{word}(u32 n)\n{{\n\treturn n * {factor};\n}}\n"
            for word, factor in zip(self.words, self.factors, strict=True)
        )
        first, second = self.words[::-1] if self.exchanged else self.words
        table = f"{{ .first = {it}_{first}, .second = {it}_{second} }}"
        return (
            f"{functions}struct {it}_ops {{\n\tu32 (*first)(u32 n);\n\tu32 (*second)(u32 n);\n}};\n"
            f"static const struct {it}_ops {it}_table = {table};\n"
            f"static const struct {it}_ops **{it};\n"
        )

    @property
    def start(self) -> str:
        it = self.name
        return (
            f"{it} = kzalloc(sizeof(*{it}), GFP_KERNEL);\n"
            f"\tif (!{it})\n\t\treturn -ENOMEM;\n\t*{it} = &{it}_table;"
        )

    @property
    def stop(self) -> str:
        return f"kfree({self.name});"

    @property
    def show(self) -> str:
        return f'seq_printf(m, " %u %u", (*{self.name})->first(which), (*{self.name})->second(which));'

    def loaded(self) -> State:
        return {}

    def read(self, state: State) -> tuple[str, State]:
        first, second = self.factors[::-1] if self.exchanged else self.factors
        return f"{first} {second}", state

    def edited(self, source: random.Random) -> Self:
        place = source.randrange(2)
        if (draw := source.random()) < 0.25:
            return replace(self, exchanged=not self.exchanged)
        if draw < 0.5:
            other = source.choice([word for word in WORDS if word not in self.words])
            return replace(self, words=(other, self.words[1]) if place else (self.words[0], other))
        factor = source.randint(2, 99)
        return replace(self, factors=(factor, self.factors[1]) if place else (self.factors[0], factor))


@dataclass(frozen=True, slots=True)
class TwoCallbacks(Element):
    """Two functions whose addresses have been held since init. Edits may exchange their names."""

    words: tuple[str, str] = ("left", "right")
    factors: tuple[int, int] = (4, 6)

    @property
    def code(self) -> str:
        functions = "".join(
            f"static noinline u32 {self.name}_{word}(u32 n)\n{{\n\treturn n * {factor} + {place};\n}}\n"
            for place, (word, factor) in enumerate(zip(self.words, self.factors, strict=True))
        )
        return f"{functions}static u32 (*{self.name}_called[2])(u32 n);\n"

    @property
    def start(self) -> str:
        return "\n\t".join(
            f"{self.name}_called[{place}] = {self.name}_{word};" for place, word in enumerate(self.words)
        )

    @property
    def of_init(self) -> object:
        return None  # the names of the functions do not matter

    @property
    def show(self) -> str:
        return f'seq_printf(m, " %u %u", {self.name}_called[0](which), {self.name}_called[1](which));'

    def loaded(self) -> State:
        return {}

    def read(self, state: State) -> tuple[str, State]:
        return f"{self.factors[0]} {self.factors[1] + 1}", state

    def edited(self, source: random.Random) -> Self:
        exchanged = replace(self, words=self.words[::-1])
        changed = replace(self, factors=(source.randint(2, 99), self.factors[1]))
        other = source.choice([word for word in WORDS if word not in self.words])
        renamed = replace(self, words=(self.words[0], other))
        both = replace(exchanged, factors=changed.factors)
        return source.choice((exchanged, changed, renamed, both, replace(self, factors=self.factors[::-1])))


@dataclass(frozen=True, slots=True)
class Identical(Element):
    """Two functions whose addresses are held. While they are identical, gcc may merge them."""

    factors: tuple[int, int] = (3, 3)

    @property
    def code(self) -> str:
        functions = "".join(
            f"static noinline u32 {self.name}_{word}(u32 n)\n{{\n\treturn n * {factor} + which;\n}}\n"
            for word, factor in zip(("one", "two"), self.factors, strict=True)
        )
        names = f"{self.name}_one, {self.name}_two"
        return f"{functions}static u32 (*{self.name}_called[2])(u32 n) = {{ {names} }};\n"

    @property
    def show(self) -> str:
        return f'seq_printf(m, " %u %u", {self.name}_called[0](which), {self.name}_called[1](which));'

    def loaded(self) -> State:
        return {}

    def read(self, state: State) -> tuple[str, State]:
        return f"{self.factors[0] + 1} {self.factors[1] + 1}", state

    def edited(self, source: random.Random) -> Self:
        first, second = source.randint(2, 9), source.randint(2, 9)
        return replace(
            self, factors=source.choice(((first, first), (first, second), (first, self.factors[1])))
        )


@dataclass(frozen=True, slots=True)
class HeldString(Element):
    """A string whose address is kept by the first read, and which must stay valid as long as it is kept."""

    word: str = "first"
    step: int = 1

    @property
    def code(self) -> str:
        return f"static const char *{self.name}_text;\nstatic u32 {self.name}_reads;\n"

    @property
    def show(self) -> str:
        it = self.name
        return (
            f'if (!{it}_text)\n\t\t{it}_text = "{self.word}";\n'
            f'\tseq_printf(m, " %s %u", {it}_text, {it}_reads += {self.step});'
        )

    def loaded(self) -> State:
        return {"text": "", "reads": 0}

    def carried(self, state: State, before: Self) -> list[State]:  # noqa: ARG002
        # The pointer may still point to the old string, or the string may have been replaced.
        return [state, {**state, "text": self.word}] if state["text"] else [state]

    def read(self, state: State) -> tuple[str, State]:
        text, reads = state["text"] or self.word, number(state, "reads") + self.step
        return f"{text} {reads}", {"text": text, "reads": reads}

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.5:
            return replace(self, word=source.choice(WORDS))
        return replace(self, step=source.randint(1, 50))
