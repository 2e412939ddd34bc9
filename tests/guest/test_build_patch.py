# SPDX-License-Identifier: MIT
"""A source patch becomes a module file that plain insmod makes live in a guest, and rmmod takes away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotreload.build.kernel_tree import KernelTree
from hotreload.cli.main import main
from tests.guest.conftest import Booted

DRIVER = """\
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include "count.h"

static int reads;

static int patched_show(struct seq_file *m, void *v)
{
	reads++;
	seq_printf(m, "%s %d\\n", WORD, counted(reads));
	return 0;
}

static int __init patched_init(void)
{
	return proc_create_single("patched", 0444, NULL, patched_show) ? 0 : -ENOMEM;
}

static void __exit patched_exit(void)
{
	remove_proc_entry("patched", NULL);
}
module_init(patched_init);
module_exit(patched_exit);
MODULE_LICENSE("GPL");
"""
FILES = {
    "Kbuild": "obj-m := patched.o\npatched-y := main.o count.o\n",
    "count.h": '#define WORD "old"\nint counted(int n);\n',
    "count.c": '#include <linux/kernel.h>\n#include "count.h"\n\nint counted(int n)\n{\n\treturn n;\n}\n',
    "main.c": DRIVER,
}
# One that changes a header, with it two functions of two units, adds a variable, and adds a header.
PATCH = """\
Count from a thousand.

--- a/count.h
+++ b/count.h
@@ -1,2 +1,3 @@
-#define WORD "old"
+#include "start.h"
+#define WORD "new"
 int counted(int n);
--- /dev/null
+++ b/start.h
@@ -0,0 +1 @@
+#define START 1000
--- a/count.c
+++ b/count.c
@@ -1,7 +1,9 @@
 #include <linux/kernel.h>
 #include "count.h"

+static int calls;
+
 int counted(int n)
 {
-	return n;
+	return START + 100 * ++calls + n;
 }
"""


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    folder = tmp_path / "driver"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def insmod(booted: Booted) -> Iterator[None]:
    yield
    booted.run("rmmod patched; rm -f /tmp/*.ko")
    assert "patched" not in booted.run("cat /proc/modules").text


def put(booted: Booted, file: Path) -> None:
    assert booted.run(f"cat > /tmp/{file.name}", stdin=file.read_bytes()).ok


def wait_for(booted: Booted, command: str) -> None:
    """Without a System.map the kernel takes its own time for a transition: seconds, with several CPUs."""
    deadline = time.monotonic() + 30
    while not booted.run(command).ok:
        assert time.monotonic() < deadline, command
        time.sleep(0.1)


@pytest.mark.usefixtures("insmod")
def test_a_patch_module_is_live_after_insmod_and_gone_after_rmmod(
    booted: Booted,
    driver: Path,
    debian_kernel: KernelTree,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0001-count.patch").write_text(PATCH)
    assert main(["build", str(driver), "-K", str(debian_kernel.output), "-p", "0001-count.patch"]) == 0
    assert capsys.readouterr().out == "livepatch-0001-count.ko\n"

    put(booted, driver / "patched.ko")
    assert booted.run("insmod /tmp/patched.ko").ok
    assert booted.run("cat /proc/patched").text == "old 1\n"

    put(booted, tmp_path / "livepatch-0001-count.ko")
    loaded = booted.run("insmod /tmp/livepatch-0001-count.ko")
    assert loaded.ok, loaded.complaint
    place = "/sys/kernel/livepatch/livepatch_0001_count"
    wait_for(booted, f'[ "$(cat {place}/transition)" = 0 ]')
    assert booted.run(f"cat {place}/enabled").text == "1\n"
    assert booted.run(f"ls -d {place}/patched/counted,1 {place}/patched/patched_show,1").ok
    # The driver's own count goes on: it is the running one's.
    assert booted.run("cat /proc/patched").text == "new 1102\n"
    assert booted.run("cat /proc/patched").text == "new 1203\n"

    assert booted.run(f"echo 0 > {place}/enabled").ok
    wait_for(booted, f"[ ! -e {place} ]")
    assert booted.run("cat /proc/patched").text == "old 4\n"
    assert booted.run("rmmod livepatch_0001_count").ok
    assert booted.run("cat /proc/patched").text == "old 5\n"
    log = booted.run("dmesg").text
    assert "Call Trace" not in log
    assert "livepatch: 'livepatch_0001_count': unpatching complete" in log


@pytest.mark.usefixtures("insmod")
def test_a_patch_module_waits_for_its_driver(
    booted: Booted,
    driver: Path,
    debian_kernel: KernelTree,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fix.patch").write_text(PATCH)
    words = ["build", str(driver), "-K", str(debian_kernel.output), "-p", "fix.patch", "-o", "early.ko"]
    assert main(words) == 0
    put(booted, tmp_path / "early.ko")
    assert booted.run("insmod /tmp/early.ko").ok
    wait_for(booted, '[ "$(cat /sys/kernel/livepatch/early/transition)" = 0 ]')
    put(booted, driver / "patched.ko")
    assert booted.run("insmod /tmp/patched.ko").ok
    assert booted.run("cat /proc/patched").text == "new 1101\n"
    assert booted.run("echo 0 > /sys/kernel/livepatch/early/enabled").ok
    wait_for(booted, "[ ! -e /sys/kernel/livepatch/early ]")
    assert booted.run("rmmod early").ok
    assert booted.run("cat /proc/patched").text == "old 2\n"
