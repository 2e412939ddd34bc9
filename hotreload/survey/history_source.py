# SPDX-License-Identifier: MIT
"""Build the commits of a driver's repository one after the other in one folder, and read its workload.

A workload is a shell script that runs in the guest and prints the same each time. Comments at its beginning
say what it needs:

    # load: loop       a module to load, with its parameters; one per line, in this order; default: all
    # host: COMMAND    a command for the host's shell, run in the driver's folder at each commit before it is
                       built or pushed; the files that it leaves in $OUT are in the guest's /tmp/workload

A workload may have several parts, so that a crash in one does not prevent the others. Each part is run by
itself, preceded by the text before the first part:

    # part: NAME
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.build.kernel_tree import KernelTree
from hotreload.errors import InputError
from hotreload.survey.history_lines import Texts

BUILD_LIMIT = 600.0


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload. ``parts``: scripts for the guest's shell. ``load``, ``host``: from its comments."""

    parts: tuple[str, ...]
    load: tuple[str, ...] = ()
    host: tuple[str, ...] = ()


def read_workload(text: str) -> Workload:
    """Parse a workload's script and its comments."""

    def lines(word: str) -> tuple[str, ...]:
        return tuple(re.findall(rf"^# {word}: (.+)$", text, re.MULTILINE))

    first, *parts = re.split(r"^# part: .+\n", text, flags=re.MULTILINE)
    return Workload(tuple(first + part for part in parts or [""]), lines("load"), lines("host"))


@dataclass(frozen=True, slots=True)
class Commit:
    name: str
    subject: str


@dataclass(frozen=True, slots=True)
class Made:
    """A commit that was built.

    ``modules``: the name and the content of each. ``files``: a tar archive for the guest.
    """

    commit: Commit
    modules: tuple[tuple[str, bytes], ...]
    files: bytes

    @property
    def digest(self) -> str:
        """Equal for two commits whose modules and files are the same."""
        return hashlib.sha256(repr(self.modules).encode() + self.files).hexdigest()

    @property
    def names(self) -> list[str]:
        """The names of the modules as the kernel spells them."""
        return [name.replace("-", "_") for name, _content in self.modules]


class History:
    """A clone of a driver's repository in ``folder``."""

    def __init__(self, folder: Path, out: Path, workload: Workload) -> None:
        self.folder = folder
        self._out = out
        self._workload = workload

    @classmethod
    async def cloned(cls, source: str, folder: Path, out: Path, workload: Workload) -> History:
        """Clone a bundle or a repository. Raises InputError if that fails."""
        done = await process.run(["git", "clone", "-q", source, folder])
        if not done.ok:
            raise InputError(
                f"git does not clone {source}: {done.complaint[-300:]}", hint="name a bundle or a repository"
            )
        return cls(folder, out, workload)

    async def commits(self, until: str) -> list[Commit]:
        """List the history of ``until`` along first parents, the newest commit first."""
        listed = await self._git("log", "--first-parent", "--format=%h %s", until)
        return [Commit(*line.split(" ", 1)) for line in listed.splitlines()]

    async def check_out(self, commit: Commit) -> bool:
        """Check a commit out and run the host's commands. Return whether these succeeded."""
        await self._git("checkout", "-q", "--force", "--detach", commit.name)
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        for command in self._workload.host:
            done = await process.run(["bash", "-ec", command], cwd=self.folder, env={"OUT": str(self._out)})
            if not done.ok:
                return False
        return True

    async def clean(self) -> None:
        """Remove everything that builds left behind."""
        await self._git("clean", "-xdfq")

    async def make(self, commit: Commit, kernel: KernelTree) -> Made | None:
        """Check a commit out and build it with the kernel's own make. Return None if it does not build."""
        if not await self.check_out(commit):
            return None
        for ko in self.folder.glob("*.ko"):  # a module may have had another name in the previous commit
            ko.unlink()
        argv = ["make", "-C", str(kernel.output), f"M={self.folder}", "modules"]
        done = await process.run(argv, env={"MAKEFLAGS": ""}, timeout=BUILD_LIMIT)
        if not done.ok:
            return None
        built = sorted(self.folder.glob("*.ko"))
        modules = tuple((ko.stem, ko.read_bytes()) for ko in built)
        return Made(commit, modules, self.files()) if built else None

    def files(self) -> bytes:
        """Return the files that the host's commands left for the guest, as a tar archive."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for file in sorted(self._out.rglob("*")):
                info = tarfile.TarInfo(str(file.relative_to(self._out)))
                if file.is_file():
                    info.size, info.mode = file.stat().st_size, 0o755
                    with file.open("rb") as content:
                        archive.addfile(info, content)
        return stream.getvalue()

    def texts(self) -> Texts:
        """Return the lines of the current sources, by path in the folder."""
        files = (*self.folder.rglob("*.c"), *self.folder.rglob("*.h"))
        return {
            str(file.relative_to(self.folder)): file.read_text(errors="replace").splitlines()
            for file in files
            if not file.name.endswith(".mod.c")
        }

    async def _git(self, *words: str) -> str:
        done = await process.run(["git", *words], cwd=self.folder)
        if not done.ok:
            raise InputError(f"git {words[0]}: {done.complaint[-300:]}", hint="is the bundle whole?")
        return done.text
