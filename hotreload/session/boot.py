# SPDX-License-Identifier: MIT
"""Boot a guest that runs the modules of a folder.

Three independent steps run concurrently: kbuild makes the modules, the glue is compiled (once per kernel),
and the guest boots. The modules are loaded when all three are done.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hotreload.build.base import Base, build_base
from hotreload.build.built import VMLINUX, Build
from hotreload.build.debian_kernel import open_kernel
from hotreload.build.guest_base import GuestBase
from hotreload.build.kernel_record import kernel_base
from hotreload.build.kernel_tree import KernelTree, check_fit, kernel_compiler
from hotreload.config import Config
from hotreload.deploy.guest import ShellGuest, SshGuest, log_in_again, run_in_time
from hotreload.deploy.livepatch import AGENT_PATH, agent_source
from hotreload.deploy.verify import ReadMemory
from hotreload.elf.build_id import build_id_in, read_build_id
from hotreload.errors import (
    EnvironmentFault,
    GuestUnreachableError,
    InputError,
    KernelUnfitError,
)
from hotreload.ladder import is_allowed
from hotreload.patch.glue import build_glue
from hotreload.session.loading import load_all
from hotreload.session.loss import loss
from hotreload.vm.any_machine import AnyMachine
from hotreload.vm.checkpoints import TAG_PREFIX, Checkpoint, Checkpoints, make_state_disk, take_name
from hotreload.vm.foreign_machine import ForeignMachine
from hotreload.vm.image import build_image
from hotreload.vm.machine import Machine
from hotreload.vm.memory import idt_base
from hotreload.vm.probe import choose_accel
from hotreload.vm.spec import MachineSpec

Progress = Callable[[str], None]
Built = tuple[Build, Base, Path]  # see build_all
Came = dict[str, None]  # names of modules, in the order in which they were loaded
T = TypeVar("T")

# Imported while QEMU boots, because together they take half a second and the first command needs them.
SLOW_IMPORTS = ("asyncssh", "watchdog.observers", "hotreload.reload")
SETUP_LIMIT = 600.0
# Panics of a kernel whose emulated timer was late because the host was overloaded: the checks of
# arch/x86/kernel/apic/io_apic.c (one of them cannot be disabled on the command line), and those for lockups
# and stalls.
OUT_OF_TIME = re.compile(
    r"IO-APIC \+ timer doesn't work|not syncing: (?:soft|hard)lockup|not syncing: RCU Stall"
)
# In the session's folder, beside the console's log.
STATE_DISK = "checkpoints.qcow2"
CLEAN = f"{TAG_PREFIX}clean"


@dataclass(frozen=True, slots=True)
class BareGuest:
    """A guest that has booted but has none of the user's modules yet.

    ``notes``        messages about the boot
    ``checkpoints``  the machine's checkpoints, if it supports them
    ``clean``        the checkpoint of this state
    """

    machine: Machine
    guest: SshGuest
    notes: tuple[str, ...]
    checkpoints: Checkpoints | None
    clean: Checkpoint | None

    @property
    def is_restorable(self) -> bool:
        """Return whether the guest can be restored to this state."""
        return self.clean is not None and self.checkpoints is not None and not self.checkpoints.is_given_up


@dataclass(frozen=True, slots=True)
class Booted:
    """A guest that runs the modules.

    ``base``      what it booted, or had when the session attached
    ``loaded``    the names of our modules that it has
    ``notes``     messages about it
    ``idt_base``  returns the address of its interrupt descriptor table
    ``reached``   the fields of `status` about the machine
    ``made_of``   the fields that `guest show` adds
    ``foreign``   the machine, if somebody else started it
    ``stale``     patch modules of an earlier session that stay loaded
    ``came``      modules to unload at the end of the session, the last one first
    ``bare``      the guest before our modules were loaded, if we booted it
    """

    base: GuestBase
    glue: Path
    machine: AnyMachine
    guest: ShellGuest
    loaded: tuple[str, ...]
    notes: tuple[str, ...]
    checkpoints: Checkpoints | None
    read_memory: ReadMemory
    idt_base: Callable[[], Awaitable[int]]
    reached: Mapping[str, Any]
    made_of: Mapping[str, Any]
    foreign: ForeignMachine | None = None
    stale: tuple[str, ...] = ()
    came: Came = field(default_factory=dict)
    bare: BareGuest | None = None

    @property
    def contents(self) -> str:
        """Describe what is worked on: the names of the modules, or for a kernel the numbers of its parts."""
        if not self.base.is_kernel:
            return ", ".join(self.loaded)
        return f"{len(self.base.units)} units of vmlinux and {len(self.base.modules) - 1} modules"


@contextlib.asynccontextmanager
async def boot(
    folder: Path,
    kernel: KernelTree,
    config: Config,
    name: str,
    console_log: Path,
    progress: Progress,
    life: contextlib.AsyncExitStack,
    bare: BareGuest | None = None,
    built: Built | None = None,
) -> AsyncIterator[Booted]:
    """Build, boot and load. The machine is gone when ``life`` ends.

    ``bare``: a guest to restore instead of booting one. ``built``: a build to use instead of making one.

    Raises what build_base, build_glue, build_image, choose_accel, Machine and load_module raise, and
    InputError (HR1008) when ``load`` names a module that does not exist or ``setup`` fails.
    """
    having = (
        _boot_guest(life, kernel, config, name, console_log, progress)
        if bare is None
        else _as_it_was(bare, progress)
    )
    try:
        async with asyncio.TaskGroup() as together:
            building = together.create_task(_having_built(built, folder, kernel, progress, config.make))
            booting = together.create_task(having)
    except ExceptionGroup as several:
        raise first_of(several) from None
    module, base, glue = building.result()
    bare = booting.result()
    machine, guest, notes = bare.machine, bare.guest, bare.notes
    await _require_recorded(guest, base)
    reached = {"accel": machine.spec.accel, "ssh_port": machine.ssh_port, "attached": None}
    progress("loading the modules")
    ours = () if module.is_kernel else base.modules
    loading = load_all(guest, kernel, ours, config, folder)
    loaded, refused = await or_lost(loading, machine, console_log)
    notes = (*notes, *refused)
    if config.setup:
        progress(config.setup)
        await or_lost(set_up(guest, config.setup), machine, console_log)
    if note := (await kernel_compiler(kernel)).note:
        notes = (*notes, note)
    yield Booted(
        GuestBase.booted(module, base), glue, machine, guest, loaded, notes, bare.checkpoints,
        machine.read_memory, partial(idt_base, machine.monitor), reached, _made_of(machine), bare=bare,
    )  # fmt: skip


def _made_of(machine: Machine) -> Mapping[str, Any]:
    return {
        "qemu": machine.by_hand,
        "qemu_pid": machine.pid,
        "console": str(machine.endpoints.console),
        "qmp": str(machine.endpoints.qmp2),
        "boot_seconds": machine.boot_seconds,
    }


async def require_buildable(folder: Path, config: Config, progress: Progress) -> None:
    """Build what a boot needs, without booting. Raises what build_base, build_glue and open_kernel raise."""
    kernel = await open_kernel(config.kernel, progress)
    check_fit(kernel)
    try:
        await build_all(folder, kernel, progress, config.make)
    except ExceptionGroup as several:
        raise first_of(several) from None


def first_of(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error in a group, also if it is in a nested group."""
    first = several.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first


async def _having_built(
    built: Built | None,
    folder: Path,
    kernel: KernelTree,
    progress: Progress,
    variables: tuple[str, ...],
) -> Built:
    return built or await build_all(folder, kernel, progress, variables)


async def build_all(
    folder: Path, kernel: KernelTree, progress: Progress, variables: tuple[str, ...] = ()
) -> Built:
    """Build what is in a folder: the kernel, or the modules there. Return the build, its base and the glue.

    ``variables``: variables for make when it builds modules.
    """
    if folder == kernel.source:
        base = await kernel_base(kernel, progress)
        return base.build, base, await build_glue(kernel, progress, base)
    async with asyncio.TaskGroup() as together:
        building = together.create_task(build_base(kernel, folder, progress, variables))
        making = together.create_task(build_glue(kernel, progress))
    return *building.result(), making.result()


async def _require_recorded(guest: SshGuest, base: Base) -> None:
    """Raise KernelUnfitError (HR3101) if the guest booted another kernel than the recorded one."""
    vmlinux = next((built.ko for built in base.modules if built.name == VMLINUX), None)
    if vmlinux is None:
        return
    notes = (await run_in_time(guest, "cat /sys/kernel/notes")).stdout
    if build_id_in(notes) != await asyncio.to_thread(read_build_id, vmlinux):
        raise KernelUnfitError(
            f"{base.tree.image} was not built from the vmlinux next to it",
            code="HR3101",
            hint="build both: hotreload kernel build (or make)",
        )


async def _boot_guest(
    owned: contextlib.AsyncExitStack,
    kernel: KernelTree,
    config: Config,
    name: str,
    console_log: Path,
    progress: Progress,
) -> BareGuest:
    image = await build_image(kernel, extra={AGENT_PATH: agent_source()})
    accel = (await choose_accel()).name if config.accel == "auto" else config.accel
    disk, without = await _state_disk(owned, config, console_log.with_name(STATE_DISK))
    spec = MachineSpec(
        kernel.image, image.initramfs, accel,
        cpus=config.cpus, memory_mb=config.memory_mb, name=name, state_disk=disk,
    )  # fmt: skip
    progress(f"booting {kernel.release}")
    importing = asyncio.create_task(asyncio.to_thread(_import_slow_ones))
    try:
        machine, notes = await _boot_machine(owned, spec, console_log, config)
    finally:
        await importing
    checkpoints = clean = None
    if disk is not None:
        descriptor = take_name(disk)
        owned.callback(os.close, descriptor)
        checkpoints = Checkpoints(machine, descriptor)
    guest = await owned.enter_async_context(SshGuest(machine.ssh_port, image.client_key, image.host_key))
    # Log in here already, because that is the slowest part of the first command.
    await run_in_time(guest, "true", timeout=config.boot_timeout, patience=1)
    if checkpoints and is_allowed("restore", config.max_rung):
        with contextlib.suppress(EnvironmentFault):  # without this checkpoint, the guest is booted again
            clean = await checkpoints.save(CLEAN)
    return BareGuest(machine, guest, (*notes, *without), checkpoints, clean)


async def _as_it_was(bare: BareGuest, progress: Progress) -> BareGuest:
    """Restore a guest to before the user's modules were loaded. Raises what Checkpoints.restore raises."""
    assert bare.checkpoints is not None
    assert bare.clean is not None
    progress("restoring the guest to its state after boot")
    await bare.checkpoints.restore(bare.clean)
    await log_in_again(bare.guest)
    with contextlib.suppress(EnvironmentFault):  # those that stay only take space
        await bare.checkpoints.delete_all_but(bare.clean)
    return bare


async def _state_disk(
    owned: contextlib.AsyncExitStack, config: Config, file: Path
) -> tuple[Path | None, tuple[str, ...]]:
    """Make the file for checkpoints, which is removed once QEMU has it open.

    Return it, or None if checkpoints are off or making it failed; and the failure as a note.
    """
    if config.checkpoints == "off":
        return None, ()
    owned.callback(file.unlink, missing_ok=True)
    try:
        await make_state_disk(file)
    except EnvironmentFault as fault:
        return None, (f"{fault.code} {fault.message}: after a crash, the guest is booted again",)
    return file, ()


def _import_slow_ones() -> None:
    for name in SLOW_IMPORTS:
        importlib.import_module(name)


async def _boot_machine(
    owned: contextlib.AsyncExitStack, spec: MachineSpec, console_log: Path, config: Config
) -> tuple[Machine, tuple[str, ...]]:
    """Boot, and try once more if that fails for a known reason.

    If the guest does not come up under KVM, and KVM was not asked for explicitly, try without it. If an
    emulated guest died because the host was overloaded, try again.
    """

    async def attempt(spec: MachineSpec) -> Machine:
        machine = Machine(spec, console_log, boot_deadline=config.boot_timeout)
        return await owned.enter_async_context(machine)

    try:
        return await attempt(spec), ()
    except GuestUnreachableError as error:
        if spec.accel == "tcg" and (found := OUT_OF_TIME.search(error.excerpt)):
            note = (
                "the guest was booted twice: the first time, its kernel got too little CPU time and"
                f" panicked ({found[0]})"
            )
            return await attempt(spec), (note,)
        if spec.accel != "kvm" or config.accel == "kvm":
            raise
        note = f"HR5101 the guest did not boot under KVM ({error.message}); it runs under TCG"
        return await attempt(replace(spec, accel="tcg")), (note,)


async def or_lost(work: Coroutine[Any, Any, T], machine: AnyMachine, console_log: Path) -> T:
    """Do the work, but raise an error as soon as the guest is lost: loading a module may crash it."""
    said = console_log.stat().st_size if console_log.exists() else 0
    working = asyncio.create_task(work)
    alert = asyncio.create_task(machine.wait_for_trouble())
    try:
        await asyncio.wait({working, alert}, return_when=asyncio.FIRST_COMPLETED)
        if alert.done():
            raise await loss(alert.result(), console_log, said)
        return working.result()
    finally:
        working.cancel()
        alert.cancel()
        await asyncio.wait({working, alert})
        if not working.cancelled():
            working.exception()  # mark it as retrieved: the loss matters more


async def set_up(guest: ShellGuest, command: str) -> None:
    try:
        done = await guest.run(command, timeout=SETUP_LIMIT)
    except TimeoutError:
        raise _setup_failed(f"did not finish within {SETUP_LIMIT:g} s", command) from None
    if not done.ok:
        said = (done.complaint or done.text.strip()).splitlines()
        raise _setup_failed(f"failed with status {done.status}" + (f": {said[-1]}" if said else ""), command)


def _setup_failed(how: str, command: str) -> InputError:
    return InputError(f"the setup command {how}", code="HR1008", hint=f"the command: {command}")
