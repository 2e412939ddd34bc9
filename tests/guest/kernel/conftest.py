# SPDX-License-Identifier: MIT
"""One `hotreload watch` in each kernel's own tree, and what the tests do with it.

The tests of a kernel share its guest and its sources. The sources are those in the cache, so a lock keeps
other runs out, and every test's edits are taken back behind it. What a killed run has edited is found beside
the sources, as it was, and put back at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import re
import shutil
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

from hotreload.build.debian_kernel import locked
from hotreload.build.kernel_tree import KernelTree
from hotreload.demo.driven import Driven, Told, guest_name
from hotreload.errors import HotReloadError
from hotreload.report.outcome import Outcome, Reason, ReloadReport
from hotreload.session.control import answer
from hotreload.session.guests import place_of
from tests.conftest import require, say
from tests.guest.conftest import PROGRAMS
from tests.kernels import SERIES, kernel_of

COMPLAINT = re.compile(r".*(?:WARNING: CPU|BUG:|Unpatched|Invalid padding|unable to ).*")
# What no guest sees needs one of them only.
one_kernel = pytest.mark.parametrize("running", SERIES[-1:], indirect=True, scope="package")

Edit = tuple[str, str]
Edits = Mapping[str, Edit | tuple[Edit, ...]]
T = TypeVar("T")


class Kernel:
    """The guest that runs a kernel, and that kernel's sources, in plain calls."""

    def __init__(
        self, series: str, tree: KernelTree, name: str, watch: Driven, runner: asyncio.Runner
    ) -> None:
        self.series = series
        self.tree = tree
        self.told: Told
        self._place = place_of(name)
        self._watch = watch
        self._runner = runner
        self._edited: set[str] = set()
        self._marks = 0

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    # The sources, by their names below the kernel's folder.

    def save(self, edits: Edits) -> ReloadReport:
        """Replace texts in files as they are now, and wait for what comes of it."""
        texts = {name: _edited((self.tree.source / name).read_text(), edits[name]) for name in edits}
        self._edited |= texts.keys()
        return self.wait(self._saved(texts))

    async def _saved(self, texts: Mapping[str, str]) -> ReloadReport:
        for name, text in texts.items():
            keep_original(self.tree.source, name)
            (self.tree.source / name).write_text(text)
        return await self._last_cycle_of(texts)

    def edit(self, edits: Edits) -> ReloadReport:
        """Save what goes live."""
        report = self.save(edits)
        assert report.outcome is Outcome.LIVE, (report.outcome, report.reasons, report.error)
        return report

    def refusal(self, edits: Edits) -> tuple[Reason, ...]:
        """Save what is refused; the reasons."""
        report = self.save(edits)
        assert report.outcome is Outcome.REFUSED, report
        return report.reasons

    def restore(self, *names: str) -> ReloadReport | None:
        """Take edits back (no names: all), and wait for what comes of it."""
        names = names or tuple(self._edited)
        if not names:
            return None
        self._edited.difference_update(names)
        return self.wait(self._restored(names))

    async def _restored(self, names: tuple[str, ...]) -> ReloadReport:
        for name in names:
            put_back(self.tree.source, name)
        return await self._last_cycle_of(names)

    async def _last_cycle_of(self, names: Iterable[str]) -> ReloadReport:
        """Files that were saved together come in one cycle, unless this machine was busy between two."""
        missing = {self.tree.source / name for name in names}
        while missing:
            self.told = await self._watch.next_cycle()
            missing.difference_update(self.told.report.files)
        return self.told.report

    def patch_of(self, edits: Edits, into: Path) -> Path:
        """A source patch that makes these edits; the files stay as they are."""
        lines: list[str] = []
        for name, edit in edits.items():
            old = (self.tree.source / name).read_text()
            pair = old.splitlines(keepends=True), _edited(old, edit).splitlines(keepends=True)
            lines += difflib.unified_diff(*pair, f"a/{name}", f"b/{name}")
        into.write_text("".join(lines))
        return into

    def after(self, verb: str, **fields: object) -> ReloadReport:
        """What comes of `hotreload VERB`, where that is a cycle."""
        self.verb(verb, **fields)
        self.told = self.wait(self._watch.next_cycle())
        return self.told.report

    def restore_all(self) -> None:
        """Bring sources and guest to what was booted, whatever a test has left."""
        self.restore()
        while self.run("ls /sys/kernel/livepatch"):
            self.wait(self._watch.next_cycle())

    @property
    def compiled(self) -> set[str]:
        """The sources that the last cycle compiled."""
        units = self.told.events["build.start"]["units"]
        return {str(Path(unit).relative_to(self.tree.source)) for unit in units}

    # The guest.

    def run(self, command: str) -> str:
        """What a shell command in the guest prints; it must succeed."""
        done = self.wait(self._watch.run(command))
        assert done.ok, (command, done.text, done.complaint)
        return done.text.strip()

    def fails(self, command: str) -> str:
        """What a shell command that fails in the guest complains of."""
        done = self.wait(self._watch.run(command))
        assert not done.ok, (command, done.text)
        return done.complaint

    def crash(self, command: str) -> ReloadReport:
        """What comes of a command in the guest that crashes it."""
        with contextlib.suppress(HotReloadError):
            self.run(command)
        self.told = self.wait(self._watch.next_cycle())
        assert self.told.report.outcome is Outcome.CRASHED, self.told.report
        return self.told.report

    def verb(self, verb: str, **fields: object) -> dict[str, Any]:
        """What `hotreload VERB` answers."""
        return self.wait(answer(self._place, verb, **fields))

    def put(self, content: bytes, path: str) -> None:
        """Write to a file or device of the guest."""
        done = self.wait(self._watch.run(f"cat >{path}", stdin=content))
        assert done.ok, done.complaint

    def put_module(self, name: str) -> None:
        """Copy one of the kernel's own modules into the guest: /tmp/NAME.ko."""
        (file,) = self.tree.output.rglob(f"{name}.ko")
        assert self.wait(self._watch.run(f"cat >/tmp/{name}.ko", stdin=file.read_bytes())).ok

    def insert(self, module: Path) -> None:
        """Load a module file of this machine."""
        done = self.wait(self._watch.run("cat >/tmp/m.ko && insmod /tmp/m.ko", stdin=module.read_bytes()))
        assert done.ok, done.complaint

    def load(self, name: str, parameters: str = "") -> None:
        self.put_module(name)
        self.run(f"insmod /tmp/{name}.ko {parameters}")

    def log_since(self, mark: str) -> str:
        """What the kernel has said since ``mark()``."""
        return self.run("dmesg").rpartition(mark)[2]

    def mark(self) -> str:
        self._marks += 1
        mark = f"kernel test mark {self._marks}."
        self.run(f"echo '{mark}' >/dev/kmsg")
        return mark

    def wait_for(self, command: str, text: str, limit: float = 30.0) -> str:
        """Run a command until it prints ``text``; what it printed."""
        end = time.monotonic() + limit
        while text not in (said := self.run(command)):
            assert time.monotonic() < end, (command, text, said)
            time.sleep(0.05)
        return said

    @property
    def patched(self) -> dict[str, set[str]]:
        """What the kernel says is patched: of each object that is there the functions, with sympos."""
        listed = self.run(
            "cd /sys/kernel/livepatch && for each in */*/*,*; do"
            ' object=${each%/*}; [ ! -e "$each" ] || echo "$(cat "$object/patched")/$each"; done'
        )
        found: dict[str, set[str]] = {}
        for line in listed.splitlines():
            there, _patch, name, function = line.split("/")
            if there == "1":
                found.setdefault(name, set()).add(function)
        return found


def _edited(text: str, edits: Edit | tuple[Edit, ...]) -> str:
    pairs = edits if isinstance(edits[0], tuple) else (edits,)
    for old, new in pairs:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text


def _originals(source: Path) -> Path:
    return source.with_name(f".{source.name}.originals")


def keep_original(source: Path, name: str) -> None:
    """Before a file is edited."""
    kept = _originals(source) / name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, kept.with_suffix(".new"))
        kept.with_suffix(".new").rename(kept)


def put_back(source: Path, name: str) -> None:
    """Give a file its content and, so that make sees nothing new, its time."""
    shutil.copy2(_originals(source) / name, source / name)


@contextlib.asynccontextmanager
async def untouched(source: Path) -> AsyncIterator[None]:
    """Sources that are ours alone within the block, and as they were unpacked before and after it."""
    async with locked(source.with_name(f".{source.name}.lock"), say, "edits these sources"):
        try:
            _put_all_back(source)
            yield
        finally:
            _put_all_back(source)


def _put_all_back(source: Path) -> None:
    originals = _originals(source)
    for kept in originals.rglob("*"):
        if kept.is_file() and kept.suffix != ".new":
            put_back(source, str(kept.relative_to(originals)))
    shutil.rmtree(originals, ignore_errors=True)


@pytest.fixture(scope="package", params=SERIES)
def running(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    for program, package in PROGRAMS.items():
        require(shutil.which(program), program, f"apt-get install {package}")
    name = guest_name("kernel")
    with asyncio.Runner() as runner:
        tree = runner.run(kernel_of(request.param))
        stack = contextlib.AsyncExitStack()
        try:
            runner.run(stack.enter_async_context(untouched(tree.source)))
            watch = Driven(tree.source, name, lambda _text: None, ("-K", str(tree.output)))
            runner.run(stack.enter_async_context(watch))
            running = Kernel(request.param, tree, name, watch, runner)
            yield running
            assert COMPLAINT.findall(running.run("dmesg")) == []
        finally:
            runner.run(stack.aclose())


@pytest.fixture
def kernel(running: Kernel) -> Iterator[Kernel]:
    yield running
    running.restore_all()
