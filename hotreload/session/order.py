# SPDX-License-Identifier: MIT
"""What a session is asked to be, and the folder that keeps its records."""

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
    """What a session is asked to be. ``guest`` is its name, ``folder`` the module's, resolved.

    ``attachment``: somebody else's guest, to be used instead of one that is booted.
    """

    folder: Path
    config: Config
    guest: str
    state: Path
    dry_run: bool = False
    attachment: Attachment | None = None


def new_state(guest: str) -> Path:
    """The path of a folder for the records of a session that begins now."""
    return state_folder() / "guests" / guest / f"{datetime.now():%Y-%m-%dT%H-%M-%S.%f}"


def make_state_folder(folder: Path) -> None:
    """Make it; the oldest of the same guest go."""
    with writing_to(folder):
        folder.mkdir(parents=True, mode=0o700)
    for left_behind in folder.parent.glob(f"*/{STATE_DISK}"):
        left_behind.unlink(missing_ok=True)  # of a session that was killed
    for old in sorted(folder.parent.iterdir())[:-KEPT_SESSIONS]:
        shutil.rmtree(old, ignore_errors=True)
