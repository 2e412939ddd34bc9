# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotreload.vm.sockets import LONGEST_NAME, PATH_LIMIT, socket_folder

HOLD = """
from hotreload.vm.sockets import socket_folder
import time
with socket_folder() as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", place)
        yield


def test_the_folder_is_private_and_gone_afterwards() -> None:
    with socket_folder() as folder:
        (folder / "console").touch()
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_a_long_runtime_folder_is_replaced_by_a_short_private_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    with socket_folder() as folder:
        assert len(os.fsencode(folder / LONGEST_NAME)) <= PATH_LIMIT
        assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_owner_left_is_swept_and_what_is_in_use_is_not() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        left = Path(owner.stdout.readline().strip())
        with socket_folder() as mine:
            assert left.exists()
            owner.send_signal(signal.SIGKILL)
            owner.wait()
            with socket_folder():
                assert not left.exists()
                assert mine.exists()
