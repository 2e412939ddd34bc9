# SPDX-License-Identifier: MIT
"""Where hotreload keeps its files: in the XDG base folders, never in the user's tree.

cache    kernels, guest images, base objects by content: may be deleted at any time
state    one folder per session: console.log, events.ndjson, the stages of each reload
runtime  sockets, process ids, locks: gone after a reboot
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hotreload.errors import EnvironmentFault

APPLICATION = "hotreload"


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/hotreload``. Create it if needed."""
    return _made(_base("XDG_CACHE_HOME", ".cache") / APPLICATION, 0o755)


def state_folder() -> Path:
    """Return ``$XDG_STATE_HOME/hotreload``, accessible only to its owner. Create it if needed."""
    return _made(_base("XDG_STATE_HOME", ".local/state") / APPLICATION, 0o700)


def runtime_folder() -> Path:
    """Return ``$XDG_RUNTIME_DIR/hotreload``. Create it if needed.

    If the variable is not set, use ``run`` below the state folder.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return _made(Path(runtime) / APPLICATION if runtime else state_folder() / "run", 0o700)


def config_file() -> Path:
    """Return the path of the user's own configuration. It need not exist."""
    return _base("XDG_CONFIG_HOME", ".config") / APPLICATION / "config.toml"


def full_disk(said: str, what: str, hint: str = "free some space: df -h") -> EnvironmentFault | None:
    """Return the error for a program whose output says that it failed for lack of space, or None.

    ``what`` completes the message "no space left ..".
    """
    if any(os.strerror(number) in said for number in (errno.ENOSPC, errno.EDQUOT)):
        return EnvironmentFault(f"no space left {what}", code="HR5107", hint=hint)
    return None


@contextlib.contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Turn an OSError while writing below ``place`` into an EnvironmentFault that says what to do."""
    try:
        yield
    except OSError as error:
        # If several copies failed, shutil only gives their messages.
        several = str(error) if isinstance(error, shutil.Error) else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in several:
            raise EnvironmentFault(
                f"no space left below {place}", code="HR5107", hint=f"free some space: du -sh {place}"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise EnvironmentFault(
                f"{place} is not writable: {error.strerror}",
                code="HR5108",
                hint="fix its permissions, or name another place with XDG_CACHE_HOME / XDG_STATE_HOME",
            ) from error
        raise


def _base(variable: str, below_home: str) -> Path:
    # An empty or relative value must be ignored (XDG Base Directory Specification 0.8).
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / below_home


def _made(folder: Path, mode: int) -> Path:
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
    return folder
