# SPDX-License-Identifier: MIT
"""Functions of the kernel's own, each in the place that makes it special."""

from __future__ import annotations

from tests.guest.kernel.conftest import Kernel, one_kernel

VIRTIO = "/sys/bus/virtio/devices/virtio0/modalias"
PCI = "/sys/bus/pci/devices/0000:00:00.0/modalias"
PLATFORM = "/sys/bus/platform/devices/serial8250/modalias"

STATFS = """\
SYSCALL_DEFINE2(statfs, const char __user *, pathname, struct statfs __user *, buf)
{
	struct kstatfs st;
	int error = user_statfs(pathname, &st);
"""
NANOSLEEP = """\
	struct restart_block *restart;

	do {
		set_current_state(TASK_INTERRUPTIBLE|TASK_FREEZABLE);
"""


def test_a_built_in_function_runs_anew_and_as_before_when_its_file_is(kernel: Kernel) -> None:
    booted = kernel.run("cat /proc/version")
    report = kernel.edit(
        {"fs/proc/version.c": ("seq_printf(m,", 'seq_puts(m, "edited: ");\n\tseq_printf(m,')}
    )
    assert report.symbols == ("version_proc_show",)
    assert kernel.run("cat /proc/version") == f"edited: {booted}"
    kernel.restore()
    assert kernel.run("cat /proc/version") == booted
    assert kernel.patched == {}


def test_of_three_static_functions_of_one_name_the_edited_one_runs_anew(kernel: Kernel) -> None:
    read = f"cat {VIRTIO} {PCI} {PLATFORM}"
    virtio, pci, platform = kernel.run(read).splitlines()
    edits = {
        "drivers/virtio/virtio.c": ('"virtio:d%08X', '"VIRTIO:d%08X'),
        "drivers/pci/pci-sysfs.c": ('"pci:v%08X', '"PCI:v%08X'),
        "drivers/base/platform.c": ('"platform:%s\\n"', '"PLATFORM:%s\\n"'),
    }
    expected = {
        "drivers/virtio/virtio.c": [virtio.replace("virtio:", "VIRTIO:"), pci, platform],
        "drivers/pci/pci-sysfs.c": [virtio, pci.replace("pci:", "PCI:"), platform],
        "drivers/base/platform.c": [virtio, pci, platform.replace("platform:", "PLATFORM:")],
    }
    positions = set()
    for file, edit in edits.items():
        kernel.edit({file: edit})
        assert kernel.run(read).splitlines() == expected[file]
        positions |= kernel.patched["vmlinux"]
        kernel.restore()
    assert positions == {"modalias_show,1", "modalias_show,2", "modalias_show,3"}
    kernel.edit(edits)
    assert kernel.patched["vmlinux"] == positions
    assert kernel.run(read).splitlines() == [expected[file][number] for number, file in enumerate(edits)]


def test_a_static_function_that_was_inlined_changes_in_all_its_callers(kernel: Kernel) -> None:
    kernel.run("mkdir -p /marked && mount -t tmpfs none /marked && mkdir -p /marked/deep /bound")
    kernel.run("mount --bind /marked/deep /bound")
    cwd = "cd /marked && readlink /proc/self/cwd"  # d_path
    mount_point = "grep ' /marked ' /proc/self/mountinfo | cut -d' ' -f5"  # __d_path
    root = "grep ' /bound ' /proc/self/mountinfo | cut -d' ' -f4"  # __dentry_path
    try:
        assert [kernel.run(each) for each in (cwd, mount_point, root)] == ["/marked", "/marked", "/deep"]
        report = kernel.edit(
            {
                "fs/d_path.c": (
                    "\t\treturn p->buf;\n",
                    "\t\treturn p->buf + (p->buf[0] == '/' && p->buf[1] == 'm');\n",
                )
            }
        )
        assert {"d_path", "__d_path", "__dentry_path"} <= set(report.symbols)
    finally:
        kernel.run("umount /bound /marked")


def test_a_syscall_runs_anew(kernel: Kernel) -> None:
    assert kernel.run("stat -f -c %l /proc") == "255"
    kernel.edit({"fs/statfs.c": (STATFS, f"{STATFS}\n\tst.f_namelen = 77;\n")})
    assert kernel.run("stat -f -c %l /proc") == "77"


def test_a_function_of_the_scheduler_s_text_runs_anew(kernel: Kernel) -> None:
    section = kernel.run("grep -E ' (__sched_text_start|do_nanosleep|__sched_text_end)$' /proc/kallsyms")
    names = [line.split()[2] for line in sorted(section.splitlines())]
    assert names == ["__sched_text_start", "do_nanosleep", "__sched_text_end"]
    shortcut = "\tif (hrtimer_get_softexpires_tv64(&t->timer) == 777 * NSEC_PER_SEC)\n\t\treturn 0;\n"
    kernel.edit(
        {"kernel/time/hrtimer.c": (NANOSLEEP, NANOSLEEP.replace("\tdo {\n", f"{shortcut}\n\tdo {{\n"))}
    )
    kernel.run("timeout 20 sleep 777")


def test_a_function_of_the_scheduler_itself_runs_anew(kernel: Kernel) -> None:
    kernel.edit(
        {"kernel/sched/core.c": ("sum += cpu_rq(i)->nr_running;", "sum += cpu_rq(i)->nr_running + 4000;")}
    )
    running = kernel.run("cut -d' ' -f4 /proc/loadavg").partition("/")[0]
    assert int(running) > 4000


def test_a_function_of_memory_management_runs_anew(kernel: Kernel) -> None:
    read = "grep CommitLimit /proc/meminfo | tr -dc 0-9"
    limit = int(kernel.run(read))
    kernel.edit({"mm/util.c": ("allowed += total_swap_pages;", "allowed += total_swap_pages + 1000;")})
    assert int(kernel.run(read)) == limit + 4000


@one_kernel
def test_a_function_in_which_all_who_sleep_stand_is_refused(kernel: Kernel) -> None:
    old = "\tsched_update_worker(tsk);\n}\nEXPORT_SYMBOL(schedule);"
    (reason,) = kernel.refusal({"kernel/sched/core.c": (old, f'\tpr_info_once("awake\\n");\n{old}')})
    assert (reason.code, reason.symbol) == ("HR2210", "schedule")
