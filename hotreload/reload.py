# SPDX-License-Identifier: MIT
"""One edit through all stages: build, diff, patch, deploy. Read ``Reloader._through`` first.

Everything follows from one invariant: the guest runs what it booted (the base) plus the difference to the
sources as they are now. So a reload never builds on the previous one. It compares the units that were edited
since the boot with the base, and sends one cumulative patch that replaces the previous patch. Undoing an edit
in the editor makes the patch smaller. Undoing all of them leaves no patch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from hotreload.build.base import Base, work_folder
from hotreload.build.built import VMLINUX, Build
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import ObjectPair, SomeFailedError
from hotreload.build.guest_base import GuestBase
from hotreload.build.other_files import stamp
from hotreload.build.patched_sources import PatchedSources
from hotreload.build.patched_units import compile_units
from hotreload.compared import Compared
from hotreload.config import INIT_CHANGES, MAX_UNITS
from hotreload.cycle import Announce, Cycle, with_waiting
from hotreload.deploy.guest import RestorableGuest
from hotreload.diff.obstacles import NotPatchableError, Obstacle
from hotreload.edited_units import EditedUnits
from hotreload.edits import Edits
from hotreload.errors import (
    CompileError,
    EditError,
    EnvironmentFault,
    GuestUnreachableError,
    PatchRejectedError,
    SessionError,
    TransitionStalledError,
    ValueChangedError,
)
from hotreload.fault_line import SourceLine, base_line, fault_line
from hotreload.history import History, Step
from hotreload.ladder import modules_in_the_way
from hotreload.load_time import refuse_unstopped, unloaded_by_the_old
from hotreload.module_rung import ModuleRung
from hotreload.patch.homes import Home, continued
from hotreload.patch.left_behind import LeftBehind, renamed
from hotreload.patch.model import Identity, PatchPlan
from hotreload.patch_build import patched_units, refuse_recipes, require_built
from hotreload.patched_guest import PatchedGuest
from hotreload.plan_units import made_at_load
from hotreload.report.outcome import Outcome, ReloadReport
from hotreload.report.why import why
from hotreload.restore_points import Kept, Known, Moment, RolledBack, Saved
from hotreload.running_check import RunningCheck
from hotreload.stages import StageKeeper
from hotreload.vm.checkpoints import Checkpoints
from hotreload.vm.machine import Trouble

log = logging.getLogger(__name__)

LOGGED = "the guest is unchanged, and the next save may work; the log shows where it failed: hotreload -v"
# How often an edit is compared again because a file was saved over meanwhile.
TRIES = 3
LEFT_BEHIND = "a session that was killed"


def _silently(_type: str, _fields: object) -> None:
    """Announce nothing."""


def _climbs_only(announce: Announce) -> Announce:
    return lambda type, fields: announce(type, fields) if type == "climb" else None


class Reloader:
    """Brings the guest to the sources as they are now, one edit at a time. Callers serialise the calls."""

    def __init__(
        self,
        *,
        base: GuestBase,
        glue: Path,
        guest: RestorableGuest,
        running: RunningCheck,
        module_rung: ModuleRung,
        restored: Callable[[str, float], None],
        trouble: Callable[[], Trouble | None],
        folder: Path,
        transition_timeout: float,
        dry_run: bool = False,
        max_units: int = MAX_UNITS,
        init_changes: str = INIT_CHANGES[0],
        checkpoints: Checkpoints | None = None,
        stale: Collection[str] = (),
    ) -> None:
        """Start with a guest that has just booted, or that an earlier session left.

        ``base``         what the guest runs
        ``running``      reads the guest's memory and checks the code in it
        ``module_rung``  reloads modules where a patch is not enough
        ``restored``     called if a failed change brought the guest back to a checkpoint, with its name and
                         the seconds that it took
        ``trouble``      returns why the guest stopped, or None
        ``folder``       where the session keeps the files that it makes
        ``checkpoints``  those of the guest's machine, or None if it cannot have any
        ``stale``        patch modules that an earlier session has left loaded
        """
        self.dry_run = dry_run
        # Called with the files that make wrote when it was asked. They do not count as edits.
        self.taken: Callable[[Collection[Path]], None] = lambda _files: None
        self._module_rung = module_rung
        self._stages = StageKeeper(folder / "reloads")
        self._guest = PatchedGuest(
            guest,
            Known(base, kept=dict.fromkeys(stale, Kept((LEFT_BEHIND,)))),
            trouble=trouble,
            transition_timeout=transition_timeout,
            checkpoints=checkpoints,
            restored=restored,
        )
        self._edits = Edits(base, running, glue, folder / "objects", max_units, init_changes)
        self._history = History([Step(0, None, base=base, edited={})])

    @property
    def history(self) -> tuple[ReloadReport, ...]:
        """Return the reports of all cycles that have a number, a reason or an error text, oldest first."""
        return tuple(self._history.reports)

    @property
    def running(self) -> int | None:
        """Return the number of the reload whose code the guest runs, or None if it runs what it booted."""
        return self._history.running

    @property
    def is_changing(self) -> bool:
        """Return whether a change was sent to the guest and its outcome is unknown."""
        return self._guest.is_changing

    async def is_as_known(self) -> bool:
        """See PatchedGuest.is_as_known."""
        return await self._guest.is_as_known()

    def new_inputs(self) -> frozenset[Path]:
        """Return the user's files that edits have included."""
        return self._edits.units.new_inputs()

    @property
    def units(self) -> EditedUnits:
        """The units that the edits affect."""
        return self._edits.units

    @property
    def edited(self) -> tuple[Path, ...]:
        """Return the objects of the units that were compiled since the guest booted."""
        return tuple(self._edits.compared)

    @property
    def edits_vmlinux(self) -> bool:
        """Return whether there are edits of the kernel itself, not only of its modules."""
        return any(each.pair.unit.module == VMLINUX for each in self._edits.compared.values())

    @property
    def kept_loaded(self) -> Mapping[str, tuple[str, ...]]:
        """Return the replaced patch modules that stay loaded, and what in each may still be pointed at."""
        return {patch: each.reasons for patch, each in self._guest.known.kept.items()}

    @property
    def booted_with(self) -> tuple[Build, Base, Path]:
        """Return what the guest booted, in the form of session.boot.build_all."""
        booted = self._history.steps[0].base
        assert booted is not None, "every step of a reloader has one"
        return booted.build, booted.parts[0], self._edits.glue

    @property
    def base(self) -> GuestBase:
        """The base: what the guest booted or, for reloaded modules, what was loaded last."""
        return self._guest.known.base

    async def reload(
        self, paths: Iterable[Path], saved_at: float, *, started: Announce = _silently
    ) -> ReloadReport:
        """Take saved files through all stages, and report the outcome.

        ``paths`` are the files that changed. If there are none, everything that differs from the base counts.
        ``saved_at`` is time.monotonic() of the last save. ``started`` is called with build.start, diff.done
        and apply.start as they happen.

        Raises only GuestUnreachableError. Every other failure is in the report.
        """
        cycle = Cycle(self.units.with_unread(paths), saved_at, started)
        cycle.milliseconds["watch"] = (time.monotonic() - saved_at) * 1000
        return await self._told(cycle, self._through(cycle))

    def are_unknown(self, paths: Collection[Path]) -> bool:
        """Return whether only make knows what these files are for."""
        return self._edits.are_unknown(paths)

    async def is_edited_by(self, paths: Collection[Path]) -> bool:
        """Return whether saving these files needs a cycle, according to make.

        An error of make needs one, too.
        """
        try:
            if self._edits.is_open(paths):
                self.taken(await self._edits.ask_make(paths))
        except (CompileError, SessionError):
            return True
        return self._edits.has_new(paths)

    async def reload_patched(self, sources: PatchedSources, *, started: Announce = _silently) -> ReloadReport:
        """Bring the guest to the sources as source patches would change them.

        The files themselves stay as they are, and replace the patched version when they are saved next.
        Raises as ``reload``.
        """
        cycle = Cycle(tuple(sources.texts), time.monotonic(), started)
        cycle.notes += sources.notes
        return await self._told(cycle, self._through_patched(cycle, sources))

    async def reload_modules(
        self, names: Collection[str] = (), *, started: Announce = _silently
    ) -> ReloadReport:
        """Build modules from the sources as they are now, and reload them.

        Without ``names``, reload all modules of the folder. Modules that use them are reloaded as well.
        Raises InputError for an unknown name, and otherwise as ``reload``.
        """
        cycle = Cycle((), time.monotonic(), started)
        wanted = self._module_rung.wanted(self.base, names)
        return await self._told(cycle, self._on_demand(cycle, wanted))

    @contextlib.contextmanager
    def with_settings(self, max_units: int | None, init_changes: str | None) -> Iterator[None]:
        """Inside the block, use these settings instead of the session's. None leaves a setting as it is."""
        before = self.units.max_units, self._edits.init_changes
        self.units.max_units = max_units or before[0]
        self._edits.init_changes = init_changes or before[1]
        try:
            yield
        finally:
            self.units.max_units, self._edits.init_changes = before

    async def undo(
        self,
        number: int | None = None,
        *,
        everything: bool = False,
        leaving: bool = False,
        started: Announce = _silently,
    ) -> ReloadReport:
        """Go back to before the last reload, to before reload ``number``, or to what the guest booted.

        The sources stay as they are, so the next save brings them to the guest again. With ``leaving``,
        ignore code that may still be in use, and do not reload modules because of it. ``started`` is called
        for a climb to a higher rung.
        """
        boot = 0 if self._history.place else None
        place = boot if everything else self._history.before(number)
        nothing = "nothing to undo" if number is None else f"#{number} is not live"
        cycle = Cycle((), time.monotonic(), _climbs_only(started))
        return await self._told(cycle, self._walk(cycle, place, Outcome.UNDONE, nothing, leaving=leaving))

    async def redo(self, *, started: Announce = _silently) -> ReloadReport:
        """Bring back the reload that was undone last. ``started`` is called for a climb to a higher rung."""
        cycle = Cycle((), time.monotonic(), _climbs_only(started))
        return await self._told(
            cycle, self._walk(cycle, self._history.after(), Outcome.REDONE, "nothing to redo")
        )

    @property
    def can_go_back(self) -> bool:
        """See PatchedGuest.can_go_back."""
        return self._guest.can_go_back

    async def roll_back(self) -> RolledBack | None:
        """Bring the guest back to before the last push. Return None if it answers at no checkpoint.

        A checkpoint may have been saved when the guest was already dying or had no network. In that case go
        further back.

        The sources stay as they are. A unit of that push is brought again when one of its files is saved.
        Connections into the guest are lost. Raises GuestUnreachableError.
        """
        was, place, base, edited = self._history.current, self._history.place, self.base, self._edits.compared
        passed: list[str] = []
        while self.can_go_back:
            try:
                saved = await self._guest.restore()
            except EnvironmentFault as fault:
                passed.append(fault.message)
                continue
            if saved is None:
                break
            self._return_to(saved.moment, base)
            if await self._guest.answers(saved):
                return RolledBack(
                    saved.checkpoint.tag,
                    was.number if place > saved.moment.place else None,
                    place < saved.moment.place,
                    self.running,
                    _differing(edited, self._edits.compared),
                    place > saved.moment.place + 1,
                    tuple(passed),
                )
            passed.append(saved.checkpoint.tag)
            base = self.base
        return None

    async def save_checkpoint(self, name: str) -> Saved:
        """Save the guest under a name. The checkpoint exists until the guest ends.

        Raises InputError, EnvironmentFault (HR5105), GuestUnreachableError.
        """
        return await self._guest.save_by_hand(name, self._history)

    @property
    def checkpoints(self) -> tuple[Saved, ...]:
        """Return the checkpoints that the guest can go back to, the latest last."""
        return self._guest.checkpoints

    async def load_checkpoint(self, name: str | None) -> ReloadReport:
        """Bring the guest back to a checkpoint, or to the latest if ``name`` is None.

        The sources stay as they are. A unit that the guest does not run then is brought when it is saved.
        Raises as ``save_checkpoint``.
        """
        started, base, edited = time.monotonic(), self.base, self._edits.compared
        saved = await self._guest.load(name)
        self._return_to(saved.moment, base)
        answers = await self._answers()
        runs = "the code it booted with" if self.running is None else f"#{self.running}"
        notes = [
            f"the guest runs {runs}"
            + ("" if answers else "; it does not answer over SSH, as when it was saved")
        ]
        if left_out := [file.name for file in _differing(edited, self._edits.compared)]:
            notes.append(
                f"{', '.join(left_out)}: the guest runs the code of that time, until it is saved again"
            )
        return self.note(
            ReloadReport(
                Outcome.RESTORED,
                symbols=(saved.checkpoint.tag,),
                saved_to_live_ms=(time.monotonic() - started) * 1000,
                notes=tuple(notes),
                still_runs=self.running,
            )
        )

    async def _answers(self) -> bool:
        try:
            await self._guest.log_in()
        except GuestUnreachableError:
            return False
        return True

    def _return_to(self, moment: Moment, base: GuestBase) -> None:
        """Take over the state of a guest that was brought back. ``base`` is the base before that."""
        self._history.return_to(moment.steps, moment.place)
        if anew := self.base.anew_since(base):
            self._take_base(anew)
        self._edits.return_to(moment.known.edited)

    def note(self, report: ReloadReport) -> ReloadReport:
        """Add a report that does not come from a cycle to the history, and return it."""
        self._history.reports.append(report)
        return report

    async def line_of(self, place: tuple[str | None, str, int] | None) -> SourceLine | None:
        """Return the source line of a place in the newest patch or in unpatched code.

        A place is (module, function, offset), with the offset in bytes. Return None if the line is uncertain.
        """
        if place is None:
            return None
        module, function, offset = place
        newest = self._guest.newest
        if newest is not None and module == newest.name:
            pairs = [one.pair for one in self._edits.compared.values()]
            return await fault_line(newest.module, function, offset, pairs)
        return await base_line(self.base, module or VMLINUX, function, offset)

    def module_file(self, name: str | None) -> Path | None:
        """Return the file of a module that the guest runs: a patch of ours, or a module of the base.

        ``name`` None means vmlinux.
        """
        kos = {built.name: built.ko for built in self.base.modules}
        return kos.get(name or VMLINUX) or (self._stages.module(name) if name else None)

    def place_of(self, address: int) -> tuple[str, str, int] | None:
        """See PatchedGuest.place_of."""
        return self._guest.place_of(address)

    async def prepare(self) -> None:
        """Do ahead of time what the first edit would have to wait for.

        Raises GuestUnreachableError, InputError.
        """
        await self._edits.learn(self._guest.guest)

    def follow(self, other: Reloader) -> None:
        """Continue the numbers and reports of the reloader of another guest."""
        self._history.last_number = other._history.last_number
        self._history.reports = other._history.reports

    def why(self, number: int | None = None) -> str:
        """Return the long answer about reload ``number``, or about the last refusal.

        Raises InputError if there is none.
        """
        return why(self._history.reports, number)

    async def settle(self) -> None:
        """Wait for the background work."""
        await self._guest.settle()

    async def close(self) -> None:
        """Stop the background work."""
        await self._guest.close()

    async def _told(self, cycle: Cycle, ending: Awaitable[ReloadReport]) -> ReloadReport:
        """Await the end of a cycle, and turn an EditError into a report. No other place does this.

        A SessionError becomes a report, too. The guest runs, so the error (a full disk, a Makefile that is
        empty for a moment, an unreadable object) concerns this edit, and the next edit may succeed.
        """
        try:
            report = await ending
        except GuestUnreachableError:
            raise
        except (EditError, SessionError) as error:
            if self.base.is_kernel and isinstance(error, NotPatchableError) and self._is_of_vmlinux(error):
                error = error.of_kernel()
            report = cycle.failed(error, self.running)
            if isinstance(error, CompileError):
                self.units.leave_unread(cycle.files)
        except Exception as bug:
            if self._guest.is_changing:
                raise  # it is unknown what the guest runs
            log.exception("a bug in hotreload")
            failed = EnvironmentFault(f"a bug in hotreload: {bug!r}", code="HR0000", hint=LOGGED)
            report = cycle.failed(failed, self.running)
        report = with_waiting(report, self._edits.waiting())
        if report.number is not None or report.reasons or report.error:
            self._history.reports.append(report)
        return report

    def _is_of_vmlinux(self, refusal: NotPatchableError) -> bool:
        """Return whether the edits need more than a reload of modules."""
        edits = self._edits
        if edits.units.changed_makefiles():
            return True
        names = modules_in_the_way(edits.compared, edits.plan) if edits.compared else frozenset()
        names |= refusal.modules
        return not names or VMLINUX in names

    async def _through(self, cycle: Cycle) -> ReloadReport:
        await self._follow_unloading()
        return await self._by_ladder(cycle)

    async def _by_ladder(self, cycle: Cycle, tries: int = TRIES) -> ReloadReport:
        """Bring the edit as a patch, or else by the next rung if that gets past the refusal."""
        stamps = [stamp(file) for file in cycle.files]
        try:
            report = await self._as_patch(cycle)
            if report.outcome is Outcome.NO_CHANGE and not cycle.files and not self.dry_run:
                # No file of the folder has changed, but make may build something else from them.
                with cycle.stage("build"):
                    is_made_otherwise = await self._edits.is_made_otherwise(self.taken)
                if is_made_otherwise:
                    report = await self._as_patch(cycle)
            return report
        except NotPatchableError as refusal:
            if self.dry_run or not self._module_rung.leads_past(refusal, self.base):
                raise
            if tries > 1 and [stamp(file) for file in cycle.files] != stamps:
                # The refused text has been saved over, and may have been read while an editor was writing it.
                # No state is lost for it.
                cycle.compared.clear()
                cycle.notes.clear()
                return await self._by_ladder(cycle, tries - 1)
            return await self._as_modules(cycle, refusal)
        except ValueChangedError as rejected:
            found = self._refusal_of(rejected)
            if not found.modules or not self._module_rung.leads_past(found, self.base):
                raise
            return await self._as_modules(cycle, found)

    def _refusal_of(self, rejected: ValueChangedError) -> NotPatchableError:
        """Return the refusal for a value that, as the guest found out, has changed."""
        plan = self._edits.plan(self._edits.compared)
        writes = plan.writes if plan is not None else ()
        modules = {write.object for write in writes if write.name == rejected.name} - {VMLINUX}
        return NotPatchableError([Obstacle("HR2103", rejected.name, rejected.message)], modules)

    async def _as_patch(self, cycle: Cycle) -> ReloadReport:
        # Did a file change that no unit names? Then ask make what it builds from it.
        others = await self._ask_make(cycle)

        # Which translation units do these files go into? A header may go into many.
        units = self._edits.of(cycle.files, others)

        # Replay the recorded compile command of each unit, and compile its base source likewise, without
        # kbuild.
        try:
            pairs = await self._build(cycle, units)
        except SomeFailedError as error:
            await self._beside_failed(cycle, error)
            raise

        return await self._from(cycle, pairs, {}, partial(self._build, cycle))

    async def _beside_failed(self, cycle: Cycle, error: SomeFailedError) -> None:
        """Bring the units that did compile, and report this before the failure of the others.

        Only bring a unit if nothing but its own source was edited, because a changed header also affects the
        failed units. The failed units stay as they are, so they must still be able to call the ones that are
        brought.
        """
        pairs = tuple(pair for pair in error.pairs if self._edits.units.is_edited_alone(pair.unit))
        if not pairs:
            return
        self._edits.units.are_compiled([pair.unit for pair in pairs], error.failed)
        await self._edits.learn(self._guest.guest)
        beside = replace(cycle, files=tuple(dict.fromkeys(pair.unit.source for pair in pairs)), notes=[])
        try:
            report = await self._from(beside, pairs, {}, partial(self._build, beside), error.failed)
        except NotPatchableError:
            return  # reported once all of them compile
        if report.number is not None:
            cycle.announce("climb", {"report": self.note(report)})

    async def _through_patched(self, cycle: Cycle, sources: PatchedSources) -> ReloadReport:
        """Do the same for sources as source patches would change them. The files stay as they are."""
        refuse_recipes(sources)
        selection = self._edits.selection(sources.texts)
        with work_folder() as work:
            # Include what was edited in the files themselves.
            edited = {Path(os.path.realpath(file)): file for file in self._edits.units.differing}
            texts = {real: file.read_bytes() for real, file in edited.items() if file.is_file()}
            with cycle.stage("build"):
                await self._edits.learn(self._guest.guest)
                await self._save_checkpoint(cycle)
                units = patched_units(sources, self.base.build, selection)
                compiled = await compile_units(self.base, units, texts | dict(sources.texts), work)
                require_built(sources, selection, compiled.used, cycle, {})

            async def again(folded: list[TranslationUnit]) -> tuple[ObjectPair, ...]:
                every = texts | dict(sources.texts)
                return (await compile_units(self.base, folded, every, work / "kept", keep=True)).pairs

            with self._edits.as_pushed(units):
                return await self._from(cycle, compiled.pairs, sources.texts, again)

    async def _from(
        self,
        cycle: Cycle,
        pairs: tuple[ObjectPair, ...],
        instead: Mapping[Path, bytes | None],
        again: Callable[[list[TranslationUnit]], Awaitable[tuple[ObjectPair, ...]]],
        failed: Collection[TranslationUnit] = (),
    ) -> ReloadReport:
        """Continue from the objects: diff, plan, and deploy.

        ``instead``  texts to use in place of the files on disk, by real path
        ``again``    compiles units once more, so that all of their variables have storage
        ``failed``   units that were edited, too, and have no new object
        """
        # What changed? Strings, constants and special sections are compared by content, not by address.
        known = dict(self._edits.compared)
        self._compare(cycle, pairs, instead)

        # gcc folds away a variable that nothing writes or nothing reads. It still has a value in the guest,
        # so compile the unit again in a way that keeps it.
        if folded := self._edits.keep_variables(cycle.compared):
            kept = await again(folded)
            cycle.compared = [each for each in cycle.compared if each.pair.unit not in folded]
            self._compare(cycle, kept, instead)
        cycle.compared = await self._edits.prove(cycle.compared)

        # Can it be patched, together with all other units edited since the boot? All obstacles are reported
        # at once.
        plan = self._plan(cycle)
        self._edits.require_callers(failed, known)

        if changed := self._edits.units.changed_makefiles():
            cycle.notes.append(f"HR1004 {changed} changed; the guest still has the previous build")
        if strays := self._edits.units.left_out():
            cycle.notes.append(
                f"HR1002 {strays}: no translation unit is compiled from it; other uses are not followed"
            )
        if changed := self._edits.units.carried_otherwise():
            cycle.notes.append(f"HR2206 {changed} changed; the guest has the previous one")

        before, running = self._history.current, self._guest.known.plan
        if plan == running:
            if not self.dry_run:  # later edits begin with the names of this one
                self._guest.is_made_of(dict(self._edits.compared))
            return cycle.no_change(self.running)

        # May something hold the address of code that the sources no longer have, and that would keep running?
        homes = self._homes_for(plan)
        self._refuse_left_behind(cycle, self._guest.left_behind(plan, homes))

        if self.dry_run:
            return cycle.would_be(self._edits.symbols(), self.running)
        cycle.announce_difference()

        # Does the guest run the functions that are to be replaced? Its memory tells.
        await self._check_running(cycle, self._edits.compared)

        # The guest has not been touched so far. This is the first line that touches it.
        await self._bring(cycle, plan, homes)

        self._guest.note_made_of(self._edits.compared)
        self._note_once_unloaded(cycle, plan, running)
        step = self._add_step(plan)
        self._keep_stages(cycle, step)
        return cycle.went_live(step, before)

    async def _as_modules(self, cycle: Cycle, refusal: NotPatchableError) -> ReloadReport:
        """Take the next rung: build and reload the modules that are in the way. They lose their state."""
        await self._edits.learn(self._guest.guest)
        await self._save_checkpoint(cycle)
        unknown: frozenset[str] = frozenset()
        if due := self._edits.units.due():  # nothing was compiled yet if a Makefile was refused
            try:
                self._compare(cycle, await self._build(cycle, due), {})
            except CompileError:
                # This used the old commands. A flag may be new, or a file may have moved. kbuild knows the
                # new commands.
                unknown = frozenset(unit.module for unit in due)
        with cycle.stage("build"):
            names = self._in_the_way(refusal)
            try:
                base, names = await self._module_rung.build(
                    self._guest.guest, self.base, refusal, names, unknown
                )
            except CompileError:
                self.units.refuse_again()
                raise
        if not names:  # a Makefile changed, but makes nothing in another way
            self._take_base(names, base)
            return await self._by_ladder(cycle)
        self._before_unloading(cycle, names)
        if pushed := self._edits.pushed_into(names):
            files = ", ".join(file.name for file in pushed)
            cycle.notes.append(f"{files}: built from the file, without the source patch that was pushed")
        self.note(cycle.announce_climb(refusal, names, self.running))
        await self._load_anew(cycle, base, names, self._edits.compared)
        return cycle.went_anew(self._add_step(self._guest.known.plan), names)

    async def _on_demand(self, cycle: Cycle, wanted: frozenset[str]) -> ReloadReport:
        """Reload modules because the user asked for it. What is live in other modules stays live."""
        await self._edits.learn(self._guest.guest)
        await self._save_checkpoint(cycle)
        with cycle.stage("build"):
            base, names = await self._module_rung.build_these(self._guest.guest, self.base, wanted)
        self._before_unloading(cycle, names)
        await self._load_anew(cycle, base, names, self._guest.known.edited)
        return cycle.went_anew(self._add_step(self._guest.known.plan), names)

    def _before_unloading(self, cycle: Cycle, names: frozenset[str]) -> None:
        """Note which exit code will not run, or refuse to unload.

        Raises NotPatchableError.
        """
        live, pending = self._guest.known.edited, self._edits.compared
        refuse_unstopped(live, pending, names)
        cycle.notes += unloaded_by_the_old(live, pending, names)

    def _in_the_way(self, refusal: NotPatchableError) -> frozenset[str]:
        """Return the modules to reload so that the edits of all others can be patched."""
        edits = self._edits
        names = modules_in_the_way(edits.compared, edits.plan) if edits.compared else frozenset()
        names |= refusal.modules
        while True:
            rest = edits.plan(edits.but_of(names, edits.compared))
            left = self._guest.left_behind(rest, self._homes_for(rest)).but_of(names)
            if not left.modules:
                return names
            names |= left.modules

    def _homes_for(self, plan: PatchPlan | None) -> dict[Identity, Home]:
        """Return the homes that the next patch refers to."""
        known = self._guest.known
        return renamed(known.plan, plan).homes(continued(known.homes, known.plan))

    def _refuse_left_behind(self, cycle: Cycle, left: LeftBehind) -> None:
        if left.obstacles:
            raise NotPatchableError((obstacle for _, obstacle in left.obstacles), left.modules)
        cycle.note_variables(identity.name for identity in left.variables)

    async def _load_anew(
        self, cycle: Cycle, base: GuestBase, names: frozenset[str], edited: Mapping[Path, Compared]
    ) -> None:
        """Replace these modules by those of another base.

        What was ``edited`` in other modules is live beside them.
        """
        known = self._guest.known
        rest = self._edits.but_of(names, edited)
        plan = self._edits.plan(rest)
        homes = self._homes_for(plan)

        async def without() -> None:
            if plan != known.plan:
                await self._check_running(cycle, rest)
                await self._bring(cycle, plan, homes)
                self._guest.note_made_of(rest)

        exchange = await self._module_rung.exchange(self._guest.guest, self.base, base, names)
        cycle.announce("apply.start", {"rung": "module", "files": cycle.files, "symbols": sorted(names)})
        try:
            await self._guest.load_anew(cycle, base, exchange, names, without)
        except (PatchRejectedError, TransitionStalledError):
            cycle.notes += exchange.notes
            await self._put_back(cycle, known, names)
            raise
        cycle.notes += exchange.notes
        self._take_base(names)

    async def _put_back(self, cycle: Cycle, known: Known, names: frozenset[str]) -> None:
        """Make live again what was live in the old modules, because the new modules did not load."""
        if self._guest.known.plan != known.plan:
            self._history.drop_homes(names)
            homes = continued(known.homes, known.plan)
            left = {key: home for key, home in homes.items() if key.module not in names}
            await self._bring(cycle, known.plan, left)
            self._guest.is_made_of(known.edited)

    async def _follow_unloading(self) -> None:
        """Return to the tree's file for modules that were built beside the tree and are no longer loaded.

        The next one that is loaded will be the tree's.
        """
        beside = self.base.beside_the_tree
        gone = await self._guest.not_there(beside) if beside else None
        booted = self._history.steps[0].base
        if gone and booted is not None:
            self._take_base(gone, self.base.with_anew(self.base.build, booted.parts[0], gone))
            self._edits.units.ask_for(gone)

    def _take_base(self, names: frozenset[str], base: GuestBase | None = None) -> None:
        """Note that these modules belong to another base than before."""
        if base is not None:
            self._guest.take_base(base)
        self._history.drop_homes(names)
        self._edits.take_base(self.base, names)

    def _add_step(self, plan: PatchPlan | None) -> Step:
        known = self._guest.known
        return self._history.add(plan, self._edits.symbols(), known.homes, self.base, known.edited)

    def _note_once_unloaded(self, cycle: Cycle, plan: PatchPlan | None, before: PatchPlan | None) -> None:
        """Note which modules, once unloaded, cannot be loaded again under the patch.

        This is noted when a module becomes part of the patch, because nobody expects it.
        """
        knowledge = self._edits.knowledge
        then, now = (set(knowledge.cannot_load_again(each) if each else ()) for each in (before, plan))
        for name in sorted(now - then):
            when = "only by the next reload, because this kernel is older than v6.3"
            cycle.notes.append(f"if {name} is unloaded, it can be loaded again {when}")

    def _keep_stages(self, cycle: Cycle, step: Step) -> None:
        try:
            self._stages.keep(step.number, cycle.compared, self._guest.known.live)
        except EnvironmentFault as fault:
            # The new code is live, even if its stages could not be written to disk.
            cycle.notes.append(f"{fault.code} {fault.message}: the stages of this reload were not kept")

    async def _walk(
        self, cycle: Cycle, place: int | None, outcome: Outcome, nothing: str, *, leaving: bool = False
    ) -> ReloadReport:
        """Go to another step of the history.

        If ``place`` is None, there is no such step, and ``nothing`` says why.
        """
        if place is None:
            return ReloadReport(Outcome.NO_CHANGE, notes=(nothing,), still_runs=self.running)
        left, target = self._history.current, self._history.steps[place]
        await self._save_checkpoint(cycle)
        await self._go_to_base(cycle, target, leaving=leaving)
        # Read the homes again: some may have been dropped with a module.
        await self._bring(cycle, target.plan, self._history.steps[place].homes)
        self._history.place = place
        if target.edited is not None:
            self._guest.is_made_of(target.edited)
        # The next save brings back what the sources say. Nothing would bring back a source patch.
        self._edits.drop_pushed()
        moved = left if outcome is Outcome.UNDONE else target
        runs = f"the guest runs #{target.number}" if target.number else "the guest runs what it booted"
        return ReloadReport(
            outcome,
            moved.number,
            symbols=moved.symbols,
            milliseconds=cycle.milliseconds,
            saved_to_live_ms=(time.monotonic() - cycle.saved_at) * 1000,
            notes=(runs, *cycle.notes),
            still_runs=self.running,
        )

    async def _go_to_base(self, cycle: Cycle, target: Step, *, leaving: bool) -> None:
        """Bring the guest to the modules of that step: reload those that are different.

        Also reload modules in which code would keep running that the step does not have. Raises
        NotPatchableError.
        """
        await self._edits.learn(self._guest.guest)
        assert target.base is not None, "every step of a reloader has one"
        anew = target.base.anew_since(self.base)
        left = self._guest.left_behind(target.plan, target.homes).but_of(anew)
        if left.obstacles and not leaving:
            anew |= await self._climb_past(cycle, left)
        cycle.note_variables(identity.name for identity in left.but_of(anew).variables)
        if anew:
            await self._load_anew(cycle, target.base, anew, self._guest.known.edited)
            # The sources differ from these modules. The next save brings that back.
            self._edits.units.ask_for(anew)
            cycle.notes.append(f"reloaded: {', '.join(sorted(anew))}")

    async def _climb_past(self, cycle: Cycle, left: LeftBehind) -> frozenset[str]:
        """Announce and return the modules to be reloaded because of what would be left behind.

        Raises NotPatchableError.
        """
        refusal = NotPatchableError((obstacle for _, obstacle in left.obstacles), left.modules)
        if VMLINUX in left.modules or not self._module_rung.leads_past(refusal, self.base):
            raise refusal
        names = await self._module_rung.with_dependents(self._guest.guest, self.base, left.modules)
        self.note(cycle.announce_climb(refusal, names, self.running))
        return names

    # --- stages ---

    async def _ask_make(self, cycle: Cycle) -> set[Path]:
        """Return the files that no unit names, after asking make about them.

        Raises CompileError, EnvironmentFault.
        """
        others = await asyncio.to_thread(self._edits.others, cycle.files)
        if others and self._edits.is_open(others):
            with cycle.stage("build"):
                self.taken(await self._edits.ask_make(others))
        return others

    async def _build(self, cycle: Cycle, units: list[TranslationUnit]) -> tuple[ObjectPair, ...]:
        cycle.announce("build.start", {"units": [unit.source for unit in units]})
        with cycle.stage("build"):
            # Read what the later stages need to know about the kernel while the compiler runs.
            learning = asyncio.create_task(self._edits.learn(self._guest.guest))
            saving = asyncio.create_task(self._save_checkpoint(cycle))
            try:
                pairs = await self._edits.build(
                    units, lambda done: cycle.announce("build.progress", {"units": len(units), "done": done})
                )
                await learning
            finally:
                learning.cancel()
                # QEMU completes a save once it has begun.
                await asyncio.gather(learning, saving, return_exceptions=True)
        self._edits.units.are_compiled(units)
        return pairs

    def _compare(
        self, cycle: Cycle, pairs: tuple[ObjectPair, ...], instead: Mapping[Path, bytes | None]
    ) -> None:
        with cycle.stage("diff"):
            for pair in pairs:
                context = self._guest.context_of(pair.unit)
                cycle.compared.append(self._edits.compare(pair, instead, context))
            self._edits.compare_renamed()
            cycle.compared = [self._edits.compared[each.pair.unit.object] for each in cycle.compared]

    def _plan(self, cycle: Cycle) -> PatchPlan | None:
        """Return one plan for all units that differ from the base, or None if none does.

        Raises NotPatchableError.
        """
        with cycle.stage("link"):
            plan = self._edits.plan(self._edits.compared)
            made = made_at_load(self.base, cycle.compared) if plan is not None else ()
            cycle.notes += made
        cycle.moved = plan.moved if plan is not None else frozenset()
        return plan

    async def _check_running(self, cycle: Cycle, edited: Mapping[Path, Compared]) -> None:
        """Check that the guest runs the functions to be replaced. Raises NotPatchableError (HR3101)."""
        with cycle.stage("link"):
            await self._edits.require_running(edited)

    async def _bring(self, cycle: Cycle, plan: PatchPlan | None, homes: Mapping[Identity, Home]) -> None:
        """Make the guest run ``plan``.

        ``homes`` tells where the parts of it live that are already in the guest.
        """
        if plan is not None:
            cycle.announce(
                "apply.start", {"rung": "patch", "files": cycle.files, "symbols": self._edits.symbols()}
            )
        # A pointer to a string is only overwritten while it points at the old string. Find the address of
        # that string.
        found = await self._edits.with_texts(plan, self._guest.known.written)
        await self._guest.bring(cycle, plan, found, homes, self._edits.knowledge.glue)

    # --- off the hot path ---

    async def _save_checkpoint(self, cycle: Cycle) -> None:
        """Save the guest before it is touched.

        This happens while the compiler runs, so that nobody has to wait for it.
        """
        if self.dry_run or cycle.is_saved:
            return
        cycle.is_saved = True
        if note := await self._guest.save(self._history):
            cycle.notes.append(note)


def _differing(before: Mapping[Path, Compared], now: Mapping[Path, Compared]) -> tuple[Path, ...]:
    """Return the sources of the units that differ between the two."""
    others = [key for key in {**before, **now} if _digest(before.get(key)) != _digest(now.get(key))]
    return tuple((now.get(key) or before[key]).pair.unit.source for key in others)


def _digest(compared: Compared | None) -> bytes | None:
    return compared.digest if compared is not None else None
