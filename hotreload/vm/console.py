# SPDX-License-Identifier: MIT
"""The guest's serial console: the kernel's messages, and the lines that show the progress of the boot.

QEMU writes everything to a log file, whether or not a client is connected. We connect while the guest boots,
wait for one of the markers with pexpect, and disconnect. A client that stayed connected without reading would
stop the guest at its next printk. QEMU serves one client only, and after the boot that may be a person.
"""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from hotreload.errors import GuestUnreachableError

READY = "hotreload-guest: ready"

# Patterns that end the wait for READY early. The group is the reason.
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

        Raises GuestUnreachableError (HR3107) when the guest reports a failure, panics, or closes its console.
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
                # The thread blocks in a read; the end of the stream wakes it up.
                connection.shutdown(socket.SHUT_RDWR)
                await asyncio.wait({waiting})
                raise
        if reason is not None:
            raise GuestUnreachableError(f"the guest did not boot: {printable(reason)}", code="HR3107")

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of the log, safe to print on a terminal; empty if there are none."""
        return tail(self.log, lines)


def tail(log: Path, lines: int) -> str:
    """Return the last ``lines`` lines of a console log that are not blank, without control characters."""
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
    """Remove what could move a cursor, or change a title or colour. Only line ends and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def _expect_boot(descriptor: int) -> str | None:
    """Block until the boot has ended. Return None if it succeeded, else the reason."""
    import pexpect
    from pexpect import fdpexpect

    stream = fdpexpect.fdspawn(descriptor, encoding="utf-8", codec_errors="replace", timeout=None)
    # pexpect searches from the start on every read. The markers are short, so only search the end.
    stream.searchwindowsize = 4096
    found = stream.expect([re.escape(READY), *FAILURES, pexpect.EOF])
    if found == 0:
        return None
    if found > len(FAILURES):
        return "its console was closed"
    return str(stream.match.group(1)).strip()
