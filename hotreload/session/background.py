# SPDX-License-Identifier: MIT
"""A session that outlives the command that started it.

The command forks. The child becomes the session, in a process group and terminal session of its own. The
parent reads the child's messages from a pipe until the child is ready or has failed. Because of the fork,
the command line options need not be passed on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from hotreload.errors import HotReloadError
from hotreload.session.control import RemoteError, error_object

Job = Callable[[TextIO], int]
Tell = Callable[[Mapping[str, Any]], None]


def in_background(job: Job, tell: Tell, known: Callable[[BaseException], HotReloadError]) -> None:
    """Run ``job`` in a process of its own, and return when it has sent ``{"ready": ...}``.

    ``job`` writes JSON lines to the stream that it is given, and ``tell`` is called with each. ``known``
    converts any exception of the job to a HotReloadError. Raises RemoteError with the error of the job. If
    the wait is interrupted, the job is stopped, too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(_be_background(job, os.fdopen(writing, "w", buffering=1), known))
    os.close(writing)
    with os.fdopen(reading) as lines:
        try:
            _read(lines, tell)
        except BaseException as error:
            if not isinstance(error, RemoteError):
                os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
            raise


def _read(lines: TextIO, tell: Tell) -> None:
    for line in lines:
        message = json.loads(line)
        if "error" in message:
            raise RemoteError(message["error"])
        tell(message)
        if "ready" in message:
            return
    raise HotReloadError(
        "the session ended before the guest was ready",
        code="HR3107",
        hint="see the cause with hotreload -vv watch",
    )


def _be_background(job: Job, stream: TextIO, known: Callable[[BaseException], HotReloadError]) -> int:
    os.setsid()
    with open(os.devnull, "r+b", buffering=0) as nothing:
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)
    try:
        return job(stream)
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        fact = known(error)
        _write(stream, {"error": error_object(fact)})
        return fact.exit_status


def _write(stream: TextIO, message: Mapping[str, Any]) -> None:
    # The parent may be gone, or has stopped reading after "ready".
    with contextlib.suppress(OSError, ValueError):
        stream.write(json.dumps(message, default=str) + "\n")


def writer_to(stream: TextIO) -> Tell:
    """Return a listener that passes messages on to the parent."""
    return lambda message: _write(stream, message)
