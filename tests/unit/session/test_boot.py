# SPDX-License-Identifier: MIT
"""A boot that fails: whether it is tried once more."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from pathlib import Path

import pytest

from hotreload.config import Config
from hotreload.errors import GuestUnreachableError
from hotreload.session import boot
from hotreload.vm.spec import MachineSpec

SPEC = MachineSpec(Path("/k/vmlinuz"), Path("/k/initramfs"))
LATE_TIMER = (
    "Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug and send a report."
)
NO_ROOT = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"


def boots(consoles: list[str], spec: MachineSpec, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The notes of a boot whose machines die with these last words, one after the other, and then live."""

    class Scripted:
        def __init__(self, spec: MachineSpec, *_: object, **__: object) -> None:
            self.spec = spec

        async def __aenter__(self) -> Scripted:
            if consoles:
                raise GuestUnreachableError("the guest's kernel panicked", consoles.pop(0), code="HR3107")
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(boot, "Machine", Scripted)

    async def booted() -> tuple[str, ...]:
        async with contextlib.AsyncExitStack() as owned:
            return (await boot._boot_machine(owned, spec, Path("/log"), Config()))[1]

    return asyncio.run(booted())


def test_a_guest_whose_timer_was_late_is_booted_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    (note,) = boots([LATE_TIMER], SPEC, monkeypatch)
    assert "the guest was booted twice" in note
    with pytest.raises(GuestUnreachableError):
        boots([LATE_TIMER, LATE_TIMER], SPEC, monkeypatch)


def test_a_kernel_that_dies_of_something_else_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GuestUnreachableError):
        boots([NO_ROOT], SPEC, monkeypatch)
    kvm = dataclasses.replace(SPEC, accel="kvm")
    with pytest.raises(GuestUnreachableError):
        boots([LATE_TIMER, LATE_TIMER], kvm, monkeypatch)
