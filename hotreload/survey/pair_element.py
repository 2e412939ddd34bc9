# SPDX-License-Identifier: MIT
"""The base class of elements: small stateful parts of a driver that a reload can get wrong silently. Pure.

An element consists of C code and a model of its output. ``loaded`` is its state just after the module was
loaded. ``carried`` gives the states that are right after new sources went live in a running guest; there is
more than one if the rules leave that open. ``read`` is what it prints in a state, and the state afterwards,
because reading runs its code. So what is right follows only from the sources and from what hotreload says it
did, not from anything that the differ knows.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

MASK = 0xFFFFFFFF
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron")

State = Mapping[str, object]


def number(state: State, name: str) -> int:
    value = state[name]
    assert isinstance(value, int)
    return value


@dataclass(frozen=True, slots=True)
class Element(ABC):
    """See the module's docstring. ``name`` is a unique C identifier. The C texts may be empty."""

    name: str

    @property
    @abstractmethod
    def code(self) -> str:
        """C code at file scope, above the function that prints all elements."""

    @property
    @abstractmethod
    def show(self) -> str:
        """C statements that print the values to ``m``, after the name of the element."""

    @property
    def start(self) -> str:
        """C statements of the init function."""
        return ""

    @property
    def stop(self) -> str:
        """C statements of the exit function."""
        return ""

    @property
    def of_init(self) -> object:
        """What the result of the init code depends on."""
        return self.start

    @property
    def leaves(self) -> str:
        """The text that it logs when the module is unloaded."""
        return ""

    @abstractmethod
    def loaded(self) -> State:
        """Return the state just after the module was loaded with these sources."""

    def carried(self, state: State, before: Self) -> list[State]:  # noqa: ARG002
        """Return the possible states after these sources replaced those ``before`` in a running guest.

        The list is empty if these sources cannot run in that guest.
        """
        return [state]

    def restarted(self, state: State) -> list[State]:  # noqa: ARG002
        """Return the possible states if hotreload said that a variable of this element starts again."""
        return [self.loaded()]

    def must_begin_anew(self, state: State, before: Self) -> bool:
        """Return whether hotreload is right to say that these sources need a module reload."""
        return self.of_init != before.of_init or not self.carried(state, before)

    @abstractmethod
    def read(self, state: State) -> tuple[str, State]:
        """Return what is printed in a state, without the name, and the state afterwards."""

    @abstractmethod
    def edited(self, source: random.Random) -> Self:
        """Return a randomly edited element of the same kind."""
