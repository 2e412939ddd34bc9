# SPDX-License-Identifier: MIT
"""The guest as reloads have changed it: what is known about it, and every way to change it.

All that is known is one value (`Known`). A checkpoint is saved together with it, and brings it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from hotreload.build.built import VMLINUX
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.guest_base import GuestBase
from hotreload.compared import Compared
from hotreload.cycle import Cycle
from hotreload.deploy.guest import LOGINS, RestorableGuest, log_in_again
from hotreload.deploy.livepatch import apply_patch, build_id, disable_patch, patch_status, sweep
from hotreload.deploy.module_reload import ModuleExchange
from hotreload.diff.layouts import Layouts
from hotreload.diff.unit_diff import UnitContext
from hotreload.elf.build_id import read_build_id
from hotreload.errors import (
    EditError,
    GuestUnreachableError,
    PatchRejectedError,
    TransitionStalledError,
)
from hotreload.fault_line import function_at
from hotreload.history import History
from hotreload.patch.homes import Home, Settlement, dropped, reset, settle
from hotreload.patch.left_behind import LeftBehind, left_behind
from hotreload.patch.model import Identity, PatchPlan
from hotreload.patch.module import NAME_PREFIX, TEXT, LivePatch, ModuleGlue, write_module
from hotreload.restore_points import Kept, Known, Moment, RestorePoints, Saved
from hotreload.vm.checkpoints import Checkpoints
from hotreload.vm.machine import Trouble

T = TypeVar("T")

# The interval in seconds at which a guest that is loading a patch is checked for a panic.
TROUBLE_INTERVAL = 0.05


class PatchedGuest:
    """A guest and its changes, one at a time. Callers serialise the calls.

    ``known`` describes the guest as it is now. ``newest`` is the patch that is live or was sent last.
    """

    def __init__(
        self,
        guest: RestorableGuest,
        known: Known,
        *,
        trouble: Callable[[], Trouble | None],
        transition_timeout: float,
        checkpoints: Checkpoints | None,
        restored: Callable[[str, float], None],
    ) -> None:
        """Take over a guest of which ``known`` is known.

        ``trouble``      returns why the guest stopped, or None
        ``checkpoints``  those of its machine, or None if it cannot have any
        ``restored``     called with the name of a checkpoint and the seconds that it took to return to it
        """
        self.guest = guest
        self.known = known
        self.newest: LivePatch | None = None
        self.is_changing = False  # it is unknown how far a change got
        self.transition_timeout = transition_timeout
        self._trouble = trouble
        self._restored = restored
        self._restore_points = RestorePoints(checkpoints)
        # Start above the numbers of patch modules that are already loaded.
        self._serial = max((int(name.removeprefix(NAME_PREFIX)) for name in known.kept), default=0)
        self._builds: dict[Path, str | None] = {}
        self._text: Mapping[str, int] = {}  # the addresses of the code of patch modules
        self._tidying: asyncio.Task[None] | None = None

    async def settle(self) -> None:
        """Wait for the background work."""
        if self._tidying is not None:
            await self._tidying

    async def close(self) -> None:
        """Stop the background work."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)

    async def is_as_known(self) -> bool:
        """Return whether the guest has the live patch that it was given, and no other of ours.

        Raises as patch_status.
        """
        found = {each.name for each in (await patch_status(self.guest)).patches if not each.foreign}
        return self.is_changing or found == ({self.known.live.name} if self.known.live else set())

    # --- changes ---

    async def bring(
        self,
        cycle: Cycle,
        plan: PatchPlan | None,
        found: PatchPlan | None,
        homes: Mapping[Identity, Home],
        glue: ModuleGlue,
    ) -> None:
        """Make the guest run ``plan``: its module replaces the previous one. Without a plan, run the base.

        ``found`` is the plan completed with what the guest's memory told. ``homes`` tells where the parts of
        it live that are already in the guest. Raises as apply_patch and disable_patch.
        """
        cycle.note_dropped(dropped(self.known.plan, plan, self.known.homes))
        try:
            if found is not None:
                await self._apply(cycle, found, self._write(cycle, found, homes, glue))
            elif self.known.live is not None:
                await self._disable(cycle, self.known.live)
            self.known = replace(self.known, plan=plan)
        finally:
            await self.close()
            self._tidying = asyncio.create_task(self._tidy())

    def left_behind(self, plan: PatchPlan | None, homes: Mapping[Identity, Home]) -> LeftBehind:
        """Return which code in the guest would keep running if ``plan`` were brought with these ``homes``."""
        known = self.known
        settlement = settle(plan, homes, f"{NAME_PREFIX}{self._serial + 1}") if plan else Settlement()
        return left_behind(known.plan, known.homes, plan, homes, settlement)

    def _write(
        self, cycle: Cycle, plan: PatchPlan, homes: Mapping[Identity, Home], glue: ModuleGlue
    ) -> LivePatch:
        with cycle.stage("link"):
            self._serial += 1
            patch = write_module(plan, f"{NAME_PREFIX}{self._serial}", glue, homes, self.known.written)
            self.newest = patch
            cycle.note_settlement(patch.settlement, reset(self.known.plan, plan))
            return patch

    async def _apply(self, cycle: Cycle, plan: PatchPlan, patch: LivePatch) -> None:
        if patch.keep_loaded:
            # This includes a patch whose transition is reversed, because tasks that had switched ran its
            # code.
            reasons = Kept(patch.keep_loaded, patch.keep_for)
            self.known = replace(self.known, kept={**self.known.kept, patch.name: reasons})
        applying = apply_patch(
            self.guest,
            patch.name,
            patch.module,
            timeout=self.transition_timeout,
            lookups=patch.lookups,
            sections=patch.sections_to_tell,
            builds=await asyncio.to_thread(self._builds_of, plan.changed_objects),
        )
        used = self._restore_points.use()
        try:
            applied = await self._while_alive(applying)
        except PatchRejectedError:
            kept = {name: why for name, why in self.known.kept.items() if name != patch.name}
            self.known = replace(self.known, kept=kept)
            if used:
                self._restore_points.give_back()
            raise
        self._restore_points.note_answer()
        cycle.note_times(applied)
        if TEXT in applied.sections:  # a caller of the new code may hang in it at once
            self._text = {**self._text, patch.name: applied.sections[TEXT]}
        self.known = replace(
            self.known,
            live=patch,
            homes=patch.homes(applied.sections),
            written=patch.written(applied.sections),
        )

    def _builds_of(self, names: Collection[str]) -> dict[str, str]:
        """Return the build-ids that loaded modules must have.

        Somebody may have loaded another build by hand.
        """
        found: dict[str, str] = {}
        for built in self.known.base.modules:
            if built.name in names and built.name != VMLINUX:
                if built.ko not in self._builds:
                    self._builds[built.ko] = read_build_id(built.ko)
                if build := self._builds[built.ko]:
                    found[built.name] = build
        return found

    async def not_there(self, names: Collection[str]) -> frozenset[str]:
        """Return which of these modules the guest does not have, or has another build of.

        Raises as build_id.
        """
        wanted = await asyncio.to_thread(self._builds_of, names)
        return frozenset([name for name in names if await build_id(self.guest, name) != wanted.get(name)])

    async def _disable(self, cycle: Cycle, live: LivePatch) -> None:
        self._restore_points.use()
        with cycle.stage("complete"):
            await self._while_alive(
                disable_patch(self.guest, live.name, timeout=self.transition_timeout, lookups=live.lookups)
            )
        self.known = replace(self.known, live=None, written={}, homes={})

    async def _while_alive(self, deployment: Awaitable[T]) -> T:
        """Return the result of a deployment. Stop waiting for it if the guest dies.

        Raises GuestUnreachableError (HR4103).
        """
        task = asyncio.ensure_future(deployment)
        self.is_changing = True
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=TROUBLE_INTERVAL)
                trouble = self._trouble()
                if trouble is not None:
                    raise GuestUnreachableError(f"the guest is lost: {trouble.message}")
            with contextlib.suppress(EditError):
                task.result()
            self.is_changing = False  # the guest has reported the outcome
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def load_anew(
        self,
        cycle: Cycle,
        base: GuestBase,
        exchange: ModuleExchange,
        modules: Collection[str],
        without: Callable[[], Awaitable[None]],
    ) -> None:
        """Exchange ``modules`` for those of another base.

        ``without`` replaces the live patch by one for the rest. Raises PatchRejectedError, which tells what
        the guest has then, and GuestUnreachableError.
        """
        is_loaded = await self._while_alive(exchange.begin())
        self._restore_points.use()
        if is_loaded:
            with cycle.stage("load"):
                await self._exchange(exchange, modules, without)
        else:
            # Otherwise the live patch would be applied to the new modules when they are loaded.
            self._forget_data_of(modules)
            await without()
            cycle.notes.append("it is not loaded in the guest: the next load uses the new one")
        self._forget_kept_for(modules)
        await self.close()
        self._tidying = asyncio.create_task(self._tidy())
        objects = {
            unit.object for each in (self.known.base, base) for unit in each.units if unit.module in modules
        }
        self.known = replace(
            self.known,
            base=base,
            edited={key: each for key, each in self.known.edited.items() if key not in objects},
            live_types={key: each for key, each in self.known.live_types.items() if key not in objects},
            handed={key: each for key, each in self.known.handed.items() if key not in objects},
        )

    async def _exchange(
        self, exchange: ModuleExchange, modules: Collection[str], without: Callable[[], Awaitable[None]]
    ) -> None:
        """Unload the old modules under the live patch, remove them from the patch, and load the new ones.

        What live code has started is stopped by the exit code that went live with it. And a kernel before
        v6.3 does not load a module again under a patch that it was unloaded under.
        """
        await self.close()
        self.is_changing = True
        await self._tidy()  # a replaced patch may hold a module
        try:
            await self._while_alive(exchange.unload())
            self._forget_data_of(modules)
            await without()
            await self.close()
            await self._while_alive(exchange.load())
        except (PatchRejectedError, TransitionStalledError) as error:
            if exchange.has_begun:
                told = await self._back_from(exchange)
                error.message += f"; {told}" if told else ""
            else:
                await self._while_alive(exchange.abandon())
            raise

    async def _back_from(self, exchange: ModuleExchange) -> str:
        """Put the old modules back, with their state if there is a checkpoint of this moment.

        Return what to tell the user.
        """
        started = time.monotonic()
        if self._restore_points.is_of_this_change and (saved := await self.restore()):
            await self.log_in()
            self._restored(saved.checkpoint.tag, time.monotonic() - started)
            return f"the guest is back at {saved.checkpoint.tag}, from before the reload"
        return await self._while_alive(exchange.put_back())

    def _forget_data_of(self, modules: Collection[str]) -> None:
        """Forget written values and additions of modules that were unloaded.

        There is nothing to write back in them, and nothing runs what was added to them.
        """
        written = {place: each for place, each in self.known.written.items() if place[0] not in modules}
        homes = {key: home for key, home in self.known.homes.items() if key.module not in modules}
        self.known = replace(self.known, written=written, homes=homes)

    def _forget_kept_for(self, modules: Collection[str]) -> None:
        """Let go of patch modules that stayed loaded only because of these modules, which are unloaded."""
        kept = {patch: each.without(modules) for patch, each in self.known.kept.items()}
        self.known = replace(self.known, kept={patch: each for patch, each in kept.items() if each})

    async def _tidy(self) -> None:
        """Remove replaced patch modules. What cannot be removed is tried again after the next change."""
        try:
            self._text = (await sweep(self.guest, self.known.kept)).text
        except EditError:
            return

    def place_of(self, address: int) -> tuple[str, str, int] | None:
        """Return the module, function and offset of an address in the newest patch's code, or None."""
        start = self._text.get(self.newest.name) if self.newest is not None else None
        if self.newest is None or not start:
            return None
        found = function_at(self.newest.module, address - start)
        return (self.newest.name, *found) if found else None

    def take_base(self, base: GuestBase) -> None:
        """Note that this base describes the guest as well."""
        self.known = replace(self.known, base=base)

    def note_made_of(self, edited: Mapping[Path, Compared]) -> None:
        """Note that the guest runs these units.

        It may have data of every type that they knew.
        """
        types = dict(self.known.live_types)
        for key, each in edited.items():
            if each.types and not (key in types and self.known.edited.get(key) is each):
                others = (one for one in self.types_of(key) if not each.types.has_types_of(one))
                types[key] = (*others, each.types)
        handed = dict(self.known.handed)
        for key, each in edited.items():
            if each.diff.handed:
                handed[key] = handed.get(key, frozenset()) | each.diff.handed
        self.known = replace(self.known, edited=dict(edited), live_types=types, handed=handed)

    def types_of(self, key: Path) -> tuple[Layouts, ...]:
        """Return the types of a unit, by object, in each reload since the boot."""
        return self.known.live_types.get(key, ())

    def context_of(self, unit: TranslationUnit) -> UnitContext:
        """Return what the reloads have done to a unit: its earlier types, and the variables that live on."""
        added = frozenset(
            (identity.owners[0] if identity.owners else "", identity.name)
            for identity in self.known.homes
            if (identity.module, identity.source) == (unit.module, str(unit.source))
        )
        handed, live = self.known.handed.get(unit.object, frozenset()), self.known.edited.get(unit.object)
        diff = live.diff if live is not None else None
        return UnitContext(self.types_of(unit.object), added, handed=handed, live=diff)

    def is_made_of(self, edited: Mapping[Path, Compared]) -> None:
        """Note that the guest runs these units, after an undo or an edit that changes no code."""
        self.known = replace(self.known, edited=edited)

    # --- checkpoints ---

    async def save(self, history: History) -> str | None:
        """Save a checkpoint before a change. Return what to tell the user if this failed.

        Raises GuestUnreachableError.
        """
        return await self._restore_points.save(self._moment(history))

    async def save_by_hand(self, name: str, history: History) -> Saved:
        """Save a checkpoint that stays. Raises as RestorePoints.save_by_hand."""
        return await self._restore_points.save_by_hand(name, self._moment(history))

    @property
    def can_go_back(self) -> bool:
        """Return whether there is a checkpoint to return to after a crash."""
        return not self._restore_points.is_empty

    @property
    def checkpoints(self) -> tuple[Saved, ...]:
        """Return the checkpoints that the guest can go back to, the latest last."""
        return self._restore_points.listed()

    def _moment(self, history: History) -> Moment:
        return Moment(tuple(history.steps), history.place, self.known)

    async def load(self, name: str | None) -> Saved:
        """Bring the guest back to a checkpoint, or to the latest if ``name`` is None.

        Call ``log_in`` after it. Raises as RestorePoints.load.
        """
        await self.close()
        return self._returned(await self._restore_points.load(name))

    async def restore(self) -> Saved | None:
        """Bring the guest back to before the last change, or return None if there is no checkpoint.

        Call ``log_in`` after it. Connections into the guest are lost. Raises EnvironmentFault (HR5105),
        GuestUnreachableError.
        """
        await self.close()
        saved = await self._restore_points.restore()
        return None if saved is None else self._returned(saved)

    def _returned(self, saved: Saved) -> Saved:
        self.known = saved.moment.known
        self.newest = self.known.live
        self.is_changing = False
        return saved

    async def log_in(self) -> None:
        """Log in to a guest that was brought back. Raises GuestUnreachableError."""
        await log_in_again(self.guest)

    async def answers(self, saved: Saved) -> bool:
        """Return whether a guest that was brought back to ``saved`` lets us log in.

        It may die instead. If it goes to sleep, it is woken.
        """
        logins = LOGINS if saved.answered else LOGINS - 1
        logging_in = asyncio.ensure_future(log_in_again(self.guest, logins))
        try:
            while not logging_in.done():
                await asyncio.wait({logging_in}, timeout=TROUBLE_INTERVAL)
                if self._trouble() is not None:
                    return False
                await self._restore_points.wake()
            return logging_in.exception() is None
        except GuestUnreachableError:  # QEMU is gone
            return False
        finally:
            logging_in.cancel()
            await asyncio.gather(logging_in, return_exceptions=True)
