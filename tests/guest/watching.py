# SPDX-License-Identifier: MIT
"""`hotreload watch` as a process, and the driver that it watches."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hotreload.paths import runtime_folder

DRIVER = """\
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

static int step = 1;
module_param(step, int, 0444);
static int reads;

static int show(struct seq_file *m, void *v)
{
	reads += step;
	seq_printf(m, "old %d\\n", reads);
	return 0;
}

static int __init counter_init(void)
{
	proc_create_single("counter", 0, NULL, show);
	return 0;
}

static void __exit counter_exit(void)
{
	remove_proc_entry("counter", NULL);
}
module_init(counter_init);
module_exit(counter_exit);
MODULE_LICENSE("GPL");
"""
TIMER = """\
static int ticks;
static void tick(struct timer_list *unused);
static DEFINE_TIMER(timer, tick);
static noinline void tick(struct timer_list *unused)
{
	ticks++;
	mod_timer(&timer, jiffies + 1);
}

static int __init"""
HOTRELOAD = (sys.executable, "-m", "hotreload")
LIMIT = 30.0


def made_driver(folder: Path) -> Path:
    folder.mkdir()
    (folder / "Kbuild").write_text("obj-m := counter.o\n")
    (folder / "counter.c").write_text(DRIVER)
    return folder


def edit(folder: Path, *changes: str) -> None:
    """Save the driver once; ``changes``: old and new texts in turn."""
    source = folder / "counter.c"
    text = source.read_text()
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    source.write_text(text)


def run(folder: Path, *words: str, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
    """One hotreload command in ``folder``, to its end."""
    return subprocess.run(
        [*HOTRELOAD, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=limit,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def _field(pid: int, name: str) -> str:
    """One line of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


class Watch:
    """A `hotreload watch` that runs; ``said`` is its standard error so far."""

    def __init__(self, folder: Path, *words: str, **options: object) -> None:
        self.log = folder.parent / f"said-{time.monotonic_ns()}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*HOTRELOAD, "watch", *words],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                **options,  # type: ignore[call-overload]
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def runs(self) -> None:
        """Return once the process is hotreload: a starting interpreter dies as any program does."""
        hangup = 1 << (signal.SIGHUP - 1)  # the last signal that hotreload takes in hand
        while not hangup & int(_field(self.process.pid, "SigCgt"), 16):
            time.sleep(0.002)

    def waits_for(self, pattern: str, *, times: int = 1, limit: float = LIMIT) -> str:
        """The line that matches, once it was said ``times`` times."""
        deadline = time.monotonic() + limit
        while len(found := re.findall(f"^.*(?:{pattern}).*$", self.said, re.MULTILINE)) < times:
            assert self.process.poll() is None, f"it ended ({self.process.returncode}): {self.said}"
            assert time.monotonic() < deadline, f"no {pattern!r} in: {self.said}"
            time.sleep(0.02)
        return str(found[-1])

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(LIMIT)


@contextlib.contextmanager
def watch(folder: Path, *words: str, **options: object) -> Iterator[Watch]:
    watching = Watch(folder, *words, **options)
    try:
        yield watching
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            watching.end()
        watching.process.kill()
        watching.process.wait(LIMIT)
        assert watching.process.stdout is not None
        watching.process.stdout.close()


def leftovers(folder: Path) -> list[str]:
    """Machines of this folder's guest, and sockets and folders of its session, that still exist."""
    qemus = []
    for commandline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"qemu-system" in (words := commandline.read_bytes()) and folder.name.encode() in words:
                qemus.append(words.replace(b"\0", b" ").decode())
    guests = runtime_folder() / "guests"
    named = [str(path) for path in guests.glob("*") if path.name.startswith(folder.name)]
    return qemus + named


def left_behind(folder: Path) -> list[str]:
    """What of this folder's session still exists after 10 s; it returns as soon as nothing does."""
    deadline = time.monotonic() + 10
    while (left := leftovers(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def reading(folder: Path) -> str:
    return run(folder, "guest", "exec", "cat", "/proc/counter").stdout
