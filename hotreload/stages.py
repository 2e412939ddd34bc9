# SPDX-License-Identifier: MIT
"""The stages of each reload, kept for people to read: both objects, the difference, the module."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from hotreload.compared import Compared
from hotreload.patch.module import LivePatch
from hotreload.paths import writing_to
from hotreload.report.diff_json import diff_object


class StageKeeper:
    """Writes ``FOLDER/N/{1-original,2-patched,3-diff.json,4-module}`` for reload N."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, number: int, compared: Iterable[Compared], patch: LivePatch | None) -> None:
        """Keep the stages of a reload. Raises EnvironmentFault if there is no space."""
        place = self.folder / str(number)
        with writing_to(place):
            for name in ("1-original", "2-patched", "4-module"):
                (place / name).mkdir(parents=True, exist_ok=True)
            diffs = {}
            for each in compared:
                name = each.pair.unit.object.name
                while name in diffs:  # units of the same name in two folders
                    name = f"{name.removesuffix('.o')}+.o"
                _link_or_copy(each.pair.original, place / "1-original" / name)
                # Copy the patched object. The compiler will overwrite it, and a link would change with it.
                shutil.copyfile(each.pair.patched, place / "2-patched" / name)
                diffs[name] = diff_object(each.diff)
            (place / "3-diff.json").write_text(json.dumps({"v": 1, "objects": diffs}, indent=1))
            if patch is not None:
                (place / "4-module" / f"{patch.name}.ko").write_bytes(patch.module)

    def module(self, name: str) -> Path | None:
        """Return the file of a patch module of this session, or None."""
        return next(self.folder.glob(f"*/4-module/{name}.ko"), None)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
