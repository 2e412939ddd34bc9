# SPDX-License-Identifier: MIT
"""Tables as aligned text, used by ``hotreload demo`` and ``hotreload history``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hotreload.report.console import WORDS
from hotreload.report.outcome import STAGES, ReloadReport
from hotreload.report.text import enumerate_names, one_line, seconds, shown_path, styled

SYMBOLS_WIDTH = 40


def align(
    header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = (), color: bool = False
) -> str:
    """Return the rows as columns that are two blanks apart, without a newline at the end.

    Columns in ``right`` (counted from 0) are right-aligned.
    """
    table = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    flush_right = frozenset(right)
    lines = [
        "  ".join(
            cell.rjust(width) if position in flush_right else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    lines[0] = styled(lines[0], "bold", color)
    return "\n".join(lines)


def cycles_table(reports: Sequence[ReloadReport], cwd: Path, color: bool = False) -> str:
    """Return a table with one row per cycle.

    The columns are number, outcome, files, what changed, and the seconds by stage and from save to live.
    """
    if not reports:
        return "no reloads yet"
    stages = [stage for stage in STAGES if any(stage in report.milliseconds for report in reports)]
    header = ["#", "outcome", "files", "changed", *stages, "saved to live"]
    rows = [_row(report, stages, cwd) for report in reports]
    return align(header, rows, right=(0, *range(4, len(header))), color=color)


def _row(report: ReloadReport, stages: Sequence[str], cwd: Path) -> list[str]:
    spent = report.milliseconds
    return [
        "" if report.number is None else str(report.number),
        WORDS[report.outcome][0],
        enumerate_names([shown_path(file, cwd) for file in report.files], SYMBOLS_WIDTH),
        _changed(report),
        *(f"{spent[stage] / 1000:.2f}" if stage in spent else "" for stage in stages),
        "" if report.saved_to_live_ms is None else seconds(report.saved_to_live_ms),
    ]


def _changed(report: ReloadReport) -> str:
    if report.reasons:
        return enumerate_names([reason.code for reason in report.reasons], SYMBOLS_WIDTH)
    if report.symbols:
        return enumerate_names([one_line(symbol) for symbol in report.symbols], SYMBOLS_WIDTH)
    return one_line(report.notes[0])[:SYMBOLS_WIDTH] if report.notes else ""
