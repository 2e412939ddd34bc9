# SPDX-License-Identifier: MIT
"""Data of the kernel's own: what an edit adds, and what it says anew of what is there."""

from __future__ import annotations

from tests.guest.kernel.conftest import Kernel

SHORT = """\
static int devinfo_short(struct seq_file *f, void *v)
{
	seq_puts(f, "a device\\n");
	return 0;
}

"""


def test_a_new_static_of_a_file_counts_on_from_reload_to_reload(kernel: Kernel) -> None:
    kernel.edit(
        {
            "fs/proc/uptime.c": (
                ("static int uptime_proc_show", "static int reads;\n\nstatic int uptime_proc_show"),
                ("\tidle_nsec = 0;\n", '\tidle_nsec = 0;\n\tseq_printf(m, "%d ", ++reads);\n'),
            )
        }
    )
    assert [kernel.run("cut -d' ' -f1 /proc/uptime") for _ in range(3)] == ["1", "2", "3"]
    kernel.edit({"fs/proc/uptime.c": ('"%d ", ++reads', '"read %d ", ++reads')})
    assert kernel.run("cut -d' ' -f1,2 /proc/uptime") == "read 4"


def test_another_initialiser_of_a_table_that_its_function_reads_is_used(kernel: Kernel) -> None:
    assert "(EC" in kernel.run("cat /proc/consoles")
    kernel.edit({"fs/proc/consoles.c": ("{ CON_ENABLED,\t\t'E' }", "{ CON_ENABLED,\t\t'X' }")})
    assert "(XC" in kernel.run("cat /proc/consoles")


def test_another_function_in_a_structure_of_callbacks_is_called(kernel: Kernel) -> None:
    assert kernel.run("head -1 /proc/devices") == "Character devices:"
    kernel.edit(
        {
            "fs/proc/devices.c": (
                ("static void *devinfo_start(", f"{SHORT}static void *devinfo_start("),
                (".show  = devinfo_show", ".show  = devinfo_short"),
            )
        }
    )
    assert kernel.run("head -1 /proc/devices") == "a device"
    kernel.restore()
    assert kernel.run("head -1 /proc/devices") == "Character devices:"
