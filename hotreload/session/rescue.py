# SPDX-License-Identifier: MIT
"""Report a guest that crashed, fell silent or complained, and bring it back if it is lost.

The cause is determined first, because after the restore nothing in the guest shows it.
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

# Seconds in which a healthy guest answers a trivial command.
ANSWER = 5.0
NO_MEMORY = '# vmcore = "on" in hotreload.toml keeps the memory of a guest that crashes, for drgn and crash'
REVERTED = Trouble(
    State.RESET, "the guest no longer has what hotreload loaded: its owner restored an earlier state"
)
COMPLAINT = "HR4105"
STOOD = "the guest was {} while a patch was being applied"
# Seconds. A guest that dies this soon after it was brought back died of the same cause.
AGAIN = 30.0
LOAD_HINT = (
    "restore its last checkpoint with hotreload guest load, or see its output with hotreload guest console"
)


class Rescue:
    """Reports on one guest, and brings it back.

    ``restored`` is called with the name of the checkpoint and the seconds that the restore took. ``say`` is
    called with messages for the user.
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
        self.is_innocent = False  # the last saved edit did not cause the loss
        self._interrupted = False  # a push was under way when the guest was last brought back
        self._back_since = 0.0

    async def after(self, error: GuestUnreachableError) -> ReloadReport:
        """Handle a guest that was lost during an operation, which failed with ``error``.

        Raises GuestUnreachableError when the guest cannot be brought back.
        """
        if trouble := await trouble_of(self._machine):
            return await self.from_trouble(trouble)
        stood = await self._stood_still()
        silence = await why_silent(self._machine, self._booted.guest, self.console_log)
        if trouble := self._machine.trouble:
            return await self.from_trouble(trouble)
        if not self._reloader.is_changing and silence is None:
            # Nothing was sent, and the guest answers again.
            self.is_innocent = True
            reason = Reason(
                error.code,
                error.message,
                hint="it answers again, and what was saved is pushed again; or: hotreload push",
            )
            report = ReloadReport(Outcome.REJECTED, reasons=(reason,), still_runs=self._reloader.running)
            return self._reloader.note(report)
        # If a patch was on its way, it is unknown how far it got, so go back to a checkpoint.
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
        """Handle a guest that does not run. Raises GuestUnreachableError if it is not to be brought back."""
        error = await loss(trouble, self.console_log, self.console.begin)
        ran = self._reloader.running
        if not isinstance(error, GuestCrashedError):
            if not (self.may_return or self._may_boot(trouble)):
                raise error
            self.is_innocent = True  # it was not lost because of a crash
            return self._reloader.note(loss_report(error, ran, self._last_resort))
        if report := await self._back(error):
            return report
        line = await self._reloader.line_of(error.place)
        return self._report(error, line, (self._last_resort,), ran, ran, self._commands(error))

    def _may_boot(self, trouble: Trouble) -> bool:
        """Return whether to boot the guest again: it is ours, and was not switched off on purpose."""
        return self._booted.foreign is None and trouble.state is not State.HALTED

    @property
    def _last_resort(self) -> str:
        """What happens to a guest that no checkpoint brings back."""
        return RETURNS if self._booted.foreign is not None else BOOTS

    @property
    def may_return(self) -> bool:
        """Return whether the guest's owner, who is not us, may boot it again after it was lost."""
        return self._booted.foreign is not None and self._booted.foreign.may_return

    @property
    def _way_back(self) -> str:
        """The hint for a guest that is cut off."""
        return LOAD_HINT if self._booted.foreign is None else RETURNS

    async def from_console(self, crash: CrashReport, restores: int) -> ReloadReport | None:
        """Handle a crash or complaint on the console. Return None if it is reported elsewhere.

        Our own machine reports every crash itself. For somebody else's guest, the console may be the only
        source.
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
        """Handle a kernel's complaint. Return None if it was reported before, or the guest restored since.

        ``restores``: the number of restores up to the complaint. Raises GuestUnreachableError.
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
        """Handle a dropped connection. Return None if the guest answers, or its end is reported elsewhere.

        A guest that does not answer but still works is left alone; ``is_cut_off`` is set until it answers.
        Raises GuestUnreachableError.
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
        """Start over with somebody else's guest if its owner has restored it to a snapshot meanwhile."""
        foreign = self._booted.foreign
        # If it is lost again, that is reported elsewhere.
        with contextlib.suppress(HotReloadError):
            if foreign is not None and not await self._reloader.is_as_known():
                foreign.lose(REVERTED)

    async def answers_again(self) -> bool:
        """Return whether a guest that was cut off answers again. If so, reset ``is_cut_off``."""
        try:
            await self._booted.guest.knock()
        except GuestUnreachableError:
            return False
        self.is_cut_off = False
        return True

    def take_innocent(self) -> bool:
        """Return and reset ``is_innocent``."""
        taken, self.is_innocent = self.is_innocent, False
        return taken

    def begin_anew(self) -> None:
        """Ignore the console's output so far, because the guest was brought back."""
        self.console.skip()
        self.restores += 1
        self.is_cut_off = False

    async def _answers(self) -> bool:
        try:
            return (await self._booted.guest.run("true", timeout=ANSWER)).ok
        except (TimeoutError, GuestUnreachableError):
            return False

    async def _back_from(self, silence: Silence | None, error: GuestCrashedError) -> ReloadReport:
        """Bring back a guest that still runs. Raises GuestUnreachableError if that is impossible."""
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
        """Restore the guest to its last usable checkpoint and report that. Return None if there is none.

        If the guest does not work at its last checkpoint either, the push that was under way did not cause
        the loss.
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
        except GuestUnreachableError:  # QEMU has ended in the meantime
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
        """Return commands for looking at the code that crashed, and how to have the memory kept."""
        lines = () if self._keeps_memory else (NO_MEMORY,)
        if error.place is None or (file := self._reloader.module_file(error.place[0])) is None:
            return lines
        return (paste_ready(("gdb", "-batch", "-ex", f"disassemble /s {error.place[1]}", file)), *lines)

    async def _keep_memory(self) -> tuple[str, ...]:
        """Write the memory of the crashed guest to a file. Return the command that opens it, or the error."""
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
