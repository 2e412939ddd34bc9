# SPDX-License-Identifier: MIT
"""Which addresses of a patch may be kept by the kernel when the code that made them has returned.

A replaced patch module can be removed only if nothing points into it. Of functions and variables that can be
told (plan.py); a string or a constant table is harmless only where it is handed to a function that is
known to read it and forget it: printk's relatives, formatting, comparing and copying. Whatever else
happens to it (stored as a name, returned, handed on) keeps the module loaded.
"""

from __future__ import annotations

from typing import Final

from hotreload.diff.special_sections import TRACE_FORMATS
from hotreload.elf.model import Relocation, Symbol
from hotreload.elf.references import handed_to

# Functions of the kernel that keep none of the pointers they are given, and return none into what these point
# at (as strchr() does).
READERS: Final = frozenset(
    """_printk printk vprintk panic __warn_printk warn_slowpath_fmt __stack_chk_fail
    netdev_printk netdev_emerg netdev_alert netdev_crit netdev_err netdev_warn netdev_notice netdev_info
    seq_printf seq_puts seq_putc seq_write seq_put_decimal_ull seq_put_decimal_ll seq_escape
    sysfs_emit sysfs_emit_at scnprintf snprintf sprintf vsnprintf vscnprintf vsprintf sscanf
    kasprintf kvasprintf kstrdup kstrndup kmemdup kstrtoint kstrtouint kstrtol kstrtoul kstrtoll kstrtoull
    strcmp strncmp strcasecmp strncasecmp strlen strnlen strcpy strncpy strscpy strscpy_pad strlcpy
    strcat strncat strlcat     strspn strcspn sysfs_streq match_string
    memcmp memcpy __memcpy memmove __memmove  memset _copy_to_user __copy_user_nocache
    simple_read_from_buffer copy_to_iter _copy_to_iter __trace_printk __trace_puts __trace_bprintk
    __dynamic_pr_debug __dynamic_dev_dbg __dynamic_netdev_dbg __dynamic_ibdev_dbg print_hex_dump""".split()
)
# dev_err() and its relatives: _dev_err, _dev_info, ... (include/linux/dev_printk.h)
READER_PREFIX: Final = "_dev_"


def escapes(holder: Symbol, relocation: Relocation) -> bool:
    """Whether the address that a relocation makes may be kept by somebody."""
    section = holder.section
    if section is not None and section.name == TRACE_FORMATS:
        return False  # the kernel reads its copy
    if section is None or not section.is_code:
        return True
    reader = handed_to(holder, relocation)
    return reader is None or not (reader in READERS or reader.startswith(READER_PREFIX))
