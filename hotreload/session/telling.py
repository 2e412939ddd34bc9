# SPDX-License-Identifier: MIT
"""What happens in a session, told: to a person, as events, and to whoever listens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hotreload.report.console import Console, Progress
from hotreload.report.ndjson import EventSink, closing_event
from hotreload.report.outcome import ReloadReport
from hotreload.session.control import report_object

MANY_UNITS = 8  # a compile of so many is worth a word on how far it is

Listener = Callable[[Mapping[str, Any]], None]


class Teller:
    """That of the session of one guest."""

    def __init__(self, guest: str, events: EventSink, console: Console) -> None:
        self._guest = guest
        self._events = events
        self._console = console
        self._listeners: set[Listener] = set()

    @contextlib.contextmanager
    def listen(self, listener: Listener) -> Iterator[None]:
        """Tell each event, report and step of the boot to ``listener`` inside the block."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Tell it to who listens, and to nobody else."""
        for listener in tuple(self._listeners):
            listener(message)

    def say(self, text: str) -> None:
        """Tell people a line."""
        self._console.say(text)
        self.tell({"say": text})

    def event(self, type: str, cycle: int | None = None, **fields: Any) -> None:
        """Tell an event. Raises ValueError when its fields are not those of its type."""
        self.tell({"event": self._events.emit(type, cycle, **fields).line()})

    def record(self, type: str, **fields: Any) -> str:
        """Write down an event of somebody's who tells it himself; its line."""
        return self._events.emit(type, None, **fields).line()

    def state(self, state: str, **fields: Any) -> None:
        """Tell what the guest does now."""
        self.event("guest.state", guest=self._guest, state=state, **fields)

    def restored(self, checkpoint: str, seconds: float) -> None:
        """Tell that the guest was brought back."""
        self.event("restore.done", checkpoint=checkpoint, ms=seconds * 1000)

    def report(self, report: ReloadReport, cycle: int | None, key: str, **fields: Any) -> None:
        """Tell a report everywhere. ``key``: "report" ends a cycle, after a "climb" the cycle goes on."""
        type, told = closing_event(report)
        self.event(type, cycle, **told)
        self._console.report(report)
        self.tell({key: report_object(report), **fields})

    @contextlib.contextmanager
    def start(self) -> Iterator[Callable[[str], None]]:
        """Show how far the start of the guest is."""
        with self._console.progress(f"starting the guest {self._guest}") as progress:

            def tell(text: str) -> None:
                progress.update(text)
                self.tell({"progress": text})

            yield tell

    @contextlib.contextmanager
    def long_build(self) -> Iterator[Callable[[int, int], None]]:
        """Show how far the compile is, where many units are compiled."""
        with contextlib.ExitStack() as shown:
            bar: Progress | None = None

            def compiled(done: int, units: int) -> None:
                nonlocal bar
                if units >= MANY_UNITS:
                    bar = bar or shown.enter_context(self._console.progress(f"compiling {units} units"))
                    bar.update(f"{done} of {units} done")
                    bar.advance(done, units)

            yield compiled
