# SPDX-License-Identifier: MIT
"""A guest that crashed, fell silent or complained: a report, and where it is lost, the way back.

What happened is found out first, for after the restore nothing in the guest knows of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hotreload.build.built import VMLINUX
from hotreload.errors import (
    EnvironmentFault,
    GuestCrashedError,
    GuestUnreachableError,
    HotReloadError,
    InputError,
)
from hotreload.fault_line import SourceLine
from hotreload.process import paste_ready
from hotreload.report.crash import CrashReport
from hotreload.report.outcome import Outcome, Reason, ReloadReport
from hotreload.session.alert import ConsoleReader, Silence, why_silent
from hotreload.session.boot import Booted
from hotreload.session.loss import (
    BOOTS,
    RETURNS,
    complaint_report,
    crash_error,
    crashed_report,
    loss,
    loss_report,
    panics,
    place_of,
    restored,
    silence_error,
    trouble_of,
)
from hotreload.session.stuck_place import look, names_of, told
from hotreload.vm.any_machine import AnyMachine
from hotreload.vm.machine import PANICKED, State, Trouble
from hotreload.vm.processors import InKernel

if TYPE_CHECKING:
    from hotreload.reload import Reloader

# Seconds in which a guest that runs answers a plain command.
ANSWER = 5.0
NO_MEMORY = '# vmcore = "on" in hotreload.toml keeps the memory of a guest that crashes, for drgn and crash'
REVERTED = Trouble(
    State.RESET, "the guest does not have what was brought to it: its owner has brought it back"
)
COMPLAINT = "HR4105"
STOOD = "the guest was {} while a patch was on its way"
# Seconds. Who dies so soon after being brought back dies of the same.
AGAIN = 30.0
LOAD_HINT = (
    "hotreload guest load brings it back to its last checkpoint, hotreload guest console shows what it says"
)


class Rescue:
    """That of one guest. ``restored`` is told the checkpoint's name and the seconds it took.

    ``say`` is told what else whoever watches has to know.
    """

    def __init__(
        self,
        booted: Booted,
        reloader: Reloader,
        state: Path,
        restored: Callable[[str, float], None],
        say: Callable[[str], None],
        *,
        keeps_memory: bool,
    ) -> None:
        self.console_log = state / "console.log"
        self.console = ConsoleReader(self.console_log, say)
        self.console.skip()
        self._booted = booted
        self._machine: AnyMachine = booted.machine
        self._reloader = reloader
        self._state = state
        self._restored = restored
        self._keeps_memory = keeps_memory
        self._told: set[tuple[int | None, str]] = set()
        self.restores = 0
        self.is_cut_off = False
        self.is_given_up = False  # no checkpoint brings it back
        self.is_innocent = False  # what was saved last: the guest was lost without it
        self._interrupted = False  # a push was under way when it was brought back last
        self._back_since = 0.0

    async def after(self, error: GuestUnreachableError) -> ReloadReport:
        """What becomes of a guest that was lost while something was done with it.

        Raises ``error``, or what the guest was lost of, when it cannot be brought back.
        """
        if trouble := await trouble_of(self._machine):
            return await self.from_trouble(trouble)
        stood = await self._stood_still()
        silence = await why_silent(self._machine, self._booted.guest, self.console_log)
        if trouble := self._machine.trouble:
            return await self.from_trouble(trouble)
        if not self._reloader.is_changing and silence is None:
            # Nothing was sent, and it is there again.
            self.is_innocent = True
            reason = Reason(
                error.code,
                error.message,
                hint="it answers again; what is saved is brought once more, or: hotreload push",
            )
            report = ReloadReport(Outcome.REJECTED, reasons=(reason,), still_runs=self._reloader.running)
            return self._reloader.note(report)
        # Of a patch on its way nobody knows how far it got.
        if not self._reloader.is_changing or (stood and silence is None):
            self.is_innocent = True
        if stood and silence is None:
            return await self._back_from(None, GuestCrashedError(STOOD.format(stood), code="HR4103"))
        return await self._back_from(silence, silence_error(silence, error.message))

    async def _stood_still(self) -> str | None:
        try:
            return await self._machine.standstill()
        except GuestUnreachableError:
            return None

    async def from_trouble(self, trouble: Trouble) -> ReloadReport:
        """What becomes of a guest that does not run. Raises GuestUnreachableError for one to be left."""
        error = await loss(trouble, self.console_log, self.console.begin)
        ran = self._reloader.running
        if not isinstance(error, GuestCrashedError):
            if not (self.may_return or self._may_boot(trouble)):
                raise error
            self.is_innocent = True  # nobody's code did it
            return self._reloader.note(loss_report(error, ran, self._last_resort))
        if report := await self._back(error):
            return report
        line = await self._reloader.line_of(error.place)
        return self._report(error, line, (self._last_resort,), ran, ran, self._commands(error))

    def _may_boot(self, trouble: Trouble) -> bool:
        """Is it ours to boot anew? Who switches a guest off wants it so."""
        return self._booted.foreign is None and trouble.state is not State.HALTED

    @property
    def _last_resort(self) -> str:
        """What is done about a guest that no checkpoint brings back."""
        return RETURNS if self._booted.foreign is not None else BOOTS

    @property
    def may_return(self) -> bool:
        """May somebody else boot the guest anew, when it is lost?"""
        return self._booted.foreign is not None and self._booted.foreign.may_return

    @property
    def _way_back(self) -> str:
        """Of a guest that is cut off."""
        return LOAD_HINT if self._booted.foreign is None else RETURNS

    async def from_console(self, crash: CrashReport, restores: int) -> ReloadReport | None:
        """What becomes of a guest by what its console said; None: its end is told elsewhere.

        A machine of ours tells of each end itself; of another's guest the console may be all that does.
        """
        if crash.code != COMPLAINT:
            foreign = self._booted.foreign
            if foreign is None:
                return None
            if await panics(self.console_log, self.console.begin):
                foreign.lose(PANICKED)
                return None
        return await self.from_complaint(crash, restores)

    async def from_complaint(self, crash: CrashReport, restores: int) -> ReloadReport | None:
        """What becomes of a guest whose kernel complains; None: it was told, or is past.

        ``restores``: how many there had been when it complained. Raises GuestUnreachableError.
        """
        if restores != self.restores:
            return None
        if crash.is_stuck and not await self._answers():
            silence = await why_silent(self._machine, self._booted.guest, self.console_log)
            if silence is not None:
                return await self._back_from(silence, crash_error(crash, self.console_log))
        key = self._reloader.running, f"{crash.type} {crash.function}"
        if key in self._told:
            return None
        self._told.add(key)
        line = await self._reloader.line_of(place_of(crash))
        return self._reloader.note(complaint_report(crash, line, self._reloader.running, self._state))

    async def from_silence(self) -> ReloadReport | None:
        """What becomes of a guest whose connection dropped; None: it answers, or its end is told elsewhere.

        One that works on is left alone: ``is_cut_off`` until it answers. Raises GuestUnreachableError.
        """
        silence = await why_silent(self._machine, self._booted.guest, self.console_log)
        if silence is None:
            await self._look_whether_it_is_the_same()
            return None
        error = silence_error(silence)
        if silence.stuck is not None or self._reloader.is_changing:
            return await self._back_from(silence, error)
        self.is_cut_off = True
        reason = Reason(error.code, error.message, hint=self._way_back)
        running = self._reloader.running
        report = ReloadReport(Outcome.COMPLAINED, number=running, reasons=(reason,), still_runs=running)
        return self._reloader.note(report)

    async def _look_whether_it_is_the_same(self) -> None:
        """Somebody else's guest that is there again may be brought back to a snapshot: begin with it anew."""
        foreign = self._booted.foreign
        # If it is gone once more, that is told by itself.
        with contextlib.suppress(HotReloadError):
            if foreign is not None and not await self._reloader.is_as_known():
                foreign.lose(REVERTED)

    async def answers_again(self) -> bool:
        """Of a guest that is cut off: does it answer now?"""
        try:
            await self._booted.guest.knock()
        except GuestUnreachableError:
            return False
        self.is_cut_off = False
        return True

    def take_innocent(self) -> bool:
        """Was what was saved last not what the guest was lost of? True once only."""
        taken, self.is_innocent = self.is_innocent, False
        return taken

    def begin_anew(self) -> None:
        """The guest was brought back: what it said so far is of another one."""
        self.console.skip()
        self.restores += 1
        self.is_cut_off = False

    async def _answers(self) -> bool:
        try:
            return (await self._booted.guest.run("true", timeout=ANSWER)).ok
        except (TimeoutError, GuestUnreachableError):
            return False

    async def _back_from(self, silence: Silence | None, error: GuestCrashedError) -> ReloadReport:
        """Bring a guest back that runs. Raises GuestUnreachableError when nothing can."""
        report = await self._back(error, silence.stuck if silence else None)
        if report is not None:
            return report
        foreign = self._booted.foreign
        if foreign is not None and not self.may_return:
            raise GuestUnreachableError(error.message, error.excerpt, code=error.code, hint=error.hint)
        if foreign is not None:
            foreign.lose(Trouble(State.RESET, error.message))
        self.is_given_up = True
        ran = self._reloader.running
        line = await self._reloader.line_of(error.place)
        return self._report(error, line, (self._last_resort,), ran, ran, self._commands(error))

    async def _back(self, error: GuestCrashedError, stuck: InKernel | None = None) -> ReloadReport | None:
        """Bring the guest back to its last checkpoint, or one further back, and tell; None: there is none.

        Where it had to go further, the push was not to blame that was under way.
        """
        ran = self._reloader.running
        addresses: tuple[int, ...] = ()
        if stuck is not None:
            addresses, places = await look(stuck, self._booted.read_memory, self._reloader.place_of)
            error.place = error.place or next(iter(places.values()), None)
        kept = await self._keep_memory() if self._keeps_memory else ()
        commands = (*self._commands(error), *kept)
        interrupts, could = self._reloader.is_changing, self._reloader.can_go_back
        looking = asyncio.create_task(self._reloader.line_of(error.place))
        started = time.monotonic()
        try:
            back = await self._reloader.roll_back()
        except GuestUnreachableError:  # QEMU has ended meanwhile
            back = None
        finally:
            line = await looking
        is_again = self._interrupted and started - self._back_since < AGAIN
        if back is None:
            self.is_innocent |= could or is_again
            return None
        self.is_innocent |= bool(back.passed) or is_again
        self._interrupted, self._back_since = interrupts, time.monotonic()
        seconds = time.monotonic() - started
        self.begin_anew()
        self._restored(back.checkpoint, seconds)
        if addresses:
            names = await names_of([each for each in addresses if each not in places], self._booted.guest)
            error.message += f" in {told(addresses, names, places)}"
        lines = restored(back, seconds, innocent=self.is_innocent)
        return self._report(error, line, (*lines, *kept), ran, back.runs, commands)

    def _commands(self, error: GuestCrashedError) -> tuple[str, ...]:
        """With which a person looks at the code that crashed, and at the memory, if that is kept."""
        lines = () if self._keeps_memory else (NO_MEMORY,)
        if error.place is None or (file := self._reloader.module_file(error.place[0])) is None:
            return lines
        return (paste_ready(("gdb", "-batch", "-ex", f"disassemble /s {error.place[1]}", file)), *lines)

    async def _keep_memory(self) -> tuple[str, ...]:
        """Write the memory of the guest as it died; how people look into it."""
        vmcore = self._state / f"vmcore-{self.restores + 1}"
        try:
            await self._machine.dump(vmcore)
        except (EnvironmentFault, InputError) as error:
            return (f"{error.code} {error.message}",)
        return (paste_ready(("drgn", "-c", vmcore, "-s", self._reloader.base.tree.output / VMLINUX)),)

    def _report(
        self,
        error: GuestCrashedError,
        line: SourceLine | None,
        notes: tuple[str, ...],
        ran: int | None,
        still_runs: int | None,
        commands: Iterable[str],
    ) -> ReloadReport:
        report = crashed_report(error, line, ran, self._state, commands)
        return self._reloader.note(replace(report, notes=(*notes, *report.notes), still_runs=still_runs))
