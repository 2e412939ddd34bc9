# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from hotreload.watch import files
from hotreload.watch.files import (
    Mount,
    StillWrittenError,
    digest,
    list_folder,
    mount_of,
    parse_mountinfo,
    stat_files,
)

MOUNTINFO = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:50 / /home rw,relatime shared:5 - nfs4 server:/home rw,vers=4.2
41 40 0:51 / /home/me/my\040linux rw - fuse.sshfs me@there:/ rw
42 27 0:52 / /mnt rw - 9p share rw
43 27 259:1 / /mnt rw - xfs /dev/nvme0n1 rw
44 27 259:2 / /win rw - fuseblk /dev/sda1 rw
"""


@pytest.mark.parametrize(
    ("path", "type", "polled"),
    [
        ("/usr/src/drv", "ext4", False),
        ("/home/me/drv", "nfs4", True),
        ("/home/me/my linux/drv", "fuse.sshfs", True),
        ("/homer", "ext4", False),
        ("/mnt/drv", "xfs", False),  # the last one mounted there hides the other
        ("/win/drv", "fuseblk", False),
        ("/", "ext4", False),
    ],
)
def test_network_file_systems_are_polled(path: str, type: str, polled: bool) -> None:
    mount = mount_of(path, parse_mountinfo(MOUNTINFO))
    assert mount is not None
    assert (mount.type, mount.needs_polling) == (type, polled)


def test_a_path_under_no_known_mount_has_none() -> None:
    assert mount_of("/home", [Mount("/proc", "proc")]) is None


def test_a_digest_tells_contents_apart_and_nothing_else(tmp_path: Path) -> None:
    one, same, other = tmp_path / "1.c", tmp_path / "2.c", tmp_path / "3.c"
    one.write_text("int a;\n")
    same.write_text("int a;\n")
    other.write_text("int b;\n")
    assert digest(str(one)) == digest(str(same)) != digest(str(other))
    assert len(digest(str(one)) or b"") == 16


def test_what_is_no_regular_file_has_no_digest_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.c")
    (tmp_path / "loop.c").symlink_to("loop.c")
    for name in ("fifo.c", "loop.c", "none.c", "fifo.c/below.c", "."):
        assert digest(str(tmp_path / name)) is None


def test_a_file_that_changes_while_it_is_read_has_no_digest_yet(tmp_path: Path) -> None:
    file, enough = tmp_path / "big.c", threading.Event()
    file.write_bytes(bytes(32 << 20))

    def keep_writing() -> None:
        with open(file, "r+b", buffering=0) as out:
            while not enough.is_set():
                out.write(b"x")

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        with pytest.raises(StillWrittenError):
            digest(str(file))
    finally:
        enough.set()
        writer.join()
    assert digest(str(file)) is not None


def test_what_is_too_large_for_a_source_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "core", "wb") as file:
        file.truncate(files.LARGEST_SOURCE + 1)
    assert digest(str(tmp_path / "core")) is None


def test_a_listing_has_sources_and_folders_and_does_not_follow_links_to_folders(tmp_path: Path) -> None:
    for name in ("foo.c", "foo.o", ".foo.c.swp"):
        (tmp_path / name).touch()
    for name in ("sub", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "link.c").symlink_to("foo.c")
    listing = list_folder(str(tmp_path))
    assert listing.folders == (f"{tmp_path}/sub",)
    assert set(listing.files) == {f"{tmp_path}/foo.c", f"{tmp_path}/link.c"}
    assert listing.links == (f"{tmp_path}/link.c",)
    assert list_folder(str(tmp_path / "none")).files == ()


def test_polling_sees_files_at_any_depth_and_forgets_those_that_went(tmp_path: Path) -> None:
    (tmp_path / "root/deep/er").mkdir(parents=True)
    source, header = tmp_path / "root/deep/er/foo.c", tmp_path / "foo.h"
    source.touch()
    header.touch()
    seen = stat_files([str(tmp_path / "root")], [str(header), str(tmp_path / "none.h")])
    assert set(seen) == {str(source), str(header)}
