# SPDX-License-Identifier: MIT
"""`scripts/real-fixes --guest`: bring the fixes that the differ accepts into a guest under load.

Each fix is handled like a patch of its one file. It is compiled from a mirror of the kernel's sources and
compared with what the kernel was built from. Then a patch is planned, the running code is checked, and the
patch is loaded, listed by the kernel, undone and removed. Finally all fixes that succeeded are combined into
one patch, which goes through the last steps again. If something goes wrong in a guest, the next fix gets a
new guest.

The published number to compare with is that of Ksplice: 56 of 64 significant fixes without writing code for
any of them (Arnold and Kaashoek, "Ksplice: Automatic Rebootless Kernel Updates", EuroSys 2009, section 6).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hotreload.build.base import Base, work_folder
from hotreload.build.kernel_record import kernel_base
from hotreload.build.kernel_tree import KernelTree
from hotreload.build.patched_sources import PatchedSources
from hotreload.build.patched_units import compile_units
from hotreload.build.units import units_for
from hotreload.compared import Compared, read_original
from hotreload.diff.obstacles import NotPatchableError, Obstacle
from hotreload.errors import CompileError
from hotreload.kernel_knowledge import KernelKnowledge, learn_offline
from hotreload.patch.glue import build_glue
from hotreload.patch.model import PatchPlan
from hotreload.patch.module import NAME_PREFIX, write_module
from hotreload.patch_build import patched_texts
from hotreload.plan_units import compare_unit, plan_units
from hotreload.survey.guest_trial import STAGES, Trial, Tried, working_guest

Say = Callable[[str], None]

KSPLICE = "Ksplice: 56 of 64, 88 % (Arnold and Kaashoek, EuroSys 2009)"
# The number of fixes that are compiled from one mirror.
CHUNK = 25
# Seconds: how long the guest works with a patch, and the limits for loading and for removing it.
ALONE = 0.5, 60.0
TOGETHER = 20.0, 1800.0


@dataclass(frozen=True, slots=True)
class Fix:
    """A fix of one file: its name in the kernel, its path, and its text in the newer release."""

    unit: str
    source: Path
    text: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """A fix whose units have been compiled and compared. ``compared`` is keyed by object file."""

    fix: Fix
    compared: dict[Path, Compared]


@dataclass(slots=True)
class Trials:
    """The results.

    ``alone``     each fix by itself
    ``together``  one patch of all fixes that were undone without a complaint
    ``united``    the number of fixes in that patch
    ``left_out``  the fixes that could not be part of it
    ``rounds``    how many rounds of work the guests did
    """

    alone: list[Tried] = field(default_factory=list)
    together: Tried | None = None
    united: int = 0
    left_out: list[Tried] = field(default_factory=list)
    rounds: Counter[str] = field(default_factory=Counter)

    @property
    def is_wrong(self) -> bool:
        """Return whether any patch misbehaved in a guest."""
        return any(tried.wrong for tried in (*self.alone, self.together) if tried)


async def try_in_guest(tree: KernelTree, fixes: Sequence[Fix], console_log: Path, say: Say) -> Trials:
    """Try all fixes in guests that run the kernel built in ``tree``.

    Raises what kernel_base, build_glue and boot raise (InputError, HR1006: a source is not as it was built).
    """
    base = await kernel_base(tree, say)
    knowledge = learn_offline(base.build, base, await build_glue(tree, say, base))
    trials = Trials()
    ready: list[Ready] = []
    async for each in _compared(base, fixes, trials, say):
        ready.append(each)
    planner = _Planner(base, knowledge)
    undone = await _each_alone(tree, planner, ready, console_log, trials, say)
    if undone:
        await _all_together(tree, planner, undone, console_log, trials, say)
    return trials


# --- compiled and compared ---


async def _compared(base: Base, fixes: Sequence[Fix], trials: Trials, say: Say) -> AsyncIterator[Ready]:
    for start in range(0, len(fixes), CHUNK):
        say(f"compiling for the guest: {start} of {len(fixes)}")
        async for ready in _compared_at_once(base, fixes[start : start + CHUNK], trials):
            yield ready


async def _compared_at_once(base: Base, fixes: Sequence[Fix], trials: Trials) -> AsyncIterator[Ready]:
    """Compile fixes from one mirror and compare them. If the compile fails, try each half by itself."""
    sources = PatchedSources(
        {Path(os.path.realpath(fix.source)): fix.text for fix in fixes},
        {Path(os.path.realpath(fix.source)): fix.source.read_bytes() for fix in fixes},
    )
    units = {fix.unit: units_for([fix.source], base.build).units for fix in fixes}
    with work_folder() as work:
        try:
            compiled = await compile_units(
                base, (unit for several in units.values() for unit in several), sources.texts, work
            )
        except CompileError as error:
            if len(fixes) == 1:
                trials.alone.append(Tried(fixes[0].unit, code=error.code, reason=error.message))
                print_tried(trials.alone[-1])
                return
            for half in (fixes[: len(fixes) // 2], fixes[len(fixes) // 2 :]):
                async for ready in _compared_at_once(base, half, trials):
                    yield ready
            return
        pair_of = {pair.unit.object: pair for pair in compiled.pairs}
        for fix in fixes:
            compared = {}
            for unit in units[fix.unit]:
                pair = pair_of[unit.object]
                original = read_original(pair.original, base.plain_object(unit))
                compared[unit.object] = compare_unit(pair, original, patched_texts(unit, base.build, sources))
            yield Ready(fix, compared)


# --- planned ---


class _Planner:
    """Plans patches and makes trials of the plans."""

    def __init__(self, base: Base, knowledge: KernelKnowledge) -> None:
        self._base = base
        self._knowledge = knowledge
        self._serial = 0

    def plan(self, compared: dict[Path, Compared]) -> PatchPlan | None:
        """Plan a patch. Return None if nothing changed. Raises NotPatchableError."""
        return plan_units(self._base, compared, self._knowledge.symbols)

    def trial(self, plan: PatchPlan, compared: dict[Path, Compared]) -> Trial:
        """Write the patch module of a plan, and return its trial. Raises NotPatchableError (HR2103)."""
        self._serial += 1
        patch = write_module(plan, f"{NAME_PREFIX}{self._serial}", self._knowledge.glue)
        return Trial(patch, plan.objects, tuple(compared.values()), self._knowledge.symbols)


# --- in the guest ---


async def _each_alone(
    tree: KernelTree, planner: _Planner, ready: Sequence[Ready], console_log: Path, trials: Trials, say: Say
) -> list[Ready]:
    """Try each fix by itself. Return those that were undone without a complaint."""
    undone: list[Ready] = []
    waiting = list(reversed(ready))
    while waiting:
        async with working_guest(tree, console_log) as guest:
            while waiting and not guest.is_spoilt:
                each = waiting.pop()
                tried = Tried(each.fix.unit)
                trials.alone.append(tried)
                if trial := _planned(planner, each.compared, tried):
                    await guest.try_patch(trial, tried, *ALONE)
                    undone += [each] * (tried.reached == STAGES[-1] and not tried.wrong)
                print_tried(tried)
                if len(trials.alone) % CHUNK == 0:
                    say(f"in the guest: {len(trials.alone)} of {len(trials.alone) + len(waiting)}")
            if not guest.is_spoilt:
                trials.rounds += Counter(await guest.rounds())
    return undone


def _planned(planner: _Planner, compared: dict[Path, Compared], tried: Tried) -> Trial | None:
    """Plan a patch and return its trial. If there is none, note the reason in ``tried`` and return None."""
    try:
        plan = planner.plan(compared)
        if plan is None:
            tried.refuse("unchanged", "when it is compiled as for a reload, its code is the same")
            return None
        trial = planner.trial(plan, compared)
    except NotPatchableError as error:
        tried.refuse(error.code, _reasons(error.obstacles))
        return None
    tried.reached = "planned"
    tried.functions = sum(len(obj.funcs) for obj in plan.objects)
    return trial


async def _all_together(
    tree: KernelTree, planner: _Planner, ready: Sequence[Ready], console_log: Path, trials: Trials, say: Say
) -> None:
    """Try one patch of all fixes. Those that prevent it are left out and noted in ``trials``."""
    say(f"all {len(ready)} in one patch")
    tried = trials.together = Tried("all in one patch")
    while ready:
        compared = {target: one for each in ready for target, one in each.compared.items()}
        try:
            plan = planner.plan(compared)
            break
        except NotPatchableError as error:
            blamed = _blamed(error, ready, trials)
            if not blamed:
                tried.refuse(error.code, _reasons(error.obstacles))
                return
            ready = [each for each in ready if each.fix.unit not in blamed]
    if not ready or not (trial := _planned(planner, compared, tried)):
        return
    assert plan is not None
    trials.united = len(ready)
    async with working_guest(tree, console_log) as guest:
        await guest.try_patch(trial, tried, *TOGETHER)
        if not guest.is_spoilt:
            trials.rounds += Counter(await guest.rounds())


def _blamed(error: NotPatchableError, ready: Sequence[Ready], trials: Trials) -> set[str]:
    """Return the names of the fixes whose source an obstacle names, and note them as left out."""
    blamed = set()
    for each in ready:
        found = [o for o in error.obstacles if (o.where or "").partition(":")[0] == str(each.fix.source)]
        if found:
            blamed.add(each.fix.unit)
            trials.left_out.append(Tried(each.fix.unit, code=found[0].code, reason=_reasons(found)))
    return blamed


# --- printed ---


def _reasons(obstacles: Sequence[Obstacle]) -> str:
    """Return the messages of all obstacles in one text, to be printed after the code of the first one."""
    return "; ".join((obstacles[0].message, *map(str, obstacles[1:])))


def print_tried(tried: Tried) -> None:
    """Print lines for a patch that did not succeed, and nothing for one that did."""
    if tried.code:
        first, _, rest = tried.reason.partition("\n")
        print(f"{'wrong' if tried.wrong else 'refused':<10} {tried.unit}  {tried.reached}", flush=True)
        print(f"           {tried.code} {first}", flush=True)
        for line in rest.splitlines():
            print(f"           | {line}", flush=True)


def print_trials(trials: Trials, changing: int) -> None:
    """Print how many fixes reached each stage, and the share of the ``changing`` pairs that a guest took."""
    alone = trials.alone
    print("in a guest under load:")
    print(f"{len(alone):6} patchable by the differ")
    for stage in STAGES[1:]:
        print(f"{sum(tried.has(stage) for tried in alone):6} {stage}")
    for code, count in sorted(Counter(tried.code for tried in alone if tried.code).items()):
        print(f"       {count:6} for {code}")
    loaded = [tried for tried in alone if tried.has("loaded")]
    if loaded:
        load, transition = (
            sorted(times)[len(loaded) // 2]
            for times in ([tried.load_ms for tried in loaded], [tried.transition_ms for tried in loaded])
        )
        print(f"median: loaded in {load:.0f} ms, transition {transition:.0f} ms")
    if trials.together:
        _print_together(trials, trials.together)
    print(f"work done meanwhile, in rounds: {', '.join(f'{name} {n}' for name, n in trials.rounds.items())}")
    taken = sum(tried.has("undone") and not tried.wrong for tried in alone)
    percent = 100 * taken / changing if changing else 100.0
    print(f"{taken} of {changing} pairs that change code were accepted by a running kernel: {percent:.1f} %")
    print(KSPLICE)


def _print_together(trials: Trials, together: Tried) -> None:
    for tried in trials.left_out:
        print_tried(tried)
    print_tried(together)
    if together.has("loaded"):
        print(
            f"{trials.united} in one patch, {together.functions} functions: {together.reached}, "
            f"loaded in {together.load_ms:.0f} ms, transition {together.transition_ms:.0f} ms"
        )
