# SPDX-License-Identifier: MIT
"""What a person sees: one line per cycle, and more only if something failed.

    14:03:07 live      drivers/tty/n_tty.c  n_tty_write, n_tty_ioctl   0.94 s (build 0.78 diff 0.04)  #12
    14:03:40 refused   drivers/foo/foo.c    HR2101 struct foo_priv grew 64 -> 72 bytes (foo.h:31)
                       needs a module reload: foo.ko, in use by nobody      hotreload why HR2101

``render`` is pure. The compiler's output stays as it is, at the left edge, so that editors can parse it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TextIO

from hotreload.report.outcome import STAGES, Outcome, Reason, ReloadReport
from hotreload.report.text import enumerate_names, harmless, one_line, seconds, shown_path, styled

# Outcome -> the word in the line, and its style.
WORDS = {
    Outcome.LIVE: ("live", "green"),
    Outcome.RELOADED: ("reloaded", "green"),
    Outcome.RESTORED: ("restored", "green"),
    Outcome.REBOOTED: ("rebooted", "green"),
    Outcome.NO_CHANGE: ("no change", "dim"),
    Outcome.PATCHABLE: ("patchable", "green"),
    Outcome.REFUSED: ("refused", "yellow"),
    Outcome.REJECTED: ("rejected", "yellow"),
    Outcome.FAILED: ("failed", "red"),
    Outcome.COMPILE_ERROR: ("error", "red"),
    Outcome.STALLED: ("stalled", "yellow"),
    Outcome.CRASHED: ("crashed", "alarm"),
    Outcome.COMPLAINED: ("warned", "alarm"),
    Outcome.UNDONE: ("undone", "green"),
    Outcome.REDONE: ("redone", "green"),
}
INDENT = " " * 19  # up to the column of the file: "14:03:07 refused   "
NBSP = "\xa0"  # keeps a command on one line when lines are wrapped
SUBJECT_WIDTH = 19  # so that the text after short file names starts in one column
LEAST_DETAIL = 32  # columns for the symbols; with fewer, the stages are left out
NARROWEST = 60  # columns; below this a terminal wraps by itself
SHOWN_REASONS = 8
SPOKEN_EVERY = 30.0  # seconds between lines about long work, without a terminal
TELLS_WHAT_RUNS = {Outcome.COMPILE_ERROR, Outcome.FAILED, Outcome.REJECTED, Outcome.STALLED}


def render(
    report: ReloadReport, width: int | None = None, color: bool = False, cwd: Path | None = None
) -> str:
    """Return the text for one cycle, without the last newline.

    ``width`` is the number of columns of the terminal. It is None for a file or a pipe, where nothing is
    wrapped or left out.
    """
    cwd = cwd or Path.cwd()
    width = max(width, NARROWEST) if width else None
    lines = _first_lines(report, width, color, cwd)
    lines += _reason_lines(report, width, color, cwd)
    if not _is_note_the_detail(report):
        for note in report.notes:
            lines += _wrapped(one_line(note), width)
    if report.error:
        lines.append(harmless(report.error).rstrip())
    return "\n".join(lines)


def _first_lines(report: ReloadReport, width: int | None, color: bool, cwd: Path) -> list[str]:
    word, style = WORDS[report.outcome]
    timing, number = _timing(report), f"#{report.number}" if report.number is not None else ""
    room = (width or 0) - len(INDENT)
    subject = enumerate_names([shown_path(file, cwd) for file in report.files], room // 2 if width else None)
    room -= max(len(subject), SUBJECT_WIDTH) + 2
    if width and room - len(_tail(timing, number)) < LEAST_DETAIL:
        timing = timing.partition(" (")[0]  # drop the stages, but never the number, which is needed to undo
    detail = _detail(report, room - len(_tail(timing, number)) if width else None, color, cwd)
    text = f"{subject:<{SUBJECT_WIDTH}}  {detail}" if subject and detail else subject or detail
    lines = _wrapped(text, width) or [INDENT]
    if width and len(lines[-1]) + len(_tail(timing, number)) > width:
        lines.append(INDENT[:-2])
    lines[-1] += _tail(styled(timing, "dim", color), styled(number, "bold", color))
    head = f"{report.time:%H:%M:%S} {styled(word, style, color)}{' ' * (10 - len(word))}"
    return [head + lines[0][len(INDENT) :], *lines[1:]]


def _tail(timing: str, number: str) -> str:
    return (f"   {timing}" if timing else "") + (f"  {number}" if number else "")


def _detail(report: ReloadReport, width: int | None, color: bool, cwd: Path) -> str:
    if report.outcome is Outcome.COMPILE_ERROR:
        return f"does not compile; {_what_runs(report)}"
    if report.reasons:
        return _reason(report.reasons[0], color, cwd)
    if report.symbols:
        return enumerate_names([one_line(symbol) for symbol in report.symbols], width)
    return one_line(report.notes[0]) if _is_note_the_detail(report) else ""


def _is_note_the_detail(report: ReloadReport) -> bool:
    """Return whether the only text is a single note like "comments only", which needs no line of its own."""
    return len(report.notes) == 1 and not (report.reasons or report.symbols or report.error)


def _reason_lines(report: ReloadReport, width: int | None, color: bool, cwd: Path) -> list[str]:
    lines: list[str] = []
    for position, reason in enumerate(report.reasons[:SHOWN_REASONS]):
        if position:
            lines += _wrapped(_reason(reason, color, cwd), width)
        # A crash has its own report, and the notes say where that is.
        why = "" if report.outcome is Outcome.CRASHED else f"hotreload why {reason.code}".replace(" ", NBSP)
        hint = one_line(reason.hint or "")
        following = report.reasons[position + 1 : position + 2]
        if following and following[0].hint == reason.hint and following[0].code == reason.code:
            continue  # shown once, below the last of them
        if hint or why:
            lines += _wrapped(f"{hint}      {why}".strip() if hint else why, width)
    if len(report.reasons) > SHOWN_REASONS:
        lines += _wrapped(f"+{len(report.reasons) - SHOWN_REASONS} more reasons      hotreload why", width)
    if report.outcome in TELLS_WHAT_RUNS - {Outcome.COMPILE_ERROR}:
        lines += _wrapped(_what_runs(report), width)
    return lines


def _reason(reason: Reason, color: bool, cwd: Path) -> str:
    code = styled(reason.code, "bold", color)
    message = one_line(reason.message)
    if reason.file is None:
        return f"{code} {message}"
    where = shown_path(reason.file, cwd)
    return f"{code} {message} ({where}:{reason.line})" if reason.line else f"{code} {message} ({where})"


def _what_runs(report: ReloadReport) -> str:
    still = f"#{report.still_runs}" if report.still_runs is not None else "the code it booted with"
    return f"the guest still runs {still}"


def _timing(report: ReloadReport) -> str:
    if report.saved_to_live_ms is None:
        return ""
    spent = [(stage, report.milliseconds.get(stage, 0.0)) for stage in STAGES]
    stages = " ".join(f"{stage} {ms / 1000:.2f}" for stage, ms in spent if ms >= 5)
    return f"{seconds(report.saved_to_live_ms)} ({stages})" if stages else seconds(report.saved_to_live_ms)


def _wrapped(text: str, width: int | None) -> list[str]:
    if not text:
        return []
    if width is None:
        return [INDENT + text.replace(NBSP, " ")]
    wrapper = textwrap.TextWrapper(width, INDENT, INDENT, break_long_words=False, break_on_hyphens=False)
    return [line.replace(NBSP, " ") for line in wrapper.wrap(text)]


class Progress(Protocol):
    """Long work that reports its progress."""

    def update(self, text: str) -> None:
        """Set the text about what is being done."""

    def advance(self, done: int, total: int) -> None:
        """Report how much of the work is done, in any unit."""


class Console:
    """Prints the text for people to standard error, in colour on a terminal (or as ``color`` says).

    ``quiet`` leaves only reports of failures, and what is said with ``always``.
    """

    def __init__(self, stream: TextIO | None = None, *, color: str = "auto", quiet: bool = False) -> None:
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.color = {"always": True, "never": False}.get(
            color, self.terminal and not os.environ.get("NO_COLOR")
        )

    def report(self, report: ReloadReport) -> None:
        """Print one cycle."""
        if self.quiet and report.outcome.exit_status == 0:
            return
        width = shutil.get_terminal_size().columns if self.terminal else None
        print(render(report, width, self.color), file=self.stream, flush=True)

    def say(self, text: str, *, always: bool = False) -> None:
        """Print a line or a few of our own."""
        if always or not self.quiet:
            print(harmless(text), file=self.stream, flush=True)

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """Show the progress of long work: a bar on a terminal, otherwise first, last and occasional lines."""
        shown = self.terminal and not self.quiet
        with _bar(self.stream, title) if shown else _two_lines(self, title) as progress:
            yield progress


@contextlib.contextmanager
def _bar(stream: TextIO, title: str) -> Iterator[Progress]:
    from rich.console import Console as RichConsole
    from rich.markup import escape
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=RichConsole(file=stream), transient=True) as rich:
        task = rich.add_task(escape(title), total=None)

        class Bar:
            def update(self, text: str) -> None:
                rich.update(task, description=escape(f"{title}: {one_line(text)}"))

            def advance(self, done: int, total: int) -> None:
                rich.update(task, completed=done, total=total)

        yield Bar()


@contextlib.contextmanager
def _two_lines(console: Console, title: str) -> Iterator[Progress]:
    spoken = time.monotonic()

    class Lines:
        def update(self, text: str) -> None:
            nonlocal spoken
            # Do not fill a log with short steps, but do not stay silent for minutes either.
            if time.monotonic() - spoken >= SPOKEN_EVERY:
                spoken = time.monotonic()
                console.say(f"{title}: {one_line(text)}")

        def advance(self, done: int, total: int) -> None:
            """Do nothing. Bars are for terminals, and the text reports the progress, too."""

    console.say(f"{title} ...")
    started = time.monotonic()
    end = "failed after"
    try:
        yield Lines()
        end = "done in"
    finally:
        console.say(f"{title}: {end} {time.monotonic() - started:.1f} s")
