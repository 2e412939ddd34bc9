# SPDX-License-Identifier: MIT
"""The list of all kinds of elements that `scripts/random-pairs` edits. Pure."""

from __future__ import annotations

from hotreload.survey.pair_callbacks import Queued, Ticking
from hotreload.survey.pair_data import (
    Added,
    Bytes,
    Folded,
    InlinedStatic,
    Label,
    LineNamed,
    MacroStatic,
    Moving,
    Once,
)
from hotreload.survey.pair_element import Element
from hotreload.survey.pair_held import (
    HeldOps,
    HeldString,
    HeldTable,
    Identical,
    RenamedCallback,
    TwoCallbacks,
)
from hotreload.survey.pair_load import ExitWord, Record, SizeOfInit, ValueOfInit
from hotreload.survey.pair_locks import Locked

FAMILIES: tuple[type[Element], ...] = (
    InlinedStatic,
    Folded,
    Bytes,
    Label,
    MacroStatic,
    LineNamed,
    Moving,
    Added,
    Once,
    HeldTable,
    HeldOps,
    HeldString,
    Identical,
    RenamedCallback,
    TwoCallbacks,
    Locked,
    Queued,
    Ticking,
    SizeOfInit,
    ValueOfInit,
    Record,
    ExitWord,
)
