# SPDX-License-Identifier: MIT
"""Delete the files that kbuild was writing when it was killed, because make would trust them.

The compiler writes an object in place. If make is told to terminate, it deletes the object. If make is killed
as well, a partial object stays. It is newer than its source, and next to it is the ``.cmd`` file of the
previous compile, so make takes it for up to date.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from hotreload.build.built import saved_ns
from hotreload.paths import cache_folder, writing_to

# File systems use the time of the last timer tick, which is up to 10 ms ago (HZ=100).
TICK_NS = 20_000_000


@contextlib.contextmanager
def remembered(folder: Path) -> Iterator[None]:
    """Remember that kbuild writes below ``folder`` within this context.

    If the process is killed, the next one that enters it deletes the unfinished files. Raises
    EnvironmentFault (HR5107, HR5108).
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
    """Yield the files written since then whose command kbuild did not get to record.

    The command is recorded after the file is written (scripts/Kbuild.include: cmd_and_fixdep,
    cmd_and_savecmd). Files that never had a recorded command are rebuilt anyway.
    """
    for noted in folder.rglob(".*.cmd"):
        made = noted.with_name(noted.name.removeprefix(".").removesuffix(".cmd"))
        written = saved_ns(made)
        if written >= since_ns and written > saved_ns(noted):
            yield made
