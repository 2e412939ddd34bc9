# SPDX-License-Identifier: MIT
"""Which units the sources' edits ask to be compiled: those that can differ from what the guest booted.

A file counts by what it says, not by having been saved. A unit all of whose files are as they were when the
guest booted has the object of then, and is not compiled to find that out: taking an edit back costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from hotreload.build.built import is_stamp, sha256
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.guest_base import GuestBase
from hotreload.build.units import new_inputs, units_for
from hotreload.diff.obstacles import BUILD_KERNEL, BUILD_MODULE, NotPatchableError, Obstacle

MANY_UNITS = "hotreload push --max-units N compiles them all; or build the kernel, and start hotreload again"


class EditedUnits:
    """See the module. ``compiled``: the objects of the units that are not made of the base's files alone."""

    def __init__(self, base: GuestBase, objects: Path, max_units: int) -> None:
        """``objects``: the folder of our own compiles; their ``.d`` files know what edits have included."""
        self.max_units = max_units
        self.compiled: set[Path] = set()
        self.pushed: set[Path] = set()  # of a source patch, until one of their files is saved
        self._base = base
        # Of each part of the base the files that are not as they were for it.
        self._differing: tuple[set[Path], ...] = tuple(set() for _ in base.parts)
        self._objects = objects
        self._due: set[Path] = set()  # objects of units that have to be compiled at the next chance

    @property
    def differing(self) -> set[Path]:
        """The files of the base that are not as they were."""
        return set().union(*self._differing)

    def rebase(self, base: GuestBase, compiled: Iterable[Path]) -> None:
        """The guest has another base now, and what it runs beyond that was made of these objects."""
        self._base = base
        self._differing = tuple(set() for _ in base.parts)
        for part in base.parts:
            self._note_contents(part.digests)
        self.compiled = set(compiled)
        self.pushed &= self.compiled

    def ask_for(self, modules: Collection[str]) -> None:
        """Compile with the next save what the files say of these modules."""
        self._due |= {unit.object for unit in self._base.units if unit.module in modules}

    def new_inputs(self) -> frozenset[Path]:
        """The files of the user's that edits have included."""
        return new_inputs(self._base.build, self._objects)

    def of(self, files: tuple[Path, ...]) -> list[TranslationUnit]:
        """What to compile when these files were saved; none: whatever differs from the base.

        Raises NotPatchableError: HR1002, none is part of the build; HR1004, a Makefile changed; HR1005, more
        units than anybody wants to wait for. What is not compiled then is tried again with the next save.
        """
        if not files:
            return self._all_that_may_differ()
        selection = units_for(files, self._base.build, self._objects)
        # A part that was recorded later may know files that the build did not.
        self._note_contents((*selection.files, *files))
        self.pushed -= {unit.object for unit in selection.units}
        # A unit that did not compile may do so now: because of a header that has come into being, say.
        self._due |= {unit.object for unit in selection.units}
        if names := self._names_of_changed(selection.makefiles_changed):
            message = f"{names} changed: what is built, and how, is settled when the guest boots"
            raise NotPatchableError([Obstacle("HR1004", names, message, BUILD_MODULE)])
        if not (self._due or selection.files or selection.makefiles_changed):
            raise NotPatchableError([self._not_part_of_build(selection.not_part_of_build)])
        return self.due()

    def back_at_base(self) -> set[Path]:
        """The objects whose files are all as they were again; they count as compiled no more."""
        back = self.compiled - self.pushed - self._users_of_differing()
        self.compiled -= back
        return back

    def drop_pushed(self) -> set[Path]:
        """Forget source patches: the objects that are of one. They count as compiled no more."""
        dropped = set(self.pushed)
        self.compiled -= dropped
        # What the files themselves say of these units is to be compiled with the next save.
        self._due |= dropped
        self.pushed.clear()
        return dropped

    def changed_makefiles(self) -> str:
        """The names of those that are not as they were when the guest booted."""
        return self._names_of_changed(self._base.makefiles)

    def are_compiled(self, units: Iterable[TranslationUnit]) -> None:
        """These have objects of what the files say now."""
        self.compiled |= {unit.object for unit in units}
        self._due.clear()

    def _names_of_changed(self, makefiles: Iterable[Path]) -> str:
        known = self._base.makefiles
        return ", ".join(path.name for path in makefiles if sha256(path) != known.get(path))

    def _all_that_may_differ(self) -> list[TranslationUnit]:
        self.pushed.clear()
        for part in self._base.parts:
            self._note_contents(part.digests)
        touched = units_for(self.differing, self._base.build, self._objects).units
        self._due |= {unit.object for unit in touched} | self.compiled
        return self.due()

    def _note_contents(self, files: Iterable[Path]) -> None:
        for file in files:
            now = sha256(file)
            for part, differing in zip(self._base.parts, self._differing, strict=True):
                if is_stamp(file) or now == part.digests.get(file, now):
                    differing.discard(file)
                else:
                    differing.add(file)

    def _users_of_differing(self) -> set[Path]:
        """The objects of the units that were made of other contents than there are now."""
        found: set[Path] = set()
        for part, differing in zip(self._base.parts, self._differing, strict=True):
            found.update(part.inputs.users(differing))
        return found

    def edited_inputs(self, unit: TranslationUnit) -> set[Path]:
        """Of the files that a unit was made of those that are not as they were."""
        parts = zip(self._base.parts, self._differing, strict=True)
        own = self._base.of(unit)
        return next(differing & set(part.inputs[unit.object]) for part, differing in parts if part is own)

    def made_of(self, file: Path) -> Iterator[tuple[Path, str]]:
        """The objects that were made of a file, each with the digest that it had then."""
        for part in self._base.parts:
            for target in part.inputs.users((file,)):
                yield target, part.digests[file]

    def due(self) -> list[TranslationUnit]:
        """Those that are to be compiled at the next chance. Raises NotPatchableError (HR1005)."""
        self._due &= self._users_of_differing()
        if len(self._due) > self.max_units:
            raise NotPatchableError([self._too_many(self._due)])
        return [unit for unit in self._base.units if unit.object in self._due]

    def _not_part_of_build(self, files: Iterable[Path]) -> Obstacle:
        names = ", ".join(path.name for path in files)
        message = f"{names} is not part of this build: no unit includes it"
        hint = "add it to the module's Makefile and start hotreload again, or include it"
        if self._base.is_kernel:
            # The vdso, the boot code and the programs that build a kernel are built, and not linked into it.
            message = f"{names}: no unit of vmlinux or of a module was made of it"
            hint = f"if it is new, or goes into the image in another way: {BUILD_KERNEL}"
        return Obstacle("HR1002", names, message, hint)

    def _too_many(self, objects: Collection[Path]) -> Obstacle:
        files = sorted(file.name for file in self.differing)
        names = f"{', '.join(files[:3])}{' and others' if len(files) > 3 else ''}"
        message = f"{names}: {len(objects)} units would have to be compiled, the bound is {self.max_units}"
        return Obstacle("HR1005", names, message, MANY_UNITS)
