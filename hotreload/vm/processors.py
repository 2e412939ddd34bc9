# SPDX-License-Identifier: MIT
"""What the processors of a guest are doing, as QEMU's monitor reports while the guest runs."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from hotreload.vm.monitor import Monitor

# A healthy kernel has its interrupts off for microseconds, and returns to a program or to idle in between.
LOOKS = 40
INTERVAL = 0.05
# RFLAGS bit 9 (Intel SDM volume 1, 3.4.3.3): interrupts are enabled.
INTERRUPTS = 1 << 9

# RunState (qapi/run-state.json) -> the name that people use.
STANDSTILLS = {"suspended": "suspended", "paused": "paused", "debug": "paused", "io-error": "paused"}


@dataclass(frozen=True, slots=True)
class InKernel:
    """A processor that runs kernel code at this address; ``closed``: with interrupts off.

    ``stack``: its stack pointer (RSP).
    """

    address: int
    closed: bool
    stack: int = 0


async def standstill(monitor: Monitor) -> str | None:
    """Return why the guest stands still, or None if it runs or QEMU does something that ends by itself.

    "suspended": the guest sleeps (S3) until a wakeup. "paused": somebody paused it over QMP or with a
    debugger, until `cont`. Raises GuestUnreachableError if QEMU is gone.
    """
    return STANDSTILLS.get((await monitor.execute("query-status"))["status"])


async def stuck_processor(monitor: Monitor) -> InKernel | None:
    """Return a processor that was in the kernel each time we looked, for two seconds.

    ``closed`` if its interrupts were off each time. None if each processor has left the kernel. Raises
    GuestUnreachableError if QEMU is gone.
    """
    stuck: dict[int, InKernel] | None = None
    for _ in range(LOOKS):
        seen = in_kernel(str(await _registers(monitor)))
        stuck = seen if stuck is None else {
            cpu: InKernel(now.address, now.closed and stuck[cpu].closed, now.stack)
            for cpu, now in seen.items()
            if cpu in stuck
        }  # fmt: skip
        if not stuck:
            return None
        await asyncio.sleep(INTERVAL)
    return max((stuck or {}).values(), key=lambda each: each.closed, default=None)


async def _registers(monitor: Monitor) -> object:
    return await monitor.execute("human-monitor-command", {"command-line": "info registers -a"})


def in_kernel(registers: str) -> dict[int, InKernel]:
    """Return the processors that run in ring 0, by number, from QEMU's text."""
    found = {}
    for number, text in enumerate(re.split(r"(?m)^CPU#\d+\s*$", registers)[1:] or [registers]):
        place = re.search(r"RIP=([0-9a-f]+) RFL=([0-9a-f]+).*CPL=(\d).*HLT=(\d)", text)
        if place and place[3] == "0" and place[4] == "0":
            stack = re.search(r"RSP=([0-9a-f]+)", text)
            end = int(stack[1], 16) if stack else 0
            found[number] = InKernel(int(place[1], 16), not int(place[2], 16) & INTERRUPTS, end)
    return found
