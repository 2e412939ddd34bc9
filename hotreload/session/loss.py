# SPDX-License-Identifier: MIT
"""Describe how a guest was lost: as an error, as a report line and as a file."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from hotreload.errors import GuestCrashedError, GuestUnreachableError, HotReloadError
from hotreload.fault_line import SourceLine
from hotreload.report.crash import CrashReport, find_crash
from hotreload.report.outcome import Outcome, Reason, ReloadReport
from hotreload.restore_points import RolledBack
from hotreload.session.alert import Silence, read_log
from hotreload.vm.any_machine import AnyMachine
from hotreload.vm.console import printable
from hotreload.vm.machine import RESET, State, Trouble

# Seconds to wait. QEMU reports a panic 0.1 s before its text is on the console.
TEXT_LIMIT = 2.0
TEXT_REST = 0.4  # without new text
TROUBLE_LIMIT = 0.5  # SSH may fail before QEMU reports why
BOOTS = "the guest is booted again"
RETURNS = "hotreload did not start this guest: the session waits until it answers again"
REPORT_FILE = "report.txt"
COMPLAINTS_FILE = "complaints.txt"
# The message of a kernel that was asked to restart (kernel/reboot.c).
RESTARTS = "reboot: Restarting system"
# The first message of a panic (kernel/panic.c).
PANIC = "Kernel panic - not syncing"


async def trouble_of(machine: AnyMachine) -> Trouble | None:
    """Return why a guest that failed a command does not run, or None if it seems to run."""
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(machine.wait_for_trouble(), TROUBLE_LIMIT)
    return machine.trouble


async def loss(trouble: Trouble, console_log: Path, after: int = 0) -> HotReloadError:
    """Return the error for a lost guest: GuestCrashedError for a crash, else GuestUnreachableError (HR4103).

    ``after``: the offset in the log from which its content counts.
    """
    if trouble.state is State.PANICKED:
        crash = await _complaint(console_log, after)
        if crash is not None:
            return crash_error(crash, console_log)
        return GuestCrashedError(trouble.message, hint=_where(console_log))
    if trouble == RESET and RESTARTS not in (said := await _said(console_log, after)):
        if PANIC in said and (crash := find_crash(said)) is not None:  # it reset itself because of panic=1
            return crash_error(crash, console_log)
        return GuestCrashedError("the guest reset itself: a triple fault", hint=_where(console_log))
    return GuestUnreachableError(f"the guest is lost: {trouble.message}", hint=f"console log: {console_log}")


def crash_error(crash: CrashReport, console_log: Path) -> GuestCrashedError:
    """Return the error for a crash that the kernel reported."""
    return GuestCrashedError(
        crash.title,
        printable(crash.excerpt),
        place=place_of(crash),
        code=crash.code,
        hint=_where(console_log),
    )


def silence_error(silence: Silence | None, cause: str = "") -> GuestCrashedError:
    """Return the error for a guest that does not answer.

    ``silence`` is None if it answers again. Then the message is ``cause``: how the silence was noticed.
    """
    if silence is None:
        return GuestCrashedError(cause, code="HR4103")
    if silence.is_deaf:
        return GuestCrashedError("the guest is silent: it runs with interrupts off", code="HR4104")
    return GuestCrashedError("the guest runs, but no longer answers", code="HR4103")


def complaint_report(
    crash: CrashReport, line: SourceLine | None, number: int | None, folder: Path
) -> ReloadReport:
    """Return the report of a complaint after which the kernel goes on.

    The text of the complaint goes to a file in ``folder``. ``number``: the reload that it ran.
    """
    file = folder / COMPLAINTS_FILE
    ran = f"reload #{number}" if number is not None else "the code it booted with"
    at = f" ({line.file}:{line.line})" if line else ""
    with contextlib.suppress(OSError), file.open("a") as told:
        told.write(f"{crash.code} {crash.title}{at}\nthe guest ran {ran}\n\n{printable(crash.excerpt)}\n\n")
    where = (line.file, line.line) if line else (None, None)
    return ReloadReport(
        Outcome.COMPLAINED,
        number=number,
        reasons=(Reason(crash.code, crash.title, crash.function, file=where[0], line=where[1]),),
        notes=(f"the guest goes on; the whole message: {file}",),
        still_runs=number,
    )


def _where(console_log: Path) -> str:
    return f"console log: {console_log}"


def crashed_report(
    error: GuestCrashedError,
    line: SourceLine | None,
    number: int | None,
    folder: Path,
    commands: Iterable[str] = (),
) -> ReloadReport:
    """Return the report of a crash.

    The console's text goes to a file in ``folder``, with ``commands`` for looking further. ``number``: the
    reload that the guest ran.
    """
    file = folder / REPORT_FILE
    # If the disk is full, still go on to recover the guest.
    with contextlib.suppress(OSError):
        ran = f"reload #{number}" if number is not None else "the code it booted with"
        at = f" ({line.file}:{line.line})" if line else ""
        further = "".join(f"  {command}\n" for command in commands)
        told = f"{error.code} {error.message}{at}\nthe guest ran {ran}\n\n{error.excerpt}\n"
        file.write_text(f"{told}\ncommands for a closer look:\n{further}")
    return ReloadReport(
        Outcome.CRASHED,
        number=number,
        reasons=(
            Reason(
                error.code, error.message, file=line.file if line else None, line=line.line if line else None
            ),
        ),
        notes=(f"report: {file}",),
        still_runs=number,
    )


def place_of(crash: CrashReport) -> tuple[str | None, str, int] | None:
    """Return the module, the function to blame and the offset in it, or None if the text does not say."""
    if crash.function is None or crash.offset is None:
        return None
    return crash.module, crash.function, crash.offset


def restored(back: RolledBack, seconds: float, *, innocent: bool) -> tuple[str, ...]:
    """Return the lines on how the guest was brought back after a crash.

    ``innocent``: the last saved edit did not cause the crash, and is brought again.
    """
    runs = "the code it booted with" if back.runs is None else f"#{back.runs}"
    if back.before_undo:
        what = f"{runs} runs again, guest restored to the checkpoint before the undo in"
    elif back.number is None:
        what = "unfinished patch undone, guest restored to the checkpoint before it in"
    elif back.further:
        what = f"#{back.number} and earlier reloads undone, guest restored to a checkpoint of {runs} in"
    else:
        what = f"#{back.number} undone, guest restored to the checkpoint before it in"
    lines = [f"{what} {seconds:.2f} s"]
    if back.passed:
        lines.append(f"{passed_over(back.passed)}: restored {back.checkpoint} instead")
    if back.left_out:
        names = ", ".join(file.name for file in back.left_out)
        what = runs if back.runs is None else f"{runs} of it"
        end = "and gets the saved version again" if innocent else "until it is saved again"
        lines.append(f"{names}: the guest runs {what}, {end}")
    return tuple(lines)


def passed_over(checkpoints: Sequence[str]) -> str:
    """Return a text on checkpoints that were tried in vain: their names, or why they could not be loaded."""
    return f"the guest does not answer at {' and '.join(checkpoints)}"


async def panics(console_log: Path, after: int) -> bool:
    """Return whether the kernel panics right after its complaint.

    ``after``: the offset in the log from which its content counts.
    """
    end = time.monotonic() + TEXT_REST
    while PANIC not in await _said(console_log, after):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.05)
    return True


def loss_report(error: HotReloadError, running: int | None, what_follows: str) -> ReloadReport:
    """Return the report of a guest that was lost for another reason than a crash."""
    return ReloadReport(
        Outcome.COMPLAINED,
        number=running,
        reasons=(Reason(error.code, error.message, hint=what_follows),),
        still_runs=running,
    )


async def _complaint(console_log: Path, after: int) -> CrashReport | None:
    said, since = await _said(console_log, after), time.monotonic()
    while True:
        crash = find_crash(said)
        limit = TEXT_LIMIT if crash is None else TEXT_REST
        if (crash is not None and crash.complete) or time.monotonic() - since > limit:
            return crash
        await asyncio.sleep(0.05)
        now = await _said(console_log, after)
        if now != said:
            said, since = now, time.monotonic()


async def _said(console_log: Path, after: int) -> str:
    return (await asyncio.to_thread(read_log, console_log, after)).text
