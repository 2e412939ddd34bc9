# SPDX-License-Identifier: MIT
"""Find out which string a pointer variable points at, by reading the guest's memory.

Strings have no symbols, and a linker merges equal ones. So read the address that the variable holds, and the
text at that address. If that is the text of the old source, the variable still has its old value.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from hotreload.deploy.livepatch import evolved
from hotreload.deploy.verify import KERNEL_MAP, ReadMemory
from hotreload.errors import EnvironmentFault
from hotreload.patch.model import Absolute, PatchPlan, Pointer, Text, Write
from hotreload.patch.symbols import SymbolPosition
from hotreload.patch.writes import Place, Written, place_of

# The address of a symbol in the guest. None if it is unknown.
Where = Callable[[SymbolPosition], int | None]
# An address that nothing has. A value that is to be exchanged with it never matches, and stays as it is.
NOWHERE = Pointer(Absolute(1), 0)


def unknown_texts(plan: PatchPlan, written: Mapping[Place, Written]) -> tuple[Write, ...]:
    """Return the writes to pointers to strings whose addresses are not known from an earlier patch."""
    return tuple(w for w in plan.writes if isinstance(w.before, Text) and place_of(w) not in written)


async def with_texts(
    plan: PatchPlan, unknown: tuple[Write, ...], read: ReadMemory, where: Callable[[], Awaitable[Where]]
) -> PatchPlan:
    """Return the plan with the addresses of the old strings.

    Raises PatchRejectedError (HR2103) if a variable points at something else by now. A parameter that does
    was set by hand, and is left alone.
    """
    if not unknown:
        return plan
    find = await where()
    found: dict[Write, Pointer] = {}
    for write in unknown:
        address = find(write.place)
        pointer = await _old_text(write, address, read) if address is not None else None
        if pointer is None and not write.may_differ:
            raise evolved(write.name)
        found[write] = Pointer(Absolute(pointer), 0) if pointer is not None else NOWHERE
    return replace(
        plan, writes=tuple(replace(w, before=found[w]) if w in found else w for w in plan.writes)
    )  # fmt: skip


async def _old_text(write: Write, address: int, read: ReadMemory) -> int | None:
    """Return the pointer in the variable, or None if it does not point at the old text in kernel memory."""
    assert isinstance(write.before, Text)
    old = write.before.text + b"\0"
    pointer = int.from_bytes(await read(address + write.offset, write.size), "little")
    if pointer < KERNEL_MAP:
        return None
    try:
        return pointer if await read(pointer, len(old)) == old else None
    except EnvironmentFault:
        return None  # the pointer is not valid
