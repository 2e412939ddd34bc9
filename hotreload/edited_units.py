# SPDX-License-Identifier: MIT
"""Which units have to be compiled because of edits: those that can differ from what the guest booted.

A file counts as edited if its content differs, not because it was saved. If all files of a unit are as they
were when the guest booted, so is its object, and the unit is not compiled. So it costs nothing to take an
edit back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from hotreload.build.built import is_stamp, names_of, sha256
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import compiled_from, patched_object
from hotreload.build.guest_base import GuestBase
from hotreload.build.units import new_inputs, units_for
from hotreload.diff.obstacles import BUILD_KERNEL, BUILD_MODULE, NotPatchableError, Obstacle

SOURCE_SUFFIXES = frozenset((".c", ".h", ".S", ".inc"))
STRAY = "HR1002"
MANY_UNITS = (
    "run hotreload push --max-units N to compile them all; or build the kernel, and start hotreload again"
)


class EditedUnits:
    """Keeps track of the units to compile.

    ``compiled`` holds the objects of the units whose inputs are not all those of the base. ``pushed`` holds
    those that come from a source patch.
    """

    def __init__(self, base: GuestBase, objects: Path, max_units: int) -> None:
        """``objects`` is the folder of our own compiles. Their ``.d`` files list what edits have included."""
        self.max_units = max_units
        self.compiled: set[Path] = set()
        self.pushed: set[Path] = set()  # from a source patch, until one of their files is saved
        self._base = base
        # For each part of the base, the files that differ from it.
        self._differing: tuple[set[Path], ...] = tuple(set() for _ in base.parts)
        self._objects = objects
        self._due: set[Path] = set()  # objects of units to compile at the next chance
        # Objects that may differ although the files that they were made of do not: those compiled with
        # another header, those that may find another header, and those that make builds differently for a
        # reason that only make knows.
        self._otherwise: set[Path] = set()
        self._candidates: set[Path] = set()
        self._hidden: frozenset[Path] = frozenset()
        self._left_out: tuple[Path, ...] = ()
        # Makefiles and sources of no unit that were saved with an error, and are still to be handled.
        self._unread: tuple[Path, ...] = ()
        self._asked_of = dict(base.makefiles)  # the digests at the last refusal
        self._refused: dict[Path, str] = {}  # carried files refused once, with digests

    @property
    def differing(self) -> set[Path]:
        """The files of the base whose contents differ from it."""
        return set().union(*self._differing)

    def rebase(self, base: GuestBase, compiled: Iterable[Path]) -> None:
        """Take over another base of the guest.

        ``compiled`` are the objects of which the guest runs a version that differs from that base.
        """
        self._base = base
        self._differing = tuple(set() for _ in base.parts)
        for part in base.parts:
            self._note_contents(part.digests)
        self.compiled = set(compiled)
        self.pushed &= self.compiled
        self._asked_of = dict(base.makefiles)
        self._otherwise &= self.compiled
        self._hidden &= self.compiled

    def ask_for(self, modules: Collection[str]) -> None:
        """Compile the units of these modules with the next save, if they differ from the base."""
        self._due |= {unit.object for unit in self._base.units if unit.module in modules}

    def may_find_others(self, objects: Collection[Path]) -> None:
        """Compile these objects, because they may find another header than before."""
        self._due |= set(objects)
        self._candidates |= set(objects)

    def differ_by_make(self, objects: frozenset[Path]) -> None:
        """Compile these objects, because make built others from the same files.

        ``objects`` is the complete set, and replaces the previous one.
        """
        self._due |= objects
        self._hidden = objects

    def new_inputs(self) -> frozenset[Path]:
        """Return the user's files that edits have included."""
        return new_inputs(self._base.build, self._objects)

    def with_unread(self, files: Iterable[Path]) -> tuple[Path, ...]:
        """Return these files and those that were saved earlier and not handled yet, such as a Makefile."""
        files = tuple(files)
        unread, self._unread = self._unread, ()
        return tuple(dict.fromkeys((*files, *unread))) if files else ()

    def leave_unread(self, files: Iterable[Path]) -> None:
        """Remember files that were saved together with something that did not compile.

        Those that no unit names (Makefiles and other sources) are still to be handled.
        """
        selection = units_for(files, self._base.build, self._objects)
        self._unread = (*selection.makefiles_changed, *filter(_is_source, selection.not_part_of_build))

    def refuse_again(self) -> None:
        """Refuse again what was refused once, because the build that followed the refusal failed."""
        self._asked_of = dict(self._base.makefiles)
        self._refused.clear()

    @property
    def has_news(self) -> bool:
        """Return whether make builds something else from the same files, or a carried file changed."""
        return bool(self._hidden - self.compiled or self._new_carried())

    def of(self, files: tuple[Path, ...], others: tuple[Path, ...] = ()) -> list[TranslationUnit]:
        """Return the units to compile when these files were saved.

        Without files, these are all units that may differ from the base. ``others`` were saved, too, and no
        unit names them. make was asked about them.

        Raises NotPatchableError: HR1002, no file is part of the build; HR1004, a Makefile changed; HR1005,
        too many units; HR2206, a carried file changed. What is not compiled then is tried again with the next
        save.
        """
        if not (files or others):
            self._require_makefiles()
            self.require_carried()
            return self._all_that_may_differ()
        selection = units_for(files, self._base.build, self._objects)
        # A part of the base that was recorded later may know files that the build does not.
        self._note_contents((*selection.files, *files))
        self.pushed -= {unit.object for unit in selection.units}
        # A unit that did not compile may compile this time, because a missing header was created, for
        # example.
        self._due |= {unit.object for unit in selection.units}
        if names := self._names_of_changed(selection.makefiles_changed):
            raise self._recipe_changed(names)
        self.require_carried()
        self._left_out = selection.not_part_of_build if self._base.is_kernel else ()
        strays = (*selection.not_part_of_build, *filter(_is_source, others))
        if strays and not (self._due or selection.files or selection.makefiles_changed):
            raise NotPatchableError([self._not_part_of_build(strays)])
        return self.due()

    def back_at_base(self) -> set[Path]:
        """Return the objects whose files are all as in the base again. They no longer count as compiled."""
        back = self.compiled - self.pushed - self._users_of_differing() - self._otherwise - self._hidden
        self.compiled -= back
        return back

    def drop_pushed(self) -> set[Path]:
        """Forget source patches. Return their objects, which no longer count as compiled."""
        dropped = set(self.pushed)
        self.compiled -= dropped
        # Compile these units from the files themselves with the next save.
        self._due |= dropped
        self.pushed.clear()
        return dropped

    def changed_makefiles(self) -> str:
        """Return the names of the Makefiles that differ from when the guest booted."""
        return self._names_of_changed(self._base.makefiles)

    def are_compiled(self, units: Iterable[TranslationUnit], failed: Iterable[TranslationUnit] = ()) -> None:
        """Note that these units have objects of the current files.

        Units that ``failed`` are compiled again with the next save.
        """
        units = tuple(units)
        self.compiled |= {unit.object for unit in units}
        self._due = {unit.object for unit in failed}
        self._candidates.clear()
        for unit in units:
            (self._otherwise.add if self._is_of_other_files(unit) else self._otherwise.discard)(unit.object)

    def _require_makefiles(self) -> None:
        """Raise NotPatchableError (HR1004), once, if Makefiles of the folder changed."""
        changed = {} if self._base.is_kernel else {file: sha256(file) for file in self._base.makefiles}
        new = [file for file, digest in changed.items() if self._asked_of.get(file) != digest]
        self._asked_of = {**self._base.makefiles, **changed}
        if new:
            raise self._recipe_changed(self._names(new))

    @staticmethod
    def _recipe_changed(names: str) -> NotPatchableError:
        message = f"{names} changed: a live patch cannot change what is built, or how"
        return NotPatchableError([Obstacle("HR1004", names, message, BUILD_MODULE)])

    def require_carried(self) -> None:
        """Raise NotPatchableError (HR2206), once, if files changed that a module contains as they are."""
        changed, new = self._base.carried_otherwise(), self._new_carried()
        self._refused = {file: sha256(file) for file in changed}
        if new:
            raise NotPatchableError(
                Obstacle(
                    "HR2206",
                    file.name,
                    f"{file.name} changed: it is in {', '.join(sorted(changed[file]))},"
                    " but not compiled from C",
                    BUILD_MODULE,
                )
                for file in sorted(new)
            )

    def _new_carried(self) -> set[Path]:
        """Return the changed carried files that were not refused yet."""
        return {file for file in self._base.carried_otherwise() if self._refused.get(file) != sha256(file)}

    def left_out(self) -> str:
        """Return the names of files of a kernel that were saved last and that no unit was made of."""
        known = self.new_inputs() if self._left_out else frozenset()
        return ", ".join(file.name for file in self._left_out if file not in known)

    def carried_otherwise(self) -> str:
        """Return the names of the carried files that differ from those in the guest."""
        return ", ".join(sorted(file.name for file in self._base.carried_otherwise()))

    def _is_of_other_files(self, unit: TranslationUnit) -> bool:
        """Return whether a unit was compiled from other files than its base object."""
        notes = patched_object(unit, self._objects).with_suffix(".d")
        if unit.is_assembly or not notes.is_file():
            return False
        part = self._base.of(unit)
        now = compiled_from(notes, unit.cwd, part.users_folder, part.tree)
        return _plain(now) != _plain(part.inputs[unit.object])

    def _names_of_changed(self, makefiles: Iterable[Path]) -> str:
        known = self._base.makefiles
        return self._names(path for path in makefiles if sha256(path) != known.get(path))

    def _names(self, files: Iterable[Path]) -> str:
        """Return the names, with folders, because a tree may have a Makefile in each folder."""
        folder = self._base.build.folder
        inside = (file.relative_to(folder) if file.is_relative_to(folder) else file for file in files)
        return ", ".join(sorted(map(str, inside)))

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
        """Return the objects of the units whose files had other contents when they were compiled."""
        found: set[Path] = set()
        for part, differing in zip(self._base.parts, self._differing, strict=True):
            found.update(part.inputs.users(differing))
        return found

    def edited_inputs(self, unit: TranslationUnit) -> set[Path]:
        """Return the files that a unit was made of and that differ from its base."""
        parts = zip(self._base.parts, self._differing, strict=True)
        own = self._base.of(unit)
        return next(differing & set(part.inputs[unit.object]) for part, differing in parts if part is own)

    def is_edited_alone(self, unit: TranslationUnit) -> bool:
        """Return whether its source is the only changed file of a unit that has compiled."""
        others = self.edited_inputs(unit) - {unit.source}
        return not others and unit.object not in self._otherwise and not self._is_of_other_files(unit)

    def made_of(self, file: Path) -> Iterator[tuple[Path, str]]:
        """Yield the objects that were made of a file, each with the digest that the file had then."""
        for part in self._base.parts:
            for target in part.inputs.users((file,)):
                yield target, part.digests[file]

    def due(self) -> list[TranslationUnit]:
        """Return the units to compile at the next chance. Raises NotPatchableError (HR1005)."""
        self._due &= self._users_of_differing() | self._otherwise | self._candidates | self._hidden
        if len(self._due) > self.max_units:
            raise NotPatchableError([self._too_many(self._due)])
        return [unit for unit in self._base.units if unit.object in self._due]

    def _not_part_of_build(self, files: Iterable[Path]) -> Obstacle:
        names = ", ".join(path.name for path in files)
        message = f"{names} is not part of this build: no unit includes it"
        hint = "add it to the module's Makefile, or include it"
        if self._base.is_kernel:
            # The vdso, the boot code and the build tools are built, but not linked into the kernel.
            message = f"{names}: no unit of vmlinux or of a module was compiled from it"
            hint = f"if it is new, or goes into the image in another way: {BUILD_KERNEL}"
        return Obstacle(STRAY, names, message, hint)

    def _too_many(self, objects: Collection[Path]) -> Obstacle:
        files = sorted(file.name for file in self.differing)
        names = f"{', '.join(files[:3])}{' and others' if len(files) > 3 else ''}"
        message = f"{names}: {len(objects)} units would have to be compiled, the limit is {self.max_units}"
        return Obstacle("HR1005", names, message, MANY_UNITS)


def _plain(files: Iterable[Path]) -> set[Path]:
    return {names_of(file)[0] for file in files}


def _is_source(file: Path) -> bool:
    return file.suffix in SOURCE_SUFFIXES
