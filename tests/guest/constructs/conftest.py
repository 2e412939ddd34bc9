# SPDX-License-Identifier: MIT
"""One `hotreload watch` on driver/ for each kernel, and what the tests do with it.

The tests of a kernel share its guest, and their edits stay: each patch carries those before it, so that a
construct is proved among all others, too. What is refused is taken back.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from hotreload.build.debian_kernel import open_kernel
from hotreload.build.kernel_tree import KernelTree
from hotreload.demo.driven import Driven, guest_name
from hotreload.elf.reader import read_object
from hotreload.errors import EnvironmentFault
from hotreload.report.outcome import Outcome, Reason, ReloadReport
from hotreload.session.control import answer
from hotreload.session.guests import place_of
from tests.conftest import OTHER_KERNEL, require, say
from tests.guest.conftest import PROGRAMS

DRIVER = Path(__file__).with_name("driver")
KERNELS = (OTHER_KERNEL,) if OTHER_KERNEL else ("debian", "debian:6.12")
COMPLAINT = re.compile(r".*(?:WARNING: CPU|BUG:|Unpatched|Invalid padding|unable to ).*")
# What no guest sees needs one of them only.
one_kernel = pytest.mark.parametrize("running", KERNELS[:1], indirect=True, scope="package")

Edit = tuple[str, str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Code:
    """A function as it stands in the guest's memory."""

    address: int
    content: bytes

    def goes_to(self, address: int) -> bool:
        """Whether there is a CALL or JMP with a 32-bit displacement to an address."""
        return any(
            self.address + at + 5 + int.from_bytes(self.content[at + 1 : at + 5], "little", signed=True)
            == address
            for at, byte in enumerate(self.content[:-4])
            if byte in (0xE8, 0xE9)
        )


class Constructs:
    """The guest that runs the driver of this folder, in plain calls."""

    def __init__(self, folder: Path, kernel: KernelTree, name: str, watch: Driven, runner: asyncio.Runner):
        self.kernel = kernel
        self._folder = folder
        self._watch = watch
        self._runner = runner
        self._place = place_of(name)
        self._marks = 0
        self._addresses: dict[str, int] = {}
        self._texts: dict[str, str] = {}

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def begin(self) -> None:
        """A test's edits are edits of what was booted, whatever the tests before made of the same unit."""
        self._texts = {file.name: file.read_text() for file in DRIVER.glob("*.c")}

    def line_of(self, file: str, text: str) -> str:
        """``FILE:LINE`` of the one line that holds ``text``, as WARN() tells it."""
        lines = [number for number, line in enumerate(self._texts[file].splitlines(), 1) if text in line]
        assert len(lines) == 1, f"{text!r} is in lines {lines} of {file}"
        return f"{file}:{lines[0]}"

    def edit(self, **edits: Edit | tuple[Edit, ...]) -> ReloadReport:
        """Replace texts in ``NAME.c``, and save. What does not go live is taken back, and fails the test."""
        report, put_back = self._save(edits)
        if report.outcome is not Outcome.LIVE:
            put_back()
        assert report.outcome is Outcome.LIVE, (report.outcome, report.reasons, report.error)
        return report

    def refusal(self, **edits: Edit | tuple[Edit, ...]) -> tuple[Reason, ...]:
        """Save an edit that is refused, tell the reasons, and take it back."""
        report, put_back = self._save(edits)
        put_back()
        assert report.outcome is Outcome.REFUSED, report
        return report.reasons

    def _save(
        self, edits: Mapping[str, Edit | tuple[Edit, ...]]
    ) -> tuple[ReloadReport, Callable[[], object]]:
        """Save, and wait for the cycle to end; the second value undoes it."""
        after = {f"{name}.c": _edited(self._texts[f"{name}.c"], edits[name]) for name in edits}
        before, texts = {file: (self._folder / file).read_text() for file in after}, self._texts
        self._texts = texts | after

        def put_back() -> None:
            self._texts = texts
            self._wait(self._written(before))

        return self._wait(self._written(after)), put_back

    async def _written(self, texts: Mapping[str, str]) -> ReloadReport:
        for file, text in texts.items():
            (self._folder / file).write_text(text)
        return (await self._watch.next_cycle()).report

    def verb(self, verb: str, **fields: object) -> dict[str, Any]:
        """What `hotreload VERB` answers."""
        return self._wait(answer(self._place, verb, **fields))

    def undo_all(self) -> ReloadReport:
        """`hotreload undo --all`."""
        self.verb("undo", everything=True)
        # Whoever follows the session is told of this cycle as of any other.
        return self._wait(self._watch.next_cycle()).report

    def run(self, command: str) -> str:
        """What a shell command in the guest prints; it must succeed."""
        done = self._wait(self._watch.run(command))
        assert done.ok, (command, done.text, done.complaint)
        return done.text

    def read(self, name: str, number: int = 0) -> str:
        """One line of /proc/constructs/NAME, with the module's parameter ``input`` set to ``number``."""
        return self.run(f"{_set('input', number)}; cat /proc/constructs/{name}").rstrip("\n")

    def log_of_reading(self, name: str, number: int) -> str:
        """What the kernel says while ``read`` does."""
        self._marks += 1
        mark = f"constructs mark {self._marks}."
        self.run(f"echo '{mark}' >/dev/kmsg")
        self.read(name, number)
        return self.run("dmesg").rpartition(mark)[2]

    @property
    def patch(self) -> str:
        """The name of the live patch."""
        return self.run("ls /sys/kernel/livepatch").strip()

    def address(self, symbol: str) -> int:
        """Where the kernel itself has a symbol."""
        if symbol not in self._addresses:
            self._addresses[symbol] = self._memory(symbol)[0]
        return self._addresses[symbol]

    def code(self, function: str) -> Code:
        """The patched function that runs now."""
        patch = self.patch
        place, content = self._memory(f"{patch}:{function}")
        records = Path(self.verb("status")["records"])
        (module,) = records.glob(f"reloads/*/4-module/{patch}.ko")
        # The kernel's own idea of a size is the distance to the next symbol.
        (size,) = (symbol.size for symbol in read_object(module).symbols if symbol.name == function)
        return Code(place, content[:size])

    def _memory(self, symbol: str) -> tuple[int, bytes]:
        first, *rows = self.run(f"{_set('symbol', symbol)}; cat /proc/constructs/memory").splitlines()
        place = int(first, 16)
        assert place, f"there is no {symbol}"
        return place, bytes.fromhex("".join(rows))


def _edited(text: str, edits: Edit | tuple[Edit, ...]) -> str:
    pairs = edits if isinstance(edits[0], tuple) else (edits,)
    for old, new in pairs:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text


def _set(parameter: str, value: object) -> str:
    return f"echo {value} >/sys/module/constructs/parameters/{parameter}"


@pytest.fixture(scope="package", params=KERNELS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Constructs]:
    for program, package in PROGRAMS.items():
        require(shutil.which(program), program, f"apt-get install {package}")
    folder = tmp_path_factory.mktemp("drivers") / "constructs"
    shutil.copytree(DRIVER, folder)
    name = guest_name("constructs")
    with asyncio.Runner() as runner:
        try:
            kernel = runner.run(open_kernel(request.param, say))
        except EnvironmentFault as fault:
            require(False, f"the packaged kernel ({fault.message})", fault.hint or "hotreload doctor --fix")
            raise
        watch = Driven(folder, name, lambda _text: None, ("-K", request.param, "--max-rung", "patch"))
        runner.run(watch.__aenter__())
        try:
            running = Constructs(folder, kernel, name, watch, runner)
            yield running
            # The kernel complains of nothing but what the tests of warn.c make it say.
            complaints = COMPLAINT.findall(running.run("dmesg"))
            assert [line for line in complaints if "warn.c" not in line] == []
        finally:
            runner.run(watch.__aexit__(None, None, None))


@pytest.fixture
def constructs(running: Constructs) -> Constructs:
    running.begin()
    return running
