# SPDX-License-Identifier: MIT
"""inotify, through watchdog's InotifyFD: which folders are watched, and what their events mean.

watchdog's Observer is the next layer up. Three of its properties do not suit a tool that promises that no
edit is lost and that a save is live at once (watchdog 7.1):

- An event that moves a file out of the watched folders is held back for 500 ms, to wait for its counterpart,
  and delays every event after it: a save right after `mv foo.c /elsewhere` arrived 500 ms late (measured).
- If a subfolder cannot be watched, above all for lack of watches (ENOSPC), it does not report that.
- A recursive watch includes `.git` and everything else; its filters work after the queue, not before it.

Therefore we only use the parts of watchdog that are tedious to get right: the descriptor, its reading thread
and the parsing of events. We register our own callback for each folder. Moves are not paired: an event only
means "this path may differ", and that is true of both halves of a move.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hotreload.errors import EnvironmentFault
from hotreload.watch.changes import Hint
from hotreload.watch.filters import file_matters, folder_matters

if TYPE_CHECKING:
    from watchdog.observers.inotify_c import InotifyEvent, WatchDescriptor

# <sys/inotify.h>. IN_OPEN is omitted because our own hashing would cause it, and IN_MODIFY because the close
# follows. IN_ATTRIB: a file may become readable.
IN_ATTRIB, IN_CLOSE_WRITE = 0x4, 0x8
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_ONLYDIR, IN_EXCL_UNLINK = 0x400, 0x800, 0x0100_0000, 0x0400_0000
IN_ISDIR = 0x4000_0000
MASK = (
    IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
    | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR | IN_EXCL_UNLINK
)  # fmt: skip

# The two limits of inotify, and the settings for each: of the machine and of this namespace.
LIMITS = {
    errno.ENOSPC: ("watches", "fs.inotify.max_user_watches", "user.max_inotify_watches", 524_288),
    errno.EMFILE: ("instances", "fs.inotify.max_user_instances", "user.max_inotify_instances", 1_024),
}

Note = Callable[[str, Hint], None]


class FolderWatch:
    """The callback for one folder. ``names`` restricts it to some entries, and maps each to a path.

    The mapping is kept, not copied, so names may be added to it later.
    """

    __slots__ = ("_folder", "_names", "_note", "_overflowed", "wd")

    def __init__(
        self, folder: str, names: Mapping[str, str] | None, note: Note, overflowed: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._names = names
        self._note = note
        self._overflowed = overflowed
        self.wd: WatchDescriptor | None = None

    def on_event(self, event: InotifyEvent) -> None:
        hint = hint_of(event.mask)
        if hint is None:
            return
        if not event.name:  # the event is about the folder itself
            if hint is Hint.GONE:
                self._note(self._folder, hint)
            return
        path = self._path(os.fsdecode(event.name), bool(event.mask & IN_ISDIR))
        if path is not None:
            self._note(path, hint)

    def _path(self, name: str, is_folder: bool) -> str | None:
        if self._names is not None:
            return self._names.get(name)
        matters = folder_matters(name) if is_folder else file_matters(name)
        return os.path.join(self._folder, name) if matters else None

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Do nothing: the folder is gone, which its parent's event or its own reports."""

    def on_queue_overflow(self) -> None:
        self._overflowed()


class Inotify:
    """One inotify instance and its thread, which calls ``note`` and ``overflowed``.

    Raises EnvironmentFault (HR5102) when the kernel allows no more instances or watches.
    """

    def __init__(self, note: Note, overflowed: Callable[[], None]) -> None:
        from watchdog.observers.inotify_c import InotifyFD

        # Its only warning is "queue overflowed". The watcher logs that itself, along with what it does about
        # it.
        logging.getLogger("watchdog.observers.inotify_c").setLevel(logging.ERROR)
        self._note = note
        self._overflowed = overflowed
        self._watches: dict[str, list[FolderWatch]] = {}
        try:
            self._descriptor = InotifyFD()
        except OSError as error:
            raise limit_fault(error) or error from error
        self._descriptor.start()

    def __contains__(self, owner: object) -> bool:
        return owner in self._watches

    def __len__(self) -> int:
        return sum(map(len, self._watches.values()))

    def watch(self, folder: str, names: Mapping[str, str] | None = None, *, owner: str) -> bool:
        """Watch a folder, following it if it is a symbolic link.

        Return False if it does not exist or is unreadable. ``owner``: the path for which it is watched, for
        ``forget`` and ``forget_tree``.
        """
        from watchdog.observers.inotify_c import CallbackId, Mask

        watch = FolderWatch(folder, names, self._note, self._overflowed)
        identity = CallbackId(id(watch))
        try:
            watch.wd = self._descriptor.add_callback(os.fsencode(folder), Mask(MASK), watch, identity)
        except OSError as error:
            fault = limit_fault(error)
            if fault:
                raise fault from error
            return False
        if watch.wd == -1:  # watchdog's result for a folder that we may not read
            self._descriptor.remove_callbacks([(watch.wd, identity)])
            return False
        self._watches.setdefault(owner, []).append(watch)
        return True

    def forget_tree(self, path: str) -> None:
        """End the watches owned by ``path`` or anything below it."""
        below = path.rstrip("/") + "/"
        for owner in [owner for owner in self._watches if owner == path or owner.startswith(below)]:
            self.forget(owner)

    def forget(self, owner: str) -> None:
        """End the watches of this owner."""
        from watchdog.observers.inotify_c import CallbackId

        ended = self._watches.pop(owner, [])
        pairs = [(watch.wd, CallbackId(id(watch))) for watch in ended if watch.wd is not None]
        self._descriptor.remove_callbacks(pairs)

    def stop(self) -> None:
        """End all watches and the thread."""
        self._descriptor.stop()
        self._descriptor.join()
        self._watches.clear()


def hint_of(mask: int) -> Hint | None:
    """Return what an event's mask says about its path; None if it is not about a change."""
    if mask & (IN_DELETE | IN_MOVED_FROM | IN_DELETE_SELF | IN_MOVE_SELF):
        return Hint.GONE
    if mask & IN_CREATE:
        return Hint.OPENED
    if mask & (IN_CLOSE_WRITE | IN_MOVED_TO):
        return Hint.COMPLETE
    return Hint.TOUCHED if mask & IN_ATTRIB else None


def limit_fault(error: OSError) -> EnvironmentFault | None:
    """Return the HR5102 for an error that means a limit of inotify, naming the setting; else None."""
    if error.errno not in LIMITS:
        return None
    what, *settings, enough = LIMITS[error.errno]
    values = {str(setting): value for setting in settings if (value := _sysctl(str(setting))) is not None}
    setting = min(values, key=lambda name: values[name], default=str(settings[0]))
    value = values.get(setting, 0)
    return EnvironmentFault(
        f"the kernel allows no more inotify {what}: {setting} is {value}, all in use",
        code="HR5102",
        hint=f"raise it: sudo sysctl {setting}={max(int(enough), 2 * value)}",
    )


def _sysctl(name: str) -> int | None:
    try:
        return int(Path("/proc/sys", *name.split(".")).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
