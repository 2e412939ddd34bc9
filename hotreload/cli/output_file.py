# SPDX-License-Identifier: MIT
"""The file that ``-o`` names, which is written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from hotreload.errors import EnvironmentFault, InputError
from hotreload.interrupts import raise_interrupts


def check_output(file: Path, inputs: tuple[Path, ...] = ()) -> None:
    """Refuse a file that cannot be written, before the work is done. Raises InputError (HR1009)."""
    if file.is_dir():
        raise InputError(f"{file} is a folder", hint="name a file after -o")
    if not file.parent.is_dir():
        raise InputError(f"there is no folder {file.parent}", hint=f"create it first: mkdir -p {file.parent}")
    for other in inputs:
        with contextlib.suppress(OSError):
            if file.samefile(other):
                raise InputError(f"{file} is an input file", hint="name another file after -o")


def write_output(file: Path, content: bytes) -> None:
    """Write the content under a temporary name, then rename it.

    A device or pipe is written to directly. If the file is a link, its target is replaced. Raises InputError
    (HR1009) or, without space, EnvironmentFault (HR5107).
    """
    raise_interrupts()
    target = Path(os.path.realpath(file))
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)
            return
        temporary = target.with_name(f".hotreload-{os.getpid()}.part")
        try:
            temporary.write_bytes(content)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentFault(
                f"no space left for {file}", code="HR5107", hint="free some space: df -h"
            ) from error
        raise InputError(
            f"{file} cannot be written: {error.strerror}", hint="name another file after -o"
        ) from error


def remove_output(file: Path) -> None:
    """Remove the output of an earlier run, so that it is not taken for the output of this one."""
    if file.is_file():
        with contextlib.suppress(OSError):
            file.unlink()
