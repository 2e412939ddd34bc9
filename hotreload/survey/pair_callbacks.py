# SPDX-License-Identifier: MIT
"""Elements whose functions the kernel calls later. A function that is removed must not be called. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Self

from hotreload.survey.pair_element import WORDS, Element, State, number


@dataclass(frozen=True, slots=True)
class Queued(Element):
    """A work item that the first read sets up. Edits change, rename, remove and restore its function."""

    function: str = "run"
    step: int = 3
    there: bool = True

    @property
    def code(self) -> str:
        function = (
            f"static void {self.name}_{self.function}(struct work_struct *work)\n{{\n"
            f"\t{self.name}_done += {self.step};\n}}\n"
        )
        variables = f"static struct work_struct {self.name}_work;\nstatic u32 {self.name}_done;\n"
        return variables + function * self.there

    @property
    def show(self) -> str:
        it = self.name
        setup = f"if (!{it}_work.func)\n\t\tINIT_WORK(&{it}_work, {it}_{self.function});\n\t" * self.there
        return (
            f"{setup}if ({it}_work.func) {{\n\t\tschedule_work(&{it}_work);\n"
            f'\t\tflush_work(&{it}_work);\n\t}}\n\tseq_printf(m, " %u", {it}_done);'
        )

    @property
    def stop(self) -> str:
        return f"if ({self.name}_work.func)\n\t\tcancel_work_sync(&{self.name}_work);"

    def loaded(self) -> State:
        return {"is set up": False, "done": 0}

    def carried(self, state: State, before: Self) -> list[State]:  # noqa: ARG002
        return [] if state["is set up"] and not self.there else [state]

    def read(self, state: State) -> tuple[str, State]:
        done = number(state, "done") + self.step * self.there
        return str(done), {"is set up": self.there, "done": done}

    def edited(self, source: random.Random) -> Self:
        if (draw := source.random()) < 0.2 or not self.there:
            return replace(self, there=not self.there)
        if draw < 0.6:
            return replace(self, function=source.choice(WORDS))
        return replace(self, step=source.randint(1, 50))


@dataclass(frozen=True, slots=True)
class Ticking(Element):
    """A timer that the first read starts and that restarts itself. Its function may be removed meanwhile."""

    function: str = "tick"
    mark: int = 1
    there: bool = True

    @property
    def code(self) -> str:
        it = self.name
        function = (
            f"static void {it}_{self.function}(struct timer_list *timer)\n{{\n"
            f"\tWRITE_ONCE({it}_mark, {self.mark});\n\tWRITE_ONCE({it}_ticks, {it}_ticks + 1);\n"
            f"\tmod_timer(timer, jiffies + HZ / 50);\n}}\n"
        )
        variables = f"static struct timer_list {it}_timer;\nstatic u32 {it}_ticks, {it}_mark;\n"
        return variables + function * self.there

    @property
    def show(self) -> str:
        it = self.name
        setup = (
            f"if (!{it}_timer.function) {{\n\t\ttimer_setup(&{it}_timer, {it}_{self.function}, 0);\n"
            f"\t\tmod_timer(&{it}_timer, jiffies + 1);\n\t}}\n\t"
        ) * self.there
        return (
            f"{setup}sum = READ_ONCE({it}_ticks);\n"
            f"\tfor (i = 0; i < {400 if self.there else 10} && READ_ONCE({it}_ticks) == sum; i++)\n"
            f'\t\tmsleep(10);\n\tseq_printf(m, " %s %u", READ_ONCE({it}_ticks) == sum ? "stands" : "moves",\n'
            f"\t\t   READ_ONCE({it}_mark));"
        )

    @property
    def stop(self) -> str:
        return f"if ({self.name}_timer.function)\n\t\tdel_timer_sync(&{self.name}_timer);"

    def loaded(self) -> State:
        return {"runs": False}

    def carried(self, state: State, before: Self) -> list[State]:  # noqa: ARG002
        return [] if state["runs"] and not self.there else [state]

    def read(self, state: State) -> tuple[str, State]:  # noqa: ARG002
        return (f"moves {self.mark}" if self.there else "stands 0"), {"runs": self.there}

    def edited(self, source: random.Random) -> Self:
        if (draw := source.random()) < 0.2 or not self.there:
            return replace(self, there=not self.there)
        if draw < 0.6:
            return replace(self, function=source.choice(WORDS))
        return replace(self, mark=source.randint(1, 50))
