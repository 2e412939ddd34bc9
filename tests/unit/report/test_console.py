# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hotreload.report.console import Console, render
from hotreload.report.outcome import Outcome, Reason, ReloadReport

HOME = Path("/home/me/linux")
N_TTY, FOO = HOME / "drivers/tty/n_tty.c", HOME / "drivers/foo/foo.c"
GCC = """drivers/foo/foo.c: In function 'foo_read':
drivers/foo/foo.c:31:9: error: 'buf' undeclared (first use in this function)
   31 |         buf[0] = 1;
      |         ^~~
"""
STAGES = {"watch": 2.0, "build": 780.0, "diff": 40.0, "link": 3.0, "push": 70.0, "load": 50.0}


def report(outcome: Outcome, at: str, *files: Path, **rest: Any) -> ReloadReport:
    return ReloadReport(outcome, files=files, time=datetime.fromisoformat(f"2026-01-05T{at}"), **rest)


def shown(report: ReloadReport, width: int | None = None) -> str:
    return render(report, width, color=False, cwd=HOME)


def live(**rest: Any) -> ReloadReport:
    return report(Outcome.LIVE, "14:03:07", N_TTY, milliseconds=STAGES, saved_to_live_ms=940.0, **rest)


STRUCT_GREW = Reason(
    "HR2101",
    "struct foo_priv grew 64 -> 72 bytes: field 'mode' added at offset 24",
    "foo_priv",
    "needs a module reload: foo.ko, in use by nobody; open /dev/foo handles are lost",
    HOME / "foo.h",
    31,
)


def test_a_live_edit_is_one_line() -> None:
    assert shown(live(symbols=("n_tty_write", "n_tty_ioctl"), number=12)) == (
        "14:03:07 live      drivers/tty/n_tty.c  n_tty_write, n_tty_ioctl   "
        "0.94 s (build 0.78 diff 0.04 push 0.07 load 0.05)  #12"
    )


def test_a_refusal_tells_the_fact_the_way_out_and_where_to_read_on() -> None:
    assert shown(report(Outcome.REFUSED, "14:03:40", FOO, reasons=(STRUCT_GREW,))) == (
        "14:03:40 refused   drivers/foo/foo.c    "
        "HR2101 struct foo_priv grew 64 -> 72 bytes: field 'mode' added at offset 24 (foo.h:31)\n"
        "                   needs a module reload: foo.ko, in use by nobody; open /dev/foo handles are lost"
        "      hotreload why HR2101"
    )


def test_a_module_reload_names_the_module() -> None:
    line = shown(report(Outcome.RELOADED, "14:03:41", number=13, symbols=("foo.ko",), saved_to_live_ms=610.0))
    assert line == "14:03:41 reloaded  foo.ko   0.61 s  #13"


def test_a_crash_tells_what_was_done_about_it() -> None:
    headline = "BUG: unable to handle page fault in foo_release+0x1c, 0.8 s after #14"
    notes = ("#14 undone, guest restored to the checkpoint before it in 0.24 s", "report: r/report.txt")
    crash = report(Outcome.CRASHED, "14:05:02", reasons=(Reason("HR4101", headline),), notes=notes)
    assert shown(crash).splitlines() == [
        f"14:05:02 crashed   HR4101 {headline}",
        "                   #14 undone, guest restored to the checkpoint before it in 0.24 s",
        "                   report: r/report.txt",
    ]


def test_an_edit_without_a_change_is_one_line() -> None:
    line = shown(report(Outcome.NO_CHANGE, "14:06:10", FOO, notes=("comments only",)))
    assert line == "14:06:10 no change drivers/foo/foo.c    comments only"


def test_a_compile_error_keeps_gccs_form_at_the_left_edge() -> None:
    error = report(Outcome.COMPILE_ERROR, "14:07:00", FOO, error=GCC, still_runs=12)
    first, *rest = shown(error, width=100).splitlines()
    assert first == "14:07:00 error     drivers/foo/foo.c    does not compile; the guest still runs #12"
    assert rest == GCC.splitlines()


def test_without_a_reload_the_guest_runs_what_it_booted_with() -> None:
    broken = report(Outcome.COMPILE_ERROR, "14:07:00", FOO)
    assert "the guest still runs the code it booted with" in shown(broken)
    reason = Reason("HR3104", "it stalled")
    stalled = report(Outcome.STALLED, "14:07:00", FOO, reasons=(reason,), still_runs=3)
    assert shown(stalled).endswith("the guest still runs #3")


def test_all_reasons_are_told_up_to_what_a_person_reads() -> None:
    reasons = tuple(Reason("HR2103", f"initial value of live data: v{number}") for number in range(11))
    text = shown(report(Outcome.REFUSED, "14:03:40", FOO, reasons=reasons))
    assert [f"v{number}\n" in text for number in range(11)] == [True] * 8 + [False] * 3
    assert "+3 more reasons      hotreload why" in text


def test_long_lists_are_shortened_to_the_terminals_width() -> None:
    symbols = tuple(f"n_tty_function_{number}" for number in range(40))
    line = shown(live(symbols=symbols, number=12), width=120)
    assert len(line) <= 120
    assert line.endswith("  n_tty_function_0, n_tty_function_1, n_tty_function_2, +37 more   0.94 s  #12")


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_every_line_fits_the_terminal(width: int) -> None:
    symbols = tuple(f"f{number}" for number in range(100))
    reports = (
        live(symbols=symbols, number=1234),
        report(Outcome.REFUSED, "14:03:40", FOO, reasons=(STRUCT_GREW,)),
    )
    for each in reports:
        assert max(map(len, shown(each, width).splitlines())) <= width


def test_nothing_is_left_out_where_there_is_no_terminal() -> None:
    assert shown(live(symbols=tuple(f"f{number}" for number in range(100)))).count(", ") == 99


def test_files_elsewhere_are_shown_with_their_whole_path() -> None:
    text = shown(report(Outcome.NO_CHANGE, "14:06:10", Path("/usr/src/drv/a.c"), HOME.parent / "b.c"))
    assert text == "14:06:10 no change /usr/src/drv/a.c, ../b.c"


def test_text_from_the_guest_or_a_file_name_cannot_command_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x1b[2Jx\x9b31m\rgone\x00\u202e"
    hostile = report(
        Outcome.REJECTED,
        "14:03:40",
        HOME / f"{evil}.c",
        reasons=(Reason("HR3103", f"insmod: {evil}\nmore", hint=evil),),
        notes=(evil, evil),
        error=f"a\n\tb{evil}",
    )
    text = render(hostile, 80, color=False, cwd=HOME)
    assert all(character.isprintable() or character in "\n\t" for character in text)
    assert "HR3103 insmod: x\\rgone\\x00\\u202e more" in " ".join(text.split())


def test_colour_is_only_added_never_counted() -> None:
    each = live(symbols=tuple(f"n_tty_{number}" for number in range(40)), number=12)
    colored = render(each, 100, color=True, cwd=HOME)
    assert "\x1b[32mlive\x1b[0m      drivers" in colored
    from hotreload.report.text import harmless

    assert harmless(colored) == render(each, 100, color=False, cwd=HOME)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Console(Terminal()).color
    assert not Console(io.StringIO()).color
    assert Console(io.StringIO(), color="always").color
    assert not Console(Terminal(), color="never").color
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Console(Terminal()).color
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not Console(Terminal()).color


def test_quiet_leaves_failures() -> None:
    stream = io.StringIO()
    console = Console(stream, quiet=True)
    console.say("hello")
    console.report(live(number=1))
    console.report(report(Outcome.REFUSED, "14:03:40", FOO, reasons=(STRUCT_GREW,)))
    assert stream.getvalue().startswith("14:03:40 refused")


def test_progress_without_a_terminal_is_a_line_at_each_end() -> None:
    stream = io.StringIO()
    with Console(stream).progress("building the guest image") as progress:
        progress.update("packing")
        progress.advance(1, 2)
    first, last = stream.getvalue().splitlines()
    assert first == "building the guest image ..."
    assert last.startswith("building the guest image: done in 0.")


def test_progress_without_a_terminal_says_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotreload.report.console.SPOKEN_EVERY", 0.0)
    stream = io.StringIO()
    with Console(stream).progress("building the kernel") as progress:
        progress.update("12 of 900 units")
    assert stream.getvalue().splitlines()[1] == "building the kernel: 12 of 900 units"


def test_progress_says_so_when_the_work_failed() -> None:
    stream = io.StringIO()
    with pytest.raises(OSError, match="full"), Console(stream).progress("fetching"):
        raise OSError("full")
    assert "fetching: failed after" in stream.getvalue()


def test_progress_on_a_terminal_leaves_nothing_behind_and_takes_any_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Console(stream).progress("fetching [linux]") as progress:
        progress.update("[/bold] 3 of 4")
        progress.advance(3, 4)
    assert "fetching [linux]" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")  # the bar's line is erased
