# SPDX-License-Identifier: MIT
"""The long answer about a refusal: every reason, what each code means, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hotreload.errors import InputError
from hotreload.report.codes import find_code, long_answer
from hotreload.report.outcome import Outcome, ReloadReport


def why(reports: Sequence[ReloadReport], number: int | None = None) -> str:
    """Return the long answer about reload ``number``, or about the last cycle that has a reason.

    If a refusal led to that reload, it is included. Raises InputError (HR1009) if there is no such cycle.
    """
    if number is None:
        chosen = [report for report in reports if report.reasons or report.error]
        missing = "nothing has been refused yet"
    else:
        chosen = [report for report in reports if report.number == number]
        missing = f"there is no reload #{number}"
    if not chosen:
        raise InputError(missing, hint="list the reloads: hotreload history")
    return "".join(_told(each) for each in (*_led_to(reports, chosen[-1]), chosen[-1]))


def _led_to(reports: Sequence[ReloadReport], report: ReloadReport) -> Sequence[ReloadReport]:
    """Return the refusal after which the next rung brought the same edit, if there was one."""
    place = next(place for place, each in enumerate(reports) if each is report)
    before = reports[place - 1] if place else None
    if report.outcome.rung in (None, "patch") or before is None or before.files != report.files:
        return ()
    return (before,) if before.outcome in (Outcome.REFUSED, Outcome.REJECTED) else ()


def _told(report: ReloadReport) -> str:
    head = f"{report.time:%H:%M:%S} {report.outcome.value.replace('_', ' ')}"
    if report.number is not None:
        head += f"  #{report.number}"
    lines = [head, *(f"  {file}" for file in report.files)]
    lines += [f"  {symbol}" for symbol in report.symbols]
    for reason in report.reasons:
        place = f" ({reason.file}:{reason.line})" if reason.file else ""
        lines += ["", f"{reason.code} {reason.message}{place}"]
        lines += [f"  {reason.hint}"] if reason.hint else []
    lines += [f"  {note}" for note in report.notes]
    if report.error:
        lines += ["", report.error.rstrip()]
    answers = [long_answer(find_code(code)) for code in dict.fromkeys(r.code for r in report.reasons)]
    return "\n".join(lines) + "\n" + "".join(f"\n{answer}" for answer in answers)
