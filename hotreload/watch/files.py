# SPDX-License-Identifier: MIT
"""Read files, list folders, and find out which file systems do not report changes."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from hotreload.watch.changes import Digest
from hotreload.watch.filters import file_matters, folder_matters

LARGEST_SOURCE = 64 << 20  # bytes; the kernel's largest header has 24 MB, core dumps are larger
NO_SUCH_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})

# File systems that other machines can change without inotify noticing: inotify(7), "Limitations".
REMOTE_FILESYSTEMS = frozenset(
    "9p afs beegfs ceph cifs davfs glusterfs lustre nfs nfs4 prl_fs smb3 smbfs vboxsf virtiofs".split()
)


class StillWrittenError(Exception):
    """The file changed while it was read."""


def digest(path: str) -> Digest:
    """Return the 16-byte BLAKE2b of a file's content; None if it does not exist or cannot be a source.

    Raises StillWrittenError if it changed meanwhile, OSError if it cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a fifo waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in NO_SUCH_FILE:
            return None
        raise
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode) or before.st_size > LARGEST_SOURCE:
            return None
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise StillWrittenError(path)
    return content


def stamp_digest(path: str) -> Digest:
    """Return a substitute for the digest of a file that is not read: its mtime, size and inode."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (
        f"{found.st_mtime_ns} {found.st_size} {found.st_ino}".encode()
        if stat.S_ISREG(found.st_mode)
        else None
    )


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries of one folder, after filtering. Paths are strings, because there are thousands."""

    folders: tuple[str, ...]
    files: tuple[str, ...]
    links: tuple[str, ...]  # those of the files that are symbolic links


def list_folder(folder: str) -> Listing:
    """Return the sources and subfolders of ``folder``; empty if it does not exist or cannot be read.

    Symbolic links to folders are not followed, because those in the kernel tree lead back into it.
    """
    folders, files, links = [], [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if folder_matters(entry.name):
                        folders.append(entry.path)
                elif file_matters(entry.name) and entry.is_file():
                    files.append(entry.path)
                    if entry.is_symlink():
                        links.append(entry.path)
    except OSError:
        return Listing((), (), ())
    return Listing(tuple(folders), tuple(files), tuple(links))


def stat_files(roots: Iterable[str], files: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """Return mtime (ns), size and inode of everything below ``roots`` and of ``files``, for polling."""
    found = {}
    waiting = list(roots)
    paths = list(files)
    while waiting:
        listing = list_folder(waiting.pop())
        waiting += listing.folders
        paths += listing.files
    for path in paths:
        try:
            seen = os.stat(path)
        except OSError:
            continue
        found[path] = (seen.st_mtime_ns, seen.st_size, seen.st_ino)
    return found


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system: mount point, and type as in /proc/filesystems (``nfs4``, ``fuse.sshfs``)."""

    point: str
    type: str

    @property
    def needs_polling(self) -> bool:
        # fuseblk (NTFS on a local disk) is only changed by this kernel; fuse.sshfs and the like are not.
        return self.type in REMOTE_FILESYSTEMS or self.type.startswith("fuse.")


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Parse /proc/self/mountinfo (proc(5)). The order is kept."""
    mounts = []
    for line in text.splitlines():
        here, separator, source = line.partition(" - ")
        if separator:
            mounts.append(Mount(_unescape(here.split()[4]), source.split()[0]))
    return tuple(mounts)


def mount_of(path: str, mounts: Iterable[Mount]) -> Mount | None:
    """Return the mount that holds a resolved path: the deepest, and the last one on the same point."""
    best: Mount | None = None
    for mount in mounts:
        below = mount.point.rstrip("/") + "/"
        if (path + "/").startswith(below) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def needs_polling(paths: Iterable[str]) -> bool:
    """Return whether any of these is on a file system that can change without inotify noticing."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = parse_mountinfo(file.read())
    found = (mount_of(os.path.realpath(path), mounts) for path in paths)
    return any(mount is not None and mount.needs_polling for mount in found)


def _unescape(field: str) -> str:
    # seq_file writes space, tab, newline and backslash as \040 etc.
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
