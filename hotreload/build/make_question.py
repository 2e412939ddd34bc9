# SPDX-License-Identifier: MIT
"""Ask make what it would rebuild, for changes in files that no unit names.

A rule may turn a table into a header, a script may write flags, an object may be built elsewhere, and bytes
may be included. Only make knows about these. We ask by running it in the folder where the user's own build
runs, so that it writes what that build would write, and nothing else. What it has rebuilt is then found by
content. That takes a second or two. An edit of a source that units name never waits for it.

What differs in every run (a date in the flags, a stamp that is always written) is not a change. If a command
differs, make runs a second time, and words that differ between these two runs are ignored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotreload.build.built import Build, Stamp, names_of, sha256
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.external_module import build_modules
from hotreload.build.guest_base import GuestBase
from hotreload.build.other_files import is_other, stamp, stamps

# Seconds after which a time in seconds is certain to differ.
CLOCK = 1.1


@dataclass(frozen=True, slots=True)
class Answer:
    """What make has rebuilt.

    ``files``: sources that it wrote and that units include. ``objects``: objects that changed although the
    files of their units did not. ``commands``: objects of units that are compiled by another command.
    """

    files: tuple[Path, ...] = ()
    objects: frozenset[Path] = frozenset()
    commands: tuple[Path, ...] = ()

    @property
    def is_nothing(self) -> bool:
        return not (self.files or self.objects or self.commands)


class MakeQuestion:
    """Decides when to ask make, and holds the answers.

    A kernel tree is not asked: its make builds the kernel.
    """

    def __init__(self, build: Build) -> None:
        self.build = build
        self._known = _named(build)
        self._asked: dict[Path, Stamp] = dict(build.others)
        self._note_sources(build)
        # Files that make wrote when it was asked.
        self._rewritten: set[Path] = set()
        # Files that were created since kbuild ran.
        self.new: set[Path] = set()

    def others(self, files: Iterable[Path], also_named: Collection[Path]) -> set[Path]:
        """Return those of the files whose use only make knows."""
        if self.build.is_kernel:
            return set()
        used = self.build.rule_inputs
        return {file for file in files if file in used or (self._is_other(file) and file not in also_named)}

    def changed(self, also_named: Collection[Path]) -> set[Path]:
        """Return such files in the folder that changed since make was last asked, including deleted ones."""
        if self.build.is_kernel:
            return set()
        now = stamps(self.build.folder)
        every = now.keys() | self._asked.keys()
        found = {file for file in every if now.get(file) != self._asked.get(file)}
        return self.others(found, also_named)

    def is_open(self, others: Iterable[Path]) -> bool:
        """Return whether one of these files changed since make was last asked."""
        return any(stamp(file) != self._asked.get(file) for file in others)

    async def ask(self, base: GuestBase, others: Collection[Path]) -> Answer:
        """Run make and return the answer. Raises what build_modules raises; then the question stays open."""
        before = {file: sha256(file) for file in self.build.watched_files}
        build = await _made(base)
        different = _commands(base, build)
        commands = await _without_clock(base, build, different) if different else ()
        self.new |= {file for file in others if file not in self._asked and stamp(file) is not None}
        self._note_asked(build)
        files = tuple(file for file in build.inputs.files if sha256(file) != before.get(_plain(file)))
        self._known |= _named(build)
        return Answer(files, _hidden(base, different), commands)

    def is_only_asked_about(self, file: Path) -> bool:
        """Return whether no unit names the file, so that only make can say what it is used for."""
        return file not in self.build.rule_inputs

    def _note_sources(self, build: Build) -> None:
        """Note the state of the sources that rules use as well, as make used them."""
        for file in self.build.rule_inputs:
            if sha256(file) == build.digests.get(file):
                self._set_asked(file, stamp(file))

    def _note_asked(self, build: Build) -> None:
        self._note_sources(build)
        now = stamps(build.folder)
        for file in (now.keys() | build.others.keys()) - self.build.rule_inputs:
            was = build.others.get(file)
            if now.get(file) == was or file in self._rewritten:
                self._set_asked(file, now.get(file))
            elif self._is_other(file):
                # Either somebody saved it while make ran, or make wrote it. If it happens again, make wrote
                # it.
                self._rewritten.add(file)
                self._set_asked(file, was)
        for file in self._asked.keys() - now.keys():
            del self._asked[file]

    def _set_asked(self, file: Path, seen: Stamp | None) -> None:
        if seen is None:
            self._asked.pop(file, None)
        else:
            self._asked[file] = seen

    def _is_other(self, file: Path) -> bool:
        inside = file.is_relative_to(self.build.folder)
        return (
            inside
            and is_other(file.name)
            and file not in self.build.makefiles
            and self._known.isdisjoint(names_of(file))
        )


def _named(build: Build) -> set[Path]:
    return set(build.watched_files)


def _plain(file: Path) -> Path:
    return names_of(file)[0]


async def _made(base: GuestBase) -> Build:
    return await build_modules(base.tree, base.build.folder, variables=base.build.variables)


def _commands(base: GuestBase, build: Build) -> frozenset[Path]:
    """Return the objects of units that were added or removed, or that are compiled by another command."""
    before, now = _by_object(base.units), _by_object(build.units)
    return frozenset(each for each in before.keys() | now.keys() if before.get(each) != now.get(each))


async def _without_clock(base: GuestBase, build: Build, different: Collection[Path]) -> tuple[Path, ...]:
    """Return the objects whose commands differ in more than what changes from run to run."""
    await asyncio.sleep(CLOCK)
    runs = [_by_object(units) for units in (base.units, build.units, (await _made(base)).units)]
    return tuple(each for each in sorted(different) if _differ(*(run.get(each) for run in runs)))


def _by_object(units: Iterable[TranslationUnit]) -> Mapping[Path, str]:
    return {unit.object: unit.command for unit in units}


def _differ(before: str | None, now: str | None, again: str | None) -> bool:
    if before is None or now is None or again is None:
        return True
    one, two, three = before.split(), now.split(), again.split()
    if not len(one) == len(two) == len(three):
        return True
    return any(was != word and word == later for was, word, later in zip(one, two, three, strict=True))


def _hidden(base: GuestBase, different: Collection[Path]) -> frozenset[Path]:
    """Return the objects of C units that changed although, as far as is known, the units' files did not.

    Units whose commands differ are left out.
    """
    found = set()
    for part in base.parts:
        differing = {file for file, digest in part.digests.items() if sha256(file) != digest}
        explained = {*part.inputs.users(differing), *different}
        found |= {
            target
            for target, digest in part.objects.items()
            if target not in explained and sha256(target) != digest
        }
    return frozenset(found)
