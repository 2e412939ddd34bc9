# SPDX-License-Identifier: MIT
"""What a small stateful thing of a driver is, of a kind that a reload can get wrong without a crash. Pure.

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

    @property
    def of_init(self) -> object:
        """What init makes depends on it."""
        return self.start

    @property
    def leaves(self) -> str:
        """What it logs when the module is unloaded."""
        return ""

    @abstractmethod
    def loaded(self) -> State:
        """What the state is when the module was loaded with these sources."""

    def carried(self, state: State, before: Self) -> list[State]:  # noqa: ARG002
        """What it may be when these sources replaced those ``before`` in a guest that goes on.

        None: they cannot run there.
        """
        return [state]

    def anew(self, state: State) -> State:  # noqa: ARG002
        """What it is if the tool said that something of it begins anew."""
        return self.loaded()

    def must_begin_anew(self, state: State, before: Self) -> bool:
        """Is it true that these sources need a module reload, or honest at least?"""
        return self.of_init != before.of_init or not self.carried(state, before)

    @abstractmethod
    def read(self, state: State) -> tuple[str, State]:
        """What is printed, without the name, and the state afterwards."""

    @abstractmethod
    def edited(self, source: random.Random) -> Self:
        """Another of the kind."""
