# SPDX-License-Identifier: MIT
"""Find the function to blame in the lines of a kernel's complaint. Pure.

The innermost function of a call trace is often only a helper, or one that checks what others do. The tables
below list the functions that are never to blame.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hotreload.report.complaints import HELD, RULE, Found, Kind

FRAME = re.compile(
    r"(?<![\w.])(?P<guess>\? )?(?P<function>[A-Za-z_][\w.]*)\+(?P<offset>0x[0-9a-f]+)/(?P<size>0x[0-9a-f]+)"
    r"(?: \[(?P<module>[\w-]+)[^\]]*\])?"
)
INSTRUCTION = re.compile(r"RIP: 0010:(.*)")
LOCKED_AT = re.compile(r"#\d+: .* at: (.*)")
BACKTRACE = "stack backtrace:"
CALL_TRACE = "Call Trace:"
HINT = "hint: "  # names a function of the object, not the one that misused it
LARGEST_FUNCTION = 1 << 24  # bytes; a larger "function" is data that was jumped to

# Functions that report or wait on behalf of others. They are never to blame, unless a function of a module
# has such a name.
HELPERS = re.compile(
    r"dump_stack|show_stack|panic|stack_chk_fail|warn_|report_bug|kasan|asan|check_region|print_|end_report|ubsan"
    r"|refcount_|might_|schedule|preempt_|lock_|mutex_|rwsem_|down_|raw_|do_raw_|rt_mutex|queued_spin|native_"
    r"|lockdep|hlock_|register_lock_class|debug_|check_|validate_chain|mark_lock|rcu_|nmi_|watchdog|kfree|kmem_cache"
    r"|slab_|object_err|kfence|msleep|usleep|wait_for|io_schedule|asm_|sysvec_|exc_|do_trap|handle_bug|die|oops_"
    r"|page_fault|mem(?:cpy|set|move)|str(?:n?cpy|l?cat|n?cmp|n?len|scpy)|list_(?:add|del)|delay_|const_udelay"
    r"|udelay|read_tsc|cpu_relax|copy_(?:to|from)_user|dequeue_task_idle"
)
# Functions that check what a caller does. They are not to blame for what the check found, only for a fault of
# their own.
CHECKERS = re.compile(
    r"copy_overflow|(?:check_)?(?:heap_)?object_size|usercopy|fortify_|skb_(?:panic|over_panic|under_panic|put|push)"
    r"|vunmap|vfree|free_to_partial_list|free_large_kmalloc|free_unref|free_pages?|free_pcp|free_one_page|bad_page"
    r"|alloc_pages|alloc_frozen|get_page_from_freelist|folio_alloc|kmalloc|alloc_debug|get_partial|on_freelist"
    r"|kobject_|sysfs_|kernfs_|proc_(?:register|mkdir|create)|remove_proc|device_release|put_device"
    r"|free_irq|handle_irq|report_bad_irq|note_interrupt|dma_(?:un)?map|init_work"
)
# Lines that give the function concerned, by name only. In these complaints, no other function is to blame.
NAMED = re.compile(
    r"(?:\s*last function: |.* workfn=|\[<\S+>\] |in-flight: \d+(?:\(RESCUER\))?:)"
    r"(?P<function>[A-Za-z_][\w.]*)(?: \[(?P<module>[\w-]+)\])?(?:$|,)"
)
# SLUB's trace shows where the damage was noticed. These lines give the owner of the object.
OWNERS = (
    ("Freed in ", re.compile("Poison overwritten")),
    ("Allocated in ", re.compile("Redzone overwritten")),
)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a function.

    ``at`` is the offset as the text has it. ``offset`` is that of the instruction that is meant, in bytes.
    """

    function: str
    module: str | None
    at: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        return self.function if self.at is None else f"{self.function}+{self.at}"


def blamed(own: Sequence[str], cause: Found, name: str, message: str) -> Place | None:
    """Return where it happened or, if that is a helper, the nearest caller that is not one.

    ``own``      the lines of the complaint from its headline on
    ``name``     the final name of the complaint
    ``message``  what a WARN said before it
    """
    named = next((found for line in own if (found := NAMED.match(line))), None)
    if named and cause.kind <= Kind.STUCK:
        return Place(named["function"], named["module"])
    told = message if HINT not in message else ""
    frames = [frame for line in (told, own[0]) if (frame := FRAME.search(line)) and _is_code(frame)]
    frames += [frame for line in _telling(own, cause, name) if (frame := _frame(line)) and _is_code(frame)]
    sure = [frame for frame in frames if not frame["guess"]]
    checks = _is_check(cause)
    best = next(
        (each for each in (*sure, *frames) if not _is_helper(each, checks)), sure[0] if sure else None
    )
    return _place(best, own) if best else None


def _telling(own: Sequence[str], cause: Found, name: str) -> Sequence[str]:
    """Return the lines whose frames show the culprit."""
    start = 0
    if BACKTRACE in own:  # lockdep: the lock chains before this line show who took the locks at other times
        return own[own.index(BACKTRACE) :]
    if cause.headline.end is HELD:
        return [found[1] for line in own if (found := LOCKED_AT.match(line))]
    for owner, what in OWNERS:
        owned = next((number for number, line in enumerate(own) if line.startswith(owner)), None)
        if owned is not None:
            if what.search(name):
                return [own[owned].removeprefix(owner), *own[owned + 1 :]]
            start = own.index(CALL_TRACE) if CALL_TRACE in own else len(own)
    return own[start:]


def _frame(line: str) -> re.Match[str] | None:
    instruction = INSTRUCTION.match(line)
    return FRAME.match(instruction[1] if instruction else line)


def _is_code(frame: re.Match[str]) -> bool:
    return int(frame["size"], 16) < LARGEST_FUNCTION


def _is_check(cause: Found) -> bool:
    """Return whether a check complained, in contrast to a fault.

    A fault is reported where it happened.
    """
    return cause.name == "kernel BUG" or (cause.kind is Kind.SPLAT and cause.headline.end is not RULE)


def _is_helper(frame: re.Match[str], checks: bool) -> bool:
    if frame["module"]:  # a driver's function, whatever its name
        return False
    function = frame["function"].lstrip("_")
    return bool(HELPERS.match(function) or (checks and CHECKERS.match(function)))


def _place(frame: re.Match[str], own: Sequence[str]) -> Place:
    """Return the place of a frame.

    A call trace gives the address after a call. The instruction that is meant is the call.
    """
    offset = int(frame["offset"], 16)
    at = frame[0].removeprefix("? ")
    is_its_own = any((found := INSTRUCTION.match(line)) and found[1].startswith(at) for line in own)
    return Place(
        frame["function"], frame["module"], frame["offset"], offset if is_its_own else max(offset - 1, 0)
    )
