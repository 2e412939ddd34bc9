# SPDX-License-Identifier: MIT
"""Functions of the kernel that read what they are passed and forget the address.

A name here means the function of the kernel, not one that the object or the module defines (a driver's own
``_dev_set_label``). A function that is not listed may keep the address.
"""

from __future__ import annotations

from typing import Final

# Functions that print what they are passed and do nothing else.
PRINTERS: Final = frozenset(
    """_printk printk vprintk _dev_printk _dev_emerg _dev_alert _dev_crit _dev_err _dev_warn _dev_notice
    _dev_info netdev_printk netdev_emerg netdev_alert netdev_crit netdev_err netdev_warn netdev_notice
    netdev_info __dynamic_pr_debug __dynamic_dev_dbg __dynamic_netdev_dbg""".split()
)
# Functions that keep none of the pointers they are passed, and that return no pointer into what these point
# at (FINDERS do).
READERS: Final = PRINTERS | frozenset(
    """panic __warn_printk warn_slowpath_fmt __stack_chk_fail __fortify_panic fortify_panic dev_printk_emit
    dev_err_probe seq_printf seq_puts __seq_puts seq_putc seq_write seq_put_decimal_ull seq_put_decimal_ll
    seq_put_decimal_ull_width seq_put_hex_ll
    seq_escape seq_escape_mem sysfs_emit sysfs_emit_at scnprintf snprintf sprintf vsnprintf vscnprintf
    vsprintf sscanf kasprintf kvasprintf devm_kasprintf kstrdup kstrndup kmemdup kmemdup_noprof devm_kstrdup
    devm_kmemdup kstrtoint kstrtouint kstrtol kstrtoul kstrtoll kstrtoull kstrtobool kstrtou8 kstrtou16
    kstrtos8 kstrtos16 ethtool_sprintf ethtool_puts strcmp strncmp strcasecmp strncasecmp strlen strnlen
    strcpy strncpy strscpy sized_strscpy strscpy_pad strlcpy strcat strncat strlcat strspn strcspn
    sysfs_streq __sysfs_match_string match_string memcmp bcmp memcpy __memcpy memmove __memmove memset
    __memset memweight crc32_le crc32_be crc32c crc16 crc8 crc_ccitt
    _copy_to_user __copy_user_nocache copy_user_generic_unrolled copy_user_generic_string
    copy_user_enhanced_fast_string rep_movs_alternative __check_object_size __get_user_1 __get_user_2
    __get_user_4 __get_user_8 simple_read_from_buffer copy_to_iter _copy_to_iter memcpy_toio iowrite8_rep
    iowrite16_rep iowrite32_rep
    __trace_printk __trace_puts __trace_bprintk __trace_bputs
    __dynamic_ibdev_dbg print_hex_dump hex_dump_to_buffer bin2hex
    regmap_multi_reg_write regmap_multi_reg_write_bypassed regmap_bulk_write regmap_raw_write
    i2c_transfer i2c_transfer_buffer_flags __i2c_transfer i2c_smbus_write_i2c_block_data
    i2c_smbus_write_block_data spi_write_then_read mipi_dsi_dcs_write mipi_dsi_generic_write
    of_property_read_variable_u32_array of_property_read_u32_index of_property_read_string of_find_property
    of_get_property of_property_read_string_helper of_property_match_string of_device_is_compatible
    device_property_present device_property_read_string device_property_read_u32_array
    device_property_read_u8_array device_property_read_u16_array device_property_read_u64_array
    device_property_match_string fwnode_property_read_u32_array
    __nla_parse __nla_validate nla_put nla_strcmp xxhash xxh32 xxh64 jhash full_name_hash
    add_uevent_var kobject_uevent_env""".split()
)
# Functions that return a pointer into what they are passed in rdi or, if that is a key, in rsi.
FINDERS: Final = frozenset(
    """bsearch strchr strrchr strnchr strchrnul strstr strnstr strpbrk skip_spaces memchr memscan
    memchr_inv""".split()
)
# Functions that keep pointers into their first argument, and into no other.
KEEP_FIRST: Final = frozenset(("match_token",))
# Those of the FINDERS that pass it on to a callback, which is another argument.
CALLERS: Final = frozenset(("bsearch",))

# Those of the READERS that only return a value, and those that make a text of what they are passed.
PURE: Final = frozenset(
    """strcmp strncmp strcasecmp strncasecmp strlen strnlen strspn strcspn sysfs_streq match_string
    __sysfs_match_string memcmp bcmp memweight crc32_le crc32_be crc32c crc16 crc8 crc_ccitt xxhash xxh32
    xxh64 jhash full_name_hash""".split()
)
TEXT_MAKERS: Final = frozenset(
    """snprintf scnprintf sprintf vsnprintf vscnprintf vsprintf kasprintf kvasprintf devm_kasprintf kstrdup
    kstrndup devm_kstrdup""".split()
)
# Functions that call the function that they are passed before they return.
AT_ONCE: Final = frozenset(
    """sort sort_r list_sort bsearch idr_for_each bus_for_each_dev bus_for_each_drv bus_find_device
    class_for_each_device class_find_device driver_for_each_device driver_find_device device_for_each_child
    device_for_each_child_reverse device_find_child on_each_cpu_cond_mask smp_call_function
    smp_call_function_many smp_call_function_single smp_call_function_any work_on_cpu work_on_cpu_key
    work_on_cpu_safe work_on_cpu_safe_key stop_machine stop_machine_cpuslocked __cpuhp_setup_state
    __cpuhp_setup_state_cpuslocked __cpuhp_state_add_instance alloc_netdev_mqs for_each_kernel_tracepoint
    kallsyms_on_each_symbol pci_walk_bus walk_iomem_res_desc walk_system_ram_range iterate_supers
    iterate_supers_type
    apply_to_page_range""".split()
)


def forgets(name: str) -> bool:
    """Return whether the kernel function of that name keeps no address that it is passed."""
    return name in READERS or name in FINDERS or name in KEEP_FIRST
