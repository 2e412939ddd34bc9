# SPDX-License-Identifier: MIT
"""An element whose code initializes locks, which lockdep compares with the classes that it knows. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Self

from hotreload.survey.pair_element import MASK, Element, State, number

SLOTS = 4
# The type of a lock, and what initializes and takes it.
SPINNING = ("spinlock_t", "spin_lock_init", "spin_")
READ_WRITE = ("rwlock_t", "rwlock_init", "write_")


@dataclass(frozen=True, slots=True)
class Locked(Element):
    """Objects with locks. Each read allocates one in the place of the oldest and takes the locks of all."""

    step: int = 3
    is_read_write: bool = False

    @property
    def code(self) -> str:
        it = self.name
        kind, init, take = READ_WRITE if self.is_read_write else SPINNING
        return (
            f"struct {it}_one {{\n\tstruct mutex lock;\n\t{kind} inner;\n\tu32 n;\n}};\n"
            f"static struct {it}_one *{it}_all[{SLOTS}];\nstatic u32 {it}_reads;\n"
            f"static noinline struct {it}_one *{it}_make(u32 n)\n{{\n"
            f"\tstruct {it}_one *one = kzalloc(sizeof(*one), GFP_KERNEL);\n\n\tif (one) {{\n"
            f"\t\tmutex_init(&one->lock);\n\t\t{init}(&one->inner);\n\t\tone->n = n * {self.step};\n\t}}\n"
            "\treturn one;\n}\n"
            f"static noinline u32 {it}_sum(void)\n{{\n\tu32 i, sum = 0, slot = {it}_reads % {SLOTS};\n\n"
            f"\tkfree({it}_all[slot]);\n\t{it}_all[slot] = {it}_make({it}_reads++);\n"
            f"\tfor (i = 0; i < {SLOTS}; i++) {{\n\t\tstruct {it}_one *one = {it}_all[i];\n\n"
            "\t\tif (!one)\n\t\t\tcontinue;\n"
            f"\t\tmutex_lock(&one->lock);\n\t\t{take}lock(&one->inner);\n\t\tsum += ++one->n;\n"
            f"\t\t{take}unlock(&one->inner);\n\t\tmutex_unlock(&one->lock);\n\t}}\n\treturn sum;\n}}\n"
        )

    @property
    def show(self) -> str:
        return f'seq_printf(m, " %u", {self.name}_sum());'

    @property
    def stop(self) -> str:
        return f"for (u32 i = 0; i < {SLOTS}; i++)\n\t\tkfree({self.name}_all[i]);"

    def loaded(self) -> State:
        return {"reads": 0, "values": ()}

    def carried(self, state: State, before: Self) -> list[State]:
        # The objects that exist have the other kind of lock.
        return [state] if self.is_read_write == before.is_read_write else []

    def read(self, state: State) -> tuple[str, State]:
        reads, values = number(state, "reads"), state["values"]
        assert isinstance(values, tuple)
        kept = dict(enumerate(values)) | {reads % SLOTS: reads * self.step & MASK}
        grown = tuple(kept[slot] + 1 & MASK for slot in sorted(kept))
        return str(sum(grown) & MASK), {"reads": reads + 1, "values": grown}

    def edited(self, source: random.Random) -> Self:
        if source.random() < 0.1:
            return replace(self, is_read_write=not self.is_read_write)
        return replace(self, step=source.randint(1, 90))
