# SPDX-License-Identifier: MIT
"""What the tests of faults need: the moments of a session as others see them, its traces, a small disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hotreload.guard import VARIABLE
from hotreload.paths import runtime_folder, state_folder
from hotreload.session.boot import STATE_DISK
from hotreload.session.guests import UNNAMED, guest_name
from tests.conftest import require
from tests.guest.watching import LIMIT, Watch, edit, leftovers, reading, watch

# In the environment of a session, and of every program that it starts: the folder.
MARK = "WATCHED_BY_A_TEST"
# What kbuild leaves in a module's folder, and what is the user's own there.
KBUILDS = (".o", ".ko", ".mod", ".mod.c", ".cmd", ".symvers", ".order", ".o.d", ".d")


def until(true: Callable[[], object], what: str, limit: float = LIMIT) -> None:
    """Wait for something; fail after ``limit`` seconds."""
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline, f"not in {limit:g} s: {what}"
        time.sleep(0.001)


def descendants(folder: Path) -> dict[int, str]:
    """The programs that a session of this folder has started and that live, with their words."""
    found = {}
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={folder}".encode() in environment.read_bytes().split(b"\0"):
                words = environment.with_name("cmdline").read_bytes().split(b"\0")
                found[int(environment.parent.name)] = b" ".join(words).decode(errors="replace")
    return found


def guards_of(pid: int) -> list[int]:
    """The guards of a hotreload process: see hotreload/guard.py."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{VARIABLE}={pid}-".encode() in place.read_bytes():
                found.append(int(place.parent.name))
    return found


def records(folder: Path) -> list[Path]:
    """The folders of this folder's sessions, oldest first."""
    place = state_folder() / "guests" / guest_name(UNNAMED, folder)
    return sorted(place.iterdir()) if place.is_dir() else []


def blocks_of_checkpoints(folder: Path) -> int:
    """What the disk of the checkpoints takes, in 512 bytes; it has no name, but QEMU has it open."""
    for link in (each for pid in descendants(folder) for each in Path(f"/proc/{pid}/fd").glob("*")):
        with contextlib.suppress(OSError):
            if str(link.readlink()).endswith(f"/{STATE_DISK} (deleted)"):
                return link.stat().st_blocks
    raise AssertionError("there is none")


def events(folder: Path) -> list[Mapping[str, Any]]:
    """What the newest session has recorded."""
    file = records(folder)[-1] / "events.ndjson" if records(folder) else folder / "none"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def waits_for_event(folder: Path, **wanted: object) -> None:
    """Return as soon as the newest session has recorded such an event."""
    until(lambda: any(wanted.items() <= each.items() for each in events(folder)), f"an event {wanted}")


def users_files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of what is not kbuild's in a module's folder."""
    return {
        file.name: (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.iterdir()
        if file.is_file() and not file.name.endswith(KBUILDS)
    }


def remains(folder: Path) -> list[str]:
    """Programs, sockets, locks and disks of the sessions of this folder."""
    sockets = [str(each) for each in runtime_folder().glob("vm-*")]
    disks = [str(each / STATE_DISK) for each in records(folder) if (each / STATE_DISK).exists()]
    return [*descendants(folder).values(), *leftovers(folder), *sockets, *disks]


def nothing_remains(folder: Path) -> None:
    until(lambda: not remains(folder), f"an end of {remains(folder)}", 5)


def no_program_remains(folder: Path) -> None:
    """What a killed session leaves besides is swept by the next one."""
    until(lambda: not descendants(folder), f"an end of {descendants(folder)}", 5)


def killed(watching: Watch, folder: Path) -> None:
    """Kill hotreload alone, by surprise; nobody but the user has touched a file, and no program goes on."""
    before = users_files(folder)
    watching.end(signal.SIGKILL)
    no_program_remains(folder)
    assert users_files(folder) == before


def goes_on(folder: Path, shown: str) -> None:
    """The next session boots what the sources say, ``shown``; an edit is live; it ends without a trace."""
    with watch(folder) as watching:
        watching.waits_for("ready")
        assert reading(folder).startswith(shown)
        edit(folder, f"{shown} %", f"next {shown} %")
        watching.waits_for("live ")
        assert reading(folder).startswith(f"next {shown}")
        assert watching.end() == 130
        assert "Traceback" not in watching.said
    nothing_remains(folder)


# A disk that is full.


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own at ``place``."""
    place.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "hotreload-test", str(place)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    require(
        mounted.returncode == 0, f"the right to mount ({mounted.stderr.strip()})", "run the tests as root"
    )
    try:
        yield place
    finally:
        # Whatever still uses it: nobody else sees it any more.
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Take what space there is, but ``leave`` bytes; the file that does."""
    filler = disk / "filler"
    with filler.open("ab") as stream:
        about = os.statvfs(disk)
        if (free := about.f_bavail * about.f_frsize - leave) > 0:
            os.posix_fallocate(stream.fileno(), stream.tell(), free)
    return filler
