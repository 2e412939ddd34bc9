# SPDX-License-Identifier: MIT
"""Reading and comparing without Python's cycle collector.

Symbols, sections and relocations refer to each other, tens of thousands of them at a time and all in use: to
look for garbage among them takes a third of the time of a comparison, and finds none.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pause the collector; also a decorator."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
