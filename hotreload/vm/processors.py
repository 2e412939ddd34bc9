# SPDX-License-Identifier: MIT
"""What the processors of a guest are at, asked by QEMU's monitor while the guest runs on."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from hotreload.vm.monitor import Monitor

# A kernel that works has its interrupts off for microseconds, and leaves for a program or to rest in between.
LOOKS = 40
INTERVAL = 0.05
# RFLAGS bit 9 (Intel SDM volume 1, 3.4.3.3): interrupts are taken.
INTERRUPTS = 1 << 9

# RunState (qapi/run-state.json) -> what people call it.
STANDSTILLS = {"suspended": "suspended", "paused": "paused", "debug": "paused", "io-error": "paused"}


@dataclass(frozen=True, slots=True)
class InKernel:
    """A processor that runs code of the kernel, at this address; ``closed``: with its interrupts off.

    ``stack``: the address of the end of its stack.
    """

    address: int
    closed: bool
    stack: int = 0


async def standstill(monitor: Monitor) -> str | None:
    """ "suspended": the guest sleeps (S3) until a wakeup; "paused": somebody wants it so, over QMP or with a
    debugger, until `cont`. None: it runs, or QEMU is at something that ends by itself.

    Raises GuestUnreachableError when QEMU is gone.
    """
    return STANDSTILLS.get((await monitor.execute("query-status"))["status"])


async def stuck_processor(monitor: Monitor) -> InKernel | None:
    """One that was in the kernel whenever we looked, for two seconds; ``closed`` if it was so each time.

    None: each has left it. Raises GuestUnreachableError when QEMU is gone.
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
    """The processors that run in ring 0, by number, of QEMU's text."""
    found = {}
    for number, text in enumerate(re.split(r"(?m)^CPU#\d+\s*$", registers)[1:] or [registers]):
        place = re.search(r"RIP=([0-9a-f]+) RFL=([0-9a-f]+).*CPL=(\d).*HLT=(\d)", text)
        if place and place[3] == "0" and place[4] == "0":
            stack = re.search(r"RSP=([0-9a-f]+)", text)
            end = int(stack[1], 16) if stack else 0
            found[number] = InKernel(int(place[1], 16), not int(place[2], 16) & INTERRUPTS, end)
    return found
