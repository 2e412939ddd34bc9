# SPDX-License-Identifier: MIT
"""The watcher: folders as an asynchronous iterator of batches.

    async with Watcher([folder]) as watcher:
        async for batch in watcher:
            ...

No edit is lost. Watches are set before the state is read, and a folder is watched before it is listed, so
whatever happens meanwhile is seen, or reported, or both. Reported paths are kept until their batch is handed
out, so a cancelled wait for a batch loses nothing. When the kernel's queue overflows, every file is checked
again.

Events arrive on watchdog's thread, which only records paths. Everything else happens in the task that waits
for a batch (in a worker thread if there are many files). While nothing happens, nothing runs.
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

# Owners of watches other than the watched folder itself; no path begins like this.
ANCHOR, FILES = "anchor of ", "files in "
FEW = 16  # up to this many files, hashing is faster than waking a worker thread
POLL_INTERVAL = 1.0  # seconds
POLL_SHARE = 0.05  # of one core, at most
# Polling of single files where inotify works, for changes that it does not report: a file that is edited
# under another name (a hard link), or a file system that is mounted over its folder.
NAMED_INTERVAL = 2.0
NAMED_SHARE = 0.005


class Watcher:
    """Watches folders with everything below them, and single files anywhere.

    ``roots``   folders; paths below them are reported as they were given, including symbolic links
    ``files``   files elsewhere, such as headers; their folders are watched, but only these files count
    ``wanted``  an additional filter; outputs, hidden files and editors' files never count
    ``since``   digests of what counts as delivered, from an earlier ``digests()``; default: the files as
                they are on entering. The first batch has the differences.
    ``look``    False: only ``files`` are read on entering; any other file below ``roots`` counts as changed
                with its first event. A kernel has 60,000 sources, and a small one is built from 4,000
    ``by_time`` files that are not read: they differ when their mtime or size does
    ``quiet``   seconds after the last event, as in ``changes``
    ``polling`` also check all files every second; default: if a path is on a network file system, otherwise
                only check ``files``, every two seconds

    Entering raises InputError (HR1009) if a root is not a folder. Entering and iterating raise
    EnvironmentFault (HR5102) if inotify's limits are too low.
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
        self._notes = threading.Lock()  # guards _debounce and _overflow, which both threads use
        self._looking = threading.Lock()  # one check at a time, because a cancelled one may still run
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inotify: Inotify | None = None
        self._poller: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        for root in self._roots:
            if not os.path.isdir(root):
                raise InputError(
                    f"{root} is not a folder", hint="name a folder with sources, or run this in one"
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
        """Wait for the next batch, which has everything that changed since the previous one."""
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
        """Check every file, as if each had been saved. The differences come as a batch."""
        self._note_again((*self._roots, *self._names), Hint.COMPLETE)

    async def also_watch(self, files: Iterable[Path]) -> None:
        """Also watch these files, such as headers that a unit began to include.

        Their current content counts as delivered.
        """
        await asyncio.to_thread(self._add_files, {os.path.abspath(file) for file in files})

    def taken(self, files: Iterable[Path]) -> None:
        """Take the current content of these files as delivered, because the caller knows it already."""
        with self._looking:
            self._deliver(str(file) for file in files if str(file) in self._delivered)

    def digests(self) -> dict[Path, bytes]:
        """Return the digest of each file as last delivered (at first: on entering), for ``since``."""
        return {Path(path): held for path, held in self._delivered.items() if held is not None}

    # The following methods are called by watchdog's thread.

    def _note(self, path: str, hint: Hint) -> None:
        with self._notes:
            first = self._debounce.due() is None
            self._debounce.note(path, hint, time.monotonic())
        if first and self._loop is not None:
            # The loop is closed if the process ends without leaving the watcher; then nobody listens.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake.set)

    def _overflowed(self) -> None:
        with self._notes:
            known, self._overflow = self._overflow, True
        if not known:  # every watched folder reports the overflow
            log.warning("the kernel's inotify queue overflowed: checking every file")
            self.rescan()

    # The following methods are run by the waiting task.

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
        """Return the current digests of the files at and below ``paths``, and the files being written."""
        with self._looking:
            candidates: set[str] = set()
            for path in paths:
                candidates |= self._candidates(path)
            return self._digests(candidates)

    def _candidates(self, path: str) -> set[str]:
        """Return the files that an event about ``path`` concerns: itself, or all files of a folder."""
        assert self._inotify is not None
        was_watched = path in self._inotify
        if was_watched:
            self._inotify.forget_tree(path)  # another folder or link may have this name by now
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
                    log.warning("%s cannot be read (%s): changes in it are not noticed", path, error.strerror)
        return now, unsettled

    def _counts(self, path: str) -> bool:
        return path in self._files or self._wanted is None or self._wanted(Path(path))

    def _is_below_a_root(self, folder: str) -> bool:
        return any(folder == root or folder.startswith(root.rstrip("/") + "/") for root in self._roots)

    # Setting watches. Each of these methods sets the watches first, and reads files afterwards.

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
        """Take the current content of these files as delivered."""
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
        """Watch the parent of a folder, because only that reports that the folder is replaced."""
        assert self._inotify is not None
        parent, name = os.path.split(folder)
        if name:
            self._inotify.forget(ANCHOR + folder)
            self._inotify.watch(parent, {name: folder}, owner=ANCHOR + folder)

    def _watch_files(self, folder: str) -> set[str]:
        """Watch the folder of single files, and return these files."""
        assert self._inotify is not None
        self._inotify.forget(FILES + folder)
        self._inotify.watch(folder, self._names[folder], owner=FILES + folder)
        return set(self._names[folder].values())

    def _cover(self, folder: str) -> set[str]:
        """Watch a folder and everything below it, and return its files."""
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
        """Watch the target of a file that is a symbolic link."""
        assert self._inotify is not None
        target = os.path.realpath(link)
        self._inotify.watch(os.path.dirname(target), {os.path.basename(target): link}, owner=link)

    # Polling, for what inotify does not report.

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
            # A local file that stays open may still be written, so wait until it is stable; inotify reports
            # its close.
            for path in changed if roots else changing - changed:
                self._note(path, Hint.COMPLETE)
            seen, changing = now, changed
