# SPDX-License-Identifier: MIT
"""The output of ``hotreload build --json``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.obstacles import Obstacle
from hotreload.report.diff_json import diff_object, obstacle_object


def build_object(
    diffs: Mapping[Path, ObjectDiff],
    sources: Mapping[Path, Path],
    obstacles: Sequence[Obstacle],
    module: Path | None,
    folder: Path,
) -> dict[str, Any]:
    """Return the JSON object (version 1 of the interface).

    ``diffs`` and ``sources`` are by object. An obstacle that was found after comparing is listed with the
    object of its source. One that concerns no object (a Makefile) is listed in ``obstacles``.
    """
    objects = {}
    left = dict.fromkeys(obstacles)
    for target, diff in diffs.items():
        own = [o for o in left if (o.where or "").partition(":")[0] == str(sources[target])]
        known = {(o.code, o.symbol, o.message): o for o in (*diff.obstacles, *own)}
        left = {o: None for o in left if (o.code, o.symbol, o.message) not in known}
        objects[os.path.relpath(target, folder)] = diff_object(replace(diff, obstacles=tuple(known.values())))
    verdict = "refused" if obstacles else "patchable" if module else "unchanged"
    return {
        "v": 1,
        "verdict": verdict,
        "objects": objects,
        "obstacles": [obstacle_object(obstacle) for obstacle in left],
        "module": str(module) if module else None,
    }
