# SPDX-License-Identifier: MIT
"""What a guest, its output and a source tree cannot do to the machine that watches them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from tests.guest.watching import edit, run, watch

LOOPBACK = "0100007F"  # 127.0.0.1, as /proc/net/tcp writes it
LISTENING = "0A"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def listeners(pid: int) -> set[tuple[str, int]]:
    """The addresses and ports that a process takes TCP connections at."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING and words[9] in inodes:
                address, _, port = words[1].rpartition(":")
                found.add((address, int(port, 16)))
    return found


def test_a_guest_is_reached_from_this_machine_and_by_its_owner_only(driver: Path) -> None:
    with watch(driver) as watching:
        watching.waits_for("ready")
        shown = json.loads(run(driver, "guest", "show", "--json").stdout)
        assert listeners(shown["qemu_pid"]) == {(LOOPBACK, shown["ssh_port"])}
        assert listeners(watching.process.pid) == set()
        for socket in (shown["qmp"], shown["console"]):
            assert mode(Path(socket).parent) == 0o700
        words = shown["ssh"].split()
        assert mode(Path(words[words.index("-i") + 1])) == 0o600
        records = Path(shown["records"])
        assert {mode(folder) for folder in (records, *records.parents) if folder.name == "hotreload"} == {
            0o700
        }
        assert run(driver, "guest", "dump", "vmcore").returncode == 0
        assert mode(driver / "vmcore") == 0o600
        assert watching.end() == 130


def test_what_a_guest_prints_does_nothing_to_a_terminal(driver: Path) -> None:
    evil = r"\033]0;pwned\007\033[2J\033[31m"
    with watch(driver) as watching:
        watching.waits_for("ready")
        edit(driver, "reads += step;", f'WARN(1, "{evil}loud\\n");\n\treads += step;')
        watching.waits_for("live")
        run(driver, "guest", "exec", "cat", "/proc/counter")
        watching.waits_for("warned .*loud")
        told = watching.said + run(driver, "guest", "logs").stdout + run(driver, "history").stdout
        told += "".join(file.read_text() for file in _records(driver).glob("complaints.txt"))
        assert "loud" in told
        assert "\033" not in told
        assert "\007" not in told
        assert watching.end() == 130


def _records(driver: Path) -> Path:
    return Path(json.loads(run(driver, "status", "--json").stdout)["records"])


def test_names_are_never_read_by_a_shell(driver: Path) -> None:
    (driver / "file").write_text("content\n")
    name = "/tmp/a'; touch pwned; $(touch pwned) `touch pwned` \"b"
    with watch(driver) as watching:
        watching.waits_for("ready")
        assert run(driver, "guest", "put", "file", name).returncode == 0
        assert run(driver, "guest", "exec", "cat", name).stdout == "content\n"
        assert run(driver, "guest", "exec", "find", "/", "-xdev", "-name", "pwned").stdout == ""
        assert run(driver, "guest", "save", "$(touch pwned)").returncode == 2
        assert watching.end() == 130
    assert not (driver / "pwned").exists()
