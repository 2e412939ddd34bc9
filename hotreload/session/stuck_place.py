# SPDX-License-Identifier: MIT
"""Describe where a processor is stuck: the function that waits and its caller, not only a lock's slow path.

A guest that loops cannot be queried, so its registers and its stack are read from outside. The addresses are
resolved to names after the guest was restored, because then its kernel is at the same addresses.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping, Sequence

from hotreload.deploy.guest import KALLSYMS_LIMIT, Guest
from hotreload.deploy.verify import ReadMemory
from hotreload.errors import HotReloadError
from hotreload.report.blame import HELPERS
from hotreload.vm.processors import InKernel

Place = tuple[str, str, int]  # module, function, offset
PlaceOf = Callable[[int], Place | None]

# Bytes of stack to read: enough for the frames of a lock's slow path, the lock function, and two callers.
DEPTH = 512
PAGE = 4096
# The text of the kernel and its modules (Documentation/arch/x86/x86_64/mm.rst).
CODE = range(0xFFFFFFFF80000000, 0xFFFFFFFFFF000000)
MOST = 8  # addresses to resolve, because the guest searches all of its symbols for each
MODULES = 0xFFFFFFFFC0000000
# An address farther from the nearest symbol is not in that function. In the range of the modules, it is
# mostly in a patch that is gone.
LARGEST_FUNCTION, LARGEST_OF_A_MODULE = 1 << 18, 1 << 12


async def addresses_of(stuck: InKernel, read_memory: ReadMemory) -> tuple[int, ...]:
    """Return the processor's address, and those on its stack that may be calls to there, innermost first."""
    try:
        data = await read_memory(stuck.stack, min(DEPTH, PAGE - stuck.stack % PAGE) & ~7)
    except HotReloadError:
        return (stuck.address,)
    words = struct.unpack(f"<{len(data) // 8}Q", data)
    # A return address is behind the call, so subtract 1 to get into the call instruction.
    calls = [word - 1 for word in words if word in CODE]
    return (stuck.address, *dict.fromkeys(calls))[:MOST]


def places_in(addresses: Sequence[int], place_of: PlaceOf) -> dict[int, Place]:
    """Return the addresses that are in the newest patch, with their places."""
    found = {address: place_of(address) for address in addresses}
    return {address: place for address, place in found.items() if place is not None}


async def names_of(addresses: Sequence[int], guest: Guest) -> dict[int, str]:
    """Ask the guest's kernel for the names of addresses, as "function+0x1f".

    An address in a patch that is gone becomes "a module (0x...)".
    """
    wanted = " ".join(f"{address:016x}" for address in addresses)
    command = (
        f"awk -v wanted='{wanted}' 'BEGIN {{ count = split(wanted, at) }} {{ for (i = 1; i <= count; i++)"
        " if ($2 ~ /[tTwW]/ && $1 <= at[i] && $1 >= best[i]) { best[i] = $1; name[i] = $3 } }"
        " END { for (i = 1; i <= count; i++) print at[i], best[i], name[i] }' /proc/kallsyms"
    )
    try:
        rows = [line.split() for line in (await guest.run(command, timeout=KALLSYMS_LIMIT)).text.splitlines()]
        return dict(_named(int(at, 16), int(start, 16), name) for at, start, name in rows)
    except (HotReloadError, TimeoutError, ValueError):
        return {}


def _named(address: int, start: int, name: str) -> tuple[int, str]:
    offset = address - start
    most = LARGEST_FUNCTION if address < MODULES else LARGEST_OF_A_MODULE
    return address, f"{name}+{offset:#x}" if offset < most else f"a module ({address:#x})"


def told(addresses: Sequence[int], names: Mapping[int, str], places: Mapping[int, Place]) -> str:
    """Describe the place that is stuck.

    For example "show+0x1c, called by seq_read_iter+0x11e; waiting in native_queued_spin_lock_slowpath+0x30".
    """

    def name(address: int) -> str:
        if address in places:
            return f"{places[address][1]}+{places[address][2]:#x}"
        return names.get(address, f"{address:#x}")

    def waits_for_others(address: int) -> bool:
        return address not in places and bool(HELPERS.match(name(address).lstrip("_")))

    inner, *outer = addresses
    if not waits_for_others(inner):
        return name(inner)
    callers = [address for address in outer if not waits_for_others(address)]
    if not callers:
        return name(inner)
    by = f", called by {name(callers[1])}" if len(callers) > 1 else ""
    return f"{name(callers[0])}{by}; waiting in {name(inner)}"


async def look(
    stuck: InKernel, read_memory: ReadMemory, place_of: PlaceOf
) -> tuple[tuple[int, ...], dict[int, Place]]:
    """Return the addresses of a stuck processor, and the places of those that are in the newest patch.

    To be called before the guest is restored.
    """
    addresses = await addresses_of(stuck, read_memory)
    return addresses, await asyncio.to_thread(places_in, addresses, place_of)
