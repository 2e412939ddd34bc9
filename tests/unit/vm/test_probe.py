# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from hotreload.errors import EnvironmentFault
from hotreload.vm import probe
from tests.conftest import require

QEMU = "qemu-system-x86_64"


def need_qemu() -> None:
    require(shutil.which(QEMU), QEMU, "apt-get install qemu-system-x86")


def fake_qemu(folder: Path, script: str) -> str:
    """A program that answers as a QEMU would, and counts how often it was started."""
    program = folder / "qemu"
    program.write_text(f"#!/bin/sh\necho started >>{folder}/starts\n{script}\n")
    program.chmod(0o755)
    return str(program)


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text().splitlines())


@pytest.fixture
def kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A /dev/kvm that opens, which proves nothing."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(probe, "KVM", device)
    return device


def test_the_rom_runs_in_64_bit_mode_and_leaves_with_its_own_status() -> None:
    need_qemu()
    assert asyncio.run(probe.run_rom(QEMU, "tcg")) == (probe.EXIT_STATUS, "")


def test_the_rom_does_not_leave_without_paging(monkeypatch: pytest.MonkeyPatch) -> None:
    need_qemu()
    rom = bytearray(probe.probe_rom())
    tables = slice(0xA000, 0xD000)
    rom[tables] = bytes(0x3000)
    monkeypatch.setattr(probe, "probe_rom", lambda: bytes(rom))
    assert asyncio.run(probe.run_rom(QEMU, "tcg"))[0] != probe.EXIT_STATUS


@pytest.mark.usefixtures("kvm")
def test_kvm_is_chosen_once_a_guest_was_seen_to_run(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, f"exit {probe.EXIT_STATUS}")
    assert asyncio.run(probe.choose_accel(qemu)) == probe.Accel("kvm", "a trial guest ran")


def test_a_kvm_that_opens_but_runs_no_guest_is_found_out(
    kvm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PROBE_LIMIT", 0.3)
    accel = asyncio.run(probe.choose_accel(fake_qemu(tmp_path, "sleep 60")))
    assert (accel.name, accel.code) == ("tcg", "HR5101")
    assert accel.reason == f"{kvm} can be opened, but no guest ran within 0.3 s"


@pytest.mark.usefixtures("kvm")
def test_what_qemu_says_is_the_reason(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, "echo 'qemu: failed to set MSR 0x10a' >&2; kill -ABRT $$")
    accel = asyncio.run(probe.choose_accel(qemu))
    assert accel == probe.Accel("tcg", "KVM does not run guests: qemu: failed to set MSR 0x10a")


@pytest.mark.usefixtures("kvm")
def test_the_answer_is_kept_until_qemu_changes(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, "exit 1")
    first = asyncio.run(probe.choose_accel(qemu))
    assert asyncio.run(probe.choose_accel(qemu)) == first
    assert starts(tmp_path) == 1
    os.utime(qemu, (1, 1))
    asyncio.run(probe.choose_accel(qemu))
    assert starts(tmp_path) == 2


@pytest.mark.usefixtures("kvm")
def test_a_broken_cache_is_asked_for_nothing(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, "exit 1")
    first = asyncio.run(probe.choose_accel(qemu))
    (probe.cache_folder() / "accel.json").write_text('{"half')
    assert asyncio.run(probe.choose_accel(qemu)) == first


def test_without_a_kvm_device_nothing_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "KVM", tmp_path / "absent")
    accel = asyncio.run(probe.choose_accel(fake_qemu(tmp_path, "exit 1")))
    assert accel.name == "tcg"
    assert not (tmp_path / "starts").exists()


def test_a_missing_qemu_is_a_fault_of_the_environment() -> None:
    with pytest.raises(EnvironmentFault) as caught:
        asyncio.run(probe.choose_accel("qemu-system-nowhere"))
    assert caught.value.code == "HR5104"
