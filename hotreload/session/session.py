# SPDX-License-Identifier: MIT
"""A session: a guest with the user's modules, to which edits are brought.

``async with Session(...)`` finds the kernel, builds, boots, loads and watches. Whatever it started is gone
after the block. Inside the block,

    saved files are collected, and reloaded while somebody watches (`watching`);
    `push`, `undo` and `redo` run at once, but never at the same time as a reload;
    while there is nothing else to do, the base objects of units that are not edited yet are compiled;
    listeners (`teller.listen`) get each event and each report;
    `finished` becomes the exit status or the error with which the session ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from hotreload.build.built import Build, sha256
from hotreload.build.compile import prepare
from hotreload.build.debian_kernel import open_kernel
from hotreload.build.kernel_tree import KernelTree, check_fit
from hotreload.build.patched_sources import apply_patches
from hotreload.deploy.kernel_identity import RESTART, require_layouts
from hotreload.errors import (
    CompileError,
    EnvironmentFault,
    GuestUnreachableError,
    HotReloadError,
    KernelUnfitError,
    SessionError,
)
from hotreload.ladder import is_allowed
from hotreload.report.console import Console
from hotreload.report.ndjson import EventSink
from hotreload.report.outcome import Outcome, ReloadReport
from hotreload.session.alert import until_it_runs
from hotreload.session.attached import Earlier, attach, until_it_returns
from hotreload.session.boot import BareGuest, Booted, Built, boot
from hotreload.session.control import report_object
from hotreload.session.leaving import take_back, tear_down
from hotreload.session.order import Order
from hotreload.session.parts import reloader_for, watcher_for
from hotreload.session.reboot import (
    announced,
    began_anew,
    build_anew,
    failed_build,
    next_rung,
)
from hotreload.session.rescue import Rescue
from hotreload.session.tasks import cancelled
from hotreload.session.telling import Teller
from hotreload.watch.watcher import Watcher

if TYPE_CHECKING:
    from hotreload.reload import Reloader
    from hotreload.restore_points import Saved

log = logging.getLogger(__name__)

# Seconds: of quiet before base objects are compiled ahead, and between attempts to reach a lost guest.
IDLE = 1.0
CONTACT_INTERVAL = 2.0
QUIET_SHARE = 10  # after a run of make that found no edit, wait this many times as long as it took
STANDSTILL_INTERVAL = 0.5
STANDS = {
    "suspended": "the guest is suspended; edits saved meanwhile are pushed when it wakes up",
    "paused": "the guest is paused; edits saved meanwhile are pushed when it goes on (QMP: cont)",
}
WAKE = {
    "suspended": "wake it with system_wakeup over QMP; hotreload guest show names the socket",
    "paused": "resume it with cont over QMP; hotreload guest show names the socket",
}
# How often a guest is booted again if nothing was brought to it in between.
MOST_BOOTS = 3
NOT_OURS = "hotreload did not start this guest, and cannot boot it"


class Session:
    """See the module's docstring. The caller owns the guest's name (guests.claim) while the session lives."""

    def __init__(self, order: Order, console: Console, stream: TextIO | None = None) -> None:
        """``stream``: gets the events as NDJSON, as does the file in the state folder."""
        self.order = order
        self.console = console
        self.kernel: KernelTree
        self.booted: Booted
        self.reloader: Reloader
        self.rescue: Rescue
        self.ready = asyncio.Event()
        self.finished: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._events = EventSink(order.state / "events.ndjson", stream)
        self.teller = Teller(order.guest, self._events, console)
        self._owned = contextlib.AsyncExitStack()
        self._machine_life = contextlib.AsyncExitStack()
        self._guest_life = contextlib.AsyncExitStack()  # what runs for the guest; closed before the machine
        self._bare: BareGuest | None = None
        self._busy = asyncio.Lock()
        self._cycle = 0
        self._watcher: Watcher
        self._watched: Build  # the build whose files are watched
        self._watchers = 0
        self._pending: set[Path] = set()
        self._saved_at = 0.0
        self._quiet_until = 0.0  # do not run make only to look for edits before this time
        self._due = asyncio.Event()
        self._before: Earlier | None = None  # the state of a lost guest that may return
        self._is_lost = asyncio.Event()  # the guest is lost, but may return or be booted again
        self._is_waking = False  # an edit waits until the guest has woken
        self._boots = 0  # boots since anything was brought to the guest
        self._brought_again: Mapping[Path, str | None] = {}
        self._lost: ReloadReport  # the report of the loss
        self.away_since: datetime | None = None

    # Start and end.

    async def __aenter__(self) -> Self:
        """Raises what open_kernel, check_fit, boot and Watcher raise."""
        async with self._owned:
            self._owned.enter_context(self._events)
            self._owned.callback(self.teller.state, "stopped")
            self._owned.push_async_callback(self._end_machine)
            self._owned.push_async_callback(self._end_guest)
            await self._start_guest()
            self._start(self._reload(), self._owned)
            self._start(self._tell_standstills(), self._owned)
            self._start(self._await_return(), self._owned)
            self._owned = self._owned.pop_all()
        return self

    async def _start_guest(self, built: Built | None = None) -> None:
        """Boot a guest and watch its sources, until ``_end_guest``.

        ``built``: the build to boot with, or None to build the current sources.
        """
        started = time.monotonic()
        async with contextlib.AsyncExitStack() as life:
            self._guest_life = life
            with self.teller.start() as progress:
                self.kernel = await open_kernel(self.order.config.kernel, progress)
                check_fit(self.kernel)
                self.teller.state("booting")
                await self._boot(progress, built)
            await self._watch(all_that_differs=built is None)
            self._guest_life = life.pop_all()
        self.ready.set()
        self.teller.state(
            "ready",
            folder=self.order.folder,
            modules=self.booted.loaded,
            kernel=self.kernel.release,
            **self.booted.reached,
            ms=(time.monotonic() - started) * 1000,
        )

    async def _end_guest(self) -> None:
        await self._guest_life.aclose()

    async def _end_machine(self) -> None:
        self._bare = None
        await self._machine_life.aclose()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._owned.aclose()
        if self.finished.done() and not self.finished.cancelled():
            self.finished.exception()  # mark it as retrieved: it was raised in the block, or where awaited

    async def _boot(self, progress: Callable[[str], None], built: Built | None) -> None:
        order = self.order
        self.booted = await self._guest_life.enter_async_context(self._having_guest(progress, built))
        self._bare = self.booted.bare
        self.reloader = reloader_for(
            self.booted, order.config, order.state, self._note_restored, dry_run=order.dry_run
        )
        self.rescue = Rescue(
            self.booted,
            self.reloader,
            order.state,
            self.teller.restored,
            self.teller.say,
            keeps_memory=order.config.vmcore == "on",
        )
        if self.booted.foreign is not None:
            self._guest_life.push_async_callback(self._take_back)
        if order.config.teardown is not None:
            self._guest_life.push_async_callback(
                tear_down, self.booted, order.config.teardown, self.console.say
            )
        self._guest_life.push_async_callback(self.reloader.close)

    def _having_guest(
        self, progress: Callable[[str], None], built: Built | None
    ) -> contextlib.AbstractAsyncContextManager[Booted]:
        order, log = self.order, self.console_log
        if order.attachment is None:
            return boot(
                order.folder,
                self.kernel,
                order.config,
                order.guest,
                log,
                progress,
                self._machine_life,
                self._bare,
                built,
            )
        return attach(
            order.attachment, order.folder, self.kernel, order.config, log, progress, self._before
        )  # fmt: skip

    async def _watch(self, *, all_that_differs: bool) -> None:
        self._watched = self.booted.base.build
        self._watcher = await self._guest_life.enter_async_context(
            watcher_for(self._watched, self.order.config)
        )
        self.reloader.taken = self._watcher.taken
        # Find what was saved between the build and the start of the watcher.
        if all_that_differs:
            self._note(await asyncio.to_thread(self.differing), time.monotonic())
        for life in (self._collect, self._stay_alert, self._keep_contact, self._hear_complaints):
            self._start(life(), self._guest_life)

    def _start(self, work: Any, owner: contextlib.AsyncExitStack) -> None:
        """Run a part of the session as a task. If it fails, the session ends with its error."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._failed)
        owner.push_async_callback(cancelled, task)

    def _failed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) and not self.finished.done():
            self.finished.set_exception(error)

    async def _take_back(self) -> None:
        """Remove our patches from somebody else's guest, if it still answers."""
        if self.booted.machine.trouble is None and not self.rescue.is_cut_off:
            await take_back(self.booted, self.reloader, self._busy, self.console)

    def finish(self, status: int = 0) -> None:
        """End the session with this exit status, unless it has ended already."""
        if not self.finished.done():
            self.finished.set_result(status)

    @property
    def console_log(self) -> Path:
        return self.order.state / "console.log"

    @property
    def is_watched(self) -> bool:
        """Whether edits are reloaded as they are saved."""
        return self._watchers > 0

    def differing(self) -> tuple[Path, ...]:
        """Return the sources that differ from those the guest booted with."""
        return self.reloader.base.differing()

    # Cycles.

    async def push(self, max_units: int | None = None, init_changes: str | None = None) -> ReloadReport:
        """Bring the guest to the current sources. Raises SessionError when the guest is lost.

        ``max_units``, ``init_changes``: replace those of the configuration in this cycle.
        """
        async with self._one_at_a_time():
            saved_at = time.monotonic()
            self._pending.clear()
            with self.reloader.with_settings(max_units, init_changes):
                files = await asyncio.to_thread(self.differing)
                return await self._cycle_of((), files, saved_at, watched=False)

    async def reload(self, modules: Collection[str] = ()) -> ReloadReport:
        """See Reloader.reload_modules."""
        async with self._one_at_a_time():
            self._cycle += 1
            cycle = self._cycle

            def started(type: str, fields: Mapping[str, Any]) -> None:
                self.teller.event(type, cycle, **fields)

            return await self._told(self.reloader.reload_modules(modules, started=started), cycle)

    async def push_patched(self, patches: Sequence[Path], init_changes: str | None = None) -> ReloadReport:
        """Bring the sources with patches applied. Raises what ``push`` and apply_patches raise."""
        async with self._one_at_a_time():
            sources = await apply_patches(patches, self.order.folder)
            self._cycle += 1
            with self.reloader.with_settings(None, init_changes):
                return await self._told(self.reloader.reload_patched(sources), self._cycle)

    async def undo(self, number: int | None = None, *, everything: bool = False) -> ReloadReport:
        """See Reloader.undo."""
        async with self._one_at_a_time():
            return await self._told(
                self.reloader.undo(number, everything=everything, started=self._tell_climb)
            )

    async def redo(self) -> ReloadReport:
        """See Reloader.redo."""
        async with self._one_at_a_time():
            return await self._told(self.reloader.redo(started=self._tell_climb))

    def _tell_climb(self, _type: str, fields: Mapping[str, Any]) -> None:
        self.teller.report(fields["report"], None, "climb")

    async def save_checkpoint(self, name: str) -> Saved:
        """See Reloader.save_checkpoint."""
        async with self._one_at_a_time():
            return await self.reloader.save_checkpoint(name)

    async def load_checkpoint(self, name: str | None = None) -> ReloadReport:
        """See Reloader.load_checkpoint."""
        async with self._one_at_a_time(asleep=True):
            report = await self.reloader.load_checkpoint(name)
            self.rescue.begin_anew()
            self.teller.restored(report.symbols[0], (report.saved_to_live_ms or 0.0) / 1000)
            self.console.report(report)
            self.teller.tell({"report": report_object(report), "watched": False})
            return report

    @contextlib.asynccontextmanager
    async def _one_at_a_time(self, *, asleep: bool = False) -> AsyncIterator[None]:
        """Hold the guest's lock. ``asleep``: do not wait for a guest that is suspended or paused."""
        while True:
            await self.ready.wait()
            async with self._busy:
                if not self.ready.is_set():  # it was lost while we waited
                    continue
                if not asleep:
                    await until_it_runs(self.booted.machine)
                yield
                return

    async def _cycle_of(
        self, paths: Collection[Path], files: Collection[Path], saved_at: float, *, watched: bool
    ) -> ReloadReport:
        self._cycle += 1
        cycle = self._cycle
        self.teller.event("watch.change", cycle, files=list(files))

        async def reloaded() -> ReloadReport:
            with self.teller.long_build() as compiled:

                def started(type: str, fields: Mapping[str, Any]) -> None:
                    if type == "build.progress":
                        compiled(fields["done"], fields["units"])
                    elif type == "climb":
                        self.teller.report(fields["report"], cycle, "climb")
                    else:
                        self.teller.event(type, cycle, **fields)

                return await self.reloader.reload(tuple(paths), saved_at, started=started)

        async def brought() -> ReloadReport:
            report = await reloaded()  # removes the progress bar before the report is printed
            rung = None if self.order.dry_run else self._next_rung(report)
            if rung is None:
                return report
            if self.order.attachment is not None:
                return replace(report, notes=(*report.notes, NOT_OURS))

            def announce(rung: str) -> None:
                saved = [each.checkpoint.tag for each in self.reloader.checkpoints if each.by_hand]
                self.teller.report(announced(report, rung, saved), cycle, "climb")

            return await self._begin_anew(rung, announce, files, saved_at)

        report = await self._told(brought(), cycle, watched=watched)
        # An edit may have included a header that was not watched, and a changed Makefile may add a unit.
        build = self.reloader.base.build
        new = frozenset() if build is self._watched else build.watched_files
        self._watched = build
        try:
            await self._watcher.also_watch(self.reloader.new_inputs() | new)
        except EnvironmentFault as fault:  # for example, the limit of inotify watches was reached
            self.teller.say(f"{fault.code} {fault.message}: saves there are not noticed; {fault.hint}")
        return report

    def _next_rung(self, report: ReloadReport) -> str | None:
        bare = self.booted.bare
        restorable = bare is not None and bare.is_restorable and not self.reloader.edits_vmlinux
        return next_rung(report, self.order.config.max_rung, self.reloader.base.build, restorable=restorable)

    async def _begin_anew(
        self, rung: str, announce: Callable[[str], None], files: Collection[Path], saved_at: float
    ) -> ReloadReport:
        """Build the current sources, and restore or reboot the guest with them.

        If the build fails, the guest stays as it is. If the boot fails, the session ends and has no guest.
        Raises what the boot raises.
        """
        before, started = self.reloader, time.monotonic()
        announce(rung)
        try:
            with self.console.progress("building for the next boot") as bar:
                await build_anew(before.base.build, self.order.config, bar)
            if rung == "restore" and not await self._has_kernel_of_tree():
                rung = "reboot"
                announce(rung)
        except GuestUnreachableError:
            raise
        except (CompileError, SessionError) as error:
            return before.note(failed_build(error, files, before.running))
        built = (time.monotonic() - started) * 1000
        self.ready.clear()
        await self._end_guest()
        if rung == "reboot":
            await self._end_machine()
        try:
            await self._start_guest()
        except BaseException as error:
            # The session has no guest any more.
            if not self.finished.done():
                self.finished.set_exception(error)
            raise
        self.reloader.follow(before)
        seconds = time.monotonic() - saved_at
        return self.reloader.note(began_anew(rung, files, self.booted.contents, built, seconds))

    async def _has_kernel_of_tree(self) -> bool:
        """Return whether the guest runs the kernel that the tree has. If not, it must be booted.

        Raises KernelUnfitError (HR3101) if it does not and no boot is allowed.
        """
        try:
            base, hint = self.reloader.base, f"{RESTART}; or --max-rung reboot"
            await require_layouts(self.booted.guest, base, base.build.kernel_files, hint)
        except KernelUnfitError:
            if not is_allowed("reboot", self.order.config.max_rung):
                raise
            return False
        return True

    async def _told(
        self, work: Awaitable[ReloadReport], cycle: int | None = None, *, watched: bool = False
    ) -> ReloadReport:
        """Wait for the report of a cycle, and send it to all listeners. If the guest is lost, rescue it."""
        try:
            report = await work
        except GuestUnreachableError as error:
            if self.finished.done():
                raise
            report = await self.rescue.after(error)
        self._tell_report(report, cycle, watched=watched)
        return report

    def _tell_report(self, report: ReloadReport, cycle: int | None = None, *, watched: bool = False) -> None:
        self.teller.report(report, cycle, "report", watched=watched)
        if report.outcome in (Outcome.LIVE, Outcome.RELOADED, Outcome.UNDONE):
            self._boots = 0
        if self.booted.machine.trouble is None and not self.rescue.is_given_up:
            if self.rescue.take_innocent():
                self._bring_again()
            if self._pending:
                self._due.set()  # reload what was saved while nothing could be brought
            return
        is_ours = self.order.attachment is None
        self._boots += is_ours
        if self.rescue.may_return or (is_ours and self._boots <= MOST_BOOTS):
            self._lost = report
            self._is_lost.set()
            if is_ours:
                self.ready.clear()  # requests wait for the boot
        elif report.outcome is Outcome.CRASHED:
            self.finish(report.outcome.exit_status)
        elif not self.finished.done():
            reason = report.reasons[0]
            self.finished.set_exception(GuestUnreachableError(reason.message, code=reason.code))

    def _bring_again(self) -> None:
        """Bring the saved edits that the guest lacks, because they did not cause its loss.

        Do so only once for the same contents.
        """
        digests = {file: sha256(file) for file in self.differing()}
        if digests != self._brought_again:
            self._brought_again = digests
            self._note(digests, time.monotonic())

    # Watching.

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Reload edits as they are saved inside the block. Edits saved before it are reloaded, too."""
        self._watchers += 1
        self._due.set()
        try:
            yield
        finally:
            self._watchers -= 1

    def _note(self, paths: Collection[Path], saved_at: float) -> None:
        if paths:
            self._pending.update(paths)
            self._saved_at = saved_at
            self._due.set()

    async def _collect(self) -> None:
        async for batch in self._watcher:
            self._note(batch.paths, batch.saved_at)

    async def _reload(self) -> None:
        """Reload what is saved. What is saved during a reload is brought in one cycle after it."""
        while True:
            await self._wait_until_due()
            if not self._watchers:
                continue
            async with self._busy:
                if self._is_lost.is_set() or not await self._runs():
                    continue
                try:
                    paths, saved_at = sorted(self._pending), self._saved_at
                    self._pending.clear()
                    if paths and await self._is_an_edit(paths):
                        await self._cycle_of(paths, paths, saved_at, watched=True)
                finally:
                    self._is_waking = False

    async def _runs(self) -> bool:
        """Wait while the guest is suspended or paused. Return False if it is lost (reported elsewhere)."""
        try:
            self._is_waking = bool(await self.booted.machine.standstill())
            await until_it_runs(self.booted.machine)
        except GuestUnreachableError:
            return False
        return self.booted.machine.trouble is None

    async def _is_an_edit(self, paths: Collection[Path]) -> bool:
        """Return whether these files need a cycle: a unit uses one, or make builds something from one.

        A program may write a log file into the folder all the time, so make is not run for each such save.
        """
        if not await asyncio.to_thread(self.reloader.are_unknown, paths):
            return True
        if (left := self._quiet_until - time.monotonic()) > 0:
            self._pending.update(paths)
            asyncio.get_running_loop().call_later(left, self._due.set)
            return False
        started = time.monotonic()
        if await self.reloader.is_edited_by(paths):
            return True
        spent = time.monotonic() - started
        self._quiet_until = time.monotonic() + QUIET_SHARE * spent
        return False

    async def _wait_until_due(self) -> None:
        """Wait for the next save, and compile ahead until then."""
        ahead = asyncio.create_task(self._compile_ahead())
        try:
            await self._due.wait()
            self._due.clear()
        finally:
            await cancelled(ahead)

    async def _compile_ahead(self) -> None:
        try:
            await self.reloader.prepare()
            await asyncio.sleep(IDLE)
            await prepare(self.reloader.base, self.reloader.edited)
        except HotReloadError as error:
            # Only log it. It is reported with the first edit of that unit, when it matters.
            log.info("compiling ahead: %s", error)

    async def _stay_alert(self) -> None:
        """Report the loss of the guest. The session ends then, unless the guest can be brought back."""
        while not self._is_over:
            await self.booted.machine.wait_for_trouble()
            async with self._busy:  # a reload that is under way reports the loss itself
                trouble = self.booted.machine.trouble
                if trouble is not None and not self._is_over:
                    self.teller.state(trouble.state.value, message=trouble.message)
                    await self._told(self.rescue.from_trouble(trouble))

    @property
    def _is_over(self) -> bool:
        """Return whether the loss of this guest was reported."""
        return self.finished.done() or self._is_lost.is_set()

    async def _keep_contact(self) -> None:
        """Handle a guest that runs but stops answering."""
        while not self.finished.done():
            await self.booted.guest.wait_until_lost()
            await self._see_to(self.rescue.from_silence)
            while self.rescue.is_cut_off:
                await asyncio.sleep(CONTACT_INTERVAL)
                if await self.rescue.answers_again():
                    self.teller.say("the guest answers again")

    async def _hear_complaints(self) -> None:
        """Report what the guest's kernel complains about while it runs."""
        async for crash in self.rescue.console.complaints():
            await self._see_to(partial(self.rescue.from_console, crash, self.rescue.restores))

    async def _see_to(self, work: Callable[[], Awaitable[ReloadReport | None]]) -> None:
        async with self._busy:
            if self.booted.machine.trouble is None and not self.finished.done():
                report = await work()
                if report is not None:
                    self._tell_report(report)

    # A guest that was lost, and one that stands still.

    async def _await_return(self) -> None:
        """Whenever the guest is lost, boot it, or if it is somebody else's, wait until its owner has.

        Raises what boot and attach raise, and GuestUnreachableError if the QEMU of the latter has ended.
        """
        while True:
            await self._is_lost.wait()
            async with self._busy:
                if self.order.attachment is None:
                    await self._boot_again()
                    continue
                self.away_since = datetime.now()
                self.ready.clear()
                self.teller.state("away", message=self._lost.reasons[0].message)
                before = self.reloader
                self._before = Earlier(self.booted, before.base, is_changing=before.is_changing)
                started = await self._begun_anew()
                if started is None:
                    return
                self.away_since = None
                self.reloader.follow(before)
                seconds = time.monotonic() - started
                report = self.reloader.note(began_anew("reboot", (), self.booted.contents, 0.0, seconds))
            self._tell_report(report)

    async def _boot_again(self) -> None:
        """Boot a guest that no checkpoint brings back, with what it had booted before.

        Edits made since wait until they are saved again, unless they did not cause the loss.
        """
        self.ready.clear()
        before, started = self.reloader, time.monotonic()
        innocent = self.rescue.take_innocent()
        saved = {file: sha256(file) for file in self.differing()}
        await self._end_guest()
        await self._end_machine()
        self._is_lost.clear()
        await self._start_again(before.booted_with if not before.base.is_kernel else None)
        self.reloader.follow(before)
        report = began_anew("reboot", (), self.booted.contents, 0.0, time.monotonic() - started)
        now = {file: sha256(file) for file in self.differing()}
        # Nothing was watched while it booted.
        self._note([file for file in {**now, **saved} if now.get(file) != saved.get(file)], time.monotonic())
        left_out = [file for file in now if file not in self._pending]
        if left_out and not innocent:
            names = ", ".join(file.name for file in left_out)
            report = replace(
                report,
                notes=((f"{names}: the guest runs the code it first booted with, until it is saved again"),),
            )
        self._tell_report(self.reloader.note(report))
        if innocent:
            self._bring_again()

    async def _start_again(self, built: Built | None) -> None:
        """Call ``_start_guest``, and retry: the cause of the loss may still be there for a while."""
        for left in reversed(range(MOST_BOOTS)):
            try:
                await self._start_guest(built)
                break
            except GuestUnreachableError as error:
                if not left:
                    raise
                self.teller.say(f"the guest did not boot: {error.message}")
                await self._end_machine()

    async def _begun_anew(self) -> float | None:
        """Start over with somebody else's guest when it is back. Return when it was back (monotonic time).

        Return None if its QEMU has ended.
        """
        while await self._returned():
            started = time.monotonic()
            await self._end_guest()
            self._is_lost.clear()
            try:
                await self._start_guest()
                return started
            except GuestUnreachableError as error:
                if error.code != GuestUnreachableError.default_code:
                    raise
                log.info("the guest is gone again: %s", error.message)
        return None

    async def _returned(self) -> bool:
        """Wait until the guest is back. If QEMU has ended after a crash, end the session and return False.

        Raises GuestUnreachableError if its QEMU has ended and the guest was lost for another reason.
        """
        attachment, foreign = self.order.attachment, self.booted.foreign
        assert attachment is not None, "a guest of ours does not return"
        assert foreign is not None, "a guest of ours does not return"
        end = await until_it_returns(attachment, foreign)
        if end is None:
            return True
        if self._lost.outcome is not Outcome.CRASHED:
            raise GuestUnreachableError(f"the guest is lost: {end.message}")
        self.finish(Outcome.CRASHED.exit_status)
        return False

    async def _tell_standstills(self) -> None:
        """Report when the guest is suspended or paused, and when it runs again."""
        told = seen = None
        while True:
            await asyncio.sleep(STANDSTILL_INTERVAL)
            if not self.ready.is_set():
                continue
            now = await self.standstill()
            # Ignore short pauses: QEMU pauses the guest whenever it saves or restores it.
            if now == seen and now != told:
                told = now
                self.teller.state(now or "running")
                self.teller.say(STANDS.get(now or "", "the guest runs again"))
            seen = now

    async def require_awake(self) -> None:
        """Check that the guest runs. If it has just woken, wait until the edits saved meanwhile are in it.

        Raises GuestUnreachableError (HR4103) for a guest that is suspended or paused.
        """
        stands = await self.standstill()
        await asyncio.sleep(STANDSTILL_INTERVAL if stands else 0)
        if stands and stands == await self.standstill():
            raise GuestUnreachableError(f"the guest does not answer: it is {stands}", hint=WAKE[stands])
        if self._is_waking:
            async with self._busy:
                return

    async def standstill(self) -> str | None:
        """Return "suspended" or "paused", or None if the guest runs or QEMU is gone."""
        with contextlib.suppress(GuestUnreachableError):
            return await self.booted.machine.standstill()
        return None

    def _note_restored(self, checkpoint: str, seconds: float) -> None:
        self.rescue.begin_anew()
        self.teller.restored(checkpoint, seconds)
