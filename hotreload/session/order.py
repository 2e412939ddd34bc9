# SPDX-License-Identifier: MIT
"""The parameters of a session, and the folder for its records."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hotreload.config import Config
from hotreload.paths import state_folder, writing_to
from hotreload.session.attached import Attachment
from hotreload.session.boot import STATE_DISK

KEPT_SESSIONS = 10


@dataclass(frozen=True, slots=True)
class Order:
    """The parameters of a session.

    ``folder``      the watched folder, resolved
    ``guest``       the name of the guest
    ``state``       the folder of the session's records
    ``attachment``  somebody else's guest, to attach to instead of booting one
    """

    folder: Path
    config: Config
    guest: str
    state: Path
    dry_run: bool = False
    attachment: Attachment | None = None


def new_state(guest: str) -> Path:
    """Return the path of a folder for the records of a session that begins now."""
    return state_folder() / "guests" / guest / f"{datetime.now():%Y-%m-%dT%H-%M-%S.%f}"


def make_state_folder(folder: Path) -> None:
    """Make a folder for records, and delete the oldest ones of the same guest."""
    with writing_to(folder):
        folder.mkdir(parents=True, mode=0o700)
    for left_behind in folder.parent.glob(f"*/{STATE_DISK}"):
        left_behind.unlink(missing_ok=True)  # left by a killed session
    for old in sorted(folder.parent.iterdir())[:-KEPT_SESSIONS]:
        shutil.rmtree(old, ignore_errors=True)
