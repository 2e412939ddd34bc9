# SPDX-License-Identifier: MIT
"""The difference between two objects as JSON and as text, as ``hotreload diff`` prints it."""

from __future__ import annotations

from typing import Any

from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.obstacles import Obstacle


def diff_object(diff: ObjectDiff, milliseconds: float | None = None) -> dict[str, Any]:
    """Return the JSON object of ``diff --json`` (version 1 of the interface)."""
    return {
        "v": 1,
        "verdict": diff.verdict,
        "changed_functions": list(diff.changed_functions),
        "new_functions": [symbol.name for symbol in diff.new_functions],
        "removed_functions": [symbol.name for symbol in diff.removed_functions],
        "new_data": [symbol.name for symbol in diff.new_data],
        "callers_promoted": dict(diff.callers_promoted),
        "notes": [{"code": n.code, "symbol": n.symbol, "message": n.message} for n in diff.notes],
        "obstacles": [obstacle_object(obstacle) for obstacle in diff.obstacles],
        "ms": None if milliseconds is None else round(milliseconds, 3),
    }


def obstacle_object(obstacle: Obstacle) -> dict[str, Any]:
    """Return one entry of ``obstacles``."""
    file, _, line = (obstacle.where or "").rpartition(":")
    if not line.isdigit():  # a file without a line
        file, line = obstacle.where or "", ""
    return {
        "code": obstacle.code,
        "symbol": obstacle.symbol,
        "message": obstacle.message,
        "hint": obstacle.hint,
        "file": file or None,
        "line": int(line) if file and line else None,
    }


def diff_text(diff: ObjectDiff) -> str:
    """Return the difference as text for a person, with one fact per line."""
    lines = [diff.verdict]
    for title, names in (
        ("changed", diff.changed_functions),
        ("new function", [symbol.name for symbol in diff.new_functions]),
        ("removed function", [symbol.name for symbol in diff.removed_functions]),
        ("new data", [symbol.name for symbol in diff.new_data]),
    ):
        lines += [f"  {title:<17} {name}" for name in names]
    lines += [f"  {name:<17} replaced too: {why}" for name, why in diff.callers_promoted.items()]
    lines += [f"  note {note.code}       {note.message}" for note in diff.notes]
    for obstacle in diff.obstacles:
        lines += [f"  refused {obstacle.code}    {obstacle.message}", f"{'':20}{obstacle.hint}"]
    return "\n".join(lines) + "\n"
