# SPDX-License-Identifier: MIT
"""The kernel's log of a guest, followed over SSH: for a guest whose console nobody keeps.

It tells all that a kernel complains about and survives. What it dies of does not get out this way.
"""

from __future__ import annotations

import re
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hotreload.vm.console import printable

if TYPE_CHECKING:
    import asyncssh

# All of it, from a mark on; busybox's dmesg does not wait for more.
FOLLOW = "echo {mark} >/dev/kmsg && exec cat /dev/kmsg"
RECORD = re.compile(r"\d+,\d+,(\d+),[^;]*;(.*)")


def as_console(line: str) -> str | None:
    """A line of /dev/kmsg as the console has it: ``[    1.234567] text``; None for what says nothing there.

    Documentation/ABI/testing/dev-kmsg: ``LEVEL,SEQUENCE,MICROSECONDS,FLAGS;TEXT``, and behind it lines with
    a blank in front, which are for programs.
    """
    found = RECORD.match(line)
    if found is None:
        return None
    seconds, rest = divmod(int(found[1]), 1_000_000)
    # Bytes that are no text stand as \\x0a in it.
    return f"[{seconds:5}.{rest:06}] {printable(found[2])}"


async def follow_kernel_log(connection: asyncssh.SSHClientConnection, log: Path) -> None:
    """Append what the kernel says from now on to ``log``, until the connection ends."""
    import asyncssh

    mark = f"hotreload: listening ({secrets.token_hex(4)})"
    command = FOLLOW.format(mark=shlex.quote(mark))
    listening = False
    try:
        async with connection.create_process(command, encoding="utf-8", errors="replace") as process:
            with log.open("a") as written:
                async for line in process.stdout:
                    text = as_console(line)
                    if text and listening:
                        written.write(f"{text}\n")
                        written.flush()
                    listening = listening or mark in line
    except (asyncssh.Error, OSError):
        return  # whoever uses the connection tells of it
