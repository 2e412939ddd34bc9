# SPDX-License-Identifier: MIT
"""Find out which of the kernel's allocators a function uses, and how it frees memory from elsewhere.

Memory from one allocator may not be given to another: ``vfree()`` of memory from ``kmalloc()`` is a leak at
best. A function that frees what it has allocated itself knows what that is.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from hotreload.elf.allocators import NO_WRAPPERS, Wrappers
from hotreload.elf.decoded import RDI, RDX, RSI, body_of
from hotreload.elf.model import Symbol
from hotreload.elf.object_pointers import ARGUMENTS, Origin, Pointer, is_of_variable, origin_of, states_of

SLAB, CACHE, VMALLOC, PAGES, EXACT, PERCPU, POOL, DMA, DMA_POOL, DEVICE = range(10)

_ALLOCATES: Final = {
    name: kind
    for kind, names in (
        (
            SLAB,
            """__kmalloc __kmalloc_node kmalloc_trace kmalloc_node_trace kmem_cache_alloc_trace
            kmem_cache_alloc_node_trace __kmalloc_cache __kmalloc_cache_node kmalloc_large kmalloc_large_node
            __kmalloc_large __kmalloc_large_node krealloc kmemdup kmemdup_array memdup_user kstrdup kstrndup
            kasprintf kvasprintf""",
        ),
        (CACHE, "kmem_cache_alloc kmem_cache_alloc_node kmem_cache_alloc_lru"),
        (
            VMALLOC,
            """vmalloc vzalloc __vmalloc vmalloc_node vzalloc_node vmalloc_user vmalloc_32 vmalloc_array
            vcalloc __vcalloc __vmalloc_array""",
        ),
        (PAGES, "__get_free_pages get_free_pages get_zeroed_page alloc_pages __alloc_pages"),
        (EXACT, "alloc_pages_exact"),
        (PERCPU, "__alloc_percpu __alloc_percpu_gfp pcpu_alloc"),
        (POOL, "mempool_alloc"),
        (DMA, "dma_alloc_attrs"),
        (DMA_POOL, "dma_pool_alloc"),
        # The device frees it.
        (DEVICE, "devm_kmalloc devm_kmemdup devm_kstrdup devm_kasprintf devm_kvasprintf devm_krealloc"),
    )
    for name in names.split()
}
# The kinds of memory that each of these takes, the usual one first, and the register that passes it.
_FREES: Final = {
    name: (kinds, registers)
    for names, kinds, *registers in (
        ("kfree kfree_sensitive bitmap_free", (SLAB, CACHE), RDI),
        ("kvfree kvfree_sensitive", (SLAB, CACHE, VMALLOC), RDI),
        # In v6.1 the second argument is the offset of the first one in the object, unless that is NULL.
        ("kvfree_call_rcu", (SLAB, CACHE, VMALLOC), RSI, RDI),
        ("vfree vfree_atomic", (VMALLOC,), RDI),
        ("kmem_cache_free", (CACHE,), RSI),
        ("free_pages __free_pages", (PAGES,), RDI),
        ("free_pages_exact", (EXACT,), RDI),
        ("free_percpu", (PERCPU,), RDI),
        ("mempool_free", (POOL,), RDI),
        ("dma_free_attrs", (DMA,), RDX),
        ("dma_pool_free", (DMA_POOL,), RSI),
        ("devm_kfree", (DEVICE,), RSI),
    )
    for name in names.split()
}
# Linux commit 7bd230a26648 ("mm/slab: enable slab allocation tagging for kmalloc and friends") (in v6.10)
_TAGGED: Final = "_noprof"


def allocators_of(function: Symbol, through: Wrappers = NO_WRAPPERS) -> Counter[int]:
    """Return the kinds of memory that a function allocates, with the number of calls."""
    code = body_of(function).instructions.values()
    called = (at.destination for at in code if at.mnemonic in ("call", "jmp"))
    names = (_behind(callee.name, through) for callee in called if callee is not None)
    return Counter(_ALLOCATES[name] for name in names if name in _ALLOCATES)


def frees_of(
    function: Symbol, through: Wrappers = NO_WRAPPERS, *, only_of_objects: bool = False
) -> Counter[str]:
    """Return the functions that free memory which ``function`` was passed or has found.

    The values are the numbers of their calls. With ``only_of_objects``, leave out what a variable points at:
    that is NULL until something is stored there.
    """
    body = body_of(function)
    found: Counter[str] = Counter()
    if not any(
        at.destination is not None and _behind(at.destination.name, through) in _FREES
        for at in body.instructions.values()
    ):
        return found
    for place, known in states_of(body).items():
        at = body.instructions[place]
        called = at.destination.name if at.destination is not None else ""
        name = _behind(called, through)
        if at.mnemonic not in ("call", "jmp") or name not in _FREES:
            continue
        registers = ARGUMENTS[:1] if called in through else _FREES[name][1]
        pointer = next((known[register] for register in registers if register in known), None)
        if pointer is None or _is_allocated(origin_of(body, pointer), through):
            continue
        if not only_of_objects or not (isinstance(pointer.came, Symbol) or is_of_variable(body, pointer)):
            found[name] += 1
    return found


def free_behind(function: Symbol) -> str | None:
    """Return the function of the kernel that frees the first parameter of a function; None if none does."""
    body = body_of(function)
    for place, known in states_of(body).items():
        at = body.instructions[place]
        name = at.destination.name if at.destination is not None else ""
        is_free = at.mnemonic in ("call", "jmp") and name in _FREES
        if is_free and Pointer(-1 - RDI, 0) in (known.get(register) for register in _FREES[name][1]):
            return name
    return None


def takes(free: str, kind: int) -> bool:
    """Return whether the function ``free`` may free memory of that kind."""
    return kind in _FREES[free][0]


def usual_kind(free: str) -> int:
    """Return the kind of memory that the function ``free`` usually frees."""
    return _FREES[free][0][0]


def _is_allocated(origin: Origin, through: Wrappers) -> bool:
    return isinstance(origin, str) and _behind(origin, through) in _ALLOCATES


def _behind(name: str, through: Wrappers) -> str:
    return through.get(name, name.removesuffix(_TAGGED))
