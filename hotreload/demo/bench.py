# SPDX-License-Identifier: MIT
"""`hotreload bench`: measure what an edit costs here, stage by stage, and what the other ways cost.

Each round makes one edit of the example driver and brings it to a guest in each way, one after the other, so
that noise of the machine affects all of them:

    hotreload   saved, in the folder that a real `hotreload watch` watches
    compile     the recorded command of the edited unit alone: nothing that compiles can be faster
    module      make, copy, rmmod, insmod: a twin of the driver under another name, in the same guest
    reboot      stop, make, boot, log in, insmod: in a guest of its own, every third round

Before the rounds, generated objects of two sizes are read and compared, because the driver is too small to
say much about that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from hotreload import process
from hotreload.build.make_words import environment_in
from hotreload.demo.driven import Driven, guest_name
from hotreload.demo.examples import NAME, Edit, copy_example, sources
from hotreload.demo.generated import DiffTimes, measure_diffs
from hotreload.demo.idle import Idle, measure_idle
from hotreload.demo.play import without_folders
from hotreload.errors import HotReloadError
from hotreload.interrupts import run
from hotreload.report.outcome import STAGES, Outcome
from hotreload.report.table import align
from hotreload.report.text import styled

if TYPE_CHECKING:
    from hotreload.build.built import Build
    from hotreload.build.kernel_tree import KernelTree
    from hotreload.config import Config
    from hotreload.deploy.guest import SshGuest
    from hotreload.report.console import Console

TWIN = "tocker"
REBOOT_EVERY = 3
# Seconds: to let base objects be compiled ahead before anything is timed, and to measure it while idle.
SETTLE = 4.0
IDLE_SECONDS = 10.0
# The goal of the project: a save is live at most this much later than the compiler alone needs.
GOAL_MS = 600.0

# The name of each way, and what it loses.
WAYS = {
    "compile": ("the recorded compile alone", ""),
    "hotreload": ("hotreload: saved to live", "nothing is lost"),
    "module": ("make, copy, rmmod, insmod", "the driver's state is lost"),
    "reboot": ("stop, make, boot, insmod", "the guest's state is lost"),
}


@dataclass(slots=True)
class Result:
    """The measurements.

    ``samples``  milliseconds of each round, by way
    ``stages``   milliseconds of each round, by hotreload's stages
    ``idle``     what it costs to wait
    ``diffs``    how long it takes to compare objects of known sizes
    """

    kernel: str
    accel: str
    edits: int
    samples: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    stages: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    idle: Idle | None = None
    diffs: tuple[DiffTimes, ...] = ()

    def median(self, way: str) -> float | None:
        return statistics.median(self.samples[way]) if self.samples[way] else None

    @property
    def above_compile(self) -> float:
        """How many milliseconds longer than the compiler alone a save takes.

        This is the median of the differences of the rounds.
        """
        pairs = zip(self.samples["hotreload"], self.samples["compile"], strict=True)
        return statistics.median(live - alone for live, alone in pairs)


def edit_of(number: int) -> Edit:
    """Return the edit of a round. The two units take turns, and no edit occurs twice."""
    if number % 2:
        return Edit("main.c", '"line %u: age %llu, %s\\n"', f'"line %u: age %llu, %s, edit {number}\\n"')
    return Edit("stats.c", '"lines %d\\n"', f'"lines %d\\nedit  {number}\\n"')


def measure(
    edits: int, config: Config, console: Console, stdout: TextIO, *, as_json: bool, color: bool
) -> int:
    """Measure, and print the result to ``stdout``. Raises as `hotreload watch` and kbuild do."""
    result = run(_measure(edits, config, console.say))
    print(json.dumps(as_object(result)) if as_json else as_text(result, color), file=stdout, flush=True)
    return 0


async def _measure(edits: int, config: Config, say: Callable[[str], None]) -> Result:
    from hotreload.build.debian_kernel import open_kernel

    with tempfile.TemporaryDirectory(prefix="hotreload-bench-") as place:
        watched, twin = copy_example(Path(place, "watched")), copy_twin(Path(place, "twin"))
        options = ("--max-rung", "patch", "--kernel", config.kernel)

        def progress(text: str) -> None:
            say(without_folders(text))

        say("comparing generated objects")
        diffs = await measure_diffs("gcc", Path(place, "generated"))
        async with contextlib.AsyncExitStack() as owned:
            watch = await owned.enter_async_context(Driven(watched, guest_name("bench"), progress, options))
            kernel = await open_kernel(config.kernel, progress)
            loops = await owned.enter_async_context(_Loops.open(kernel, twin, watch, place))
            result = Result(kernel.release, str(watch.facts["accel"]), edits, diffs=diffs)
            say(f"idle for {IDLE_SECONDS:g} s")
            await asyncio.sleep(SETTLE)
            result.idle = await measure_idle(watch.pid, IDLE_SECONDS)
            for number in range(1, edits + 1):
                await _round(number, watched, watch, loops, result)
                say(f"edit {number} of {edits}: {_told(result)}")
    return result


def copy_twin(parent: Path) -> Path:
    """Copy the driver as a module of another name, so that both fit into one guest. Return its folder."""
    folder = copy_example(parent)
    for name, old, new in (
        ("Kbuild", NAME, TWIN),
        ("ticker.h", f'TICKER_NAME "{NAME}"', f'TICKER_NAME "{TWIN}"'),
    ):
        file = folder / name
        file.write_text(file.read_text().replace(old, new))
    return folder


async def _round(number: int, watched: Path, watch: Driven, loops: _Loops, result: Result) -> None:
    edit = edit_of(number)
    loops.save(edit)
    ways: list[tuple[str, Callable[[], Awaitable[float]]]] = [
        ("compile", lambda: loops.compile(edit.file)),
        ("hotreload", lambda: _save_and_wait(watched, edit, watch, result)),
        ("module", lambda: loops.replace_module(edit.file)),
    ]
    if number % REBOOT_EVERY == 0 or number == result.edits < REBOOT_EVERY:
        ways.append(("reboot", lambda: loops.reboot(edit.file)))
    # Reverse the order in every other round, so that no way always follows the same one.
    for way, work in ways if number % 2 else reversed(ways):
        result.samples[way].append(await work())


async def _save_and_wait(watched: Path, edit: Edit, watch: Driven, result: Result) -> float:
    text = edit.applied(sources()[edit.file])
    (watched / edit.file).write_text(text)
    report = (await watch.next_cycle()).report
    if report.outcome is not Outcome.LIVE or report.saved_to_live_ms is None:
        reason = next((reason.message for reason in report.reasons), report.error)
        raise HotReloadError(f"an edit of {edit.file} did not go live: {report.outcome.value}: {reason}")
    for stage in STAGES:
        result.stages[stage].append(report.milliseconds.get(stage, 0.0))
    return report.saved_to_live_ms


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    """Measure the time of the block.

    The function that it yields returns the milliseconds so far or, after the block, of the whole block.
    """
    started = time.monotonic()
    ended: list[float] = []
    yield lambda: ((ended[0] if ended else time.monotonic()) - started) * 1000
    ended.append(time.monotonic())


class _Loops:
    """The other ways to bring an edit to a guest. They use the driver's twin."""

    def __init__(self, kernel: KernelTree, folder: Path, watch: Driven, place: str, module: Build) -> None:
        self._kernel = kernel
        self._folder = folder
        self._watch = watch
        self._place = Path(place)
        self._module = module
        self._running = contextlib.AsyncExitStack()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, kernel: KernelTree, folder: Path, watch: Driven, place: str) -> AsyncIterator[_Loops]:
        """Build and load the twin. Nothing of it is left afterwards."""
        from hotreload.build.external_module import build_modules

        loops = cls(kernel, folder, watch, place, await build_modules(kernel, folder))
        await loops._in_guest(f"cat >/tmp/{TWIN}.ko && insmod /tmp/{TWIN}.ko")
        try:
            yield loops
        finally:
            await loops._running.aclose()

    def save(self, edit: Edit) -> None:
        """Edit the twin."""
        (self._folder / edit.file).write_text(edit.applied(sources()[edit.file]))

    async def compile(self, name: str) -> float:
        """Run the recorded command of a unit as it is. Return the milliseconds."""
        unit = next(unit for unit in self._module.units if unit.source.name == name)
        with _timed() as milliseconds:
            _done(await process.run(["sh", "-c", unit.command], cwd=unit.cwd))
        return milliseconds()

    async def replace_module(self, name: str) -> float:
        """Run the loop without a reboot, one command each, as a script would. Return the milliseconds."""
        (self._folder / name).touch()  # make would find the object of the previous compile
        with _timed() as milliseconds:
            await self._make()
            await self._in_guest(f"cat >/tmp/{TWIN}.ko && rmmod {TWIN} && insmod /tmp/{TWIN}.ko")
        return milliseconds()

    async def reboot(self, name: str) -> float:
        """Run the loop with a reboot. Return the milliseconds.

        The guest is up and logged into before the time starts.
        """
        if not hasattr(self, "_guest"):
            await self._boot()
        (self._folder / name).touch()
        with _timed() as milliseconds:
            await self._running.aclose()
            await self._make()
            await self._boot()
        return milliseconds()

    async def _make(self) -> None:
        argv = ("make", "-C", self._kernel.output, f"M={self._folder}", "modules")
        _done(await process.run(argv, cwd=self._folder, env=environment_in(self._folder)))

    async def _in_guest(self, command: str) -> None:
        done = await self._watch.run(command, (self._folder / f"{TWIN}.ko").read_bytes())
        if not done.ok:
            raise HotReloadError(f"'{command}' failed in the guest: {done.complaint}")

    async def _boot(self) -> None:
        from hotreload.deploy.guest import SshGuest
        from hotreload.deploy.livepatch import AGENT_PATH, agent_source, load_module
        from hotreload.vm.image import build_image
        from hotreload.vm.machine import Machine
        from hotreload.vm.spec import MachineSpec

        image = await build_image(self._kernel, extra={AGENT_PATH: agent_source()})
        spec = MachineSpec(
            self._kernel.image, image.initramfs, str(self._watch.facts["accel"]), name="reboot"
        )
        machine = await self._running.enter_async_context(Machine(spec, self._place / "console.log"))
        self._guest: SshGuest = await self._running.enter_async_context(
            SshGuest(machine.ssh_port, image.client_key, image.host_key)
        )
        await load_module(self._guest, TWIN, (self._folder / f"{TWIN}.ko").read_bytes())


def _done(completed: process.Completed) -> None:
    if not completed.ok:
        said = completed.complaint.splitlines()
        raise HotReloadError(f"{completed.argv[0]} failed: {said[-1] if said else completed.status}")


# --- the result ---


def as_object(result: Result) -> Mapping[str, object]:
    """Return the result as JSON: milliseconds, kilobytes, per cent of one core."""
    medians = {way: result.median(way) for way in WAYS}
    bare = medians["compile"] or 0.0
    return {
        "v": 1,
        "kernel": result.kernel,
        "accel": result.accel,
        "edits": result.edits,
        "median_ms": {way: value and round(value, 1) for way, value in medians.items()},
        "times_compile": {way: value and round(value / bare, 2) for way, value in medians.items()},
        "above_compile_ms": round(result.above_compile, 1),
        "stages_median_ms": {
            stage: round(statistics.median(values), 1) for stage, values in result.stages.items() if values
        },
        "samples_ms": {way: [round(value, 1) for value in values] for way, values in result.samples.items()},
        "idle": result.idle and asdict(result.idle),
        "diffs": [
            {
                "unit": times.name,
                "symbols": times.symbols,
                "relocations": times.relocations,
                "goal_ms": times.goal_ms,
                "median_ms": round(times.median_ms, 1),
                "samples_ms": [round(value, 1) for value in times.samples_ms],
            }
            for times in result.diffs
        ],
    }


def as_text(result: Result, color: bool = False) -> str:
    """Return the result as text for a person."""
    edits = f"{result.edits} edits of the example driver, Linux {result.kernel} ({result.accel})"
    above = result.above_compile
    goal = "within" if above <= GOAL_MS else "MISSED"
    lines = [
        styled(edits, "bold", color),
        "",
        align(
            ["", "median", "from", "to", "runs", "x compile", ""], _way_rows(result), (1, 2, 3, 4, 5), color
        ),
        "",
        align(["hotreload's stages", "median", "from", "to"], _stage_rows(result), (1, 2, 3), color),
        "",
        f"above the compile alone: {_s(above)} ({goal} the goal of {_s(GOAL_MS)})",
    ]
    if result.diffs:
        header = ["objects read and compared", "median", "from", "to", "symbols", "relocations", ""]
        lines[-1:-1] = [align(header, _diff_rows(result), (1, 2, 3, 4, 5), color), ""]
    if result.idle is not None:
        lines.append(result.idle.text)
    return "\n".join(lines)


def _way_rows(result: Result) -> Iterator[Sequence[str]]:
    bare = result.median("compile") or 0.0
    for way, (name, lost) in WAYS.items():
        values = result.samples[way]
        if values:
            ratio = f"{statistics.median(values) / bare:.1f}"
            yield name, *_spread(values), str(len(values)), ratio, lost


def _stage_rows(result: Result) -> Iterator[Sequence[str]]:
    for stage, values in result.stages.items():
        if values:
            yield f"  {stage}", *_spread(values)


def _diff_rows(result: Result) -> Iterator[Sequence[str]]:
    for times in result.diffs:
        goal = "within" if times.median_ms <= times.goal_ms else "MISSED"
        sizes = str(times.symbols), str(times.relocations)
        yield f"  {times.name}", *_spread(times.samples_ms), *sizes, f"{goal}: {_s(times.goal_ms)}"


def _spread(values: Sequence[float]) -> tuple[str, str, str]:
    return _s(statistics.median(values)), _s(min(values)), _s(max(values))


def _s(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.3f} s"


def _told(result: Result) -> str:
    return ", ".join(f"{way} {_s(values[-1])}" for way, values in result.samples.items() if values)
