# SPDX-License-Identifier: MIT
"""Elements that depend on code that runs when the module is loaded or unloaded. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Self

from hotreload.survey.pair_element import WORDS, Element, State, number


@dataclass(frozen=True, slots=True)
class SizeOfInit(Element):
    """An array that init allocates, with a size that other code relies on."""

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
    def of_init(self) -> object:
        return self.count

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
class ValueOfInit(Element):
    """A number that init stores and other code uses: a macro, a constant, an enumerator or a size."""

    form: str = "macro"
    value: int = 9
    added: int = 1

    @property
    def code(self) -> str:
        limit = f"{self.name.upper()}_LIMIT"
        forms = {
            "macro": f"#define {limit} {self.value}\n",
            "constant": f"static const u32 {limit} = {self.value};\n",
            "enumerator": f"enum {{ {limit} = {self.value} }};\n",
            "size": f"struct {self.name}_cell {{\n\tu8 bytes[{self.value}];\n}};\n"
            f"#define {limit} ((u32)sizeof(struct {self.name}_cell))\n",
        }
        return f"{forms[self.form]}static u32 {self.name}_kept;\n"

    @property
    def start(self) -> str:
        return f"{self.name}_kept = {self.name.upper()}_LIMIT;"

    @property
    def of_init(self) -> object:
        return self.value

    @property
    def show(self) -> str:
        limit = f"{self.name.upper()}_LIMIT"
        return f'seq_printf(m, " %u %u %u", {self.name}_kept, (u32){limit}, (u32){limit} + {self.added});'

    def loaded(self) -> State:
        return {"kept": self.value}

    def carried(self, state: State, before: Self) -> list[State]:  # noqa: ARG002
        return [state] if state["kept"] == self.value else []

    def read(self, state: State) -> tuple[str, State]:
        return f"{state['kept']} {self.value} {self.value + self.added}", state

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.2:
            return replace(self, value=source.randint(2, 60))
        if source.random() < 0.3:
            return replace(self, form=source.choice(("macro", "constant", "enumerator", "size")))
        return replace(self, added=source.randint(1, 50))


LAYOUTS = {
    "u32 a;\n\tu32 b;": "a b",
    "struct {\n\t\tu32 a, b;\n\t};": "a b",
    "int a;\n\tunsigned int b;": "a b",
    "u32 b;\n\tu32 a;": "b a",
    "struct {\n\t\tu32 b, a;\n\t};": "b a",
    "u64 more;\n\tu32 a;\n\tu32 b;": "more a b",
}


@dataclass(frozen=True, slots=True)
class Record(Element):
    """A structure that is renamed, gets other members, or both, while an object made by init is live."""

    word: str = "record"
    members: str = "u32 a;\n\tu32 b;"
    step: int = 1

    @property
    def code(self) -> str:
        struct = f"struct {self.name}_{self.word}"
        return f"{struct} {{\n\t{self.members}\n}};\nstatic {struct} *{self.name};\n"

    @property
    def start(self) -> str:
        it = self.name
        return (
            f"{it} = kzalloc(sizeof(*{it}), GFP_KERNEL);\n\tif (!{it})\n\t\treturn -ENOMEM;"
            f"\n\t{it}->a = 100;\n\t{it}->b = 200;"
        )

    @property
    def of_init(self) -> object:
        return LAYOUTS[self.members]

    @property
    def stop(self) -> str:
        return f"kfree({self.name});"

    @property
    def show(self) -> str:
        return f'seq_printf(m, " %u %u", ++{self.name}->a, {self.name}->b += {self.step});'

    def loaded(self) -> State:
        return {"layout": LAYOUTS[self.members], "a": 100, "b": 200}

    def carried(self, state: State, before: Self) -> list[State]:  # noqa: ARG002
        return [state] if state["layout"] == LAYOUTS[self.members] else []

    def read(self, state: State) -> tuple[str, State]:
        a, b = number(state, "a") + 1, number(state, "b") + self.step
        return f"{a} {b}", {**state, "a": a, "b": b}

    def edited(self, source: random.Random) -> Self:
        renamed = replace(self, word=source.choice(WORDS)) if source.random() < 0.5 else self
        if source.random() < 0.4:
            return replace(renamed, members=source.choice(list(LAYOUTS)))
        return replace(renamed, step=source.randint(1, 50))


@dataclass(frozen=True, slots=True)
class ExitWord(Element):
    """A message of the exit code. When the module is unloaded, the message of the current sources is due."""

    word: str = "farewell"
    step: int = 1

    @property
    def code(self) -> str:
        return ""

    @property
    def show(self) -> str:
        return f'seq_printf(m, " %u", which + {self.step});'

    @property
    def stop(self) -> str:
        return f'pr_info("{self.leaves}\\n");'

    @property
    def leaves(self) -> str:
        return f"{self.name} says {self.word}"

    def loaded(self) -> State:
        return {}

    def read(self, state: State) -> tuple[str, State]:
        return str(1 + self.step), state

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.5:
            return replace(self, word=source.choice(WORDS))
        return replace(self, step=source.randint(1, 50))
