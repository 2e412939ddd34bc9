# SPDX-License-Identifier: MIT
"""Find what a guest's kernel complained about in its console text. Pure.

This follows the model of syzkaller's pkg/report: find the headlines, cut the text where each complaint begins
and ends, and name it by its kind and the function that is to blame. The tables of complaints.py say what a
headline looks like. No code here depends on a particular message.

Several headlines can be one complaint: a bad address is followed by "Oops", and an oops in an interrupt by a
panic. Such a complaint is named after the first headline, because that is the cause, and is as severe as the
worst.

The text is what a guest wrote, so it may be anything. It is read in linear time, and a line only up to the
length that a kernel writes. If a program in the guest prints the kernel's words, it cannot be told apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hotreload.report.blame import CALL_TRACE, blamed
from hotreload.report.complaints import (
    BETTER_NAMES,
    CONSEQUENCES,
    DEAD,
    HEADLINES,
    OBJECT,
    OOPS_PANIC,
    RULE,
    STACK,
    TRACE,
    Found,
    Kind,
)
from hotreload.vm.console import printable

CODES = {Kind.SPLAT: "HR4105", Kind.STUCK: "HR4105", Kind.OOPS: "HR4101", Kind.PANIC: "HR4102"}

# printk's prefixes: <level>, [seconds], and with CONFIG_PRINTK_CALLER the task or processor. A prompt may
# stand before them, because a person's shell and the kernel write to the same console.
PREFIX = re.compile(r"^.*?\[\s*\d+\.\d+\](?:\[\s*[CT]\d+\])? ?|^(?:<\d+>)?(?:\[\s*[CT]\d+\] ?)?")
SOURCE = re.compile(
    r"(?:WARNING: CPU: \d+ PID: \d+ at |kernel BUG at |UBSAN: [\w-]+ in )(\S+):(\d+)"
    r"|(\S+):(\d+) suspicious rcu_\w+\(\) usage"
)
DIES = re.compile(r"\[#\d+\]")
CUT_HERE = "------------[ cut here ]------------"

STEP_BACK = 6  # how many lines before its headline a complaint may begin
LONGEST = 400  # lines of one excerpt
WIDEST = 2048  # characters of a line: PRINTK_MESSAGE_MAX
LONGEST_NAME = 80  # characters of the message of a WARN
MOST = 50  # complaints; more of them would not help to understand the kernel


@dataclass(frozen=True, slots=True)
class CrashReport:
    """The complaint of a kernel.

    ``code``      HR4101 oops, HR4102 panic, HR4105 a complaint after which the kernel goes on
    ``title``     one line: ``BUG: kernel NULL pointer dereference in foo_release+0x5``
    ``type``      the same without the place, i.e. the kind of complaint
    ``function``  the function to blame, as far as the text tells
    ``module``    the module that the function is in
    ``offset``    bytes from the start of the function: in the instruction that is meant, or at its start
    ``source``    ``file:line``, if the message names one
    ``excerpt``   the lines that belong to the complaint, as they were on the console
    ``complete``  whether the text contains its end; otherwise more of it may follow
    ``is_stuck``  something waits or loops for ever: the kernel goes on, but a part of the guest is lost
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
    is_stuck: bool = False


@dataclass(frozen=True, slots=True)
class _Complaint:
    """One complaint: its headlines in the order of their lines, and its range of lines."""

    found: tuple[Found, ...]
    first: int
    end: int
    complete: bool

    @property
    def cause(self) -> Found:
        return self.found[0]

    @property
    def worst(self) -> Kind:
        # An oops that only panics because of oops=panic on the command line is an oops (arch/x86: oops_end).
        if self.cause.kind is Kind.OOPS:
            return max(each.kind for each in self.found if each.name != OOPS_PANIC)
        return max(each.kind for each in self.found)


def find_crash(text: str) -> CrashReport | None:
    """Return the worst complaint in a piece of console text, the first if there are several, or None.

    Pass the text since the last push, because an earlier complaint would be found as well.
    """
    raw, lines = _lines(text)
    complaints = _complaints(lines)
    if not complaints:
        return None
    return _report(raw, lines, max(complaints, key=lambda each: each.worst))


def find_complaints(text: str) -> tuple[CrashReport, ...]:
    """Return the complaints in a piece of console text, in order: at most 50, and repetitions only once.

    If the text grows, the earlier result is a prefix of the later one, except for its last complaint. Until
    that is ``complete``, its title may change. After that, it may still be an oops that becomes a panic.
    """
    raw, lines = _lines(text)
    told: dict[tuple[object, ...], CrashReport] = {}
    for complaint in _complaints(lines):
        report = _report(raw, lines, complaint)
        kind = re.sub(r"0x[0-9a-f]+|[0-9a-f]{16}|\d+", "#", report.type)
        told.setdefault((kind, report.module, report.function, report.offset), report)
        if len(told) == MOST:
            break
    return tuple(told.values())


def _lines(text: str) -> tuple[list[str], list[str]]:
    """Return the lines as they are, and as the kernel meant them, without prefixes."""
    raw = text.replace("\r", "").split("\n")
    return raw, [PREFIX.sub("", printable(line[:WIDEST]), count=1).strip() for line in raw]


def _complaints(lines: Sequence[str]) -> list[_Complaint]:
    groups: list[list[Found]] = []
    for found in _headlines(lines):
        if groups and _belongs(lines, found, groups[-1]):
            groups[-1].append(found)
        else:
            groups.append([found])
    floors = [0, *(group[-1].line + 1 for group in groups)]
    firsts = [_beginning(lines, group[0].line, floor) for group, floor in zip(groups, floors, strict=False)]
    limits = [*firsts, len(lines)][1:]
    return [
        _Complaint(tuple(group), first, *_end(lines, group, limit, is_last=limit == len(lines)))
        for group, first, limit in zip(groups, firsts, limits, strict=True)
    ]


def _headlines(lines: Sequence[str]) -> Iterator[Found]:
    for position, line in enumerate(lines):
        for headline in HEADLINES:
            match = headline.pattern.match(line)
            if match:
                name = headline.name.format(*match.groups()).strip()
                yield Found(headline, name, position, dies=bool(DIES.search(line)))
                break


def _belongs(lines: Sequence[str], found: Found, before: Sequence[Found]) -> bool:
    """Return whether a headline only continues the complaint before it."""
    cause = before[0]
    if found.kind is Kind.PANIC:
        return cause.kind is Kind.OOPS or bool(CONSEQUENCES.match(found.name))
    if len(before) > 1 or found.line - cause.line > LONGEST:
        return False
    if found.dies:
        return cause.kind is Kind.OOPS and not cause.dies
    # 6.12 uses a WARN to show the stack of a complaint of SLUB.
    no_stack = all(line != CALL_TRACE for line in lines[cause.line : found.line])
    return found.headline.end is TRACE and cause.headline.end is OBJECT and no_stack


def _beginning(lines: Sequence[str], headline: int, floor: int) -> int:
    """Return the first line of a complaint. ``floor`` is the first line that may belong to it."""
    for position in range(headline - 1, max(headline - STEP_BACK, floor) - 1, -1):
        if lines[position] == CUT_HERE or (position == headline - 1 and RULE.match(lines[position])):
            return _with_preamble(lines, position, floor)
        if TRACE.match(lines[position]):
            break
    return _with_preamble(lines, headline, floor)


def _with_preamble(lines: Sequence[str], first: int, floor: int) -> int:
    return first - 1 if first > floor and _better_name(lines[first - 1], "") else first


def _end(lines: Sequence[str], group: Sequence[Found], limit: int, *, is_last: bool) -> tuple[int, bool]:
    """Return the line after the last one of a complaint, and whether that is its end."""
    cause = group[0]
    full = limit - cause.line > LONGEST
    limit = min(limit, cause.line + LONGEST)
    panic = next((found.line for found in group if found.kind is Kind.PANIC), None)
    start, end = (cause.line, cause.headline.end) if panic is None else (panic, DEAD)
    ends = (position for position in range(start, limit) if end.match(lines[position]))
    # Some complaints show several stacks. After a panic the kernel says where it was.
    last = max(ends, default=None) if end in (STACK, OBJECT, DEAD) else next(ends, None)
    if last is not None:
        return last + 1, True
    if panic is not None and panic != cause.line:
        # A complaint that has already shown its stack does not show it again.
        return min(panic + 1, limit), True
    return limit, full or not is_last


def _report(raw: Sequence[str], lines: Sequence[str], complaint: _Complaint) -> CrashReport:
    own = lines[complaint.first : complaint.end]
    message = _message(lines, complaint)
    kind = complaint.worst
    if kind is Kind.OOPS and _in_interrupt(own):
        kind = Kind.PANIC  # a panic follows
    name = _name(lines, complaint, message)
    place = blamed(lines[complaint.cause.line : complaint.end], complaint.cause, name, message)
    return CrashReport(
        code=CODES[kind],
        title=f"{name} in {place}" if place else name,
        type=name,
        function=place.function if place else None,
        module=place.module if place else None,
        offset=place.offset if place else None,
        source=_source(own),
        excerpt="\n".join(raw[complaint.first : complaint.end]).strip("\n"),
        complete=complaint.complete,
        is_stuck=kind is Kind.STUCK,
    )


def _message(lines: Sequence[str], complaint: _Complaint) -> str:
    """Return the message of a WARN, which is between the cut line and the headline."""
    headline = complaint.cause.line
    if lines[complaint.first] == CUT_HERE and complaint.first + 1 < headline:
        return lines[complaint.first + 1]
    return ""


def _name(lines: Sequence[str], complaint: _Complaint, message: str) -> str:
    cause = complaint.cause
    around = lines[max(complaint.first, cause.line - 3) : min(complaint.end, cause.line + 3)]
    better = next((name for line in around if (name := _better_name(line, cause.name))), None)
    if better:
        return better
    says_more = message and cause.headline.end is TRACE
    return f"{cause.name}: {_cut(message.rstrip('.'))}" if says_more else cause.name


def _better_name(line: str, name: str) -> str | None:
    for pattern, better in BETTER_NAMES:
        match = pattern.match(line)
        if match:
            return better.format(*match.groups(), of=name.rpartition(": ")[0])
    return None


def _cut(message: str) -> str:
    return message if len(message) <= LONGEST_NAME else f"{message[: LONGEST_NAME - 3]}..."


def _in_interrupt(own: Sequence[str]) -> bool:
    """Return whether the innermost stack of an oops is that of an interrupt.

    The kernel cannot continue after such an oops.
    """
    return next((line for line in own if line in ("<IRQ>", "<NMI>", "<TASK>")), "<TASK>") != "<TASK>"


def _source(own: Sequence[str]) -> str | None:
    found = next((found for line in own if (found := SOURCE.match(line))), None)
    return f"{found[1] or found[3]}:{found[2] or found[4]}" if found else None
