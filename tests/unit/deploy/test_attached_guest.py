# SPDX-License-Identifier: MIT
"""What can be told of somebody else's guest without one: addresses, keys, memory, its kernel's log."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from hotreload.deploy.attached_guest import AttachedGuest, Login, parse_address, pinned_key
from hotreload.deploy.kcore import KernelMemory, Segment, parse_segments
from hotreload.deploy.kernel_log import LOST, KernelLog
from hotreload.deploy.livepatch import AGENT_PATH
from hotreload.errors import EnvironmentFault, GuestUnreachableError, InputError
from hotreload.process import CommandResult
from hotreload.report.crash import PREFIX

# Addresses.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host", ("root", "host", None)),
        ("me@10.0.2.15:2222", ("me", "10.0.2.15", 2222)),
        ("root@[::1]:22", ("root", "::1", 22)),
        ("[fe80::1%eth0]", ("root", "fe80::1%eth0", None)),
    ],
)
def test_an_address_is_taken_apart(text: str, expected: tuple[str, str, int | None]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "a:b:c", "::1", "host:", "host:0", "host:65536", "a b", "-oProxy=x", "@h"]
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="is not an SSH address") as raised:
        parse_address(text)
    assert raised.value.code == "HR1008"


def test_a_line_that_logs_in_is_ready_to_paste(tmp_path: Path) -> None:
    key = tmp_path / "host.pub"
    key.write_text("ssh-ed25519 AAAAC3 me@here\n")
    assert Login("::1", 2222).address == "root@[::1]:2222"
    assert Login("vm", identity=Path("/my key")).ssh_command == "ssh -i '/my key' root@vm"
    assert (
        "'KnownHostsCommand=/bin/echo [vm]:2222 ssh-ed25519 AAAAC3'"
        in Login("vm", 2222, host_key=key).ssh_command
    )
    assert "'KnownHostsCommand=/bin/echo vm ssh-ed25519 AAAAC3'" in Login("vm", 22, host_key=key).ssh_command


# Keys.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh-ed25519 AAAAC3Nza= guest\n", "ssh-ed25519 AAAAC3Nza="),
        (
            "# vm:22 SSH-2.0-dropbear\n[vm]:22 ecdsa-sha2-nistp256 AAAAE2V/+0=\n",
            "ecdsa-sha2-nistp256 AAAAE2V/+0=",
        ),
    ],
)
def test_a_host_key_is_taken_from_its_file_or_from_what_ssh_keyscan_says(
    text: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(text)
    assert pinned_key(tmp_path / "key") == expected


@pytest.mark.parametrize("content", [b"", b"no key\n", b"# ssh-ed25519 AAAA\n", b"\xff\xfe"])
def test_a_file_without_a_host_key_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(InputError, match=r"has no public host key|cannot be read"):
        pinned_key(tmp_path / "key")


# The door.


@pytest.mark.parametrize(
    ("hangs_up", "code", "told"),
    [
        (True, "HR4103", "the connection was lost"),
        (False, "HR3108", ("the guest's answer makes no sense: 'nothing'")),
    ],
)
def test_a_connection_that_is_cut_is_told_from_a_shell_that_runs_nothing(
    hangs_up: bool, code: str, told: str, tmp_path: Path
) -> None:
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "key")
    key.write_public_key(tmp_path / "key.pub")

    def doorkeeper(process: asyncssh.SSHServerProcess[str]) -> None:
        if hangs_up:
            process.channel.close()  # without a status
        else:
            process.exit(1)

    async def story() -> GuestUnreachableError:
        keys = {"server_host_keys": [key], "authorized_client_keys": str(tmp_path / "key.pub")}
        async with await asyncssh.listen("127.0.0.1", 0, process_factory=doorkeeper, **keys) as server:
            login = Login("127.0.0.1", server.get_port(), "root", tmp_path / "key", tmp_path / "key.pub")
            guest = AttachedGuest(login, "hotreload-1")
            try:
                with pytest.raises(GuestUnreachableError) as raised:
                    await guest.knock()
            finally:
                await guest.leave()
        return raised.value

    error = asyncio.run(story())
    assert error.code == code
    assert told in error.message


# Memory.

TEXT, MODULES = 0xFFFFFFFF81000000, 0xFFFFFFFFC0000000


def kcore(*segments: tuple[int, int, int]) -> bytes:
    """The beginning of such a file: ELF header and program headers, a note first."""
    header = b"\x7fELF" + bytes(28) + struct.pack("<Q14xHH6x", 64, 56, len(segments) + 1)
    rows = [struct.pack("<IIQQQQQQ", 4, 0, 0x300, 0, 0, 0x100, 0, 0)]
    rows += [
        struct.pack("<IIQQQQQQ", 1, 7, offset, at, 0, size, size, 0x1000) for at, size, offset in segments
    ]
    return header + b"".join(rows)


class Dd:
    """A guest that reads the pages of one file."""

    agent = AGENT_PATH

    def __init__(self, pages: dict[int, bytes]) -> None:
        self.pages = pages
        self.asked: list[str] = []

    async def run(self, command: str, *, stdin: bytes | None = None, timeout: float = 30.0) -> CommandResult:
        assert stdin is None
        assert timeout > 0
        self.asked.append(command)
        first, count = (int(word.partition("=")[2]) for word in command.split()[-2:])
        data = b"".join(self.pages.get(page, b"").ljust(4096, b".") for page in range(first, first + count))
        return CommandResult(0, data if first in self.pages else b"", b"dd: /proc/kcore: I/O error")


def test_the_regions_are_those_that_can_be_loaded() -> None:
    data = kcore((TEXT, 0x2000000, 0x7FFF81003000), (MODULES, 0x1000, 0x5000))
    assert parse_segments(data) == (
        Segment(TEXT, 0x2000000, 0x7FFF81003000),
        Segment(MODULES, 0x1000, 0x5000),
    )


def test_a_stretch_is_read_by_pages_and_cut_out_and_the_headers_once() -> None:
    guest = Dd({0: kcore((TEXT, 0x3000, 0x10000)), 0x11: b"a" * 4096, 0x12: b"b" * 4096})
    memory = KernelMemory(guest)
    assert asyncio.run(memory.read(TEXT + 0x1FFE, 4)) == b"aabb"
    assert asyncio.run(memory.read(TEXT + 0x1000, 4096)) == b"a" * 4096
    assert guest.asked[1:] == [
        "dd if=/proc/kcore bs=4096 skip=17 count=2",
        "dd if=/proc/kcore bs=4096 skip=17 count=1",
    ]


@pytest.mark.parametrize(
    ("pages", "told"),
    [
        ({}, "I/O error"),
        ({0: b"text"}, "is not an ELF file"),
        ({0: kcore()}, "does not contain 0xffffffff81000000"),
        ({0: kcore((TEXT, 4, 0x10000))}, "does not contain 0xffffffff81000000"),
        ({0: kcore((TEXT, 0x1000, 0x10000))}, "I/O error"),
    ],
)
def test_memory_that_cannot_be_read_is_a_fault_that_says_why(pages: dict[int, bytes], told: str) -> None:
    with pytest.raises(EnvironmentFault, match=told) as raised:
        asyncio.run(KernelMemory(Dd(pages)).read(TEXT, 8))
    assert raised.value.code == "HR5111"


# The kernel's log.


MARK = "hotreload: listening (1)"


def test_a_record_of_kmsg_reads_as_the_console_would_have_it() -> None:
    log = KernelLog(MARK)
    assert log.heard("6,1,1,-;of before\n") == []
    assert log.heard(f"12,2,1,-;{MARK}\n") == []
    (text,) = log.heard("4,3,698123456,-,caller=T1;WARNING: CPU: 0 PID: 1 at show+0x5/0x10\n")
    assert text == "[  698.123456] WARNING: CPU: 0 PID: 1 at show+0x5/0x10"
    assert PREFIX.sub("", text) == "WARNING: CPU: 0 PID: 1 at show+0x5/0x10"
    assert log.heard(" SUBSYSTEM=pci\n") == []
    assert log.heard("\n") == []
    assert log.heard("6,4,2,-;\x1b[2Jx\n") == ["[    0.000002] x"]


def test_what_was_lost_of_the_kernels_log_is_told_where_it_is_missing() -> None:
    log = KernelLog(MARK)
    assert log.heard("6,70,1,-;the mark was lost as well\n") == []
    assert log.heard(f"12,80,1,-;{MARK}\n") == []
    assert log.heard("6,81,1000000,-;one\n") == ["[    1.000000] one"]
    told = log.heard("6,90,2000000,-;two\n")
    assert told == [LOST.format(8), "[    2.000000] two"]
    assert log.heard(f"12,91,1,-;{MARK}\n") == []
