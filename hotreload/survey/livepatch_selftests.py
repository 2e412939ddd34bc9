# SPDX-License-Identifier: MIT
"""`scripts/livepatch-selftests`: run the kernel's own livepatch selftests in our guest.

They run in the guest of a `hotreload watch` in the kernel's sources: before the first reload, and again after
a series of reloads was undone. The tests are bash scripts that compare the kernel's log with the expected
text. They are written for the usual programs, so those of this machine are used instead of busybox's. Up to
v6.8 their modules are part of the kernel (lib/livepatch); since v6.9 they are built with the tests
(c4bbe83d27c2).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotreload import process
from hotreload.build.debian_kernel import locked
from hotreload.build.external_module import build_modules
from hotreload.build.kernel_tree import KernelTree, find_kernel
from hotreload.demo.driven import Driven, guest_name
from hotreload.errors import EnvironmentFault, InputError, KernelUnfitError
from hotreload.report.outcome import Outcome
from hotreload.session.control import answer
from hotreload.session.guests import place_of
from hotreload.survey.command import say
from hotreload.survey.running_kernel import run
from hotreload.vm.image import program_with_libraries

FOLDER = "opt/livepatch"  # in the guest
TESTS = Path("tools/testing/selftests/livepatch")
KMOD = ("depmod", "insmod", "modinfo", "modprobe", "rmmod")
PROGRAMS = ("bash", "comm", "date", "diff", "getconf", "mktemp", "stat", "sysctl", *KMOD)
PACKAGES = {**dict.fromkeys(KMOD, "kmod"), "sysctl": "procps"}
SKIPPED = 4  # a selftest's exit status
RELOADS = 20


@dataclass(frozen=True, slots=True)
class Place:
    """A function to edit: its source, the text to replace, and the file that shows the edit's number."""

    source: str
    old: str
    new: str
    file: str

    def edited(self, text: str, number: int) -> str:
        if text.count(self.old) != 1:
            raise InputError(f"{self.source} has {self.old!r} {text.count(self.old)} times")
        return text.replace(self.old, self.new % number)


# The selftests also replace the first of these functions.
PLACES = (
    Place(
        "fs/proc/cmdline.c",
        "seq_puts(m, saved_command_line);",
        'seq_puts(m, "reload-%d ");\n\tseq_puts(m, saved_command_line);',
        "/proc/cmdline",
    ),
    Place(
        "fs/proc/devices.c",
        '"Character devices:\\n"',
        '"Character devices of reload-%d:\\n"',
        "/proc/devices",
    ),
    Place("fs/filesystems.c", '"nodev"', '"nodev of reload-%d"', "/proc/filesystems"),
)


async def check(kernel: str, reloads: int, only: str) -> int:
    """Run the selftests of a kernel before and after a series of reloads. Return 0 if all pass, else 1."""
    tree = find_kernel(kernel)
    with tempfile.TemporaryDirectory() as scratch:
        archive = await _archive(tree, Path(scratch), only)
    name = guest_name("selftests")
    async with _sources_kept(tree), Driven(tree.source, name, say, ("-K", str(tree.output))) as watch:
        await _must(watch, "tar -x -C /", archive)
        # Use the path, because busybox's shell has its own depmod, whose index modprobe cannot use.
        await _must(watch, "/bin/depmod && ln -sf /proc/self/fd /dev/fd")
        wrong = await _run_all(watch, "before a reload")
        await _reload(watch, tree, reloads)
        await _undo(watch, name)
        return int(bool(wrong + await _run_all(watch, f"after {reloads} reloads were undone")))


# --- what goes into the guest ---


async def _archive(tree: KernelTree, scratch: Path, only: str) -> bytes:
    """Return a tar archive of the tests, their modules, and the programs that they need."""
    tests = tree.source / TESTS
    scripts = sorted(file for file in tests.glob("*.sh") if only in file.name or file.name == "functions.sh")
    if not scripts:
        raise InputError(
            f"{tests} has no selftests", hint="use -K to name a kernel that was built from complete sources"
        )
    files = {f"{FOLDER}/{script.name}": (script.read_bytes(), 0o755) for script in scripts}
    if (tests / "test_modules").is_dir():
        files |= {
            f"{FOLDER}/test_modules/{ko.name}": (ko.read_bytes(), 0o644) for ko in await _built(tree, scratch)
        }
        files[f"{FOLDER}/test_klp-call_getpid"] = (
            await _program(tests / "test_klp-call_getpid.c", scratch),
            0o755,
        )
    else:
        files |= {
            f"lib/modules/{tree.release}/extra/{ko.name}": (ko.read_bytes(), 0o644)
            for ko in _kernels_own(tree)
        }
    for program in PROGRAMS:
        # Put it in /bin, in place of busybox's: one test looks for /bin/stat.
        for entry in await program_with_libraries(program, f"bin/{program}", PACKAGES.get(program, program)):
            files[entry.path] = entry.content, entry.mode & 0o777
    return _tar(files)


def _kernels_own(tree: KernelTree) -> list[Path]:
    found = sorted((tree.output / "lib/livepatch").glob("*.ko"))
    if not found:
        raise KernelUnfitError(
            f"{tree.output} has no modules in lib/livepatch",
            hint="set CONFIG_TEST_LIVEPATCH=m and build it: hotreload kernel build --config minimal",
        )
    return found


async def _built(tree: KernelTree, scratch: Path) -> list[Path]:
    folder = scratch / "test_modules"
    folder.mkdir()
    for source in (tree.source / TESTS / "test_modules").iterdir():
        if source.suffix == ".c" or source.name == "Makefile":
            (folder / source.name).write_bytes(source.read_bytes())
    return [module.ko for module in (await build_modules(tree, folder)).modules]


async def _program(source: Path, scratch: Path) -> bytes:
    output = scratch / source.stem
    made = await process.run(["gcc", "-static", "-O2", "-o", output, source], timeout=60)
    if not made.ok:
        raise EnvironmentFault(
            f"{source.name} cannot be compiled: {made.complaint}", hint="apt-get install libc6-dev"
        )
    return output.read_bytes()


def _tar(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for path, (content, mode) in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return written.getvalue()


# --- the tests ---


async def _run_all(watch: Driven, when: str) -> list[str]:
    """Run every selftest and print its result. Return the names of those that did not pass."""
    listed = await _must(watch, f"cd /{FOLDER} && ls test-*.sh")
    wrong = []
    for name in listed.split():
        started = time.monotonic()
        done = await watch.run(f"cd /{FOLDER} && {_environment()} ./{name} 2>&1")
        seconds = time.monotonic() - started
        verdict = "skipped" if done.status == SKIPPED else "ok" if done.ok else "not ok"
        print(f"{verdict:<8} {name}  {seconds:.1f} s  {when}", flush=True)
        if verdict != "ok":
            wrong.append(name)
            print("".join(f"         {line}\n" for line in done.text.splitlines()), end="", flush=True)
    return wrong


def _environment() -> str:
    # The scripts require the folder of a kernel to build modules against, but the modules are built already.
    # "C" is for messages and sorting.
    return "PATH=/bin:/usr/bin KDIR=/ LC_ALL=C"


async def _must(watch: Driven, command: str, stdin: bytes = b"") -> str:
    done = await watch.run(command, stdin)
    if not done.ok:
        raise EnvironmentFault(
            f"in the guest, {shlex.split(command)[0]} failed: {done.text} {done.complaint}"
        )
    return done.text


# --- the session ---


@contextlib.asynccontextmanager
async def _sources_kept(tree: KernelTree) -> AsyncIterator[None]:
    """Lock the sources. Afterwards, restore the edited files and their times: make then rebuilds nothing."""
    async with locked(tree.source.parent / f".{tree.source.name}.lock", say, "edits these sources"):
        with _restored([tree.source / place.source for place in PLACES]):
            yield


@contextlib.contextmanager
def _restored(files: Sequence[Path]) -> Iterator[None]:
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    try:
        yield
    finally:
        for file, (content, modified) in before.items():
            file.write_bytes(content)
            os.utime(file, ns=(modified, modified))


async def _reload(watch: Driven, tree: KernelTree, reloads: int) -> None:
    """Make ``reloads`` edits, in each place in turn, and check that each goes live."""
    texts = {place: (tree.source / place.source).read_text() for place in PLACES}
    started = time.monotonic()
    for number in range(1, reloads + 1):
        place = PLACES[number % len(PLACES)]
        (tree.source / place.source).write_text(place.edited(texts[place], number))
        report = (await watch.next_cycle()).report
        if report.outcome is not Outcome.LIVE:
            raise InputError(f"reload {number} is {report.outcome}: {report.error or report.reasons}")
        if f"reload-{number}" not in await _must(watch, f"cat {place.file}"):
            raise InputError(f"reload {number} is live, but {place.file} does not show it")
    say(f"{reloads} reloads in {time.monotonic() - started:.1f} s")


async def _undo(watch: Driven, guest: str) -> None:
    """Undo all reloads in the guest, and check that. The sources stay edited until the end."""
    await answer(place_of(guest), "undo", everything=True)
    left = await _must(watch, f"ls /sys/kernel/livepatch; cat {' '.join(place.file for place in PLACES)}")
    if "hotreload" in left or "reload-" in left:
        raise InputError(f"the guest still runs code that was undone: {left[:200]}")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/livepatch-selftests", description="Run the kernel's own livepatch selftests in a guest."
    )
    parser.add_argument("-K", "--kernel", default=".", metavar="DIR", help="a built kernel (default: here)")
    parser.add_argument("--reloads", type=int, default=RELOADS, metavar="N", help=f"default {RELOADS}")
    parser.add_argument("--only", default="", metavar="TEXT", help="only selftests whose name contains TEXT")
    return parser.parse_args(argv)


if __name__ == "__main__":
    # Restore the sources also when this is terminated by a signal.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    given = parse()
    sys.exit(run(lambda: check(given.kernel, given.reloads, given.only)))
