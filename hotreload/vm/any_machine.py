# SPDX-License-Identifier: MIT
"""What a session needs from a guest's machine.

The machine is ours (machine.py) or somebody else's (foreign_machine.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hotreload.vm.machine import Trouble
from hotreload.vm.processors import InKernel


class AnyMachine(Protocol):
    """A machine whose guest runs, or is in trouble."""

    @property
    def trouble(self) -> Trouble | None:
        """Why the guest does not run, or None if it does."""

    async def wait_for_trouble(self) -> Trouble:
        """Return when the guest does not run, at once if that is so already.

        Any number of callers may wait.
        """
        ...

    async def standstill(self) -> str | None:
        """See processors.standstill; None also if it cannot be determined. Raises GuestUnreachableError."""
        ...

    async def stuck_processor(self) -> InKernel | None:
        """See processors.stuck_processor; None if it cannot be determined. Raises GuestUnreachableError."""
        ...

    async def dump(self, file: Path) -> None:
        """Write the guest's memory to a new file.

        Raises InputError, EnvironmentFault, GuestUnreachableError.
        """
