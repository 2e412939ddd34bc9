# SPDX-License-Identifier: MIT
"""Report what happens in a session: on the console, as recorded events, and to listeners."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hotreload.report.console import Console, Progress
from hotreload.report.ndjson import EventSink, closing_event
from hotreload.report.outcome import ReloadReport
from hotreload.session.control import report_object

MANY_UNITS = 8  # show the progress of a compile from this many units on

Listener = Callable[[Mapping[str, Any]], None]


class Teller:
    """Reports for the session of one guest."""

    def __init__(self, guest: str, events: EventSink, console: Console) -> None:
        self._guest = guest
        self._events = events
        self._console = console
        self._listeners: set[Listener] = set()

    @contextlib.contextmanager
    def listen(self, listener: Listener) -> Iterator[None]:
        """Call ``listener`` with each event, report and step of the boot inside the block."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message to the listeners only."""
        for listener in tuple(self._listeners):
            listener(message)

    def say(self, text: str) -> None:
        """Print a line on the console, and send it to the listeners."""
        self._console.say(text)
        self.tell({"say": text})

    def event(self, type: str, cycle: int | None = None, **fields: Any) -> None:
        """Record an event and send it to the listeners. Raises ValueError if fields do not fit the type."""
        self.tell({"event": self._events.emit(type, cycle, **fields).line()})

    def record(self, type: str, **fields: Any) -> str:
        """Record an event without sending it, and return its line. For a client that prints it itself."""
        return self._events.emit(type, None, **fields).line()

    def state(self, state: str, **fields: Any) -> None:
        """Report the guest's state."""
        self.event("guest.state", guest=self._guest, state=state, **fields)

    def restored(self, checkpoint: str, seconds: float) -> None:
        """Report that the guest was restored to a checkpoint. ``seconds``: how long that took."""
        self.event("restore.done", checkpoint=checkpoint, ms=seconds * 1000)

    def report(self, report: ReloadReport, cycle: int | None, key: str, **fields: Any) -> None:
        """Record, print and send a report. ``key``: "report" ends a cycle; after "climb" it goes on."""
        type, told = closing_event(report)
        self.event(type, cycle, **told)
        self._console.report(report)
        self.tell({key: report_object(report), **fields})

    @contextlib.contextmanager
    def start(self) -> Iterator[Callable[[str], None]]:
        """Show the progress of the guest's start."""
        with self._console.progress(f"starting the guest {self._guest}") as progress:

            def tell(text: str) -> None:
                progress.update(text)
                self.tell({"progress": text})

            yield tell

    @contextlib.contextmanager
    def long_build(self) -> Iterator[Callable[[int, int], None]]:
        """Show the progress of a compile of many units."""
        with contextlib.ExitStack() as shown:
            bar: Progress | None = None

            def compiled(done: int, units: int) -> None:
                nonlocal bar
                if units >= MANY_UNITS:
                    bar = bar or shown.enter_context(self._console.progress(f"compiling {units} units"))
                    bar.update(f"{done} of {units} done")
                    bar.advance(done, units)

            yield compiled
