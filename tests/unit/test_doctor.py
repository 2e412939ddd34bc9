# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hotreload import preconditions
from hotreload.config import Config
from hotreload.doctor import examine
from hotreload.errors import EnvironmentFault
from hotreload.preconditions import CHECKS, Check, Finding, Mend, look, ok, program
from hotreload.report.codes import codes


@pytest.fixture(autouse=True)
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a shell script first in the search path."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return make


def needs_file(name: str, file: Path, mend: Mend | None) -> Check:
    async def check(_config: Config) -> Finding:
        return ok("there") if file.exists() else Finding("fail", "not there", mend, "HR5106")

    return Check(name, "a test needs it", check)


def finding(name: str, config: Config | None = None) -> Finding:
    check = next(check for check in CHECKS if check.name == name)
    return asyncio.run(look(check, config or Config()))


def test_what_is_right_is_a_line_and_what_is_not_says_why_and_what_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").touch()
    checks = (
        needs_file("a", tmp_path / "a", None),
        needs_file("b", tmp_path / "b", Mend(("b-tools",))),
    )
    assert examine(Config(), checks=checks) == 7
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "ok    a            there",
        "fail  b            not there  HR5106",
        "                   why: a test needs it",
        "                   fix: apt-get install -y --no-install-recommends b-tools",
    ]
    assert said.err == "needs fixing: b; run the commands with hotreload doctor --fix\n"


def test_a_warning_alone_is_exit_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    async def slow(_config: Config) -> Finding:
        return Finding("warn", "slow", code="HR5101")

    assert examine(Config(), checks=[Check("kvm", "speed", slow)]) == 0
    assert capsys.readouterr().err == "everything that hotreload needs is there (1 could be better)\n"


def test_terse_says_only_what_fails_in_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mendable = needs_file("a", tmp_path / "a", Mend(command=("touch", str(tmp_path / "a"))))
    assert examine(Config(), fix=True, terse=True, checks=[mendable]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"hotreload: running touch {tmp_path}/a\n")
    assert examine(Config(), terse=True, checks=[mendable, needs_file("b", tmp_path / "b", None)]) == 7
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "fail  b            not there  HR5106"
    assert said.err == "needs fixing: b\n"


def test_json_is_an_event_a_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").touch()
    checks = (needs_file("a", tmp_path / "a", None), needs_file("b", tmp_path / "b", Mend(("b-tools",))))
    assert examine(Config(), as_json=True, checks=checks) == 7
    said = capsys.readouterr()
    first, second = [json.loads(line) for line in said.out.splitlines()]
    assert said.err == ""
    assert (first["v"], first["seq"], first["type"], first["cycle"]) == (1, 1, "doctor.check", None)
    assert {key: second[key] for key in ("seq", "name", "state", "fact", "why", "mend", "code")} == {
        "seq": 2,
        "name": "b",
        "state": "fail",
        "fact": "not there",
        "why": "a test needs it",
        "mend": "apt-get install -y --no-install-recommends b-tools",
        "code": "HR5106",
    }


def test_fix_runs_the_command_and_looks_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "made"
    checks = [needs_file("a", file, Mend(command=("touch", str(file))))]
    assert examine(Config(), fix=True, checks=checks) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "ok    a            there"
    assert said.err.splitlines() == [
        f"hotreload: running touch {file}",
        ("everything that hotreload needs is there"),
    ]


def test_fix_goes_on_to_what_the_first_mend_brought_to_light(tmp_path: Path) -> None:
    lists, tool = tmp_path / "lists", tmp_path / "tool"

    async def knows_more_with_lists(_config: Config) -> Finding:
        if tool.exists():
            return ok("there")
        mend = Mend(command=("touch", str(tool))) if lists.exists() else None
        return Finding("fail", "not there", mend)

    first = needs_file("lists", lists, Mend(command=("touch", str(lists))))
    assert examine(Config(), fix=True, checks=[Check("tool", "", knows_more_with_lists), first]) == 0


def test_a_mend_that_does_not_help_is_tried_once_and_its_words_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mend = Mend(command=("sh", "-c", "echo the reason; exit 3"))
    assert examine(Config(), fix=True, checks=[needs_file("a", tmp_path / "a", mend)]) == 7
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        f"hotreload: running {mend}",
        "the reason",
        f"hotreload: {mend}: exit status 3",
        "needs fixing: a",
    ]


def test_all_packages_are_installed_by_one_call_with_fresh_lists_if_the_first_try_fails(
    tmp_path: Path, programs: Callable[[str, str], None]
) -> None:
    log, updated = tmp_path / "log", tmp_path / "updated"
    done = f"touch {tmp_path}/a {tmp_path}/b"
    programs(
        "apt-get",
        f'echo "$DEBIAN_FRONTEND $*" >>{log}\n'
        f'case "$*" in *update) touch {updated};; *) [ -e {updated} ] && {done};; esac',
    )
    checks = [needs_file(name, tmp_path / name, Mend((f"{name}-tools",))) for name in ("a", "b")]
    assert examine(Config(), fix=True, checks=checks) == 0
    install = "noninteractive -o DPkg::Lock::Timeout=300 install -y --no-install-recommends a-tools b-tools"
    update = "noninteractive -o DPkg::Lock::Timeout=300 update"
    assert log.read_text().splitlines() == [install, update, install]


def test_without_root_the_command_begins_with_sudo_and_never_waits_for_a_password(
    tmp_path: Path, programs: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs("sudo", f'echo "$*" >>{tmp_path}/log; exit 1')
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    mend = Mend(command=("sysctl", "-w", "x=1"))
    assert str(mend) == "sudo sysctl -w x=1"
    assert examine(Config(), fix=True, checks=[needs_file("a", tmp_path / "a", mend)]) == 7
    assert (tmp_path / "log").read_text() == "-n sysctl -w x=1\n"


def test_an_error_of_ours_is_a_finding_with_its_code() -> None:
    async def fault(_config: Config) -> Finding:
        raise EnvironmentFault("no space left", code="HR5107", hint="free some")

    found = asyncio.run(look(Check("a", "", fault), Config()))
    assert found == Finding("fail", "no space left; free some", None, "HR5107")


def test_every_row_of_the_table_has_a_name_of_its_own_and_says_why() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(check.why and len(check.why) < 90 for check in CHECKS)


def test_every_code_that_a_check_can_give_can_be_explained() -> None:
    source = Path(preconditions.__file__).read_text()
    assert set(re.findall(r"HR\d{4}", source)) <= set(codes())


def test_a_missing_program_names_its_package() -> None:
    found = asyncio.run(program("no-such-program", "its-package")(Config()))
    assert (found.state, found.mend) == ("fail", Mend(("its-package",)))
    assert asyncio.run(program("sh", "dash")(Config())).state == "ok"


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("QEMU emulator version 6.2.0 (Debian 1:6.2)", "fail"),
        ("QEMU emulator version 7.2.22 (Debian 1:7.2)", "ok"),
        ("QEMU emulator version 10.0.2", "ok"),
        ("Illegal instruction", "fail"),
    ],
)
def test_qemu_must_be_new_enough(programs: Callable[[str, str], None], said: str, state: str) -> None:
    programs("qemu-system-x86_64", f"echo '{said}'")
    assert finding("qemu").state == state


def test_a_cache_that_is_not_ours_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert finding("cache").state == "ok"
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    found = finding("cache")
    assert (found.state, found.code) == ("fail", "HR5108")
    assert found.mend is not None
    assert found.mend.command[:2] == ("chown", "-R")


def test_little_space_is_a_warning_and_nearly_none_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))
    for free, state in ((10**9, "ok"), (10**8, "warn"), (10**7, "fail")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, free=free: usage(10**10, 0, free))
        assert finding("cache").state == state


def test_low_inotify_limits_name_the_sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditions, "INOTIFY", tmp_path)
    (tmp_path / "max_user_watches").write_text("8192\n")
    (tmp_path / "max_user_instances").write_text("128\n")
    found = finding("inotify")
    assert (found.state, found.fact) == ("warn", "max_user_watches is 8192, needs 65536")
    assert found.mend == Mend(command=("sysctl", "-w", "fs.inotify.max_user_watches=524288"))


def test_a_kernel_that_is_none_is_a_finding(tmp_path: Path) -> None:
    found = finding("kernel", Config(kernel=str(tmp_path / "nothing")))
    assert (found.state, found.code) == ("fail", "HR1009")


def test_apt_without_lists_is_mended_by_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditions, "APT_LISTS", tmp_path)
    assert finding("apt", Config(kernel="/some/tree")).state == "ok"
    if shutil.which("apt-get"):
        assert finding("apt").mend == Mend(command=("apt-get", "update"))
        (tmp_path / "debian_dists_bookworm_main_binary-amd64_Packages").touch()
        assert finding("apt").state == "ok"
        (tmp_path / "partial").mkdir()
        os.utime(tmp_path / "partial", (time.time() - 20 * 86_400,) * 2)
        old = finding("apt")
        assert (old.state, old.fact, old.mend) == (
            "warn",
            "the package lists are 20 days old",
            Mend(command=("apt-get", "update")),
        )


def test_kvm_is_not_tried_when_it_is_not_wanted() -> None:
    assert finding("kvm", Config(accel="tcg")).state == "ok"
