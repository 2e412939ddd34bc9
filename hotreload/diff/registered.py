# SPDX-License-Identifier: MIT
"""Tables that the kernel was given: what it looks up in them each time, and what it decided once. Pure.

A new function in a slot that already had one is called from then on. Filling an empty slot is different:
sysfs asks ``.is_visible`` when it creates a group, and chooses the operations of a binary file depending on
``.write``. So a slot may be filled or emptied in place only if the kernel is known to look at it each time.
The same holds for a mode or a size in a kernel struct, which the kernel may have copied.

Some functions have already run when they change: ``probe`` was called back for each bound device while init
registered the driver, and ``is_visible`` answers once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Final

from hotreload.diff.correlate import base_name
from hotreload.diff.definitions import KERNEL_HEADER, find_definition
from hotreload.diff.holders import IsOwn
from hotreload.diff.init_reads import handed_to_the_kernel, points_at_function, tied_by
from hotreload.diff.layouts import Layouts
from hotreload.diff.obstacles import RELOAD_MODULE, Obstacle
from hotreload.diff.rewrites import Rewrite, member_of_place, name_of_place
from hotreload.elf.decoded import Memory, body_of
from hotreload.elf.model import ObjectFile, Symbol, SymbolRef
from hotreload.elf.object_pointers import states_of, stored_at, stored_by
from hotreload.elf.references import takes_address
from hotreload.elf.value_uses import handed_to

_ALL: Final = frozenset(("*",))
# Structs whose slots the kernel looks at each time. A "-" marks slots that it evaluates only once.
_LOOKED_UP: Final = {
    "file_operations": _ALL,
    # proc_get_inode() chooses by these; pde_set_flags() of later kernels remembers flags for them.
    "proc_ops": frozenset("* -proc_read_iter -proc_compat_ioctl -proc_lseek".split()),
    "seq_operations": _ALL,
    "device_attribute": _ALL,
    "driver_attribute": _ALL,
    "bus_attribute": _ALL,
    "class_attribute": _ALL,
    "kobj_attribute": _ALL,
    "module_attribute": _ALL,
    "configfs_attribute": _ALL,
    "kernel_param_ops": _ALL,
    # vma_wants_writenotify() checks page_mkwrite and pfn_mkwrite when memory is mapped. A new .close must not
    # release what was mapped without .open.
    "vm_operations_struct": frozenset("* -page_mkwrite -pfn_mkwrite -open -close".split()),
    # disk_alloc_events(), and bd_has_submit_bio of later kernels
    "block_device_operations": frozenset("open release ioctl compat_ioctl getgeo".split()),
    # Without the slots by which register_netdevice() decides: for features (netdev_update_features()) and
    # VLANs.
    "net_device_ops": frozenset(
        """ndo_open ndo_stop ndo_start_xmit ndo_select_queue ndo_change_rx_flags ndo_set_rx_mode
        ndo_set_mac_address ndo_validate_addr ndo_do_ioctl ndo_eth_ioctl ndo_siocdevprivate ndo_change_mtu
        ndo_tx_timeout ndo_get_stats64 ndo_get_stats ndo_features_check ndo_change_carrier
        ndo_fdb_add ndo_fdb_del ndo_fdb_dump ndo_fdb_get ndo_bridge_getlink ndo_bridge_setlink
        ndo_bridge_dellink ndo_add_slave ndo_del_slave ndo_get_phys_port_id ndo_get_phys_port_name
        ndo_set_vf_mac ndo_set_vf_vlan ndo_set_vf_rate ndo_set_vf_spoofchk ndo_set_vf_link_state
        ndo_set_vf_trust ndo_get_vf_config ndo_get_vf_stats ndo_hwtstamp_get ndo_hwtstamp_set""".split()
    ),
    # __rtnl_link_register() decides by .setup and .dellink; rtnetlink.c looks at the others.
    "rtnl_link_ops": frozenset(
        """validate newlink changelink get_size fill_info get_xstats_size fill_xstats slave_validate
        slave_changelink get_slave_size fill_slave_info get_link_net get_linkxstats_size
        fill_linkxstats""".split()
    ),
    "ethtool_ops": _ALL,
    # Without the slots for requests, contexts and budgets, which are set up with the queue. .timeout decides
    # whether sysfs has an io_timeout (queue_attr_visible()).
    "blk_mq_ops": frozenset("queue_rq commit_rqs queue_rqs complete busy cleanup_rq show_rq".split()),
    # d_flags_for_inode(), do_inode_permission(), vfs_readlink() and the cache of ACLs remember these.
    "inode_operations": frozenset(
        "* -lookup -get_link -permission -readlink -get_acl -get_inode_acl".split()
    ),
    # Existing inodes have to be freed by the counterpart of what allocated them.
    "super_operations": frozenset("* -alloc_inode -destroy_inode -free_inode".split()),
    "address_space_operations": _ALL,
    "tty_operations": frozenset("* -proc_show".split()),  # proc_tty_register_driver()
    "tty_port_operations": _ALL,
    "v4l2_file_operations": _ALL,
    "vb2_ops": _ALL,
    "kobj_type": frozenset(("release",)),
    "device": frozenset(("release",)),
    "device_type": frozenset(("release",)),
    "class": frozenset(("dev_release",)),
    "platform_driver": frozenset("remove remove_new shutdown".split()),
    "device_driver": frozenset("remove shutdown".split()),
    "pci_driver": frozenset("remove shutdown".split()),
    "usb_driver": frozenset(("disconnect",)),
    "i2c_driver": frozenset("remove shutdown".split()),
    "spi_driver": frozenset("remove shutdown".split()),
}
# Slots that the kernel calls while init registers something, and those that undo it.
_CALLED_AT_LOAD: Final = frozenset("probe remove remove_new connect disconnect".split())
_BINDS: Final = frozenset(("probe", "connect"))
# Slots that make a device, but not at load.
_MAKES: Final = frozenset((("rtnl_link_ops", "setup"), ("rtnl_link_ops", "newlink")))
# Structs whose ``connect`` connects a socket, so they are left out.
_SOCKETS: Final = frozenset("proto_ops proto".split())
# Slots of certain structs that the kernel calls at registration, once for each object that exists by then.
_CALLED_FOR_ALL: Final = {
    "pernet_operations": frozenset("init exit exit_batch".split()),
    "net_device_ops": frozenset("ndo_init ndo_uninit".split()),
    "blk_mq_ops": frozenset("init_hctx exit_hctx init_request exit_request map_queues".split()),
    "class_interface": frozenset("add_dev remove_dev add remove".split()),
    "bus_type": frozenset(("match",)),
    "input_handler": frozenset(("match",)),
    "irq_domain_ops": frozenset("map unmap alloc free activate".split()),
    "gpio_chip": frozenset("request free init_valid_mask".split()),
    "led_trigger": frozenset("activate deactivate".split()),
    "iommu_ops": frozenset("probe_device release_device".split()),
    "hid_driver": frozenset(
        "report_fixup input_mapping input_mapped feature_mapping input_configured".split()
    ),
    "i2c_driver": frozenset(("detect",)),
    "phy_driver": frozenset("get_features match_phy_device config_init".split()),
    "virtio_driver": frozenset("validate scan".split()),
    "console": frozenset(("setup",)),
}
# The slots of _CALLED_FOR_ALL that undo this.
_UNDO: Final = frozenset(
    """exit exit_batch ndo_uninit exit_hctx exit_request remove_dev remove unmap free deactivate
    release_device""".split()
)
# Slots that the kernel calls once, while something is registered, and whose answer it keeps.
_ASKED_ONCE: Final = {
    "attribute_group": frozenset("is_visible is_bin_visible".split()),
    "hwmon_ops": frozenset(("is_visible",)),
    "class": frozenset("devnode get_ownership".split()),
    "kobj_type": frozenset(("get_ownership",)),
    "device_type": frozenset(("devnode",)),
    "tty_driver": frozenset(("devnode",)),
    # __clk_core_init() calls them; clk_get_rate() and clk_get_parent() return what it found.
    "clk_ops": frozenset("recalc_rate get_parent get_phase get_duty_cycle recalc_accuracy".split()),
    "gpio_chip": frozenset(("get_direction",)),
}
_MAKES_CACHE: Final = frozenset(
    "kmem_cache_create kmem_cache_create_usercopy __kmem_cache_create_args".split()
)
# Kernel functions that return a pointer to such a struct.
_RETURNS: Final = {"__class_create": "class", "class_create": "class"}
_NONE: Final[frozenset[str]] = frozenset()

Slot = tuple[str, str]  # the struct, the member


def slots_of(
    obj: ObjectFile, layouts: Layouts | None, functions: Collection[Symbol] | None = None
) -> Iterator[tuple[Symbol, Slot]]:
    """Yield each function in a slot of a table, with the slot.

    ``functions``: only look for these; None: for all.
    """
    if layouts is None or functions == frozenset():
        return
    for table in obj.symbols:
        if not table.is_object or table.name not in layouts.shapes:
            continue
        for relocation in table.relocations:
            target = relocation.target
            if not isinstance(target, SymbolRef) or not target.symbol.is_function:
                continue
            if functions is not None and target.symbol not in functions:
                continue
            if found := member_of_place(layouts, table, relocation.offset):
                yield target.symbol, found
    yield from _slots_in_code(obj, layouts, functions)


def _slots_in_code(
    obj: ObjectFile, layouts: Layouts, functions: Collection[Symbol] | None
) -> Iterator[tuple[Symbol, Slot]]:
    """Yield the same for functions that code stores in a struct which it reached through a pointer.

    The pointer is a variable or was returned by the kernel.
    """
    for holder in obj.functions:
        targets = {r.target.symbol for r in holder.relocations if isinstance(r.target, SymbolRef)}
        stored = {s for s in targets if s.is_function and (functions is None or s in functions)}
        if not stored or not any(_points_at(s, layouts) for s in targets):
            continue
        body = body_of(holder)
        for place, known in states_of(body).items():
            at = body.instructions[place]
            if at.mnemonic != "mov" or not isinstance(at.operands[0], Memory):
                continue
            what, where = stored_by(at, known), stored_at(at, known)
            if what is None or where is None or what.came not in stored or isinstance(where.came, Symbol):
                continue
            source = body.instructions.get(where.came)
            relocation = source and (source.immediate if source.mnemonic == "call" else source.displacement)
            target = relocation.target if relocation else None
            struct = _points_at(target.symbol, layouts) if isinstance(target, SymbolRef) else None
            member = struct and _member_at(layouts, struct, where.offset)
            if struct and member and isinstance(what.came, Symbol):
                yield what.came, (struct, member)


def _points_at(symbol: Symbol, layouts: Layouts) -> str | None:
    """Return the struct that a pointer variable, or the result of a kernel function, points at."""
    if symbol.name in _RETURNS:
        return _RETURNS[symbol.name]
    shape = layouts.shapes.get(symbol.name) if symbol.is_object else None
    is_pointer = shape is not None and shape[0] == "*" and shape[1][:1] == ("struct",)
    return str(shape[1][1]) if shape is not None and is_pointer else None


def _member_at(layouts: Layouts, struct: str, offset: int) -> str | None:
    fields = (f for layout in layouts.aggregates.get(("struct", struct), ()) for f in layout.fields)
    return next((field.name for field in fields if field.offset == offset * 8), None)


def called_back_at_load(obj: ObjectFile, layouts: Layouts | None) -> frozenset[Symbol]:
    """Return the functions that the kernel calls back while init or exit code runs."""
    return frozenset(
        function
        for function, (struct, member) in slots_of(obj, layouts)
        if struct not in _SOCKETS
        and member in _CALLED_AT_LOAD | _CALLED_FOR_ALL.get(struct, _NONE) | _ASKED_ONCE.get(struct, _NONE)
    )


def asked_once(obj: ObjectFile, layouts: Layouts | None, changed: frozenset[Symbol]) -> dict[Symbol, str]:
    """Return the changed functions that the kernel called only at registration, with their slots as text."""
    slots = slots_of(obj, layouts, changed)
    return {f: f"{struct}.{m}" for f, (struct, m) in slots if m in _ASKED_ONCE.get(struct, ())}


def constructors(obj: ObjectFile, changed: frozenset[Symbol]) -> list[Symbol]:
    """Return the changed functions that constructed the free objects of a slab cache."""
    return list(
        dict.fromkeys(
            relocation.target.symbol
            for holder in (obj.functions if changed else ())
            for relocation in holder.relocations
            if isinstance(relocation.target, SymbolRef) and relocation.target.symbol in changed
            if takes_address(holder, relocation) and handed_to(holder, relocation) in _MAKES_CACHE
        )
    )


def binding(
    obj: ObjectFile, layouts: Layouts | None, changed: frozenset[Symbol] | None = None
) -> list[Symbol]:
    """Return the functions that have run for each device or network that already existed.

    ``changed``: only look for these; None: for all.
    """
    slots = slots_of(obj, layouts, changed)
    return list(dict.fromkeys(function for function, slot in slots if slot in _MAKES or _binds(*slot)))


def _binds(struct: str, member: str) -> bool:
    return struct not in _SOCKETS and member in _BINDS | _CALLED_FOR_ALL.get(struct, _NONE) - _UNDO


def with_looked_up(rewrite: Rewrite, layouts: Layouts) -> Rewrite:
    """Return the rewrite with the changed slots in which the kernel looks for a function each time."""
    found = frozenset(
        offset
        for offset, _ in rewrite.changed_places
        if (slot := member_of_place(layouts, rewrite.original, offset)) and _is_looked_up(*slot)
        if points_at_function(rewrite, offset)
    )
    return replace(rewrite, looked_up=found) if found else rewrite


def decided_once(
    original: ObjectFile,
    layouts: Layouts,
    rewrites: Collection[Rewrite],
    sources: Mapping[str, str],
    is_own: IsOwn,
) -> Iterator[Obstacle]:
    """Yield obstacles for values in kernel structs that the kernel may not look at again.

    ``sources``: the texts of the unit; a struct that they define is the driver's own.
    """
    handed = None
    for rewrite in rewrites:
        name = base_name(rewrite.original.name)
        for offset, size in rewrite.changed_places:
            found = member_of_place(layouts, rewrite.original, offset)
            if found is None or _is_the_drivers(found[0], sources):
                continue
            struct, member = found
            told = name_of_place(layouts, rewrite.original, name, offset)
            if points_at_function(rewrite, offset):
                if _is_there(rewrite.original, offset) == _is_there(rewrite.patched, offset):
                    continue
                if not _is_looked_up(struct, member):
                    how = "was added" if _is_there(rewrite.patched, offset) else "was removed"
                    message = (
                        f"{told} {how}: the kernel may have checked it only when the table was registered"
                    )
                    yield Obstacle("HR2103", rewrite.original.name, message, RELOAD_MODULE)
                    break
                continue
            handed = handed_to_the_kernel(original, is_own) if handed is None else handed
            values = tuple(value for value in rewrite.values if (offset, size) in value.changed)
            only = Rewrite(rewrite.original, rewrite.patched, values)
            if use := tied_by(only, handed.get(rewrite.original.name, [])):
                how = f"{use.function} has passed it to the kernel"
                message = f"{told} changed, and {how}: what was made from the old one stays"
                yield Obstacle("HR2103", rewrite.original.name, message, RELOAD_MODULE)
                break


def _is_there(table: Symbol, offset: int) -> bool:
    return any(relocation.offset == offset for relocation in table.relocations)


def _is_looked_up(struct: str, member: str) -> bool:
    members = _LOOKED_UP.get(struct, frozenset())
    return member in members or ("*" in members and f"-{member}" not in members)


def _is_the_drivers(struct: str, sources: Mapping[str, str]) -> bool:
    """Return whether the author's files define a struct; True if there are none, because nobody can tell."""
    if not sources:
        return True
    for word in ("struct ", "union ", ""):
        if where := find_definition(word + struct, sources):
            return KERNEL_HEADER.search(where) is None
    return False
