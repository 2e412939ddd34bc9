# SPDX-License-Identifier: MIT
"""Follow the log of a guest's kernel over SSH, for a guest whose console nobody records.

The log has everything that a kernel complains about and survives. The messages of a fatal crash do not get
out this way.
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

# Print the whole log from a mark on. busybox's dmesg cannot wait for more. If the reader is too slow for a
# kernel that prints much, one read fails (EPIPE), and the next one continues after the lost records, because
# the file stays open. The mark may be among them, so it is written again. A process that waits for the next
# record does not notice that nobody listens any more; the end of its input says so.
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
# Seconds for the command in the guest to end.
LEAVING = 2.0
LOST = (
    "hotreload: {} lines of the kernel's log were lost here, because they were printed faster than they"
    " could be read"
)
RECORD = re.compile(r"\d+,(\d+),(\d+),[^;]*;(.*)")


class KernelLog:
    """The messages of a guest's kernel from a mark on, and how many of them were lost on the way."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._is_listening = False
        self._last = 0

    def heard(self, line: str) -> list[str]:
        """Return the console's lines for a line of /dev/kmsg."""
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
    """Return a record of /dev/kmsg as the console shows it: ``[    1.234567] text``.

    Documentation/ABI/testing/dev-kmsg: ``LEVEL,SEQUENCE,MICROSECONDS,FLAGS;TEXT``, followed by lines with a
    leading blank, which are for programs.
    """
    seconds, rest = divmod(int(record[2]), 1_000_000)
    # Non-printable bytes are escaped in it, as \x0a.
    return f"[{seconds:5}.{rest:06}] {printable(record[3])}"


async def follow_kernel_log(connection: asyncssh.SSHClientConnection, log: Path) -> None:
    """Append what the kernel prints from now on to ``log``, until the connection ends.

    If it is cancelled, the command that it started in the guest is ended before it returns.
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
    except (asyncssh.Error, OSError):  # includes TimeoutError
        return  # the user of the connection reports it
