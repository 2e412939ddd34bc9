# SPDX-License-Identifier: MIT
"""Console text of a guest -> what its kernel complained about. Pure.

After the model of syzkaller's pkg/report: find the headline, cut the text at the line where the complaint
begins and where it ends, name it by its kind and the function that is to blame. A table says what a headline
looks like; nothing else here knows a message.

One complaint often brings others: an oops in interrupt context ends in a panic, a KASAN report in an oops.
The worst gives the code, the first of the worst kind the title, for it is the cause of those after it; except
that a panic that follows another complaint is named after that one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

OOPS, PANIC, SPLAT = "HR4101", "HR4102", "HR4105"

# Rows: code, pattern at the start of a line, name of the complaint ("{}": what the pattern's group found).
# The first row that matches a line counts. Sources, of 6.1: arch/x86/mm/fault.c, arch/x86/kernel/traps.c and
# dumpstack.c, kernel/panic.c, hung_task.c, watchdog.c, rcu/tree_stall.h, locking/lockdep.c, mm/kasan/.
HEADLINES = tuple(
    (code, re.compile(pattern), name)
    for code, pattern, name in (
        (PANIC, r"Kernel panic - not syncing: (.*)", "Kernel panic: {}"),
        (SPLAT, r"BUG: KASAN: ([\w-]+)", "BUG: KASAN: {}"),
        (SPLAT, r"BUG: (KFENCE|KMSAN): ([\w -]+?)(?: in |$)", "BUG: {}: {}"),
        (SPLAT, r"UBSAN: ([\w-]+)", "UBSAN: {}"),
        (OOPS, r"BUG: (kernel NULL pointer dereference)", "BUG: {}"),
        (OOPS, r"BUG: (unable to handle page fault)", "BUG: {}"),
        (OOPS, r"BUG: unable to handle kernel (NULL pointer dereference|paging request)", "BUG: kernel {}"),
        (OOPS, r"BUG: (?:\w+ )?(stack guard page) was hit", "BUG: {} was hit"),
        (OOPS, r"(kernel BUG) at (\S+?)!?$", "{}"),
        (OOPS, r"(general protection fault|divide error|invalid opcode)\b.*\[#\d+\]", "{}"),
        (OOPS, r"(stack segment|stack guard page|double fault|int3|trap.*)\b.*\[#\d+\]", "{}"),
        (OOPS, r"(?:Internal error: )?Oops\b.*\[#\d+\]", "Oops"),
        (SPLAT, r"BUG: (sleeping function called from invalid context)", "BUG: {}"),
        (SPLAT, r"BUG: (scheduling while atomic)", "BUG: {}"),
        (SPLAT, r"(?:watchdog: )?BUG: (soft lockup)", "BUG: {}"),
        (SPLAT, r"(?:NMI )?(?:watchdog: )?Watchdog detected (hard LOCKUP)", "{}"),
        (SPLAT, r"BUG: (.+?)(?::|$)", "BUG: {}"),
        (SPLAT, r"WARNING: CPU: \d+ PID: \d+ at", "WARNING"),
        (SPLAT, r"WARNING: ((?:possible|bad|inconsistent|suspicious|held|lock)\b.*)", "WARNING: {}"),
        (SPLAT, r"(INFO: trying to register non-static key)", "{}"),
        (SPLAT, r"INFO: (task \S+?):\d+ (blocked for more than \d+ seconds)", "INFO: {} {}"),
        (SPLAT, r"(?:rcu: )?INFO: (\w+ (?:self-)?detected (?:expedited )?stalls?)", "INFO: {}"),
    )
)  # fmt: skip
RANK = {SPLAT: 0, OOPS: 1, PANIC: 2}

# printk's prefixes: <level>, [seconds], and with CONFIG_PRINTK_CALLER the task or processor.
PREFIX = re.compile(r"^(?:<\d+>)?\s*\[\s*\d+\.\d+\](?:\[\s*[CT]\d+\])? ?|^<\d+>")
FRAME = re.compile(
    r"(?P<guess>\? )?(?P<function>[A-Za-z_][\w.]*)\+(?P<offset>0x[0-9a-f]+)/(?P<size>0x[0-9a-f]+)"
    r"(?: \[(?P<module>[\w-]+)[^\]]*\])?"
)
INSTRUCTION = re.compile(r"RIP: 0010:(.*)")
SOURCE = re.compile(r"(?:WARNING: CPU: \d+ PID: \d+ at|kernel BUG at|UBSAN: [\w-]+ in) (\S+):(\d+)")

OOPS_PANIC = "Kernel panic: Fatal exception"
CUT_HERE = "------------[ cut here ]------------"
TRACE_END = re.compile(r"---\[ end trace")
# With panic=N it says that it reboots, with KASLR first where the kernel was.
PANIC_END = re.compile(r"---\[ end Kernel panic|Kernel Offset: |Rebooting in \d+ seconds")
RULE = re.compile(r"={20,}$")
BACKTRACE = "stack backtrace:"
STEP_BACK = 6  # lines in which a complaint's true beginning may stand before its headline
LONGEST = 120  # lines of one excerpt
LARGEST_FUNCTION = 1 << 24  # bytes; a "function" of more is data that was jumped to

# Who reports, checks, or waits on behalf of another: never to blame.
HELPERS = re.compile(
    r"dump_stack|show_stack|panic|warn_|report_bug|kasan|asan|check_region|print_|end_report|ubsan|refcount_"
    r"|might_|schedule|lock_|mutex_|rwsem_|down_|raw_|rt_mutex|queued_spin|native_|lockdep|register_lock_class"
    r"|debug_|check_|validate_chain|mark_lock|rcu_|nmi_|watchdog|kfree|kmem_cache|slab_|object_err|msleep|usleep"
    r"|wait_for|io_schedule|asm_|sysvec_|exc_|do_trap|handle_bug|die|oops_|page_fault|mem(?:cpy|set|move)"
    r"|list_(?:add|del)|delay_|const_udelay|udelay|read_tsc|cpu_relax"
)


@dataclass(frozen=True, slots=True)
class CrashReport:
    """The complaint of a kernel.

    ``code``      HR4101 oops, HR4102 panic, HR4105 a warning: the kernel goes on
    ``title``     one line: ``BUG: kernel NULL pointer dereference in foo_release+0x5``
    ``type``      the same without the place: what kind of complaint it is
    ``function``  that is to blame, as far as the text tells; ``module``: it is in
    ``offset``    where in it, in bytes: in the instruction that is meant, or at its start
    ``source``    ``file:line``, where the message names one
    ``excerpt``   the lines of the text that belong to it, as the console had them
    ``complete``  whether its end was there; otherwise more of it may follow
    """

    code: str
    title: str
    type: str
    function: str | None
    module: str | None
    offset: int | None
    source: str | None
    excerpt: str
    complete: bool


@dataclass(frozen=True, slots=True)
class _Headline:
    code: str
    type: str
    line: int


def find_crash(text: str) -> CrashReport | None:
    """The worst complaint in a piece of console text, None when there is none.

    Give it the text since the last push: a complaint of before would be found as well.
    """
    raw = text.replace("\r", "").split("\n")
    lines = [PREFIX.sub("", line).strip() for line in raw]
    found = _without_consequence(list(_headlines(lines)))
    if not found:
        return None
    worst = max(RANK[headline.code] for headline in found)
    cause = _cause(found, worst)
    code = next(headline.code for headline in found if RANK[headline.code] == worst)
    first, end, complete = _extent(lines, cause.line, panicked=code == PANIC)
    frame = _blamed(lines[cause.line : end], lines[cause.line])
    return CrashReport(
        code=code,
        title=f"{cause.type} in {frame['function']}+{frame['offset']}" if frame else cause.type,
        type=cause.type,
        function=frame["function"] if frame else None,
        module=frame["module"] if frame else None,
        offset=_offset(frame, lines[cause.line : end]) if frame else None,
        source=_source(lines[cause.line : end]),
        excerpt="\n".join(raw[first:end]).strip("\n"),
        complete=complete,
    )


def _headlines(lines: Sequence[str]) -> Iterator[_Headline]:
    for position, line in enumerate(lines):
        for code, pattern, name in HEADLINES:
            match = pattern.match(line)
            if match:
                yield _Headline(code, name.format(*match.groups()).strip(), position)
                break


def _without_consequence(found: list[_Headline]) -> list[_Headline]:
    """An oops that panics only because it was booted with oops=panic is an oops (arch/x86: oops_end)."""
    oopses = [headline.line for headline in found if headline.code == OOPS]
    return [each for each in found if each.type != OOPS_PANIC or not oopses or each.line < oopses[0]]


def _cause(found: Sequence[_Headline], worst: int) -> _Headline:
    """The complaint to name: the first of the worst, or, of a panic, what led to it."""
    first = next(headline for headline in found if RANK[headline.code] == worst)
    before = (headline for headline in found if headline.code == OOPS and headline.line < first.line)
    return next(before, first)


def _extent(lines: Sequence[str], headline: int, *, panicked: bool) -> tuple[int, int, bool]:
    """First line, the one after the last, and whether the end was seen."""
    first = _beginning(lines, headline)
    limit = min(len(lines), headline + LONGEST)
    if not panicked and CUT_HERE in lines[headline:limit]:  # the next complaint begins
        limit = lines.index(CUT_HERE, headline, limit)
    end = PANIC_END if panicked else RULE if RULE.match(lines[first]) else TRACE_END
    for position in range(headline + 1, limit):
        if end.match(lines[position]):
            return first, position + 1, True
    # Lockdep, hung tasks and their like have no line that ends them: their last call trace does.
    traces = [position for position in range(headline, limit) if lines[position] == "</TASK>"]
    if traces and not panicked:
        return first, traces[-1] + 1, True
    return first, limit, limit - headline == LONGEST


def _beginning(lines: Sequence[str], headline: int) -> int:
    for position in range(headline - 1, max(headline - STEP_BACK, 0) - 1, -1):
        if lines[position] == CUT_HERE or RULE.match(lines[position]):
            return position
        if TRACE_END.match(lines[position]):
            break
    return headline


def _blamed(lines: Sequence[str], headline: str) -> re.Match[str] | None:
    """The frame to blame: where it happened; unless that is a helper, the nearest caller that is none."""
    if BACKTRACE in lines:  # lockdep: the chains of locks before it tell who else took them, at other times
        lines = lines[lines.index(BACKTRACE) :]
    candidates = list(_frames(lines, headline))
    sure = [frame for frame in candidates if not frame["guess"]]
    for frames in (sure, candidates):
        for frame in frames:
            if not HELPERS.match(frame["function"].lstrip("_")):
                return frame
    return sure[0] if sure else None


def _offset(frame: re.Match[str], lines: Sequence[str]) -> int:
    """Of the instruction that is meant: a call trace names what comes behind a call."""
    offset = int(frame["offset"], 16)
    is_its_own = any((at := INSTRUCTION.match(line)) and at[1] == frame.string for line in lines)
    return offset if is_its_own else max(offset - 1, 0)


def _frames(lines: Sequence[str], headline: str) -> Iterator[re.Match[str]]:
    """Frames in the order in which they are believed: of the headline, of RIP, of the call traces."""
    places = [found[0] for found in [FRAME.search(headline)] if found]
    places += [found[1] for line in lines if (found := INSTRUCTION.match(line))]
    places += [line for line in lines if FRAME.match(line)]
    for place in places:
        frame = FRAME.match(place)
        if frame and int(frame["size"], 16) < LARGEST_FUNCTION:
            yield frame


def _source(lines: Sequence[str]) -> str | None:
    for line in lines:
        found = SOURCE.match(line)
        if found:
            return f"{found[1]}:{found[2].rstrip('!')}"
    return None
