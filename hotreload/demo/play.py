# SPDX-License-Identifier: MIT
"""`hotreload demo`: play the main use on the example driver, and check it.

It uses a copy of the driver, the real `hotreload watch` on it, and an editor that saves. Everything that it
shows comes from the guest, and a step fails unless the guest shows what it must.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import difflib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from hotreload.config import Config
from hotreload.demo.driven import Driven, Told, guest_name
from hotreload.demo.examples import WAYS_TO_SAVE, copy_example, sources
from hotreload.demo.examples.ticker_edits import (
    LOOK,
    START_HOLDING,
    STEPS,
    Step,
    Unexpected,
    View,
    check_reload,
    check_state,
    expect,
    parse_view,
)
from hotreload.errors import HotReloadError, InputError
from hotreload.interrupts import raise_interrupts, run
from hotreload.report.console import WORDS, render
from hotreload.report.outcome import Outcome, ReloadReport
from hotreload.report.table import align
from hotreload.report.text import enumerate_names, one_line, styled

WIDTH = 98
INDENT = "    "
CONTEXT = 1  # lines of a diff around a change
# The columns of the closing table, each with the stages that it sums up.
GROUPS = {
    "watch": ("watch",),
    "build": ("build",),
    "patch": ("diff", "link"),
    "guest": ("push", "load", "complete"),
}
# Seconds for the program that has the device open to read its next line once the new code is live.
SETTLE = 3.0
LOOK_INTERVAL = 0.1


class DemoFailedError(HotReloadError):
    """The guest does not show what it must. This is a bug of ours, or a fault of the machine."""

    exit_status = 1


def play(config: Config, stream: TextIO, *, color: bool, keep: Path | None = None) -> int:
    """Play the demo with the configured kernel. ``keep`` is a folder to leave the driver in.

    Raises DemoFailedError, InputError (HR1009) if ``keep`` already has a driver, and the error that the watch
    ends with.
    """
    raise_interrupts()
    with _folder(keep) as folder:
        return run(_Demo(folder, config, stream, color).play())


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield _kept(keep.resolve())
        return
    parent = Path(tempfile.mkdtemp(prefix="hotreload-demo-"))
    try:
        yield copy_example(parent)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _kept(parent: Path) -> Path:
    try:
        return copy_example(parent)
    except FileExistsError as error:
        raise InputError(f"{error.filename} already exists", hint="name another folder") from error
    except OSError as error:
        raise InputError(
            f"{parent} cannot be created: {error.strerror}", hint="name another folder"
        ) from error


class _Demo:
    def __init__(self, folder: Path, config: Config, stream: TextIO, color: bool) -> None:
        self.folder = folder
        self.config = config
        self.stream = stream
        self.color = color
        self.started = time.monotonic()
        self.texts = dict(sources())
        self.reports: list[ReloadReport] = []

    async def play(self) -> int:
        self._say(self._styled(f"hotreload watch {self.folder}", "bold"))
        options = ("--max-rung", "module", "--kernel", self.config.kernel)
        async with Driven(self.folder, guest_name("demo"), self._progress, options) as watch:
            facts = watch.facts
            self._say(
                f"{INDENT}ready after {time.monotonic() - self.started:.1f} s: a guest with Linux"
                f" {facts['kernel']} ({facts['accel']}) runs {', '.join(facts['modules'])}.ko"
            )
            await self._hold_open(watch)
            first = before = await self._look(watch)
            for number, step in enumerate(STEPS, 1):
                self._say(self._styled(f"\n[{number}/{len(STEPS)}] {step.title}", "bold"))
                last = before
                before = await self._act(watch, step, WAYS_TO_SAVE[number % len(WAYS_TO_SAVE)], before)
            self._close(first, last)
        return 0

    async def _hold_open(self, watch: Driven) -> None:
        done = await watch.run(START_HOLDING)
        if not done.ok:
            raise DemoFailedError(f"/dev/ticker cannot be held open in the guest: {done.complaint}")
        self._say(
            f"{INDENT}a program in the guest keeps /dev/ticker open from now on, and reads line after line"
        )

    async def _act(self, watch: Driven, step: Step, save: object, before: View) -> View:
        """Play one step: save, wait, look, check. Return what the guest shows after it."""
        assert callable(save)
        new = step.texts(self.texts)
        self._show_edits(step, new)
        before = await self._look(watch)
        if step.first is not None:
            await watch.run(step.first)
        for name, text in new.items():
            save(self.folder / name, text)
        self.texts |= new
        cycle = await self._cycle_of(watch, step)
        try:
            step.check_report(cycle.report)
            if step.crash is not None:
                await self._crash(watch, step.crash)
            if step.new_functions:
                found = cycle.events.get("diff.done", {}).get("new_functions", [])
                missing = set(step.new_functions).difference(found)
                expect(not missing, f"new functions {', '.join(step.new_functions)}", ", ".join(found))
            after = await (self._look(watch) if step.is_reload else self._look_until_settled(watch))
            (check_reload if step.is_reload else check_state)(before, after)
            shown = step.check(before, after)
        except Unexpected as unexpected:
            raise DemoFailedError(
                f"step '{step.title}': {unexpected}",
                hint="this is a bug: please report it, with the text above",
            ) from unexpected
        self._show_views(shown, before, after)
        return after

    async def _cycle_of(self, watch: Driven, step: Step) -> Told:
        """Return the cycle that the step is about.

        On a busy machine, files that are saved together may come as two cycles.
        """
        cycles = [await self._next_cycle(watch)]
        while set(step.files) - {file.name for cycle in cycles for file in cycle.report.files}:
            cycles.append(await self._next_cycle(watch))
        return next((cycle for cycle in cycles if cycle.report.outcome is step.outcome), cycles[-1])

    async def _next_cycle(self, watch: Driven) -> Told:
        cycle = await watch.next_cycle()
        self.reports.append(cycle.report)
        for report in (*cycle.climbs, cycle.report):
            self._say(render(report, WIDTH, self.color, self.folder))
        return cycle

    async def _crash(self, watch: Driven, command: str) -> None:
        """Run the command that crashes the guest, and wait until the guest is back."""
        self._say(f"{INDENT}{command}")
        with contextlib.suppress(HotReloadError):
            await watch.run(command)
        crashed = (await self._next_cycle(watch)).report.outcome
        expect(crashed is Outcome.CRASHED, "outcome crashed", crashed.value)

    async def _look(self, watch: Driven) -> View:
        done = await watch.run(LOOK)
        try:
            return parse_view(done.text)
        except Unexpected as unexpected:
            raise DemoFailedError(f"{unexpected} {done.complaint}") from unexpected

    async def _look_until_settled(self, watch: Driven) -> View:
        """Look once the program with the open device has read a line that was composed after the save."""
        deadline = time.monotonic() + SETTLE
        view = first = await self._look(watch)
        while view.kept_number <= first.kept_number and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_INTERVAL)
            kept = (await watch.run("cat /tmp/kept")).text
            view = dataclasses.replace(first, kept_line=kept.strip())
        return view

    # --- what a person sees ---

    def _say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def _progress(self, text: str) -> None:
        text = f"{time.monotonic() - self.started:5.1f} s  {without_folders(one_line(text))}"
        self._say(f"{INDENT}{text}"[:WIDTH])

    def _styled(self, text: str, style: str) -> str:
        return styled(text, style, self.color)

    def _show_edits(self, step: Step, new: Mapping[str, str]) -> None:
        if step.restore:
            self._say(f"{INDENT}{', '.join(step.restore)}: as at the beginning")
            return
        for name, text in new.items():
            self._say(f"{INDENT}{self._styled(name, 'bold')}")
            for line in changed_lines(self.texts[name], text):
                style = {"+": "green", "-": "red"}.get(line[0], "dim")
                self._say(self._styled(f"{INDENT}{line.expandtabs(4)}"[:WIDTH].rstrip(), style))

    def _show_views(self, shown: Sequence[str], before: View, after: View) -> None:
        for word, text in zip(("before", "after"), shown, strict=True):
            self._say(f"{INDENT}{word:7} {one_line(text)}"[:WIDTH])
        state = (
            f"up {before.uptime:.1f} -> {after.uptime:.1f} s, ticks {before.ticks} -> {after.ticks},"
            f" the open file at line {before.kept_number} -> {after.kept_number}"
        )
        self._say(self._styled(f"{INDENT}{'state':7} {state}", "dim"))

    def _close(self, first: View, last: View) -> None:
        self._say("\n" + times_table(self.reports, self.color))
        live = sum(report.outcome.rung is not None for report in self.reports)
        self._say(
            f"\n{len(STEPS)} saves, {live} of them went live in a guest that was booted once:"
            f" up {first.uptime:.1f} -> {last.uptime:.1f} s, ticks {first.ticks} -> {last.ticks}.\n"
            f"Everything was checked, in {time.monotonic() - self.started:.0f} s."
            " Your turn: cd yourdriver && hotreload watch"
        )


def without_folders(text: str) -> str:
    """Return a text with its absolute paths reduced to file names."""
    return re.sub(r"(?<!\S)/\S*/", "", text)


def changed_lines(old: str, new: str) -> list[str]:
    """Return the lines of a unified diff, without its headers."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=CONTEXT)
    return [line for line in list(lines)[2:] if not line.startswith("@@")]


def times_table(reports: Sequence[ReloadReport], color: bool = False) -> str:
    """Return a table of the cycles and their times in seconds, narrow enough for the demo."""
    header = ["#", "outcome", "files", "what", *GROUPS, "saved to live"]
    return align(header, [_row(report) for report in reports], right=(0, *range(4, len(header))), color=color)


def _row(report: ReloadReport) -> list[str]:
    spent = report.milliseconds
    groups = [sum(spent.get(stage, 0.0) for stage in stages) / 1000 for stages in GROUPS.values()]
    what = [reason.code for reason in report.reasons] or list(report.symbols) or list(report.notes)
    return [
        str(report.number or ""),
        WORDS[report.outcome][0],
        enumerate_names([file.name for file in report.files], 18)[:18],
        enumerate_names(what, 20)[:20],
        *(f"{group:.2f}" if group else "" for group in groups),
        f"{report.saved_to_live_ms / 1000:.2f} s" if report.saved_to_live_ms is not None else "",
    ]
