# SPDX-License-Identifier: MIT
"""The register of running guests: which exist, which session owns each, and where its socket is.

Each guest has a folder ``runtime/guests/NAME``:

    lock      held by its session (flock); the kernel releases it however the session ends
    about     JSON: the process that owns it, and the watched folder (About)
    control   a socket for requests (control.py)

Only the user may enter the folder, so only the user can connect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotreload.errors import GuestBusyError, GuestUnreachableError, InputError
from hotreload.paths import runtime_folder, writing_to

# The name in the configuration that means "one guest for each watched folder".
UNNAMED = "default"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Seconds to retry, because other processes hold a lock for a moment to see whether its owner is alive.
LOCK_PATIENCE = 0.2


@dataclass(frozen=True, slots=True)
class Place:
    """The paths of one guest's session. They need not exist."""

    name: str
    folder: Path

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def about(self) -> Path:
        return self.folder / "about"

    @property
    def control(self) -> Path:
        return self.folder / "control"


@dataclass(frozen=True, slots=True)
class About:
    """What a session publishes about itself.

    ``folder``      the watched folder
    ``background``  whether it runs in the background, and so watches only while a client does
    ``started``     Unix time
    ``state``       the folder of the session's records
    ``attached``    the SSH address of the guest, if somebody else started it
    """

    guest: str
    folder: Path
    pid: int
    background: bool
    started: float
    state: Path
    attached: str | None = None


def guest_name(chosen: str, folder: Path) -> str:
    """Return the name of the guest for a watched folder: the chosen one, or one made from the folder's name.

    Raises InputError (HR1008) for a name that cannot be a file name.
    """
    if chosen == UNNAMED:
        real = folder.resolve()
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", real.name).strip("-._")[:40] or "guest"
        return f"{stem}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:6]}"
    if not NAME.fullmatch(chosen):
        raise InputError(
            f"{chosen!r} is not a valid name for a guest",
            code="HR1008",
            hint="use letters, digits, '.', '_' and '-', and begin with a letter or digit",
        )
    return chosen


def place_of(name: str) -> Place:
    return Place(name, runtime_folder() / "guests" / name)


@contextlib.contextmanager
def claim(about: About) -> Iterator[Place]:
    """Own a guest's name until the end of the block.

    Raises GuestBusyError (HR3106) if another session owns it.
    """
    place = place_of(about.guest)
    descriptor = _locked(place)
    try:
        # Left behind by a killed session.
        place.control.unlink(missing_ok=True)
        _write(place.about, dataclasses.asdict(about))
        yield place
    finally:
        # Remove it while it is locked: a process that locks this file next sees that the path is gone.
        shutil.rmtree(place.folder, ignore_errors=True)
        os.close(descriptor)


def _locked(place: Place) -> int:
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        with writing_to(place.folder):
            place.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(place.lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
                if _try_lock(descriptor, place.lock):
                    return descriptor
                os.close(descriptor)
        if time.monotonic() > deadline:
            raise _busy(place)
        time.sleep(0.02)


def _try_lock(descriptor: int, path: Path) -> bool:
    """Try to lock a file. Return whether that worked, and the file is still the one at ``path``."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _busy(place: Place) -> GuestBusyError:
    about = _read_about(place)
    owner = f"process {about.pid}, which watches {about.folder}" if about else "another hotreload"
    return GuestBusyError(
        f"the guest {place.name} belongs to {owner}",
        hint="stop it (hotreload guest stop), or use another guest: --guest NAME",
    )


def _write(file: Path, value: Mapping[str, object]) -> None:
    with writing_to(file.parent):
        new = file.with_name(f"{file.name}.new")
        new.write_text(json.dumps(value, default=str))
        new.replace(file)


def _read_about(place: Place) -> About | None:
    try:
        data = json.loads(place.about.read_text())
        return About(**{**data, "folder": Path(data["folder"]), "state": Path(data["state"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sessions() -> tuple[About, ...]:
    """Return the sessions that are alive, sorted by name. Remove what killed sessions left behind."""
    guests = runtime_folder() / "guests"
    found = []
    for folder in sorted(guests.iterdir()) if guests.is_dir() else ():
        place = Place(folder.name, folder)
        if _is_alive(place) and (about := _read_about(place)):
            found.append(about)
    return tuple(found)


def _is_alive(place: Place) -> bool:
    try:
        descriptor = os.open(place.lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not _try_lock(descriptor, place.lock):
            return True
        shutil.rmtree(place.folder, ignore_errors=True)
        return False
    finally:
        os.close(descriptor)


def find_session(chosen: str, folder: Path) -> About:
    """Find the session that a command in ``folder`` refers to.

    That is the session of the chosen guest, or the one of this folder or the nearest folder above. Raises
    GuestUnreachableError (HR4103) if there is none.
    """
    alive = sessions()
    if chosen != UNNAMED:
        candidates = [about for about in alive if about.guest == chosen]
        missing = f"the guest {chosen} is not running"
    else:
        here = folder.resolve()
        candidates = [about for about in alive if here.is_relative_to(about.folder)]
        missing = f"no guest is running for {here}"
    if not candidates:
        raise absent(missing, alive)
    return max(candidates, key=lambda about: len(about.folder.parts))


def find_running(chosen: str, folder: Path) -> About | None:
    """Return the session that owns the guest of a ``watch`` in ``folder``, if it watches that folder."""
    name = guest_name(chosen, folder)
    same = (about for about in sessions() if about.guest == name and about.folder == folder.resolve())
    return next(same, None)


def absent(fact: str, alive: tuple[About, ...]) -> GuestUnreachableError:
    """Return the error for a guest that is not running (HR4103)."""
    others = f"; running: {', '.join(about.guest for about in alive)} (--guest NAME)" if alive else ""
    return GuestUnreachableError(fact, hint=f"hotreload watch or hotreload guest start{others}")
