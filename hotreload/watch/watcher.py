# SPDX-License-Identifier: MIT
"""The watcher: folders as an asynchronous iterator of batches.

    async with Watcher([folder]) as watcher:
        async for batch in watcher:
            ...

No edit is lost, by the order of things. The watches are set before the state is taken, and a folder is
watched before it is listed, so whatever happens meanwhile is either seen or heard of, or both. What was
heard of stays noted until its batch is handed out: a cancelled wait for a batch loses nothing. When the
kernel's queue overflows, everything is looked at again.

Events arrive on watchdog's thread, which only notes paths; all else happens in the task that waits for a
batch (many files: in a worker thread). While nothing happens, nothing runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from hotreload.errors import InputError
from hotreload.watch.changes import LIMIT, PATIENCE, QUIET, ChangeBatch, Debounce, Digest, Hint, compare
from hotreload.watch.files import (
    StillWrittenError,
    digest,
    list_folder,
    needs_polling,
    stamp_digest,
    stat_files,
)
from hotreload.watch.inotify import Inotify

log = logging.getLogger(__name__)

# Owners of watches that are not the watched folder itself; no path begins like this.
ANCHOR, FILES = "anchor of ", "files in "
FEW = 16  # so many files are hashed sooner than a worker thread is woken
POLL_INTERVAL = 1.0  # seconds
POLL_SHARE = 0.05  # of one core, at most
# Where inotify tells of changes: of those that it does not tell of. A file that has another name elsewhere is
# edited there, or a file system is mounted over its folder.
NAMED_INTERVAL = 2.0
NAMED_SHARE = 0.005


class Watcher:
    """Watches folders with all that is below them, and single files wherever they are.

    ``roots``   folders; paths are reported below them as they were given, symbolic links included
    ``files``   files elsewhere, such as headers; their folders are watched, but only these files count
    ``wanted``  a further filter; outputs, hidden and editors' files never count
    ``since``   digests of what counts as delivered, from an earlier ``digests()``; default: the files as
                they are on entering. What differs from it is the first batch.
    ``look``    False: only ``files`` are read on entering; another one below ``roots`` counts as changed with
                its first event. A kernel has 60,000 sources, and a small one is built from 4,000
    ``by_time`` files that are not read: they differ when their time or size does
    ``quiet``   seconds after the last event, as in ``changes``
    ``polling`` look at all files every second, too; default: when a path is on a network file system, and
                else at ``files`` every two

    Entering raises InputError (HR1009) when a root is no folder; entering and iterating raise
    EnvironmentFault (HR5102) when inotify's limits are too low.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        *,
        files: Iterable[Path] = (),
        wanted: Callable[[Path], bool] | None = None,
        since: Mapping[Path, bytes] | None = None,
        look: bool = True,
        by_time: Callable[[Path], bool] | None = None,
        quiet: float = QUIET,
        patience: float = PATIENCE,
        limit: float = LIMIT,
        polling: bool | None = None,
    ) -> None:
        self._roots = tuple(os.path.abspath(root) for root in roots)
        self._files = frozenset(os.path.abspath(file) for file in files)
        self._names: dict[str, dict[str, str]] = {}  # folder of such a file -> its name there -> its path
        self._wanted = wanted
        self._since = since
        self._look_at_all = look
        self._by_time = by_time
        self._polling = polling
        self._debounce = Debounce(quiet, patience, limit)
        self._delivered: dict[str, Digest] = {}
        self._overflow = False
        self._closed = False
        self._unreadable: set[str] = set()
        self._notes = threading.Lock()  # guards _debounce and _overflow, which both threads touch
        self._looking = threading.Lock()  # one look at a time: a cancelled one may not have ended yet
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inotify: Inotify | None = None
        self._poller: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        for root in self._roots:
            if not os.path.isdir(root):
                raise InputError(
                    f"{root} is not a folder", hint="name a folder with sources, or go there and name none"
                )
        self._loop = asyncio.get_running_loop()
        self._inotify = Inotify(self._note, self._overflowed)
        try:
            await asyncio.to_thread(self._take_stock)
            polling = self._polling
            if polling is None:
                polling = needs_polling([*self._roots, *self._files])
            if polling or (self._polling is None and self._files):
                roots = self._roots if polling else ()
                seen = await asyncio.to_thread(stat_files, roots, self._files)
                self._poller = asyncio.create_task(self._poll(roots, seen))
        except BaseException:
            self._inotify.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._wake.set()
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller
        if self._inotify is not None:
            self._inotify.stop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChangeBatch:
        """The next batch; waits for it. A batch holds all that changed since the one before."""
        while not self._closed:
            self._wake.clear()
            with self._notes:
                due = self._debounce.due()
            if due is None:
                await self._wake.wait()
            elif (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            elif batch := await self._look():
                return batch
        raise StopAsyncIteration

    def rescan(self) -> None:
        """Look at every file, as if each had been saved; what differs comes as a batch."""
        self._note_again((*self._roots, *self._names), Hint.COMPLETE)

    async def also_watch(self, files: Iterable[Path]) -> None:
        """Watch further files, such as headers that a unit began to include, from what they hold now on."""
        await asyncio.to_thread(self._add_files, {os.path.abspath(file) for file in files})

    def taken(self, files: Iterable[Path]) -> None:
        """Somebody knows of these files what they hold now: it is no change."""
        with self._looking:
            self._deliver(str(file) for file in files if str(file) in self._delivered)

    def digests(self) -> dict[Path, bytes]:
        """What each file held when it was last delivered (at first: on entering); for ``since``."""
        return {Path(path): held for path, held in self._delivered.items() if held is not None}

    # What watchdog's thread calls.

    def _note(self, path: str, hint: Hint) -> None:
        with self._notes:
            first = self._debounce.due() is None
            self._debounce.note(path, hint, time.monotonic())
        if first and self._loop is not None:
            # The loop is closed when the process ends without leaving the watcher: nobody listens.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake.set)

    def _overflowed(self) -> None:
        with self._notes:
            known, self._overflow = self._overflow, True
        if not known:  # each watched folder tells us
            log.warning("more changes than the kernel's inotify queue holds: looking at every file")
            self.rescan()

    # What the waiting task does.

    async def _look(self) -> ChangeBatch | None:
        with self._notes:
            paths, saved_at = self._debounce.take()
            self._overflow = False
        try:
            if len(paths) <= FEW and not any(map(os.path.isdir, paths)):
                now, unsettled = self._examine(paths)
            else:
                now, unsettled = await asyncio.to_thread(self._examine, paths)
        except BaseException:
            self._note_again(paths, Hint.COMPLETE)
            raise
        self._note_again(unsettled, Hint.OPENED)
        changes = compare(self._delivered, now)
        for change in changes:
            self._delivered[str(change.path)] = now[str(change.path)]
        return ChangeBatch(changes, saved_at) if changes else None

    def _note_again(self, paths: Iterable[str], hint: Hint) -> None:
        for path in paths:
            self._note(path, hint)

    def _examine(self, paths: Iterable[str]) -> tuple[dict[str, Digest], set[str]]:
        """What the files at and below ``paths`` hold now; and those that somebody is writing."""
        with self._looking:
            candidates: set[str] = set()
            for path in paths:
                candidates |= self._candidates(path)
            return self._digests(candidates)

    def _candidates(self, path: str) -> set[str]:
        """The files that an event about ``path`` is about: itself, or all of a folder."""
        assert self._inotify is not None
        was_watched = path in self._inotify
        if was_watched:
            self._inotify.forget_tree(path)  # another folder or link may bear its name by now
        is_folder = os.path.isdir(path) and (path in self._roots or not os.path.islink(path))
        candidates = {path}
        if was_watched or is_folder:
            candidates.update(known for known in self._delivered if known.startswith(path + "/"))
        if path in self._roots or path in self._names:
            self._anchor(path)
        if path in self._names:
            candidates |= self._watch_files(path)
        for root in self._roots:
            if root.startswith(path.rstrip("/") + "/"):
                candidates |= self._candidates(root)
        if is_folder and self._is_below_a_root(path):
            found = self._cover(path)
            candidates |= (
                found if self._look_at_all or path not in self._roots else found & self._delivered.keys()
            )
        elif os.path.islink(path):
            self._follow(path)
        return candidates

    def _digests(self, candidates: Iterable[str]) -> tuple[dict[str, Digest], set[str]]:
        now: dict[str, Digest] = {}
        unsettled = set()
        for path in candidates:
            if not self._counts(path):
                continue
            try:
                read = self._by_time is None or path in self._files or not self._by_time(Path(path))
                now[path] = digest(path) if read else stamp_digest(path)
                self._unreadable.discard(path)
            except StillWrittenError:
                unsettled.add(path)
            except OSError as error:
                if path not in self._unreadable:
                    self._unreadable.add(path)
                    log.warning("%s cannot be read (%s): its changes are not seen", path, error.strerror)
        return now, unsettled

    def _counts(self, path: str) -> bool:
        return path in self._files or self._wanted is None or self._wanted(Path(path))

    def _is_below_a_root(self, folder: str) -> bool:
        return any(folder == root or folder.startswith(root.rstrip("/") + "/") for root in self._roots)

    # Watches: each of these sets them first and looks afterwards.

    def _take_stock(self) -> None:
        found: set[str] = set()
        for root in self._roots:
            self._anchor(root)
            covered = self._cover(root)
            found |= covered if self._look_at_all else set()
        found |= self._name(self._files)
        if self._since is None:
            self._deliver(found)
        else:
            self._delivered = {str(path): held for path, held in self._since.items()}
            self.rescan()

    def _add_files(self, files: Iterable[str]) -> None:
        with self._looking:
            self._files = self._files.union(files)
            self._deliver(self._name(files) - self._delivered.keys())

    def _deliver(self, files: Iterable[str]) -> None:
        """What these files hold now is where we start from."""
        now, unsettled = self._digests(files)
        self._delivered.update(now)
        self._note_again(unsettled, Hint.OPENED)

    def _name(self, files: Iterable[str]) -> set[str]:
        """Watch single files."""
        new_folders = set()
        for file in files:
            folder, name = os.path.split(file)
            if folder not in self._names:
                new_folders.add(folder)
            self._names.setdefault(folder, {})[name] = file
            if os.path.islink(file):
                self._follow(file)
        for folder in new_folders:
            self._anchor(folder)
            self._watch_files(folder)
        return set(files)

    def _anchor(self, folder: str) -> None:
        """Hear of it when the folder itself is replaced: only its parent's watch tells."""
        assert self._inotify is not None
        parent, name = os.path.split(folder)
        if name:
            self._inotify.forget(ANCHOR + folder)
            self._inotify.watch(parent, {name: folder}, owner=ANCHOR + folder)

    def _watch_files(self, folder: str) -> set[str]:
        """Watch the folder of single files; these files."""
        assert self._inotify is not None
        self._inotify.forget(FILES + folder)
        self._inotify.watch(folder, self._names[folder], owner=FILES + folder)
        return set(self._names[folder].values())

    def _cover(self, folder: str) -> set[str]:
        """Watch a folder and all below it; the files there."""
        assert self._inotify is not None
        found: set[str] = set()
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            self._inotify.watch(here, owner=here)
            listing = list_folder(here)
            waiting += listing.folders
            found.update(listing.files)
            for link in listing.links:
                self._follow(link)
        return found

    def _follow(self, link: str) -> None:
        """A file that is a symbolic link changes where it leads to."""
        assert self._inotify is not None
        target = os.path.realpath(link)
        self._inotify.watch(os.path.dirname(target), {os.path.basename(target): link}, owner=link)

    # What inotify does not tell of.

    async def _poll(self, roots: Sequence[str], seen: Mapping[str, tuple[int, int, int]]) -> None:
        least, share = (POLL_INTERVAL, POLL_SHARE) if roots else (NAMED_INTERVAL, NAMED_SHARE)
        interval = least
        changing: set[str] = set()
        while True:
            await asyncio.sleep(interval)
            started = time.monotonic()
            now = await asyncio.to_thread(stat_files, roots, self._files)
            interval = max(least, (time.monotonic() - started) / share)
            changed = {path for path in seen.keys() | now.keys() if seen.get(path) != now.get(path)}
            # Whoever has a local file open for long may still be writing: inotify tells when it is closed.
            for path in changed if roots else changing - changed:
                self._note(path, Hint.COMPLETE)
            seen, changing = now, changed
