# SPDX-License-Identifier: MIT
"""Tables of what the complaints of a kernel look like on its console. crash.py reads them.

Sources, of 6.1 and 6.12: arch/x86/mm/fault.c, arch/x86/kernel/traps.c and dumpstack.c, kernel/panic.c,
hung_task.c, watchdog.c, workqueue.c, rcu/tree_stall.h, irq/spurious.c, locking/lockdep.c, mm/kasan/,
mm/kfence/, mm/slub.c, mm/page_alloc.c, lib/ubsan.c, lib/kobject.c, fs/sysfs/dir.c, net/core/dev.c,
net/sched/sch_generic.c. tests/recorded has a log for nearly every row.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass


class Kind(enum.IntEnum):
    """How severe a complaint is. SPLAT: the kernel goes on. STUCK: it goes on, but a part of it does not."""

    SPLAT = 0
    STUCK = 1
    OOPS = 2
    PANIC = 3


# Where the text of a complaint ends.
TRACE = re.compile(r"---\[ end trace")
RULE = re.compile(r"={20,}$")
RULE_OR_TRACE = re.compile(r"={20,}$|---\[ end trace")
STACK = re.compile(r"</TASK>$")  # the last match counts, because some complaints show several stacks
# With panic=N the kernel says that it reboots. With KASLR it first says where it was.
DEAD = re.compile(r"---\[ end Kernel panic|Kernel Offset: |Rebooting in \d+ seconds|</TASK>$")
OBJECT = re.compile(r"</TASK>$|FIX ")  # of SLUB; the last match counts, too
HELD = re.compile(r"#0: ")
HANDLERS = re.compile(r"Disabling IRQ #")
POOL = re.compile(r"pool \d+: ")
AT_ONCE = re.compile(r"")


@dataclass(frozen=True, slots=True)
class Headline:
    """The first line of a complaint.

    ``pattern`` matches from the start of a line. In ``name``, the name of the complaint, ``{}`` is what a
    group of the pattern found.
    """

    kind: Kind
    pattern: re.Pattern[str]
    name: str
    end: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Found:
    """A headline that was found: the name that it gives, and its line number.

    ``dies`` tells whether the line has a [#1].
    """

    headline: Headline
    name: str
    line: int
    dies: bool

    @property
    def kind(self) -> Kind:
        return self.headline.kind


_SPLAT, _STUCK, _OOPS, _PANIC = Kind
_TRAPS = (
    "general protection fault|divide error|invalid opcode|stack segment|double fault|int3|overflow|bounds"
    "|device not available|segment not present|invalid TSS|alignment check|simd exception|fpu exception"
)

# The first row that matches a line counts. If a task dies, a second line of the complaint says so, with [#1]
# in it.
HEADLINES = tuple(
    Headline(kind, re.compile(pattern), name, end)
    for kind, pattern, name, end in (
        (_PANIC, r"Kernel panic - not syncing: (stack-protector: .*) in: ", "Kernel panic: {}", DEAD),
        (_PANIC, r"Kernel panic - not syncing: (.*)", "Kernel panic: {}", DEAD),
        (_OOPS, r"BUG: (kernel NULL pointer dereference)", "BUG: {}", TRACE),
        (_OOPS, r"BUG: (unable to handle page fault)", "BUG: {}", TRACE),
        (_OOPS, r"BUG: (?:\w+ )?(stack guard page) was hit", "BUG: {} was hit", TRACE),
        (_OOPS, r"(kernel BUG) at \S", "{}", TRACE),
        (_OOPS, rf"(?:Oops: )?({_TRAPS}|stack guard page)\b.*\[#\d+\]", "{}", TRACE),
        (_OOPS, r"Oops\b.*\[#\d+\]", "Oops", TRACE),
        (_STUCK, r"(?:watchdog: )?BUG: (soft lockup)", "BUG: {}", STACK),
        (_STUCK, r"(?:NMI )?watchdog: (?:CPU\d+: )?Watchdog detected (hard LOCKUP)", "{}", STACK),
        (_STUCK, r"BUG: (workqueue lockup)", "BUG: {}", POOL),
        (_STUCK, r"BUG: (spinlock lockup suspected)", "BUG: {}", STACK),
        (_STUCK, r"INFO: task (\S+?):\d+ (blocked for more than \d+ seconds)", "INFO: task {} {}", STACK),
        (_STUCK, r"(?:rcu: )?INFO: (\w+ (?:self-)?detected (?:expedited )?stalls?)", "INFO: {}", STACK),
        (_STUCK, r"(unregister_netdevice: waiting for \S+ to become free)", "{}", AT_ONCE),
        (_SPLAT, r"BUG: KASAN: ([\w-]+)", "BUG: KASAN: {}", RULE),
        (_SPLAT, r"BUG: (KFENCE|KMSAN): ([\w -]+?)(?: in |$)", "BUG: {}: {}", RULE),
        (_SPLAT, r"UBSAN: ([\w-]+)", "UBSAN: {}", RULE_OR_TRACE),
        (_SPLAT, r"BUG (\S+) \(.*?\): (.*)", "BUG {}: {}", OBJECT),
        (_SPLAT, r"BUG: (sleeping function called from invalid context)", "BUG: {}", STACK),
        (_SPLAT, r"BUG: (using \S+ in preemptible)", "BUG: {}", STACK),
        (_SPLAT, r"\[ (BUG: .+) \]$", "{}", STACK),
        (_SPLAT, r"BUG: (.+?)(?: in process .*| on CPU#.*|:.*)?$", "BUG: {}", STACK),
        (_SPLAT, r"WARNING: CPU: \d+ PID: \d+ at", "WARNING", TRACE),
        (_SPLAT, r"WARNING: (lock held when returning to user space)", "WARNING: {}", HELD),
        (_SPLAT, r"WARNING: ((?:possible|bad|inconsistent|suspicious|held|lock)\b.*)", "WARNING: {}", STACK),
        (_SPLAT, r"WARNING: (\w+-safe -> \w+-unsafe lock order detected)", "WARNING: {}", STACK),
        (_SPLAT, r"(INFO: trying to register non-static key)", "{}", STACK),
        (_SPLAT, r"(bad: scheduling from the idle thread)", "{}", STACK),
        (_SPLAT, r"(?:kobject: )?(kobject) .*: (tried to init an initialized object)", "{}: {}", STACK),
        (_SPLAT, r"(sysfs: cannot create duplicate filename '\S*')", "{}", STACK),
        (_SPLAT, r"(irq) \d+: (nobody cared)", "{}: {}", HANDLERS),
        (_SPLAT, r"(irq) event \d+: (bogus return value)", "{}: {}", HANDLERS),
        (_SPLAT, r"\S+: (page allocation failure: order:\d+)", "{}", STACK),
        (_SPLAT, r"(?:\S+ )*?(\S+: NETDEV WATCHDOG): .*(transmit queue \d+ timed out)", "{}: {}", AT_ONCE),
    )
)  # fmt: skip

# Texts near the headline by which the complaint is better known: before a "kernel BUG", and right after the
# first line of an oops. ``{of}`` is the beginning of the headline's own name.
BETTER_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(list_(?:add|del) (?:corruption|double add))", "{}"),
        (r"(usercopy: Kernel memory (?:exposure|overwrite) attempt detected)", "{}"),
        (r"(detected buffer overflow) in (\w+)", "{1}: {0}"),
        (r"(\w+: detected buffer overflow)", "{}"),
        (r"\[(.* overwritten)\] ", "{of}: {}"),
        (r"skbuff: (skb_(?:over|under)_panic)", "{}"),
        (r"(KASAN: [\w-]+) in range", "{}"),
        (r"(kernel tried to execute NX-protected page)", "{}"),
        (r"(unable to execute userspace code)", "{}"),
    )
)

# Panics that only follow from a complaint other than an oops.
CONSEQUENCES = re.compile(r"Kernel panic: (?:.*panic_on_warn|softlockup: |hung_task: |RCU Stall|Hard LOCKUP)")
# With oops=panic, this follows an oops that would otherwise have killed only the task.
OOPS_PANIC = "Kernel panic: Fatal exception"
