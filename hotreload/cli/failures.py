# SPDX-License-Identifier: MIT
"""Turn any exception into an error of ours.

An exception that was not raised on purpose is a bug, and its traceback is kept in a file.
"""

from __future__ import annotations

import sys

from hotreload import __version__
from hotreload.errors import EnvironmentFault, HotReloadError

BUG = 70  # EX_SOFTWARE of sysexits.h


def known(error: BaseException) -> HotReloadError:
    """Return the error of ours that this is, or a Bug.

    Of several errors in a group, return the first of ours.
    """
    import errno

    while isinstance(error, BaseExceptionGroup):
        ours, _others = error.split(HotReloadError)
        error = (ours or error).exceptions[0]
    if isinstance(error, HotReloadError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = error.filename or "the disk"
        fault = EnvironmentFault(f"no space left: {place}", code="HR5107", hint="free some space: df -h")
        return fault.with_traceback(error.__traceback__)
    return Bug(error)


class Bug(HotReloadError):
    """An exception that was not raised on purpose. Its traceback is kept in a file."""

    exit_status = BUG

    def __init__(self, error: BaseException) -> None:
        import traceback

        text = "".join(traceback.format_exception(error))
        last = traceback.format_exception_only(error)[-1].strip()
        super().__init__(f"hotreload failed: {last}", hint=f"please report this bug, with {_kept(text)}")
        self.story = text


def _kept(story: str) -> str:
    """Save what is needed to report a bug. Return the name of the file."""
    from hotreload.paths import state_folder

    about = f"hotreload {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n\n"
    try:
        file = state_folder() / "last-failure.txt"
        file.write_text(about + story, encoding="utf-8")
    except (HotReloadError, OSError):
        return "the output of -vv"
    return str(file)
