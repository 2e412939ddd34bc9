# SPDX-License-Identifier: MIT
"""What the stories of edits begin with: drivers of one or two units that show their state in /proc/pair."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hotreload.report.outcome import ReloadReport

Save = Callable[..., Awaitable[ReloadReport]]
Read = Callable[[], Awaitable[str]]

MAIN = """\
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include "pair.h"

static int reads;

static int show(struct seq_file *m, void *v)
{
	reads++;
	seq_printf(m, "hello %d %d\\n", reads, twice(reads));
	return 0;
}

static int __init pair_init(void)
{
	proc_create_single("pair", 0, NULL, show);
	return 0;
}

static void __exit pair_exit(void)
{
	remove_proc_entry("pair", NULL);
}
module_init(pair_init);
module_exit(pair_exit);
MODULE_LICENSE("GPL");
"""
HELP = """\
#include <linux/kernel.h>
#include "pair.h"

int twice(int n)
{
	return 2 * n;
}
"""
FILES = {
    "Kbuild": "obj-m := pair.o\npair-y := main.o help.o\n",
    "pair.h": "int twice(int n);\n",
    "main.c": MAIN,
    "help.c": HELP,
}

OPS = {
    "Kbuild": "obj-m := pair.o\n",
    "pair.c": """\
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/uaccess.h>

static int limit = 5;
module_param(limit, int, 0644);
static int state = 1;

static ssize_t pair_read(struct file *file, char __user *to, size_t size, loff_t *at)
{
	char text[64];
	int length = scnprintf(text, sizeof(text), "limit %d state %d\\n", limit, state);

	if (!*at)
		state++;
	return simple_read_from_buffer(to, size, at, text, length);
}

static const struct proc_ops pair_ops = {
	.proc_read = pair_read,
};

static int __init pair_init(void)
{
	proc_create("pair", 0666, NULL, &pair_ops);
	return 0;
}

static void __exit pair_exit(void)
{
	remove_proc_entry("pair", NULL);
}
module_init(pair_init);
module_exit(pair_exit);
MODULE_LICENSE("GPL");
""",
}
PAIR = OPS["pair.c"]

# An edit that starts a thread which stays in a function of its own.
THREAD = (
    MAIN.replace("<linux/module.h>", "<linux/module.h>\n#include <linux/kthread.h>\n#include <linux/delay.h>")
    .replace(
        "static int show",
        """\
static int rounds;

static int walk(void *unused)
{
	while (!kthread_should_stop()) {
		rounds++;
		msleep(10);
	}
	return 0;
}

static struct task_struct *walker;

static int show""",
    )
    .replace("\treads++;\n", '\treads++;\n\tif (!walker)\n\t\twalker = kthread_run(walk, NULL, "walker");\n')
    .replace("twice(reads)", "rounds > 0")
)
