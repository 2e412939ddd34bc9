# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hotreload.cli.output_file import check_output, remove_output, write_output
from hotreload.errors import EnvironmentFault, InputError


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "out.o"
    file.write_text("old")
    write_output(file, b"new")
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.o"]


def test_behind_a_link_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    write_output(tmp_path / "link", b"new")
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


def test_a_device_stays_a_device() -> None:
    write_output(Path(os.devnull), b"new")
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize("name", [".", "none/out.o", "in.o"])
def test_what_cannot_be_written_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    (tmp_path / "in.o").touch()
    with pytest.raises(InputError) as caught:
        check_output(tmp_path / name, (tmp_path / "in.o",))
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, EnvironmentFault), (errno.EACCES, InputError)])
def test_what_the_system_says_is_told_and_nothing_is_left(
    number: int, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(kind):
        write_output(tmp_path / "out.o", b"new")
    assert os.listdir(tmp_path) == []


def test_what_an_earlier_run_left_goes_but_never_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out.o").touch()
    remove_output(tmp_path / "out.o")
    remove_output(tmp_path / "out.o")
    remove_output(tmp_path)
    assert os.listdir(tmp_path) == []
