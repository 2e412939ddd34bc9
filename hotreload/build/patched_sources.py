# SPDX-License-Identifier: MIT
"""Apply source patches to copies of a module's files. The folder itself stays as it is.

This module decides which file a hunk belongs to, and only accepts files in the folder. patch(1) then gets one
file at a time, under another name. It is used instead of ``git apply`` because it is installed along with
compiler and make (dpkg-dev depends on it), and because git, inside a repository, silently skips files. There
is no fuzz: every context line must match.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from hotreload import process
from hotreload.build.source_patch import FilePatch, PatchUnfitError, parse_patch
from hotreload.errors import InputError

_APPLY = "patch --unified --fuzz=0 --forward --no-backup-if-mismatch -r - -o after before".split()
_FAILED = re.compile(r"^Hunk #(\d+) FAILED at (\d+)( \(different line endings\))?", re.MULTILINE)
_MOVED = re.compile(r"^Hunk #(\d+) succeeded at (\d+) \(offset (-?\d+) lines?\)", re.MULTILINE)
OTHER_SOURCES = "it was made for other sources, or for another folder"


@dataclass(frozen=True, slots=True)
class PatchedSources:
    """The changed files.

    ``texts``: by real path, None if deleted; ``before``: what is on disk, None if created; ``notes``: remarks
    for the user.
    """

    texts: Mapping[Path, bytes | None]
    before: Mapping[Path, bytes | None]
    notes: tuple[str, ...] = ()


async def apply_patches(patches: Sequence[Path], folder: Path) -> PatchedSources:
    """Apply patches, in order, to the files of ``folder``.

    Raises InputError (HR1009) if a file cannot be read, PatchUnfitError (HR1010) if a patch is malformed or
    does not fit, EnvironmentFault (HR5106) without patch(1).
    """
    sources = _Sources(folder.resolve())
    for patch in patches:
        await sources.take(patch)
    changed = {path: text for path, text in sources.texts.items() if text != sources.before[path]}
    return PatchedSources(changed, {path: sources.before[path] for path in changed}, tuple(sources.notes))


@dataclass(slots=True)
class _Sources:
    folder: Path
    texts: dict[Path, bytes | None] = field(default_factory=dict)
    before: dict[Path, bytes | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    async def take(self, patch: Path) -> None:
        files = parse_patch(_content(patch), str(patch))
        for file in files:
            _check_names(patch, file)
        root, strip = self._place(patch, files)
        for file in files:
            old, new = (root / _stripped(name, strip) if name else None for name in (file.old, file.new))
            if old and new and not file.moved:
                # diff -u foo.c.orig foo.c: the file that exists is meant.
                old = new = self._meant(old, new)
            for path in (old, new):
                self._check_place(patch, path)
            await self._change(patch, file, old, new)

    def text(self, path: Path) -> bytes | None:
        """Return the text of a file with the patches so far, or None if it does not exist."""
        real = Path(os.path.realpath(path))
        if real not in self.texts:
            self.texts[real] = self.before[real] = _content(real) if real.is_file() else None
        return self.texts[real]

    def put(self, path: Path, text: bytes | None) -> None:
        self.text(path)
        self.texts[Path(os.path.realpath(path))] = text

    # --- which files are meant ---

    def _place(self, patch: Path, files: Sequence[FilePatch]) -> tuple[Path, int]:
        """Return the folder that names are relative to, and how many leading parts to strip (a/ and b/)."""
        names = [name for file in files for name in (file.old, file.new) if name]
        prefixed = all(name.startswith(("a/", "b/")) for name in names)
        # Only assume a created folder if nothing else explains the names.
        for new_folders in (False, True):
            for root in self._roots():
                for strip in (1, 0) if prefixed else (0, 1):
                    if not self._misfits(files, root, strip, new_folders):
                        return root, strip
        missing = self._misfits(files, self.folder, int(prefixed), new_folders=True)[0]
        raise PatchUnfitError(
            f"{patch} changes {missing.name}, which is not in {self.folder}", hint=OTHER_SOURCES
        )

    def _misfits(
        self, files: Sequence[FilePatch], root: Path, strip: int, new_folders: bool
    ) -> list[FilePatch]:
        """Return the files of a patch that do not exist if its names are interpreted in this way."""
        made: set[Path] = set()
        misfits = []
        for file in files:
            old, new = (root / _stripped(name, strip) if name else None for name in (file.old, file.new))
            wanted = [path for path in ((old,) if file.moved else (old, new)) if path]
            if root in (old, new):
                fits = False
            elif old is None:
                fits = new_folders or (new is not None and new.parent.is_dir())
            else:
                fits = any(path in made or self._is_there(path) for path in wanted)
            made |= {new} if new else set()
            misfits += [] if fits else [file]
        return misfits

    def _roots(self) -> Iterator[Path]:
        """Yield the module's folder and, if it is in a repository, the folders above it, up to the root."""
        yield self.folder
        chain = (self.folder, *self.folder.parents)
        top = next((number for number, place in enumerate(chain) if (place / ".git").exists()), 0)
        yield from chain[1 : top + 1]

    def _is_there(self, path: Path) -> bool:
        real = Path(os.path.realpath(path))
        return self.texts[real] is not None if real in self.texts else path.is_file()

    def _meant(self, old: Path, new: Path) -> Path:
        there = [path for path in (new, old) if self._is_there(path)]
        return min(there, key=lambda path: len(path.name))

    def _check_place(self, patch: Path, path: Path | None) -> None:
        if path and not Path(os.path.realpath(path)).is_relative_to(self.folder):
            raise PatchUnfitError(
                f"{patch} also changes {path}, which is outside {self.folder}",
                hint="make a patch of the module's own files only: git diff -- FOLDER, or filterdiff -i",
            )

    # --- the change ---

    async def _change(self, patch: Path, file: FilePatch, old: Path | None, new: Path | None) -> None:
        if new and new != old and self.text(new) is not None:
            self._refuse(patch, f"creates {file.name}, which already exists", "it may already be applied")
        if file.blind:
            self._refuse(
                patch,
                f"adds lines to {file.name} (line {file.blind}) without showing the lines around them",
                "make it with three context lines, as git diff and diff -u do",
            )
        text = self.text(old) if old else b""
        assert text is not None, "it fits"
        if file.text:
            text = await self._applied(patch, file, text)
        if old and old != new and file.moved != "copy":
            self.put(old, None)
        if new:
            self.put(new, text)
        elif text:
            self._refuse(
                patch, f"deletes {file.name}, which contains more than the patch shows", OTHER_SOURCES
            )

    async def _applied(self, patch: Path, file: FilePatch, text: bytes) -> bytes:
        with tempfile.TemporaryDirectory(prefix="hotreload-") as name:
            scratch = Path(name)
            (scratch / "before").write_bytes(text)
            # Without --binary, patch strips the CRs of a patch, but the file has them, too.
            exact = ["--binary"] if b"\r\n" in text else []
            done = await process.run([*_APPLY, *exact], cwd=scratch, env={"LC_ALL": "C"}, stdin=file.text)
            if not done.ok:
                self._tell_failure(patch, file, done.text + done.complaint)
            for number, line, offset in _MOVED.findall(done.text):
                self.notes.append(
                    f"{patch.name}: change {number} of {file.name} fits at line {line}, {offset} lines away"
                )
            return (scratch / "after").read_bytes()

    def _tell_failure(self, patch: Path, file: FilePatch, said: str) -> NoReturn:
        if "previously applied" in said:
            fact = f"is already in {file.name}, or is reversed"
            self._refuse(patch, fact, "leave it out, or reverse it: interdiff FILE /dev/null, git diff -R")
        failed = _FAILED.search(said)
        if failed is None:
            last = said.strip().rpartition("\n")[2]
            self._refuse(patch, f"cannot be applied to {file.name}: {last}", OTHER_SOURCES)
        if failed[3]:
            fact = f"and {file.name} have different line endings"
            self._refuse(patch, fact, "convert one of them: dos2unix, or unix2dos")
        fact = f"does not fit {file.name}: change {failed[1]}, at line {failed[2]}, finds other lines there"
        self._refuse(patch, fact, OTHER_SOURCES)

    def _refuse(self, patch: Path, fact: str, hint: str) -> NoReturn:
        raise PatchUnfitError(f"{patch} {fact}", hint=hint)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", hint="name another file") from error


def _check_names(patch: Path, file: FilePatch) -> None:
    """Refuse names that lead out of the folder, because a patch may come from anywhere."""
    for name in (name for name in (file.old, file.new) if name is not None):
        parts = name.split("/")
        if parts[0] == "" or ".." in parts or re.search(r"[\x00-\x1f]", name):
            raise PatchUnfitError(
                f"{patch} names {name!r}: only files below the module's folder are patched",
                hint="make it with names relative to that folder, as git diff does",
            )


def _stripped(name: str, strip: int) -> str:
    """Return the name without its first parts; empty if it has no more."""
    return "/".join([part for part in name.split("/") if part not in ("", ".")][strip:])
