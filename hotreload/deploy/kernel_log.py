# SPDX-License-Identifier: MIT
"""The kernel's log of a guest, followed over SSH: for a guest whose console nobody keeps.

It tells all that a kernel complains about and survives. What it dies of does not get out this way.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hotreload.vm.console import printable

if TYPE_CHECKING:
    import asyncssh

# All of it, from a mark on; busybox's dmesg does not wait for more. Who is too slow for a kernel that says
# much is told so by one failed read (EPIPE), and reads on behind what was lost: the file stays open. The mark
# may be among that. Who waits for the kernel's next word does not notice that nobody listens any more: that
# the input ends is what tells.
FOLLOW = """follow() {
    trap 'kill $reader; exit' TERM
    while echo "$1" >/dev/kmsg; do
        cat <&3 &
        reader=$!
        wait $reader
        sleep 0.1
    done
}
exec 3</dev/kmsg || exit
follow "$1" &
cat >/dev/null
kill $!
wait"""
# Seconds for that end.
LEAVING = 2.0
LOST = "hotreload: {} lines of the kernel's log were lost here: it said them faster than they came through"
RECORD = re.compile(r"\d+,(\d+),(\d+),[^;]*;(.*)")


class KernelLog:
    """What a guest's kernel says from a mark on, and how much of it was lost on the way."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._is_listening = False
        self._last = 0

    def heard(self, line: str) -> list[str]:
        """What the console would have for a line of /dev/kmsg."""
        found = RECORD.match(line)
        if found is None:
            return []
        number = int(found[1])
        lost, self._last = number - self._last - 1, number
        told = [LOST.format(lost)] if self._is_listening and lost > 0 else []
        if self._mark in line:
            self._is_listening = True
        elif self._is_listening:
            told.append(_as_console(found))
        return told


def _as_console(record: re.Match[str]) -> str:
    """A record of /dev/kmsg as the console has it: ``[    1.234567] text``.

    Documentation/ABI/testing/dev-kmsg: ``LEVEL,SEQUENCE,MICROSECONDS,FLAGS;TEXT``, and behind it lines with
    a blank in front, which are for programs.
    """
    seconds, rest = divmod(int(record[2]), 1_000_000)
    # Bytes that are no text stand as \\x0a in it.
    return f"[{seconds:5}.{rest:06}] {printable(record[3])}"


async def follow_kernel_log(connection: asyncssh.SSHClientConnection, log: Path) -> None:
    """Append what the kernel says from now on to ``log``, until the connection ends.

    When it is cancelled, what was started for it in the guest has ended.
    """
    import asyncssh

    mark = f"hotreload: listening ({secrets.token_hex(4)})"
    command = shlex.join(("sh", "-c", FOLLOW, "hotreload", mark))
    kernel = KernelLog(mark)
    try:
        async with connection.create_process(command, encoding="utf-8", errors="replace") as process:
            try:
                with log.open("a") as written:
                    async for line in process.stdout:
                        for text in kernel.heard(line):
                            written.write(f"{text}\n")
                            written.flush()
            finally:
                process.stdin.write_eof()
                async with asyncio.timeout(LEAVING):
                    await process.wait_closed()
    except (asyncssh.Error, OSError):  # TimeoutError, too
        return  # whoever uses the connection tells of it
