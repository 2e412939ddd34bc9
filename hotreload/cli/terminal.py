# SPDX-License-Identifier: MIT
"""The guest's serial console on this terminal."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

LEAVE = b"\x1d"  # Ctrl-], as in telnet


def connect_terminal(path: Path) -> None:
    """Connect the terminal to a socket until Ctrl-] is typed, our input ends or the socket closes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console, _raw(sys.stdin.fileno()):
        console.connect(str(path))
        while True:
            ready, _, _ = select.select([console, sys.stdin], [], [])
            if console in ready:
                if not (output := console.recv(65536)):
                    return
                os.write(sys.stdout.fileno(), output)
            if sys.stdin in ready:
                typed = os.read(sys.stdin.fileno(), 4096)
                before, leave, _ = typed.partition(LEAVE)
                console.sendall(before)
                if leave or not typed:
                    return


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Make the terminal send every key to the guest, including ^C."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
