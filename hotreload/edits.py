# SPDX-License-Identifier: MIT
"""The edits since the guest booted: their units, how these differ from the base, and the plan of a patch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hotreload.build.askers import askers
from hotreload.build.built import sha256
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import ObjectPair, rebuild
from hotreload.build.guest_base import GuestBase
from hotreload.build.make_question import MakeQuestion
from hotreload.build.rule_inputs import may_ask_the_world
from hotreload.build.units import UnitSelection, units_for
from hotreload.compared import Compared, Original, proved, read_original
from hotreload.deploy.guest import Guest
from hotreload.diff.obstacles import BUILD_MODULE, NotPatchableError, Obstacle
from hotreload.diff.unit_diff import UnitContext
from hotreload.edited_units import STRAY, EditedUnits
from hotreload.errors import CompileError, InputError
from hotreload.kernel_knowledge import KernelKnowledge, learn
from hotreload.load_time import init_obstacles, waiting, with_init
from hotreload.patch.kernel_symbols import own_names
from hotreload.patch.model import PatchPlan
from hotreload.patch.writes import Place, Written
from hotreload.plan_units import compare_unit, linkage_of_plain, plan_units
from hotreload.renamed_across import renames_across
from hotreload.running_check import RunningCheck
from hotreload.source_texts import SourceTexts

Texts = Mapping[Path, bytes | None]


class Edits:
    """Keeps track of the edits.

    ``units`` tells which units to compile. ``compared`` has the results of comparing them, by object.
    """

    def __init__(
        self,
        base: GuestBase,
        running: RunningCheck,
        glue: Path,
        objects: Path,
        max_units: int,
        init_changes: str,
    ) -> None:
        """Start without edits.

        ``objects`` is the folder of our own compiles. ``running`` checks code in the guest's memory.
        """
        self.init_changes = init_changes
        self.base = base
        self.units = EditedUnits(base, objects, max_units)
        self.compared: dict[Path, Compared] = {}
        self._running = running
        self.glue = glue
        self._objects = objects
        self._originals: dict[Path, Original] = {}
        self._keeping: set[Path] = set()  # units compiled so that every variable has storage
        self._used: dict[str, set[str]] = {}  # by module, the names that edits have needed of other units
        self._again: dict[Path, Callable[[Mapping[str, str]], Compared]] = {}
        self._knowledge: KernelKnowledge | None = None
        self._question = MakeQuestion(base.build)
        self._made: set[Path] = set()  # files that make wrote and that were not brought yet
        self._commands: tuple[Path, ...] = ()  # targets with changed commands, not reported

    async def learn(self, guest: Guest) -> None:
        """Read, once, what has to be known about the kernel. Raises GuestUnreachableError, InputError."""
        if self._knowledge is None:
            self._knowledge = await learn(self.base.build, self.base, self.glue, guest)

    @property
    def knowledge(self) -> KernelKnowledge:
        assert self._knowledge is not None, "learnt before it is asked for"
        return self._knowledge

    def selection(self, files: Iterable[Path]) -> UnitSelection:
        """Return the units that these files go into, including what edits have included."""
        return units_for(files, self.base.build, self._objects)

    def others(self, files: Iterable[Path]) -> set[Path]:
        """Return which of these files only make knows the purpose of.

        Without files, return those of the folder that have changed since make was asked.
        """
        if self.base.is_kernel:
            return set()
        files, named = tuple(files), self.units.new_inputs()
        return self._question.others(files, named) if files else self._question.changed(named)

    def are_unknown(self, files: Collection[Path]) -> bool:
        """Return whether no unit names any of these files, so that only make knows what they are for."""
        others = self.others(files) if files else set()
        return (
            bool(files) and others.issuperset(files) and all(map(self._question.is_only_asked_about, files))
        )

    def is_open(self, others: Collection[Path]) -> bool:
        """Return whether make has to be asked about these files."""
        return self._question.is_open(others)

    async def is_made_otherwise(self, taken: Callable[[Collection[Path]], None]) -> bool:
        """Return whether make builds the folder differently although none of its files has changed.

        The compiler's command line may contain the name of a commit, for example. ``taken`` is called with
        the files that make wrote. Raises as ``ask_make``.
        """
        if self.base.is_kernel or not may_ask_the_world(self.base.makefiles):
            return False
        taken(await self.ask_make(()))
        return self.has_new(())

    async def ask_make(self, others: Collection[Path]) -> frozenset[Path]:
        """Let make build what depends on these files. Return the files that it wrote.

        A following call of ``of`` takes the result into account. Raises CompileError, EnvironmentFault.
        """
        try:
            answer = await self._question.ask(self.base, others)
        except InputError as error:
            raise CompileError(error.message, error.message, hint=error.hint) from error
        self._made |= set(answer.files)
        self._commands = answer.commands
        self.units.differ_by_make(answer.objects)
        return frozenset(answer.files)

    def has_new(self, others: Collection[Path]) -> bool:
        """Return whether there is something to do after make was asked about these files."""
        return bool(
            self._made
            or self._commands
            or self.units.has_news
            or any(askers(self.base, self._question.new.intersection(others)))
        )

    def of(self, files: tuple[Path, ...], others: Collection[Path] = ()) -> list[TranslationUnit]:
        """Return the units to compile when these files were saved.

        make was asked about ``others``. Units that are as the guest booted them again are dropped from
        ``compared``. Raises as EditedUnits.of.
        """
        new = self._question.new.intersection(others)
        self._question.new -= new
        self.units.may_find_others({unit.object for unit in askers(self.base, new)})
        made, self._made = self._made, set()
        asked, others = others, set(filter(self._question.is_only_asked_about, others))
        named = tuple(file for file in files if file not in others)
        try:
            units = (
                self.units.of(tuple(dict.fromkeys((*named, *made))), tuple(others))
                if files
                else self.units.of(())
            )
        except NotPatchableError as refusal:
            if any(each.code == STRAY for each in refusal.obstacles):
                # No unit names the file, but a command of make may have changed with it.
                self._require_same_commands(asked or files)
            raise
        self._require_same_commands(asked)
        for target in self.units.back_at_base():
            self.compared.pop(target, None)
            self._keeping.discard(target)
        return [*units, *self._beside(units)]

    def _require_same_commands(self, others: Iterable[Path]) -> None:
        """Raise NotPatchableError (HR1004) if make compiles or links something by another command."""
        commands, self._commands = self._commands, ()
        if commands:
            names = ", ".join(sorted(file.name for file in others)) or "something"
            made = ", ".join(target.name for target in commands)
            message = f"{names} changed, and make no longer uses the same command for {made}"
            raise NotPatchableError([Obstacle("HR1004", names, message, BUILD_MODULE)])

    def _beside(self, units: list[TranslationUnit]) -> list[TranslationUnit]:
        """Return further units that were compiled from other contents of the edited headers of these units.

        A guest that was brought back to a checkpoint runs units of that time. A unit must not be patched
        alone if a header has another declaration for both.
        """
        headers = {file for unit in units for file in self.units.edited_inputs(unit) if file != unit.source}
        chosen, behind = {unit.object for unit in units}, set()
        for file in headers:
            now = sha256(file)
            for target, recorded in self.units.made_of(file):
                made = self.compared.get(target)
                if (made.edited.get(file, recorded) if made else recorded) != now:
                    behind.add(target)
        return [unit for unit in self.base.units if unit.object in behind - chosen]

    async def build(
        self, units: list[TranslationUnit], progress: Callable[[int], None]
    ) -> tuple[ObjectPair, ...]:
        """Return both objects of each unit. Raises as rebuild."""
        return await rebuild(self.base, units, self._objects, progress, self._keeping)

    def keep_variables(self, compared: Iterable[Compared]) -> list[TranslationUnit]:
        """Return the units in which gcc has folded away a variable that has a value in the guest.

        From now on they are compiled in another way, until their sources are as in the base again.
        """
        units = [
            each.pair.unit
            for each in compared
            if each.diff.folded and each.pair.unit.object not in self._keeping
        ]
        self._keeping |= {unit.object for unit in units}
        return units

    def compare(self, pair: ObjectPair, instead: Texts, context: UnitContext) -> Compared:
        """Compare the two objects of a unit, and keep the result in ``compared``.

        ``instead`` has texts to use in place of the files on disk, by real path. ``context`` is what earlier
        reloads have done to the unit. Raises InputError (HR1009).
        """
        key = pair.unit.object
        if key not in self._originals:
            plain = self.base.of(pair.unit).plain_object(pair.unit)
            self._originals[key] = read_original(pair.original, plain)
        symbols = self._knowledge.symbols if self._knowledge is not None else None
        context = replace(context, is_own=own_names(symbols, pair.unit.module), judge_init=False)
        edited = {file: sha256(file) for file in self.units.edited_inputs(pair.unit)}
        texts = self._texts(pair.unit, instead)

        def compared(renames: Mapping[str, str]) -> Compared:
            found = compare_unit(pair, self._originals[key], texts, replace(context, renames=renames))
            return replace(found, edited=edited)

        self._again[key] = compared
        self.compared[key] = compared({})
        self._used.setdefault(pair.unit.module, set()).update(self.compared[key].linkage.needs)
        return self.compared[key]

    async def prove(self, compared: Iterable[Compared]) -> list[Compared]:
        """Return the same, after proving the changed functions whose code our compiler flags alter.

        Raises InputError, CompilerDiedError.
        """
        found = [await proved(self.base.of(each.pair.unit), each) for each in compared]
        for each in found:
            self._originals[each.pair.unit.object] = each.original
            self.compared[each.pair.unit.object] = each
        return found

    def compare_renamed(self) -> None:
        """Compare units again for which renames of functions in other units have become known."""
        for key, renames in renames_across(self.base, self.compared).items():
            if renames != self.compared[key].renames and key in self._again:
                self.compared[key] = self._again[key](renames)

    def _texts(self, unit: TranslationUnit, instead: Texts) -> Mapping[str, str]:
        """Return the unit's current sources, its own file first. They are read on demand."""
        inputs = self.base.of(unit).inputs[unit.object]
        files = (unit.source, *(file for file in inputs if file != unit.source))
        texts = {file: instead.get(Path(os.path.realpath(file))) for file in files} if instead else {}
        return SourceTexts(files, {file: text for file, text in texts.items() if text is not None})

    def but_of(self, modules: Iterable[str], compared: Mapping[Path, Compared]) -> dict[Path, Compared]:
        """Return the units of ``compared`` that do not belong to these modules."""
        without = frozenset(modules)
        return {key: each for key, each in compared.items() if each.pair.unit.module not in without}

    def plan(self, compared: Mapping[Path, Compared]) -> PatchPlan | None:
        """Return one plan for all these units, or None if nothing differs. Raises NotPatchableError."""
        further = init_obstacles(compared, self.init_changes)
        plan = plan_units(self.base, with_init(compared), self.knowledge.symbols, further, self._used)
        beside = self.base.beside_the_tree
        # The kernel would also patch the module of the tree, if somebody loaded that instead.
        if plan is not None and (found := sorted(plan.changed_objects & beside)):
            raise NotPatchableError(
                Obstacle("HR2305", name, f"{name} was reloaded, and the tree has another version of it")
                for name in found
            )
        return plan

    def require_callers(self, failed: Collection[TranslationUnit], before: Mapping[Path, Compared]) -> None:
        """Check the units that ``failed`` to compile and therefore stay as they are.

        Raise NotPatchableError (HR2205) if one of them calls a function whose prototype has changed since
        ``before``, the state before this save.
        """
        for unit in failed:
            one = before.get(unit.object)
            needs = one.linkage.needs if one is not None else linkage_of_plain(self.base, unit).needs
            for key, other in self.compared.items():
                was = before[key].prototypes if key in before else other.original_prototypes
                for name in sorted(needs & was.keys() & other.prototypes.keys()):
                    if was[name] != other.prototypes[name] and other.pair.unit.module == unit.module:
                        message = f"{unit.source.name} calls {name} with the old prototype"
                        raise NotPatchableError([Obstacle("HR2205", name, message, where=str(unit.source))])

    async def require_running(self, compared: Mapping[Path, Compared]) -> None:
        """Raise NotPatchableError (HR3101) if the guest does not run what would be replaced."""
        if found := await self._running.obstacles(compared.values(), self.knowledge.symbols):
            raise NotPatchableError(found)

    async def with_texts(self, plan: PatchPlan | None, written: Mapping[Place, Written]) -> PatchPlan | None:
        """See RunningCheck.with_texts."""
        return plan and await self._running.with_texts(plan, written, self.knowledge.symbols)

    def take_base(self, base: GuestBase, modules: frozenset[str]) -> None:
        """Note that these modules belong to another base, and forget what was known about them."""
        self.base = base
        anew = {unit.object for unit in base.units if unit.module in modules}
        self.compared = {key: each for key, each in self.compared.items() if key not in anew}
        self._originals = {key: each for key, each in self._originals.items() if key not in anew}
        if base.build is not self._question.build:
            self._question = MakeQuestion(base.build)
            self._commands = ()  # the new build already uses them
        self._again = {key: each for key, each in self._again.items() if key not in anew}
        self._running.forget(base, modules)
        self.units.rebase(base, self.compared)
        self._knowledge = self.knowledge.of(base)

    def return_to(self, compared: Mapping[Path, Compared]) -> None:
        """Note that the guest runs these units, whatever was compiled since."""
        self.compared = dict(compared)
        self._again.clear()  # their object files may be newer
        self.units.compiled |= self.compared.keys()

    @contextlib.contextmanager
    def as_pushed(self, units: Iterable[TranslationUnit]) -> Iterator[None]:
        """In the block, and after it if it succeeds, treat these units as changed by a source patch."""
        before = dict(self.compared), set(self.units.compiled), set(self.units.pushed)
        objects = {unit.object for unit in units}
        self.units.compiled |= objects
        self.units.pushed |= objects
        try:
            yield
        except BaseException:
            # The next save must not bring what is in no file.
            self.compared, self.units.compiled, self.units.pushed = before
            raise

    def pushed_into(self, modules: Collection[str]) -> tuple[Path, ...]:
        """Return the sources of these modules that a source patch has changed."""
        pushed = (unit for unit in self.base.units if unit.object in self.units.pushed)
        return tuple(unit.source for unit in pushed if unit.module in modules)

    def drop_pushed(self) -> None:
        """Forget source patches."""
        for pushed in self.units.drop_pushed():
            self.compared.pop(pushed, None)

    def symbols(self) -> tuple[str, ...]:
        """Return the names of everything that the edits change."""
        compared = with_init(self.compared).values()
        return tuple(dict.fromkeys(name for each in compared for name in each.diff.changed_names))

    def waiting(self) -> tuple[str, ...]:
        """Return notes on edits that wait for the next load of a module, or for a boot."""
        return tuple(waiting(self.compared, self.init_changes))
