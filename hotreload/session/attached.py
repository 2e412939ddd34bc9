# SPDX-License-Identifier: MIT
"""Attach to a guest that somebody else started, and leave it as it was when the session ends.

Nothing about the guest is taken for granted. Its kernel and its modules must be those that were built here.
Patches that a killed session left live are disabled. At the end, the agent, the patches and the modules that
the session loaded are removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotreload.build.guest_base import GuestBase
from hotreload.build.kernel_tree import KernelTree, kernel_compiler
from hotreload.config import Config
from hotreload.deploy.attached_guest import AttachedGuest, Login
from hotreload.deploy.guest import run_in_time
from hotreload.deploy.kcore import KernelMemory
from hotreload.deploy.kernel_identity import require_kernel
from hotreload.deploy.livepatch import unload_module
from hotreload.deploy.verify import ReadMemory
from hotreload.errors import (
    EditError,
    GuestUnreachableError,
    HotReloadError,
    InputError,
    KernelUnfitError,
)
from hotreload.session.boot import Booted, Came, build_all, first_of, or_lost, set_up
from hotreload.session.found import LEAVE_LIMIT, Found, take_off_live
from hotreload.session.loading import load_all
from hotreload.session.tasks import cancelled
from hotreload.vm.foreign_machine import ENDED, REBOOTED, ForeignMachine
from hotreload.vm.machine import Trouble
from hotreload.vm.monitor import NobodyListensError

log = logging.getLogger(__name__)

Progress = Callable[[str], None]

RETRY = 2.0
OTHER_KERNEL = "use -K to name the kernel that the guest booted, or boot the guest with that kernel"


@dataclass(frozen=True, slots=True)
class Attachment:
    """How to reach the guest.

    ``qmp`` is the QMP socket of its QEMU, ``console`` the log file of its console.
    """

    login: Login
    qmp: Path | None = None
    console: Path | None = None
    # Identifies the session to the guest when it connects again.
    token: str = field(default_factory=lambda: f"hotreload-{secrets.token_hex(8)}")


def require_attachable(attachment: Attachment) -> None:
    """Check what can be checked without the guest. Raises InputError (HR1009) for an unusable console log."""
    if attachment.console is None:
        return
    if attachment.console.exists() and not attachment.console.is_file():
        raise InputError(
            f"{attachment.console} is not a regular file",
            hint="use --console with a file that QEMU writes: -serial file:LOG, or logfile=LOG of a chardev",
        )
    try:
        attachment.console.open("rb").close()
    except OSError as error:
        raise InputError(
            f"{attachment.console} cannot be read: {error.strerror}",
            hint="use --console with a file that QEMU writes: -serial file:LOG",
        ) from error


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known about the guest from an earlier ``attach`` block.

    ``base``: what it ran at the end of that block. ``is_changing``: whether a change was under way then, so
    that ``base`` may not be what it runs.
    """

    booted: Booted
    base: GuestBase
    is_changing: bool


@contextlib.asynccontextmanager
async def attach(
    attachment: Attachment,
    folder: Path,
    kernel: KernelTree,
    config: Config,
    console_log: Path,
    progress: Progress,
    before: Earlier | None = None,
) -> AsyncIterator[Booted]:
    """Connect, check, build and load. After the block the guest is as it was, if it still answers.

    ``before``: this guest in an earlier block. If it has not rebooted since, the build of that block is used
    again, and the modules that were loaded in it are removed in the end, too. With ``before``,
    GuestUnreachableError is raised if its QEMU has ended.

    Raises what build_base, build_glue, ForeignMachine, AttachedGuest and load_module raise, KernelUnfitError
    (HR3101) for another kernel or another build of a module, and InputError (HR1008) for ``load`` and
    ``setup``.
    """
    _take_console(attachment, console_log)
    async with contextlib.AsyncExitStack() as owned:
        has_console = attachment.console is not None
        machine = ForeignMachine(attachment.qmp, console_log.parent, has_console=has_console)
        try:
            await owned.enter_async_context(machine)
        except NobodyListensError:
            if before is None:
                raise
            raise GuestUnreachableError(f"the guest is lost: {ENDED.message}") from None
        progress(f"connecting to {attachment.login.address}")
        heard = console_log if attachment.console is None else None
        guest = AttachedGuest(attachment.login, attachment.token, lambda: machine.lose(REBOOTED), heard)
        owned.push_async_callback(guest.leave)
        await or_lost(guest.knock(), machine, console_log)
        same = _same_boot(before, guest)
        came = same.booted.came if same else {}
        owned.push_async_callback(_take_out, machine, guest, came)
        # Check this before the build, which would be wasted on another kernel.
        await or_lost(require_kernel(guest, kernel, OTHER_KERNEL), machine, console_log)
        built, glue = await or_lost(_built(folder, kernel, config, progress, same), machine, console_log)
        bases = (built, same.booted.base) if same else (built,)
        modules = [each.name for each in built.modules] if same and same.is_changing else came
        found = await or_lost(Found.clean(guest, bases, modules), machine, console_log)
        base = found.base
        progress("loading the modules")
        ours = () if base.is_kernel else base.modules
        anew: list[str] = []

        def note(name: str) -> None:
            came.pop(name, None)
            came[name] = None
            anew.append(name)

        loading = load_all(guest, kernel, ours, config, folder, found.loaded, note)
        loaded, refused = await or_lost(loading, machine, console_log)
        if config.setup and (anew or base.is_kernel):
            progress(config.setup)
            await or_lost(set_up(guest, config.setup), machine, console_log)
        compiler = (await kernel_compiler(kernel)).note
        memory = await or_lost(_memory(guest, machine, base), machine, console_log)
        yield Booted(
            base, glue, machine, guest,
            tuple(dict.fromkeys((*loaded, *found.loaded))),
            (*_notes(attachment, config), *found.notes, *refused, *((compiler,) if compiler else ())),
            None, *memory,
            {"accel": None, "ssh_port": attachment.login.port, "attached": attachment.login.address},
            _made_of(attachment),
            machine, found.stale, came,
        )  # fmt: skip


async def until_it_returns(attachment: Attachment, machine: ForeignMachine) -> Trouble | None:
    """Wait until the guest accepts a login again. Return None then, or how its QEMU has ended.

    ``machine`` is that of the guest's last block. Raises what AttachedGuest raises if waiting does not help,
    and EnvironmentFault (HR3108).
    """
    back = asyncio.create_task(_until_it_answers(attachment))
    ended = asyncio.create_task(_until_it_ends(attachment, machine))
    try:
        await asyncio.wait({back, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return ended.result()
        return back.result()
    finally:
        await cancelled(back)
        await cancelled(ended)


async def _until_it_answers(attachment: Attachment) -> None:
    """Return when the guest accepts a login. Raises what AttachedGuest raises if waiting does not help."""
    while True:
        guest = AttachedGuest(attachment.login, attachment.token)
        try:
            await guest.reconnect()
            return
        except GuestUnreachableError as error:
            if error.code != GuestUnreachableError.default_code:
                raise
        finally:
            await guest.leave()
        await asyncio.sleep(RETRY)


async def _until_it_ends(attachment: Attachment, machine: ForeignMachine) -> Trouble:
    """Return when the guest's QEMU has ended, if its monitor reports that.

    ``machine`` is that of the guest's last block. Raises EnvironmentFault (HR3108) when the monitor no longer
    answers.
    """
    if machine.has_monitor or attachment.qmp is None:
        return await machine.wait_for_end()
    # The connection to the monitor was closed with the block.
    try:
        async with ForeignMachine(attachment.qmp, Path(), has_console=False) as waiting:
            return await waiting.wait_for_end()
    except NobodyListensError:
        return ENDED


def _take_console(attachment: Attachment, console_log: Path) -> None:
    """Make the session's console log a link to the guest's, or an empty file if the guest has none."""
    console_log.unlink(missing_ok=True)
    if attachment.console is None:
        console_log.write_bytes(b"")
    else:
        console_log.symlink_to(attachment.console.resolve())


def _notes(attachment: Attachment, config: Config) -> tuple[str, ...]:
    notes = ["no checkpoints: hotreload did not start this guest, so after a crash the session waits for it"]
    if attachment.qmp is None:
        notes.append("no --qmp: if QEMU ends, hotreload notices only that the connection is lost")
    if attachment.console is None:
        notes.append("no --console: kernel messages are reported, but not the cause of a crash")
    if config.max_rung in ("restore", "reboot"):
        notes.append(f"max_rung is module, not {config.max_rung}, because hotreload did not start this guest")
    return tuple(notes)


def _made_of(attachment: Attachment) -> dict[str, Any]:
    return {
        "attached": attachment.login.address,
        "qmp": str(attachment.qmp) if attachment.qmp else None,
    }


def _same_boot(before: Earlier | None, guest: AttachedGuest) -> Earlier | None:
    if before is None or not isinstance(before.booted.guest, AttachedGuest):
        return None
    return before if before.booted.guest.boot_id == guest.boot_id else None


async def _built(
    folder: Path, kernel: KernelTree, config: Config, progress: Progress, before: Earlier | None
) -> tuple[GuestBase, Path]:
    if before is not None:
        return before.base, before.booted.glue
    try:
        build, base, glue = await build_all(folder, kernel, progress, config.make)
    except ExceptionGroup as several:
        raise first_of(several) from None
    return GuestBase.booted(build, base), glue


async def _memory(
    guest: AttachedGuest, machine: ForeignMachine, base: GuestBase
) -> tuple[ReadMemory, Callable[[], Awaitable[int]]]:
    """Return how to read the kernel's memory, and how to find its interrupt descriptor table.

    Raises KernelUnfitError (HR3102) if vmlinux is to be patched and its memory cannot be read.
    """
    if (await run_in_time(guest, "[ -r /proc/kcore ]")).ok:
        memory = KernelMemory(guest)
        return memory.read, memory.idt_base
    if base.is_kernel and not machine.has_monitor:
        raise KernelUnfitError(
            "the guest has no /proc/kcore, so hotreload cannot check the code that it would replace",
            hint="name QEMU's monitor with --qmp, or set CONFIG_PROC_KCORE",
        )
    return machine.read_memory, machine.idt_base


async def _take_out(machine: ForeignMachine, guest: AttachedGuest, came: Came) -> None:
    """Remove the modules that were loaded, in reverse order, as far as possible."""
    if machine.trouble is not None or not came:
        return
    try:
        async with asyncio.timeout(LEAVE_LIMIT):
            await take_off_live(guest)  # in case attaching failed before a session began
            for name in reversed(came):
                try:
                    await unload_module(guest, name)
                except EditError as error:
                    log.warning("%s stays loaded: %s", name, error.message)
    except (HotReloadError, TimeoutError) as error:
        log.warning("the modules that were loaded stay in the guest: %s", str(error) or "it took too long")
