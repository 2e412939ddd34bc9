# SPDX-License-Identifier: MIT
"""From a folder and a kernel to a guest that runs its modules.

Three things need nothing of each other and run at once: kbuild makes the modules, the glue is compiled (once
a kernel), and the guest boots. The modules are pushed when both they and the guest are there.
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

# Imported while QEMU boots, for they take half a second together and the first command needs them.
SLOW_IMPORTS = ("asyncssh", "watchdog.observers", "hotreload.reload")
SETUP_LIMIT = 600.0
# What a kernel dies of whose emulated timer was late, because this machine had no time for it: the checks of
# arch/x86/kernel/apic/io_apic.c (one of them whatever its command line says), and of lockups and stalls.
OUT_OF_TIME = re.compile(
    r"IO-APIC \+ timer doesn't work|not syncing: (?:soft|hard)lockup|not syncing: RCU Stall"
)
# In the session's folder, beside the console's log.
STATE_DISK = "checkpoints.qcow2"
CLEAN = f"{TAG_PREFIX}clean"


@dataclass(frozen=True, slots=True)
class BareGuest:
    """A guest that has booted, and no module of the user's in it; ``clean``: the checkpoint of that.

    ``notes``: what else to tell about the boot; ``checkpoints``: those of the machine, if it can.
    """

    machine: Machine
    guest: SshGuest
    notes: tuple[str, ...]
    checkpoints: Checkpoints | None
    clean: Checkpoint | None

    @property
    def is_restorable(self) -> bool:
        """Can it go back there?"""
        return self.clean is not None and self.checkpoints is not None and not self.checkpoints.is_given_up


@dataclass(frozen=True, slots=True)
class Booted:
    """A guest that runs the modules.

    ``base``      what it booted, or was found with
    ``loaded``    the modules of ours that it has
    ``notes``     what else to tell about it
    ``idt_base``  where its interrupt descriptor table is
    ``reached``   the fields of `status` about the machine; ``made_of``: those that `guest show` adds
    ``foreign``   the machine, if somebody else started it
    ``stale``     patch modules of an earlier session's that stay loaded
    ``came``      modules that have to go when we do, the last one first
    ``bare``      the guest as it was before ours were loaded, if we booted it
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
        """What is worked on: the modules by name, of a kernel how much it is."""
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
    """Build, boot, load. The machine is gone when ``life`` ends; ``bare``: one that is to be used again.

    ``built``: what is there already, and not to be built.

    Raises what build_base, build_glue, build_image, choose_accel, Machine and load_module raise, and
    InputError (HR1008) when ``load`` names a module that is nowhere or ``setup`` fails.
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
    """Do what a boot does before it boots. Raises what build_base, build_glue and open_kernel raise."""
    kernel = await open_kernel(config.kernel, progress)
    check_fit(kernel)
    try:
        await build_all(folder, kernel, progress, config.make)
    except ExceptionGroup as several:
        raise first_of(several) from None


def first_of(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of the errors in a group, and in the groups in it."""
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
    """What is worked on in a folder, the kernel's own sources or the modules there; its base; the glue.

    ``variables``: what make is given for modules.
    """
    if folder == kernel.source:
        base = await kernel_base(kernel, progress)
        return base.build, base, await build_glue(kernel, progress, base)
    async with asyncio.TaskGroup() as together:
        building = together.create_task(build_base(kernel, folder, progress, variables))
        making = together.create_task(build_glue(kernel, progress))
    return *building.result(), making.result()


async def _require_recorded(guest: SshGuest, base: Base) -> None:
    """Raise KernelUnfitError (HR3101) when the guest booted another kernel than was recorded."""
    vmlinux = next((built.ko for built in base.modules if built.name == VMLINUX), None)
    if vmlinux is None:
        return
    notes = (await run_in_time(guest, "cat /sys/kernel/notes")).stdout
    if build_id_in(notes) != await asyncio.to_thread(read_build_id, vmlinux):
        raise KernelUnfitError(
            f"{base.tree.image} is not made of the vmlinux beside it",
            code="HR3101",
            hint="hotreload kernel build (or make) makes both",
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
    # The login is the longest part of the first command.
    await run_in_time(guest, "true", timeout=config.boot_timeout, patience=1)
    if checkpoints and is_allowed("restore", config.max_rung):
        with contextlib.suppress(EnvironmentFault):  # without it the next rung is another boot
            clean = await checkpoints.save(CLEAN)
    return BareGuest(machine, guest, (*notes, *without), checkpoints, clean)


async def _as_it_was(bare: BareGuest, progress: Progress) -> BareGuest:
    """Bring a guest back to before the user's modules were loaded. Raises as Checkpoints.restore."""
    assert bare.checkpoints is not None
    assert bare.clean is not None
    progress("restoring the guest as it had booted")
    await bare.checkpoints.restore(bare.clean)
    await log_in_again(bare.guest)
    with contextlib.suppress(EnvironmentFault):  # then they take space
        await bare.checkpoints.delete_all_but(bare.clean)
    return bare


async def _state_disk(
    owned: contextlib.AsyncExitStack, config: Config, file: Path
) -> tuple[Path | None, tuple[str, ...]]:
    """Where checkpoints go, until QEMU has it open; None, and why, where there can be none."""
    if config.checkpoints == "off":
        return None, ()
    owned.callback(file.unlink, missing_ok=True)
    try:
        await make_state_disk(file)
    except EnvironmentFault as fault:
        return None, (f"{fault.code} {fault.message}: a crash boots the guest anew",)
    return file, ()


def _import_slow_ones() -> None:
    for name in SLOW_IMPORTS:
        importlib.import_module(name)


async def _boot_machine(
    owned: contextlib.AsyncExitStack, spec: MachineSpec, console_log: Path, config: Config
) -> tuple[Machine, tuple[str, ...]]:
    """Boot; once more without KVM when a guest that KVM was trusted with does not come up.

    And once more when an emulated one has died for lack of time.
    """

    async def attempt(spec: MachineSpec) -> Machine:
        machine = Machine(spec, console_log, boot_deadline=config.boot_timeout)
        return await owned.enter_async_context(machine)

    try:
        return await attempt(spec), ()
    except GuestUnreachableError as error:
        if spec.accel == "tcg" and (found := OUT_OF_TIME.search(error.excerpt)):
            note = f"the guest booted twice: its kernel had no time the first time, and panicked ({found[0]})"
            return await attempt(spec), (note,)
        if spec.accel != "kvm" or config.accel == "kvm":
            raise
        note = f"HR5101 the guest did not boot under KVM ({error.message}); it runs emulated"
        return await attempt(replace(spec, accel="tcg")), (note,)


async def or_lost(work: Coroutine[Any, Any, T], machine: AnyMachine, console_log: Path) -> T:
    """Do the work, unless the guest is lost meanwhile: a module may crash it as soon as it is loaded."""
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
            working.exception()  # of less interest than the loss


async def set_up(guest: ShellGuest, command: str) -> None:
    try:
        done = await guest.run(command, timeout=SETUP_LIMIT)
    except TimeoutError:
        raise _setup_failed(f"is not done after {SETUP_LIMIT:g} s", command) from None
    if not done.ok:
        said = (done.complaint or done.text.strip()).splitlines()
        raise _setup_failed(f"failed with status {done.status}" + (f": {said[-1]}" if said else ""), command)


def _setup_failed(how: str, command: str) -> InputError:
    return InputError(f"the setup command {how}", code="HR1008", hint=f"it is: {command}")
