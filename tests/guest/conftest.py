# SPDX-License-Identifier: MIT
"""One booted guest a session, for the tests that do not break it."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from hotreload.build.kernel_tree import KernelTree
from hotreload.demo.driven import Driven, guest_name
from hotreload.deploy.guest import CommandResult, SshGuest
from hotreload.deploy.livepatch import AGENT_PATH, agent_source
from hotreload.report.outcome import ReloadReport
from hotreload.vm.image import GuestImage, build_image
from hotreload.vm.machine import Machine
from hotreload.vm.probe import choose_accel
from hotreload.vm.spec import MachineSpec
from tests.conftest import require, say
from tests.guest.story import FILES
from tests.guest.watching import left_behind, made_driver

T = TypeVar("T")

NUMBERS = itertools.count()
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "dropbearkey": "dropbear-bin",
    "setpriv": "util-linux",
}


@dataclass
class Booted:
    """A guest that runs while the event loop sleeps between two tests, and plain calls to use it."""

    machine: Machine
    guest: SshGuest
    runner: asyncio.Runner

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def run(self, command: str, stdin: bytes | None = None, timeout: float = 30.0) -> CommandResult:
        return self.wait(self.guest.run(command, stdin=stdin, timeout=timeout))


@pytest.fixture(scope="session")
def guest_image(debian_kernel: KernelTree) -> GuestImage:
    for program, package in PROGRAMS.items():
        require(shutil.which(program), program, f"apt-get install {package}")
    return asyncio.run(build_image(debian_kernel, extra={AGENT_PATH: agent_source()}))


@pytest.fixture(scope="session")
def guest_spec(debian_kernel: KernelTree, guest_image: GuestImage) -> MachineSpec:
    accel = asyncio.run(choose_accel())
    return MachineSpec(debian_kernel.image, guest_image.initramfs, accel=accel.name)


@pytest.fixture(scope="session")
def booted(
    guest_spec: MachineSpec, guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Booted]:
    machine = Machine(guest_spec, tmp_path_factory.mktemp("machine") / "console.log")
    guest = None
    with asyncio.Runner() as runner:
        runner.run(machine.__aenter__())
        try:
            say(f"a guest booted in {machine.boot_seconds:.1f} s ({guest_spec.accel})")
            guest = SshGuest(machine.ssh_port, guest_image.client_key, guest_image.host_key)
            yield Booted(machine, guest, runner)
        finally:
            if guest is not None:
                runner.run(guest.close())
            runner.run(machine.stop())


@pytest.fixture
def driver(debian_kernel: KernelTree, tmp_path: Path) -> Iterator[Path]:
    """The folder of a small driver that all is there to watch. A test that leaves a guest behind fails."""
    assert debian_kernel.image.is_file()
    for program, package in PROGRAMS.items():
        require(shutil.which(program), program, f"apt-get install {package}")
    # No other test's guest has a name that begins with this one: what is left behind is this test's.
    folder = made_driver(tmp_path / f"counter{os.getpid()}n{next(NUMBERS)}n")
    yield folder
    assert not left_behind(folder)


@pytest.fixture
def console_log(tmp_path: Path) -> Path:
    return tmp_path / "state" / "console.log"


@pytest.fixture
def in_session(debian_kernel: KernelTree, tmp_path: Path) -> Callable[..., None]:
    """Run a coroutine function with ``save(name=text, ..)``, which awaits the cycle, and ``read()``."""
    assert debian_kernel.image.is_file()
    for program, package in PROGRAMS.items():
        require(shutil.which(program), program, f"apt-get install {package}")
    folder = tmp_path / "pair"
    folder.mkdir()

    def run(
        story: Callable[..., Awaitable[None]],
        files: Mapping[str, str] = FILES,
        max_rung: str = "patch",
        options: tuple[str, ...] = (),
    ) -> None:
        for name, text in files.items():
            (folder / name).write_text(text)

        async def within() -> None:
            words = ("--max-rung", max_rung, *options)
            async with Driven(folder, guest_name("edits"), lambda _text: None, words) as watch:

                async def save(**texts: str) -> ReloadReport:
                    for name, text in texts.items():
                        (folder / name.replace("_", ".")).write_text(text)
                    return (await watch.next_cycle()).report

                async def read() -> str:
                    return (await watch.run("cat /proc/pair")).text

                if "watch" in inspect.signature(story).parameters:
                    await story(save, read, watch=watch)
                else:
                    await story(save, read)
                log = await watch.run("dmesg")
                assert "Call Trace" not in log.text

        asyncio.run(within())

    return run
