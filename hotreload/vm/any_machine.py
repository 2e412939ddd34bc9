# SPDX-License-Identifier: MIT
"""What a session asks of a guest's machine, whoever started it: ours (machine.py), or another's
(foreign_machine.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hotreload.vm.machine import Trouble
from hotreload.vm.processors import InKernel


class AnyMachine(Protocol):
    """A machine whose guest runs, or has come into trouble."""

    @property
    def trouble(self) -> Trouble | None:
        """Why the guest does not run, or None if it does."""

    async def wait_for_trouble(self) -> Trouble:
        """Return when the guest does not run any more, at once if it does not now. Any number may wait."""
        ...

    async def standstill(self) -> str | None:
        """See processors.standstill; None also where nobody can tell. Raises GuestUnreachableError."""
        ...

    async def stuck_processor(self) -> InKernel | None:
        """See processors.stuck_processor; None where nobody can tell. Raises GuestUnreachableError."""
        ...

    async def dump(self, file: Path) -> None:
        """Write the guest's memory to a new file.

        Raises InputError, EnvironmentFault, GuestUnreachableError.
        """
