# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from hotreload.errors import GuestUnreachableError
from hotreload.vm.console import Console, printable, tail


def boot_with(text: bytes, folder: Path, *, hang_up: bool = True) -> None:
    """Wait for the boot of a guest whose console says ``text``."""

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "s"))
            listener.listen()
            waiting = asyncio.create_task(Console(folder / "s", folder / "log").wait_for_boot())
            peer, _ = await asyncio.to_thread(listener.accept)
            with peer:
                peer.sendall(text)
                if hang_up:
                    peer.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(0.5):
                    await waiting

    asyncio.run(scenario())


def test_the_marker_ends_the_wait_while_the_console_goes_on(tmp_path: Path) -> None:
    boot_with(b"[    0.0] Linux\r\nhotreload-guest: ready\r\n", tmp_path, hang_up=False)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"hotreload-guest: failed: no network card\r\n", "no network card"),
        (b"[ 1.2] Kernel panic - not syncing: VFS: no root\r\n", "VFS: no root"),
        (b"SeaBIOS\r\n", "its console was closed"),
        (b"hotreload-guest: failed: \x1b[31mred\x07\r\n", "red"),
    ],
)
def test_a_boot_that_cannot_succeed_says_why_at_once(tmp_path: Path, said: bytes, reason: str) -> None:
    with pytest.raises(GuestUnreachableError) as caught:
        boot_with(said, tmp_path)
    assert (caught.value.code, caught.value.message) == ("HR3107", f"the guest did not boot: {reason}")


def test_a_silent_console_can_be_given_up(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        boot_with(b"", tmp_path, hang_up=False)
    assert time.monotonic() - started < 2


def test_the_tail_is_the_last_lines_that_say_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\r\n\r\ntwo\r\n" + b"x" * 100_000 + b"\r\n\xff three \r\n")
    assert tail(log, 1) == "\ufffd three"
    assert tail(tmp_path / "absent", 5) == ""


def test_nothing_that_a_guest_prints_can_move_the_cursor_or_set_a_title() -> None:
    said = "\x1b[2J\x1b[1;31mred\x1b[0m\x1b]0;title\x07 \x1bcreset\x1b(B a\tb\x9bK\r\nnext\x00"
    assert printable(said) == "red reset a\tbK\nnext"
