# SPDX-License-Identifier: MIT
"""A folder for the sockets of one machine, and a free port. Both are released with the machine.

Each folder is locked by its owner (flock), and the kernel drops the lock when the owner dies for any reason.
A folder that can be locked is therefore left over from a killed hotreload, and is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hotreload.paths import runtime_folder, writing_to

# sockaddr_un.sun_path has 108 bytes, including the terminating zero (unix(7)).
PATH_LIMIT = 107
LONGEST_NAME = "console"
PREFIX = "vm-"


@contextlib.contextmanager
def socket_folder() -> Iterator[Path]:
    """Create a folder, accessible to its owner only, with a path short enough for sockets in it."""
    parent = _short_parent()
    _sweep(parent)
    with writing_to(parent), contextlib.ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        cleanup.callback(os.close, _locked(folder))
        yield folder


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free. Somebody else may take it before QEMU does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _short_parent() -> Path:
    runtime = runtime_folder()
    longest = runtime / f"{PREFIX}12345678" / LONGEST_NAME
    if len(os.fsencode(longest)) <= PATH_LIMIT:
        return runtime
    shared = Path(tempfile.gettempdir(), f"hotreload-{os.getuid()}")
    with writing_to(shared):
        shared.mkdir(mode=0o700, exist_ok=True)
        about = shared.lstat()
        # Somebody else may have created a folder of this name in /tmp, and would own our sockets.
        if about.st_uid == os.getuid() and about.st_mode & 0o777 == 0o700 and not shared.is_symlink():
            return shared
        return Path(tempfile.mkdtemp(prefix="hotreload-"))


def _locked(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        # BlockingIOError: it is in use. FileNotFoundError: another process removed it.
        with contextlib.suppress(OSError):
            descriptor = _locked(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
