# SPDX-License-Identifier: MIT
"""`scripts/record-crashes`: record what a kernel prints when a driver misbehaves, for tests/recorded.

Each story boots a guest of its own, loads the driver in crash_driver, and makes it do one thing. The console
output from then on is recorded unchanged. Stories that need a feature that packaged kernels lack, such as
KASAN or lockdep, name its configuration option, and are skipped on other kernels.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotreload.build.debian_kernel import open_kernel
from hotreload.build.external_module import build_modules
from hotreload.build.kernel_tree import KernelTree
from hotreload.deploy.guest import SshGuest
from hotreload.errors import GuestUnreachableError
from hotreload.interrupts import run
from hotreload.report.crash import find_crash
from hotreload.survey.command import say
from hotreload.vm.image import GuestImage, build_image
from hotreload.vm.machine import Machine
from hotreload.vm.probe import choose_accel
from hotreload.vm.spec import MachineSpec

DRIVER = Path(__file__).with_name("crash_driver")
CALLED = "/home/me/foo"  # the driver's folder in the recordings, as in -fmacro-prefix-map in its Kbuild
TELL = "echo %s >/sys/module/foo/parameters/story"
LONGEST = 450  # lines of a recording
# Seconds.
AFTERMATH = 2.5
LAST_MOMENT = 50.0


@dataclass(frozen=True, slots=True)
class Story:
    """One thing that the driver does.

    ``needs``: a configuration option that it needs. ``lacks``: one that would change what is printed.
    ``wait``: seconds without output after which the recording ends.
    """

    name: str
    needs: str | None = None
    lacks: str | None = None
    arguments: tuple[str, ...] = ()
    cpus: int = 1
    before: str = "true"
    command: str = ""
    load: str = "insmod /tmp/foo.ko"
    wait: float = 2.0


def _plain(names: str, needs: str | None = None, lacks: str | None = None) -> Iterator[Story]:
    yield from (Story(name, needs, lacks) for name in names.split())


def _with(argument: str, names: str, needs: str, lacks: str | None = None) -> Iterator[Story]:
    yield from (Story(name, needs, lacks, (argument,), wait=40) for name in names.split())


WATCHDOGS_OFF = "echo 0 >/proc/sys/kernel/watchdog"
STALL = "echo 4 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout"
KASAN, LOCKDEP = "CONFIG_KASAN", "CONFIG_PROVE_LOCKING"

STORIES = (
    *_plain(
        "null_dereference null_call page_fault general_protection execute_data write_read_only divide_error"
        " bug_on trap stack_smashed panic timer_null interrupt_null workqueue_null kthread_null"
        " double_free fortify usercopy packet_too_long list_del_twice list_add_twice bad_page vfree_twice"
        " cache_busy allocation_failure warn warn_message warn_once refcount_zero refcount_underflow"
        " kobject_twice sysfs_duplicate proc_duplicate proc_missing device_without_release irq_nobody"
        " irq_enables irq_free scheduling_while_atomic idle_sleep rcu_sleep workqueue_leak timer_leak",
        lacks=KASAN,
    ),
    # With pvpanic, a panic stops the guest before the console has the output that printk deferred.
    Story("stack_overflow", lacks=KASAN, before="rmmod pvpanic_pci pvpanic"),
    Story("init_null", load="insmod /tmp/foo.ko at_init=null_dereference", command="true", lacks=KASAN),
    Story("init_leak", load="insmod /tmp/foo.ko at_init=preempt_leak", command="true", lacks=KASAN),
    Story("unloaded_timer", command=f"{TELL % 'unloaded_timer'}; rmmod foo", wait=4, lacks=KASAN),
    Story("sysrq", command="echo c >/proc/sysrq-trigger", lacks=KASAN),
    Story("out_of_memory", command="tail /dev/zero", lacks=KASAN, wait=8),
    *_with("slub_debug=FZPU", "slub_poison slub_redzone slub_double_free", "CONFIG_SLUB_DEBUG", KASAN),
    Story("soft_lockup", lacks=KASAN, before="echo 3 >/proc/sys/kernel/watchdog_thresh", wait=14),
    Story("rcu_stall", lacks=KASAN, cpus=2, before=f"{WATCHDOGS_OFF}; {STALL}", wait=34),
    Story("rcu_stall_other", command=TELL % "hard_lockup", lacks=KASAN, cpus=2,
          before=f"{WATCHDOGS_OFF}; {STALL}", wait=25),
    Story("hung_task", lacks=KASAN, before="echo 3 >/proc/sys/kernel/hung_task_timeout_secs", wait=12),
    Story("netdev_leak", lacks=KASAN, wait=18),
    Story("netdev_watchdog", lacks=KASAN, wait=10),
    *_with("kfence.sample_interval=1", "guarded_out_of_bounds guarded_use_after_free guarded_invalid_free"
           " guarded_corruption", "CONFIG_KFENCE"),
    *_plain("slab_out_of_bounds use_after_free stack_out_of_bounds global_out_of_bounds", KASAN),
    Story("kasan_null", KASAN, command=TELL % "null_dereference"),
    Story("kasan_double_free", KASAN, command=TELL % "double_free"),
    *_plain("array_index shift", "CONFIG_UBSAN"),
    Story("ubsan_divide", "CONFIG_UBSAN_DIV_ZERO", command=TELL % "divide_error"),
    *_plain("lockdep_circular lockdep_recursive lockdep_irq lockdep_order lock_freed lock_leak bad_unlock"
            " lock_unset rcu_unlocked", LOCKDEP),
    Story("spin_twice", lacks=KASAN, before="echo 3 >/proc/sys/kernel/watchdog_thresh", wait=14),
    Story("sleeping_in_atomic", "CONFIG_DEBUG_ATOMIC_SLEEP"),
    Story("preemptible_cpu", "CONFIG_DEBUG_PREEMPT"),
    Story("timer_freed", "CONFIG_DEBUG_OBJECTS_TIMERS"),
    Story("work_reinitialised", "CONFIG_DEBUG_OBJECTS_WORK"),
    Story("dma_unmapped", "CONFIG_DMA_API_DEBUG"),
    Story("workqueue_lockup", "CONFIG_WQ_WATCHDOG", arguments=("workqueue.watchdog_thresh=4",),
          before=WATCHDOGS_OFF, wait=16),
    # Not on the first processor, because that keeps the time.
    Story("hard_lockup", "CONFIG_HARDLOCKUP_DETECTOR_BUDDY", cpus=2,
          command=f"taskset 2 sh -c '{TELL % 'hard_lockup'}'",
          before="echo 3 >/proc/sys/kernel/watchdog_thresh", wait=30),
    Story("list_del_warned", "CONFIG_DEBUG_LIST", "CONFIG_BUG_ON_DATA_CORRUPTION",
          command=TELL % "list_del_twice"),
)  # fmt: skip


async def record(where: str, into: Path, only: Sequence[str], scratch: Path) -> None:
    """Record the stories that this kernel supports, or only the named ones, each in a file."""
    tree = await open_kernel(where, say)
    driver = scratch / "driver"
    shutil.copytree(DRIVER, driver)
    await build_modules(tree, driver)
    into.mkdir(parents=True, exist_ok=True)
    image = await build_image(tree)
    for story in STORIES:
        if story.name in only if only else _can_tell(tree, story):
            text = await _tell(tree, image, story, (driver / "foo.ko").read_bytes(), scratch / "console.log")
            text = text.replace(str(driver), CALLED)  # UBSAN ignores the compiler's prefix map
            (into / f"{story.name}.txt").write_text(_header(tree, story) + text)
            say(f"{story.name}: {len(text.splitlines())} lines")


def _can_tell(tree: KernelTree, story: Story) -> bool:
    return not (
        (story.needs and tree.option(story.needs) != "y") or (story.lacks and tree.option(story.lacks) == "y")
    )


def _header(tree: KernelTree, story: Story) -> str:
    with_arguments = f", booted with {' '.join(story.arguments)}" if story.arguments else ""
    return (
        "# SPDX-License-Identifier: MIT\n"
        f"# Recorded by scripts/record-crashes: {tree.release} in QEMU, serial console{with_arguments}.\n"
        f"# {story.command or TELL % story.name}\n"
    )


async def _tell(tree: KernelTree, image: GuestImage, story: Story, module: bytes, log: Path) -> str:
    accel = await choose_accel()
    spec = MachineSpec(tree.image, image.initramfs, accel=accel.name, cpus=story.cpus,
                       kernel_arguments=story.arguments)  # fmt: skip
    async with (
        Machine(spec, log) as machine,
        SshGuest(machine.ssh_port, image.client_key, image.host_key) as guest,
    ):
        await guest.put(module, "/tmp/foo.ko")
        await guest.run(story.before)
        start = log.stat().st_size
        telling = asyncio.create_task(
            guest.run(f"{story.load}; {story.command or TELL % story.name}", timeout=90)
        )
        await _rest(machine, log, start, story.wait)
        telling.cancel()
        with contextlib.suppress(asyncio.CancelledError, GuestUnreachableError, TimeoutError):
            await telling
        said = log.read_bytes()[start:].decode(errors="replace").replace("\r", "")
    return "\n".join(said.split("\n")[:LONGEST]).rstrip("\n") + "\n"


async def _rest(machine: Machine, log: Path, start: int, wait: float) -> None:
    """Wait until nothing was printed for a while, which is shorter once the kernel has complained."""
    said, since = b"", time.monotonic()
    end = since + LAST_MOMENT
    while time.monotonic() < min(end, since + (0.5 if machine.trouble else wait)):
        await asyncio.sleep(0.1)
        if (now := log.read_bytes()[start:]) != said:
            said, since = now, time.monotonic()
            if find_crash(said.decode(errors="replace")):
                wait = min(wait, AFTERMATH)


def main() -> int:
    """Run the command line. Return the exit status."""
    parser = argparse.ArgumentParser(description="Record what a kernel prints when a driver goes wrong.")
    parser.add_argument("-K", "--kernel", default="debian", help="debian, debian:6.12, or a folder")
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="folder for the recordings")
    parser.add_argument("only", nargs="*", metavar="STORY", help="record only these")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run(record(given.kernel, given.into, given.only, Path(scratch)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
