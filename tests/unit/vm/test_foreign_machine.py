# SPDX-License-Identifier: MIT
"""What the events of a QEMU mean that somebody else started, with options that we do not know."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hotreload.errors import EnvironmentFault
from hotreload.vm.foreign_machine import REBOOTED, ForeignMachine, foreign_trouble_in
from hotreload.vm.machine import HALTED, PANICKED, RESET, State, Trouble
from hotreload.vm.monitor import QmpEvent

HOST = {"guest": False, "reason": "host-qmp-system-reset"}
GUEST = {"guest": True, "reason": "guest-reset"}


@pytest.mark.parametrize(
    ("name", "data", "has_console", "expected"),
    [
        ("GUEST_PANICKED", {"action": "pause"}, False, PANICKED),
        ("RESET", HOST, True, REBOOTED),
        # Where a console tells whether the kernel was asked to: it may have been a triple fault.
        ("RESET", GUEST, True, RESET),
        ("RESET", GUEST, False, REBOOTED),
        ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}, True, HALTED),
        ("SHUTDOWN", GUEST, False, REBOOTED),  # -no-reboot
        ("STOP", {}, True, None),
        ("RESUME", {}, True, None),
    ],
)
def test_an_event_is_understood(
    name: str, data: dict[str, object], has_console: bool, expected: Trouble | None
) -> None:
    assert foreign_trouble_in(QmpEvent(name, data), has_console=has_console) == expected


def test_without_a_monitor_what_happened_is_what_we_say_first() -> None:
    async def story() -> None:
        async with ForeignMachine(None, Path("/nowhere"), has_console=False) as machine:
            assert machine.trouble is None
            assert await machine.standstill() is None
            assert await machine.stuck_processor() is None
            machine.lose(REBOOTED)
            machine.lose(PANICKED)
            assert (await machine.wait_for_trouble()).state is State.RESET
            assert machine.may_return
            with pytest.raises(EnvironmentFault, match="not connected to QEMU's monitor") as raised:
                await machine.dump(Path("/nowhere"))
            assert raised.value.code == "HR3108"

    asyncio.run(story())
