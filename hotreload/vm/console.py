# SPDX-License-Identifier: MIT
"""The guest's serial console: the kernel's own words, and the lines by which the boot is followed.

QEMU writes everything to a log file, whoever is connected. We connect while the guest boots, wait
for one of the markers with pexpect, and hang up: a client that stayed and did not read would stop
the guest at its next printk, and QEMU serves one client only, which from then on may be a person.
"""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from hotreload.errors import GuestUnreachableError

READY = "hotreload-guest: ready"

# What ends the wait for READY early. The group is the reason.
FAILURES = (
    r"hotreload-guest: failed: ([^\r\n]*)[\r\n]",
    r"Kernel panic - not syncing: ([^\r\n]*)[\r\n]",
)

# Terminal control sequences (ECMA-48): CSI, OSC and other escapes, as a guest may print to change a terminal.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-~])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# How much of the log's end is read for a tail: far more than the lines shown.
_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Console:
    """The console of one machine: QEMU's socket and the log file."""

    socket: Path
    log: Path

    async def wait_for_boot(self) -> None:
        """Return when the guest is ready. The caller sets the time limit.

        Raises GuestUnreachableError (HR3107) when the guest says that it failed, panics, or hangs up.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(str(self.socket))
            except OSError as error:
                raise GuestUnreachableError(
                    f"the guest's console cannot be opened: {error.strerror}", code="HR3107"
                ) from error
            waiting = asyncio.create_task(asyncio.to_thread(_expect_boot, connection.fileno()))
            try:
                reason = await asyncio.shield(waiting)
            except asyncio.CancelledError:
                # The thread blocks in a read: the end of the stream is what wakes it up.
                connection.shutdown(socket.SHUT_RDWR)
                await asyncio.wait({waiting})
                raise
        if reason is not None:
            raise GuestUnreachableError(f"the guest did not boot: {printable(reason)}", code="HR3107")

    def tail(self, lines: int = 20) -> str:
        """The last lines of the log, safe to print on a terminal; empty if there are none."""
        return tail(self.log, lines)


def tail(log: Path, lines: int) -> str:
    """The last ``lines`` lines of a console log that say something, neutralised."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    kept = [line.rstrip() for line in printable(text).split("\n") if line.strip()]
    return "\n".join(kept[-lines:])


def printable(text: str) -> str:
    """Console text that cannot move a cursor, change a title or a colour: only line ends and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def _expect_boot(descriptor: int) -> str | None:
    """Blocks until the boot has ended: None if it went well, else the reason."""
    import pexpect
    from pexpect import fdpexpect

    stream = fdpexpect.fdspawn(descriptor, encoding="utf-8", codec_errors="replace", timeout=None)
    # pexpect searches again from the start on every read; the markers are short.
    stream.searchwindowsize = 4096
    found = stream.expect([re.escape(READY), *FAILURES, pexpect.EOF])
    if found == 0:
        return None
    if found > len(FAILURES):
        return "its console was closed"
    return str(stream.match.group(1)).strip()
