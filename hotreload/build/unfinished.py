# SPDX-License-Identifier: MIT
"""What kbuild was writing when it was killed, make, compilers and all: make must not believe in it.

The compiler writes an object in place. Told to end, make deletes it; killed, it leaves a part of it, which is
newer than its source, beside the ``.cmd`` file of the time before: with that it counts as made.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from hotreload.build.built import saved_ns
from hotreload.paths import cache_folder, writing_to

# File systems stamp files with the time of the last timer tick, up to 10 ms ago (HZ=100).
TICK_NS = 20_000_000


@contextlib.contextmanager
def remembered(folder: Path) -> Iterator[None]:
    """Inside, kbuild writes below ``folder``; if nobody lives to see the end, who is here next deletes what
    was not finished.

    Raises EnvironmentFault (HR5107, HR5108).
    """
    name = hashlib.sha256(bytes(folder)).hexdigest()[:16]
    note = cache_folder() / f"kbuild-{name}"
    if note.exists():
        for file in unfinished(folder, note.stat().st_mtime_ns - TICK_NS):
            file.unlink(missing_ok=True)
    with writing_to(note.parent):
        note.touch()
    yield
    note.unlink(missing_ok=True)


def unfinished(folder: Path, since_ns: int) -> Iterator[Path]:
    """What was written since then without that kbuild came to note the command (scripts/Kbuild.include:
    cmd_and_fixdep, cmd_and_savecmd), though it had noted one before. Without any it is made anew anyway."""
    for noted in folder.rglob(".*.cmd"):
        made = noted.with_name(noted.name.removeprefix(".").removesuffix(".cmd"))
        written = saved_ns(made)
        if written >= since_ns and written > saved_ns(noted):
            yield made
