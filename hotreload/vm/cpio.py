# SPDX-License-Identifier: MIT
"""Write a cpio archive in the "newc" format, which the kernel unpacks as its first root file system.

Source of the format: Documentation/driver-api/early-userspace/buffer-format.rst in the kernel.

The ``cpio`` program is not used, because ``/dev/console`` must be in the archive, and only root may create
that node on disk for cpio to find. Also, the same content must give the same bytes: owners are root, times
are zero, names are sorted, inodes are counted.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive. ``mode`` has the file type and the permissions, as in ``st_mode``.

    ``content`` is the target for links; ``device`` is (major, minor) for device nodes.
    """

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(path: str, content: bytes, permissions: int = 0o644) -> Entry:
    return Entry(_relative(path), stat.S_IFREG | permissions, content)


def folder(path: str, permissions: int = 0o755) -> Entry:
    return Entry(_relative(path), stat.S_IFDIR | permissions)


def link(path: str, target: str) -> Entry:
    return Entry(_relative(path), stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    return Entry(_relative(path), stat.S_IFCHR | permissions, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """Return the bytes of an archive with these entries and the folders that they need.

    If two entries have the same path, the later one wins.
    """
    by_path = {entry.path: entry for entry in entries}
    for path in list(by_path):
        for parent in PurePosixPath(path).parents:
            if str(parent) != ".":
                by_path.setdefault(str(parent), folder(str(parent)))
    # Sorting puts each folder before its content: "a" < "a/b".
    members = [_member(number, by_path[path]) for number, path in enumerate(sorted(by_path), start=1)]
    return b"".join([*members, _member(0, Entry(TRAILER, 0))])


def _relative(path: str) -> str:
    return str(PurePosixPath("/", path).relative_to("/"))


def _member(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    user = group = time = archive_major = archive_minor = checksum = 0
    fields = (inode, entry.mode, user, group, links, time, len(entry.content), archive_major, archive_minor)
    header = b"070701" + b"".join(b"%08X" % field for field in (*fields, *entry.device, len(name), checksum))
    return _padded(header + name) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
