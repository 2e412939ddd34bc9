# SPDX-License-Identifier: MIT
"""Try a patch in a guest under load (workload.sh): load it, check it, undo it and remove it.

The kernel's complaints are read from the console log, which has them even if the guest dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotreload.build.kernel_tree import KernelTree
from hotreload.compared import Compared
from hotreload.config import Config
from hotreload.deploy.livepatch import apply_patch, disable_patch, patch_status, sweep
from hotreload.deploy.transition import PatchStatus
from hotreload.errors import (
    EnvironmentFault,
    GuestUnreachableError,
    HotReloadError,
    PatchRejectedError,
    TransitionStalledError,
)
from hotreload.patch.kernel_symbols import KernelSymbols
from hotreload.patch.model import KlpObject
from hotreload.patch.module import LivePatch
from hotreload.patch.symbols import VMLINUX
from hotreload.report.crash import find_crash
from hotreload.running_check import RunningCheck
from hotreload.session.boot import Booted, boot

WORKLOAD = "/tmp/workload"
LOOPS = ("files", "network", "processes")
# Seconds: until each loop has done its first round; until a loop without a finished round counts as hung;
# until tasks have left the code of a patch; for the text of a panic.
STARTING = 60.0
STANDSTILL = 20.0
LEAVING = 10.0
LAST_WORDS = 2.0

# The kernel's messages about patches, and those that appear for every working patch.
LIVEPATCH = re.compile(r"livepatch: (.*)")
USUAL = re.compile(
    r"enabling patch|signaling remaining tasks"
    r"|'\w+': (?:initializing|starting|completing|patching|unpatching|reversing)"
)
# Complaints without a stack trace: about return thunks and padding, and those of the module loader.
OTHERS = re.compile(r"Unpatched return thunk.*|Invalid padding.*|(?:module|hotreload_\w+): (?!.*taint).*")

# How far a patch got. "compared": the differ found no obstacle.
STAGES = ("compared", "planned", "loaded", "listed", "undone")


@dataclass(slots=True)
class Tried:
    """The result of one patch.

    ``reached``    the last of STAGES that it reached
    ``code``       with ``reason``, why it ended there
    ``wrong``      whether that is a failure: a patch that was planned should not have ended this way
    ``functions``  how many functions it replaces

    Times are in milliseconds.
    """

    unit: str
    reached: str = STAGES[0]
    code: str = ""
    reason: str = ""
    wrong: bool = False
    functions: int = 0
    load_ms: float = 0.0
    transition_ms: float = 0.0

    def has(self, stage: str) -> bool:
        """Return whether the patch got at least to this stage."""
        return STAGES.index(self.reached) >= STAGES.index(stage)

    def refuse(self, code: str, reason: str) -> None:
        self.code, self.reason = code, reason

    def fail(self, code: str, reason: str) -> None:
        self.code, self.reason, self.wrong = code, reason, True


@dataclass(frozen=True, slots=True)
class Trial:
    """A patch to try, what it replaces, and what it was made from."""

    patch: LivePatch
    objects: tuple[KlpObject, ...]
    compared: tuple[Compared, ...]
    symbols: KernelSymbols


class WorkingGuest:
    """A guest under load. ``is_spoilt``: something went wrong, so it must not be used for other patches."""

    def __init__(self, booted: Booted, console_log: Path, timeout: float) -> None:
        self.is_spoilt = False
        self._guest = booted.guest
        self._running = RunningCheck(booted.base, booted.guest, booted.read_memory, booted.idt_base)
        self._console_log = console_log
        self._timeout = timeout
        self._kept: list[str] = []
        self._read = 0

    async def start(self) -> None:
        """Start the load. Raises GuestUnreachableError (HR4103) if a loop of it does not finish a round."""
        await self._guest.put(Path(__file__).with_name("workload.sh").read_bytes(), WORKLOAD, 0o755)
        await self._guest.run(f"setsid {WORKLOAD} >/dev/null 2>&1 </dev/null &")
        end = time.monotonic() + STARTING
        while not await self.rounds():
            said = await self._wrong_rounds()
            if said or time.monotonic() > end:
                raise GuestUnreachableError(
                    f"the workload in the guest does not run: {said or 'it makes no progress'}"
                )
            await asyncio.sleep(0.2)

    async def rounds(self) -> dict[str, int]:
        """Return how many rounds each loop has done, or nothing until all have done one."""
        counting = f"cd /tmp/load && for each in {' '.join(LOOPS)}; do wc -l <rounds.$each; done"
        numbers = (await self._guest.run(counting)).text.split()
        # A loop that has not finished its first round has no file yet.
        return dict(zip(LOOPS, map(int, numbers), strict=True)) if len(numbers) == len(LOOPS) else {}

    async def _wrong_rounds(self) -> str:
        return (await self._guest.run("tail -n 1 /tmp/load/wrong 2>/dev/null")).text.strip()

    async def try_patch(self, trial: Trial, tried: Tried, seconds: float, limit: float) -> None:
        """Load the patch, let the guest work with it, and undo it. Note the result in ``tried``.

        ``seconds``: how long the guest works with it. ``limit``: seconds for loading it, and for removing it.
        Linux 6.1 searches all of its symbols for each reference, and restores functions one by one. If the
        kernel cannot complete the transition and reverses it, it has refused the patch, which is no failure.
        """
        self._read = self._console_log.stat().st_size
        try:
            await self._through(trial, tried, seconds, limit)
        except TransitionStalledError as error:
            # For example, a thread never leaves its function.
            backed_out = not tried.has("loaded") and "could not be undone" not in error.message
            (tried.refuse if backed_out else tried.fail)(error.code, error.message)
        except PatchRejectedError as error:
            # A plan cannot know that the kernel has changed a value.
            (tried.refuse if error.code == "HR2103" else tried.fail)(error.code, error.message)
        except (HotReloadError, TimeoutError) as error:
            code = error.code if isinstance(error, HotReloadError) else "HR4103"
            tried.fail(code, str(error) or "the guest does not answer")
            if isinstance(error, EnvironmentFault):
                raise
        if code_and_words := await self._complaint(patient=tried.wrong):
            tried.fail(*code_and_words)
        self.is_spoilt = tried.wrong

    async def _through(self, trial: Trial, tried: Tried, seconds: float, limit: float) -> None:
        if obstacles := await self._running.obstacles(trial.compared, trial.symbols):
            tried.fail(obstacles[0].code, "; ".join(obstacle.message for obstacle in obstacles))
            return
        name = trial.patch.name
        if trial.patch.keep_loaded:
            self._kept.append(name)
        applied = await apply_patch(
            self._guest, name, trial.patch.module, timeout=limit, lookups=trial.patch.lookups
        )
        tried.reached = "loaded"
        tried.load_ms, tried.transition_ms = applied.load_ms, applied.complete_ms - applied.load_ms
        if tried.transition_ms > self._timeout * 1000:
            tried.fail("HR3104", f"its transition took {tried.transition_ms / 1000:.0f} s")
            return
        if missing := not_listed(trial.objects, await patch_status(self._guest), name):
            tried.fail("HR3103", f"sysfs does not list {', '.join(missing)}")
            return
        tried.reached = "listed"
        idle = await self._work(seconds)
        await disable_patch(self._guest, name, timeout=limit, lookups=trial.patch.lookups)
        await self._remove()
        tried.reached = "undone"
        if idle or (said := await self._wrong_rounds()):
            tried.fail("work", f"no progress: {', '.join(idle)}" if idle else said)

    async def _work(self, seconds: float) -> list[str]:
        """Wait for so many seconds, and until each loop has done a full round in that time.

        Return the loops that still have not, STANDSTILL seconds later.
        """
        before = await self.rounds()
        end = time.monotonic() + seconds + STANDSTILL
        await asyncio.sleep(seconds)
        while idle := [loop for loop, rounds in (await self.rounds()).items() if rounds < before[loop] + 2]:
            if time.monotonic() > end:
                return idle
            await asyncio.sleep(0.1)
        return []

    async def _remove(self) -> None:
        """Unload the patches that are no longer live, except those that something may still point into.

        Raises PatchRejectedError (HR3103).
        """
        end = time.monotonic() + LEAVING
        while (swept := await sweep(self._guest, self._kept)).left and set(swept.left) - set(self._kept):
            if time.monotonic() > end:
                raise PatchRejectedError(f"{', '.join(swept.left)} cannot be unloaded")
            await asyncio.sleep(0.2)

    async def _complaint(self, *, patient: bool) -> tuple[str, str] | None:
        """Return the kernel's complaint since the patch was loaded: a code and a text. None: no complaint."""
        end = time.monotonic() + LAST_WORDS * patient
        while True:
            with self._console_log.open("rb") as log:
                log.seek(self._read)
                text = log.read().decode(errors="replace")
            crash = find_crash(text)
            if (crash and crash.complete) or time.monotonic() >= end:
                break
            await asyncio.sleep(0.1)
        if crash:
            return crash.code, f"{crash.title}\n{crash.excerpt}"
        said = unusual(text)
        return ("HR4105", "; ".join(said)) if said else None


def unusual(text: str) -> list[str]:
    """Return the console's lines about patches that a working patch does not cause."""
    told = (match for match in LIVEPATCH.finditer(text) if not USUAL.match(match[1]))
    return [match[0].strip() for match in (*told, *OTHERS.finditer(text))]


def not_listed(objects: Sequence[KlpObject], status: PatchStatus, name: str) -> list[str]:
    """Return the functions of a patch that the kernel does not list as replaced, each as ``NAME,SYMPOS``.

    The name of the patch itself is added if it is not live.
    """
    ours = [patch for patch in status.patches if patch.name == name]
    live = [patch for patch in ours if patch.enabled and not patch.transition]
    listed = {
        (obj.name, function.name, function.position)
        for patch in live
        for obj in patch.objects
        if obj.patched
        for function in obj.functions
    }
    return [
        f"{func.old_name},{func.old_sympos}"
        for obj in objects
        for func in obj.funcs
        if (obj.name or VMLINUX, func.old_name, func.old_sympos) not in listed
    ] + ([] if live else [name])


@contextlib.asynccontextmanager
async def working_guest(tree: KernelTree, console_log: Path) -> AsyncIterator[WorkingGuest]:
    """Boot a guest and start the load. It is gone after the block. Raises what boot raises."""
    config = Config()
    async with (
        contextlib.AsyncExitStack() as life,
        boot(tree.source, tree, config, "real-fixes", console_log, lambda _line: None, life) as booted,
    ):
        guest = WorkingGuest(booted, console_log, config.transition_timeout)
        await guest.start()
        yield guest
