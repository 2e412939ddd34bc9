# SPDX-License-Identifier: MIT
"""What `hotreload demo` does to the example driver, and what the guest must show after each edit.

A step starts with the sources as the previous steps left them. Its ``check`` compares what user space sees
before and after it. It returns the two texts worth showing, or raises Unexpected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hotreload.demo.examples import Edit, sources
from hotreload.report.outcome import Outcome, ReloadReport


class Unexpected(Exception):
    """The guest does not show what it must. The text says what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class View:
    """What user space in the guest sees at one moment.

    ``uptime``     in seconds
    ``line``       a fresh read of /dev/ticker
    ``kept_line``  the last line read by the program that has had the device open from the beginning
    ``proc``       /proc/ticker by the first word of its lines, and the module's parameter ``interval``
    ``patches``    the live patches
    """

    uptime: float
    boot_id: str
    line: str
    kept_line: str
    proc: Mapping[str, str]
    patches: tuple[str, ...]

    @property
    def ticks(self) -> int:
        return int(self.proc.get("ticks", "-1"))

    @property
    def opens(self) -> int:
        return int(self.proc.get("opens", "-1"))

    @property
    def kept_number(self) -> int:
        """The number of the last line that was read from the open file, or -1."""
        found = re.match(r"line (\d+)", self.kept_line)
        return int(found[1]) if found else -1


# A program that opens the device once and keeps reading. Its file, and the state of that, must survive.
HOLD_OPEN = (
    "echo $$ >/tmp/holder; exec 3</dev/ticker; "
    # Use a rename. A file that is rewritten in place is empty for a moment, which would be visible on a busy
    # machine.
    'while read -r line <&3; do echo "$line" >/tmp/new; mv /tmp/new /tmp/kept; '
    "read -r end <&3; sleep 0.3; done"
)
START_HOLDING = f"setsid sh -c '{HOLD_OPEN}' </dev/null >/dev/null 2>&1 & sleep 0.1"
# One round trip. The line between the parts occurs nowhere else. Any part may be empty.
END_OF_PART = "=== end of part"
LOOK = f"; echo '{END_OF_PART}'; ".join(
    (
        "cat /proc/uptime",
        "cat /proc/sys/kernel/random/boot_id",
        "cat /dev/ticker",
        "cat /tmp/kept",
        "cat /proc/ticker; echo interval $(cat /sys/module/ticker/parameters/interval_ms)",
        "ls /sys/kernel/livepatch",
    )
)


def parse_view(text: str) -> View:
    """Parse the output of LOOK. Raises Unexpected if it is something else."""
    parts = text.split(f"{END_OF_PART}\n")
    try:
        uptime, boot_id, line, kept, proc, patches = (part.strip() for part in parts)
        pairs = (row.partition(" ") for row in proc.splitlines())
        fields = {name: value.strip() for name, _, value in pairs}
        return View(float(uptime.split()[0]), boot_id, line, kept, fields, tuple(patches.split()))
    except (ValueError, IndexError):
        raise Unexpected(f"the answer of the guest has {len(parts)} parts instead of 6: {text!r}") from None


Shown = tuple[str, str]
Check = Callable[[View, View], Shown]


@dataclass(frozen=True, slots=True)
class Step:
    """One save (or several files at once), the outcome that it must have, and what must be seen then.

    ``edits``          edits of the sources as they are
    ``restore``        files to return to what the guest booted with, before the edits
    ``code``           the code of the reason, if the edit is refused
    ``symbols``        must be among what is replaced
    ``new_functions``  must be among the functions that come with the patch
    ``first``          a command in the guest before the save
    ``crash``          a command after it, which crashes the guest
    ``is_reload``      whether the module's state is lost
    """

    title: str
    outcome: Outcome
    check: Check
    edits: tuple[Edit, ...] = ()
    restore: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    new_functions: tuple[str, ...] = ()
    code: str | None = None
    first: str | None = None
    crash: str | None = None
    is_reload: bool = False
    files: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = (*self.restore, *(edit.file for edit in self.edits))
        object.__setattr__(self, "files", tuple(dict.fromkeys(names)))

    def texts(self, now: Mapping[str, str]) -> dict[str, str]:
        """Return the new text of each file of the step."""
        original = sources()
        texts = {name: original[name] if name in self.restore else now[name] for name in self.files}
        for edit in self.edits:
            texts[edit.file] = edit.applied(texts[edit.file])
        return texts

    def check_report(self, report: ReloadReport) -> None:
        """Raise Unexpected if the cycle did not end as this step must."""
        codes = [reason.code for reason in report.reasons]
        expect(report.outcome is self.outcome, f"outcome {self.outcome.value}", report.outcome.value)
        expect(self.code is None or self.code in codes, f"refused with {self.code}", ", ".join(codes))
        missing = [name for name in self.symbols if name not in report.symbols]
        expect(not missing, f"{', '.join(self.symbols)} live", ", ".join(report.symbols))
        if self.outcome is Outcome.COMPILE_ERROR:
            found = re.search(r"^\S+\.c:\d+:\d+: error: ", report.error, re.MULTILINE)
            expect(found, "a diagnostic in gcc's form", report.error)


def expect(holds: object, wanted: str, found: str) -> None:
    """Raise Unexpected unless ``holds``."""
    if not holds:
        raise Unexpected(f"expected {wanted}; found {found or 'nothing'}")


def check_state(before: View, after: View) -> None:
    """Check what must hold after any edit: no reboot, no module reload, nothing forgotten.

    Raises Unexpected.
    """
    expect(after.boot_id == before.boot_id, f"the same boot {before.boot_id}", after.boot_id)
    expect(after.uptime > before.uptime, f"an uptime above {before.uptime}", str(after.uptime))
    expect(after.ticks > before.ticks, f"more than {before.ticks} ticks", str(after.ticks))
    expect(after.opens == before.opens + 1, f"{before.opens + 1} opens", str(after.opens))
    expect(
        after.kept_number > before.kept_number,
        f"the open file beyond line {before.kept_number}",
        after.kept_line,
    )


def check_reload(before: View, after: View) -> None:
    """Check that the module was reloaded, in a guest that was not rebooted. Raises Unexpected."""
    expect(after.boot_id == before.boot_id, f"the same boot {before.boot_id}", after.boot_id)
    expect(after.uptime > before.uptime, f"an uptime above {before.uptime}", str(after.uptime))
    expect(after.ticks < before.ticks, f"fewer than {before.ticks} ticks", str(after.ticks))
    expect(after.opens == 1, "one open", str(after.opens))


def _line_is(pattern: str) -> Check:
    """Return a check that such lines are read both from a fresh file and from the one that stayed open."""

    def check(before: View, after: View) -> Shown:
        for line in (after.line, after.kept_line):
            expect(re.fullmatch(pattern, line), f"a line like {pattern!r}", line)
        return before.line, after.line

    return check


def _views_are_counted(before: View, after: View) -> Shown:
    views = after.proc.get("views", "")
    expect(re.fullmatch(r"\d+ \((nobody|somebody) cares\)", views), "views in /proc/ticker", views)
    expect("views" not in before.proc, "no views before", str(before.proc))
    return "/proc/ticker has no views", f"/proc/ticker has views {views}"


def _age_is_in_milliseconds(before: View, after: View) -> Shown:
    age, ticks = int(after.proc.get("age", "-1")), after.ticks
    expect(age == ticks * 100, f"an age of {ticks * 100} in /proc/ticker", str(age))
    found = re.search(r"age (\d+)", after.line)
    expect(found and int(found[1]) > before.ticks * 100, "an age in milliseconds in /dev/ticker", after.line)
    return f"age {before.proc.get('age')}", f"age {age}"


def _interval_is_written(before: View, after: View) -> Shown:
    intervals = before.proc.get("interval", ""), after.proc.get("interval", "")
    expect(intervals == ("100", "250"), "an interval of 100, then of 250 ms", " and ".join(intervals))
    return f"every {intervals[0]} ms", f"every {intervals[1]} ms"


def _nothing_differs(before: View, after: View) -> Shown:
    """Check that the code that was live before is still live."""
    shape = re.sub(r"\d+", "N", before.line.rpartition(",")[0])
    expect(re.sub(r"\d+", "N", after.line.rpartition(",")[0]) == shape, f"a line like {shape}", after.line)
    expect(after.patches == before.patches, f"patches {before.patches}", str(after.patches))
    return before.line, after.line


def _as_booted(before: View, after: View) -> Shown:
    _line_is(r"line \d+: age \d+, \w+")(before, after)
    expect("views" not in after.proc, "no views in /proc/ticker", str(after.proc))
    expect(after.proc.get("interval") == "100", "an interval of 100 ms", str(after.proc))
    expect(not after.patches, "no live patch", ", ".join(after.patches))
    return before.line, after.line


def _counts_from_new(before: View, after: View) -> Shown:
    expect(not after.patches, "no live patch", ", ".join(after.patches))
    return f"ticks {before.ticks}, opens {before.opens}", f"ticks {after.ticks}, opens {after.opens}"


GROWN = Edit("main.c", "\tunsigned int number;\n", "\tunsigned int number;\n\tu64 since;\n")
NEW_FUNCTION = """\
static noinline const char *ticker_interest(int views)
{
	return views > 1 ? "somebody cares" : "nobody cares";
}

static int ticker_stats_show("""

STEPS: Sequence[Step] = (
    Step(
        "A function changes: the one that composes the lines of /dev/ticker",
        Outcome.LIVE,
        _line_is(r"line \d+ of this file: age \d+, feeling \w+"),
        edits=(
            Edit("main.c", '"line %u: age %llu, %s\\n"', '"line %u of this file: age %llu, feeling %s\\n"'),
        ),
        symbols=("ticker_read",),
    ),
    Step(
        "A new function, a new static variable, new strings",
        Outcome.LIVE,
        _views_are_counted,
        edits=(
            Edit("stats.c", "static int ticker_stats_show(", NEW_FUNCTION),
            Edit(
                "stats.c",
                "\tu64 ticks = atomic64_read(&ticker_totals.ticks);\n",
                "\tstatic atomic_t views = ATOMIC_INIT(0);\n"
                "\tu64 ticks = atomic64_read(&ticker_totals.ticks);\n"
                "\tint seen = atomic_inc_return(&views);\n",
            ),
            Edit(
                "stats.c",
                "\treturn 0;\n}\n\nint __init",
                '\tseq_printf(m, "views %d (%s)\\n", seen, ticker_interest(seen));\n'
                "\treturn 0;\n}\n\nint __init",
            ),
        ),
        symbols=("ticker_stats_show",),
        new_functions=("ticker_interest",),
    ),
    Step(
        "An inline helper in the header changes, and so do its callers in both files",
        Outcome.LIVE,
        _age_is_in_milliseconds,
        edits=(Edit("ticker.h", "return ticks / 10;", "return ticks * 100;"),),
        symbols=("ticker_read", "ticker_stats_show"),
    ),
    Step(
        "Only a comment changes",
        Outcome.NO_CHANGE,
        _nothing_differs,
        edits=(
            Edit(
                "main.c", "what one open file remembers", "what one open file remembers, until it is closed"
            ),
        ),
    ),
    Step(
        "An edit that does not compile: the guest keeps its code",
        Outcome.COMPILE_ERROR,
        _nothing_differs,
        edits=(Edit("main.c", "\treader->at = 0;\n}", "\treader->at = 0\n}"),),
    ),
    Step(
        "Corrected, and saved again",
        Outcome.NO_CHANGE,
        _nothing_differs,
        edits=(Edit("main.c", "\treader->at = 0\n}", "\treader->at = 0;\n}"),),
    ),
    Step(
        "The initial value of a variable changes: it is written in place",
        Outcome.LIVE,
        _interval_is_written,
        edits=(Edit("main.c", "interval_ms = 100;", "interval_ms = 250;"),),
        symbols=("interval_ms",),
    ),
    Step(
        "A struct of each open file grows: a patch cannot do that, and the module is in use",
        Outcome.REJECTED,
        _nothing_differs,
        edits=(GROWN,),
        code="HR2301",
    ),
    Step(
        "Everything undone, as `git checkout .` would: the patch is disabled",
        Outcome.UNDONE,
        _as_booted,
        restore=("main.c", "stats.c", "ticker.h"),
    ),
    Step(
        "A wild pointer: the guest crashes, and returns to where it was before that reload",
        Outcome.LIVE,
        _nothing_differs,
        edits=(Edit("stats.c", "atomic64_read(&ticker_totals.ticks)", "*(volatile u64 *)8"),),
        crash="cat /proc/ticker",
    ),
    Step(
        "The program with the open device ends, and the module can be reloaded",
        Outcome.RELOADED,
        _counts_from_new,
        edits=(GROWN,),
        restore=("stats.c",),
        first="kill $(cat /tmp/holder)",
        symbols=("ticker.ko",),
        is_reload=True,
    ),
)
