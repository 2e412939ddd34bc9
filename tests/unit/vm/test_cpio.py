# SPDX-License-Identifier: MIT
"""The archive, read back by a program that we did not write."""

from __future__ import annotations

import shutil
import subprocess

from hotreload.vm import cpio
from tests.conftest import require

ENTRIES = (
    cpio.file("/usr/bin/tool", b"#!/bin/sh\n", 0o755),
    cpio.file("etc/key", b"secret", 0o600),
    cpio.link("bin/sh", "busybox"),
    cpio.character_device("dev/console", 5, 1),
)


def listed(data: bytes) -> list[str]:
    """What busybox's cpio reads: ``mode owner size date name`` a line."""
    require(shutil.which("busybox"), "busybox", "apt-get install busybox-static")
    done = subprocess.run(["busybox", "cpio", "-tv"], input=data, capture_output=True, check=True)
    return [" ".join(line.split()) for line in done.stdout.decode().splitlines()]


def the_one(word: str, lines: list[str]) -> str:
    (line,) = (line for line in lines if word in line)
    return line


def test_files_links_and_devices_come_out_as_they_went_in() -> None:
    lines = listed(cpio.archive(ENTRIES))
    assert the_one("bin/tool", lines).startswith("-rwxr-xr-x 0/0 10 ")
    assert the_one("etc/key", lines).startswith("-rw------- 0/0 6 ")
    assert the_one("bin/sh", lines).endswith("bin/sh -> busybox")
    assert the_one("dev/console", lines).startswith("crw------- 0/0 ")


def test_the_folders_of_a_file_come_before_it_and_once() -> None:
    names = [line.split()[-1] for line in listed(cpio.archive([*ENTRIES, cpio.file("usr/lib/x", b"")]))]
    assert [name for name in names if name.startswith("usr")] == [
        "usr",
        "usr/bin",
        "usr/bin/tool",
        "usr/lib",
        "usr/lib/x",
    ]


def test_the_order_of_the_entries_does_not_change_a_byte() -> None:
    assert cpio.archive(ENTRIES) == cpio.archive(reversed(ENTRIES))


def test_of_two_entries_with_one_path_the_later_wins() -> None:
    first, second = cpio.folder("tmp"), cpio.folder("tmp", 0o1777)
    assert cpio.archive([first, second]) == cpio.archive([second])


def test_every_member_starts_at_a_multiple_of_four_bytes() -> None:
    data = cpio.archive([cpio.file("a" * length, b"x" * length) for length in range(1, 9)])
    starts = [place for place in range(len(data)) if data.startswith(b"070701", place)]
    assert len(starts) == 9
    assert all(start % 4 == 0 for start in starts)
