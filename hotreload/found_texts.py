# SPDX-License-Identifier: MIT
"""Where a variable begins with a pointer to a string, the guest's memory has to say which one that is.

Strings have no symbols, and a linker merges those that are alike. So the address that the variable has now is
read, and what stands there: while that is the text which the source had, it is the old value.
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

# Where a symbol is in the guest; None: nobody knows.
Where = Callable[[SymbolPosition], int | None]
# An address that nothing has: what is to be exchanged with it stays as it is.
NOWHERE = Pointer(Absolute(1), 0)


def unknown_texts(plan: PatchPlan, written: Mapping[Place, Written]) -> tuple[Write, ...]:
    """The writes over pointers to strings that are not known from an earlier patch."""
    return tuple(w for w in plan.writes if isinstance(w.before, Text) and place_of(w) not in written)


async def with_texts(
    plan: PatchPlan, unknown: tuple[Write, ...], read: ReadMemory, where: Callable[[], Awaitable[Where]]
) -> PatchPlan:
    """The plan with the addresses of the old strings. Raises PatchRejectedError (HR2103) where a variable
    points at something else by now; a parameter that does was set by hand, and stays so."""
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
    """Where the variable points; None: not at its old text in the memory of the kernel or of a module."""
    assert isinstance(write.before, Text)
    old = write.before.text + b"\0"
    pointer = int.from_bytes(await read(address + write.offset, write.size), "little")
    if pointer < KERNEL_MAP:
        return None
    try:
        return pointer if await read(pointer, len(old)) == old else None
    except EnvironmentFault:
        return None  # it points at nothing that is there
