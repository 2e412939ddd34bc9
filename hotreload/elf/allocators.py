# SPDX-License-Identifier: MIT
"""Find the sizes of the memory that code allocates, as far as they are numbers in the code.

The kernel marks its allocators for the compiler (``__alloc_size``, include/linux/compiler_attributes.h). An
object file does not keep these marks, so the allocators are listed here, each with its size argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from hotreload.elf.decoded import R8, RCX, RDI, RDX, RSI, RSP, Decoded, Memory, Number, Register, body_of
from hotreload.elf.model import Symbol
from hotreload.elf.references import names_elsewhere

_SIZE_IN: Final = {
    name: register
    for register, names in (
        (
            RDI,
            """__kmalloc __kmalloc_node kmalloc_large kmalloc_large_node kvmalloc_node __kvmalloc_node vmalloc
            vzalloc vmalloc_node vzalloc_node vmalloc_user vmalloc_32 __vmalloc alloc_pages_exact
            __kmalloc_large __kmalloc_large_node __alloc_percpu __alloc_percpu_gfp pcpu_alloc bitmap_alloc
            bitmap_zalloc bitmap_alloc_node bitmap_zalloc_node alloc_netdev_mqs alloc_etherdev_mqs
            ieee80211_alloc_hw_nm""",
        ),
        (
            RSI,
            """krealloc kvrealloc devm_kmalloc dma_alloc_attrs dmam_alloc_attrs dma_alloc_pages
            dma_alloc_noncontiguous kmem_cache_create kmem_cache_create_usercopy __kmem_cache_create_args
            __kfifo_alloc devm_bitmap_alloc devm_bitmap_zalloc kmemdup kmemdup_array kvmemdup memdup_user
            vmemdup_user __devres_alloc_node alloc_pages_exact_nid devm_alloc_percpu __devm_alloc_percpu
            devm_alloc_etherdev_mqs scsi_host_alloc iio_device_alloc devm_iio_device_alloc
            __spi_alloc_controller __devm_spi_alloc_controller wiphy_new_nm ioremap ioremap_wc ioremap_uc
            ioremap_cache memremap""",
        ),
        (
            RDX,
            """kmalloc_trace kmem_cache_alloc_trace __kmalloc_cache devm_krealloc dma_pool_create devm_kmemdup
            __seq_open_private seq_open_private platform_device_add_data devm_ioremap devm_ioremap_wc
            devm_memremap""",
        ),
        # pool_data of these is the size of an item if mempool_kmalloc() allocates the items.
        (
            RCX,
            """kmalloc_node_trace kmem_cache_alloc_node_trace __kmalloc_cache_node mempool_create
            mempool_create_node""",
        ),
        (R8, "mempool_init mempool_init_node"),
    )
    for name in names.split()
}
# Its arguments were the pointer, the old size, the new size and the flags before v6.12 (include/linux/mm.h),
# and are the pointer, the size and the flags since (include/linux/slab.h).
_KVREALLOC: Final = "kvrealloc"
# These take the order of an allocation: the number of pages is 2 to the power of it.
_ORDER_IN: Final = {
    name: register
    for register, names in (
        (RSI, "__get_free_pages get_free_pages alloc_pages __alloc_pages folio_alloc __folio_alloc"),
        (RDX, "devm_get_free_pages"),
    )
    for name in names.split()
}
# The page shift of x86 (asm/page_types.h), and a limit that no order reaches (include/linux/mmzone.h).
_PAGE_SHIFT: Final = 12
_ORDERS: Final = 16
_FREED_BY: Final = frozenset(
    """kfree kvfree vfree kfree_sensitive kvfree_sensitive devm_kfree free_pages __free_pages
    free_pages_exact free_percpu bitmap_free dma_free_attrs""".split()
)
# Linux commit 7bd230a26648 ("mm/slab: enable slab allocation tagging for kmalloc and friends") (in v6.10)
_TAGGED: Final = "_noprof"
# The author's functions that pass on what they are passed: the name -> the kernel's function behind it.
Wrappers = Mapping[str, str]
NO_WRAPPERS: Final[Wrappers] = MappingProxyType({})


def allocated_sizes(function: Symbol, through: Wrappers = NO_WRAPPERS) -> Counter[int]:
    """Return the sizes that a function passes to the kernel's allocators as numbers.

    They are in the unit that the allocator counts in, mostly bytes; ``bitmap_alloc()`` takes bits. Of a
    wrapper, every number that it is passed may be the size.
    """
    sizes: Counter[int] = Counter()
    if not any(name in _SIZE_IN or name in _ORDER_IN or name in through for name in _called(function)):
        return sizes
    for callee, known in _calls_with_numbers(function):
        register = _size_register(callee, known)
        if register in known:
            sizes[known[register]] += 1
        register = _ORDER_IN.get(callee)
        if register in known and 0 <= known[register] < _ORDERS:
            sizes[1 << known[register] + _PAGE_SHIFT] += 1
        if through.get(callee) in _SIZE_IN:
            sizes.update(known[register] for register in (RDI, RSI, RDX) if register in known)
    return sizes


def allocator_behind(function: Symbol) -> str | None:
    """Return the allocator that a function passes a size to that it does not know itself; None if none."""
    for callee, known in _calls_with_numbers(function):
        register = _size_register(callee, known)
        if register is not None and register not in known:
            return callee
    return None


def _calls_with_numbers(function: Symbol) -> Iterator[tuple[str, dict[int, int]]]:
    """Yield the calls of the kernel's functions, with the registers that hold numbers then, and these."""
    known: dict[int, int] = {}
    for at in body_of(function).instructions.values():
        if at.mnemonic in ("call", "jmp"):
            yield _destination(at), known
        if at.mnemonic == "call":
            known.clear()
            continue
        for register in at.writes:
            known.pop(register, None)
        if (number := _set_to(at)) is not None:
            known[number[0]] = number[1]


def _size_register(allocator: str, known: Mapping[int, int]) -> int | None:
    """Return the register in which an allocator gets the size; ``known``: the registers that hold numbers."""
    if allocator == _KVREALLOC and RCX in known:
        return RDX
    return _SIZE_IN.get(allocator)


def frees(function: Symbol) -> bool:
    """Return whether a function frees memory. If so, what it allocates may be gone when it ends."""
    return not _FREED_BY.isdisjoint(_called(function))


def numbers_in(function: Symbol) -> Counter[int]:
    """Return the numbers that a function's instructions use, offsets in structures included.

    Offsets on its stack are left out.
    """
    found: Counter[int] = Counter()
    for at in body_of(function).instructions.values():
        if at.mnemonic == "call" or at.mnemonic[0] == "j" or at.operands[:1] == (Register(RSP, 8),):
            continue
        for operand in at.operands:
            if isinstance(operand, Number) and at.immediate is None:
                found[operand.value] += 1
            elif isinstance(operand, Memory) and at.displacement is None and operand.base != RSP:
                found[operand.displacement] += 1
    return found


def loops_in(function: Symbol) -> int:
    """Return the number of branches that go backwards."""
    return sum(
        at.mnemonic[0] == "j" and at.immediate is None and isinstance(to, Number) and to.value <= at.start
        for at in body_of(function).instructions.values()
        for to in at.operands
    )


def _called(function: Symbol) -> set[str]:
    return {name.removesuffix(_TAGGED) for name in names_elsewhere(function)}


def _destination(at: Decoded) -> str:
    """Return the name of the kernel function that is called."""
    callee = at.destination
    return "" if callee is None or callee.is_defined else callee.name.removesuffix(_TAGGED)


def _set_to(at: Decoded) -> tuple[int, int] | None:
    """Return the register that an instruction sets to a number, and that number."""
    if len(at.operands) != 2 or at.immediate is not None:
        return None
    into, what = at.operands
    if not isinstance(into, Register) or into.size < 4:
        return None
    if at.mnemonic in ("mov", "movabs") and isinstance(what, Number):
        return into.number, what.value
    return (into.number, 0) if at.mnemonic == "xor" and what == into else None
