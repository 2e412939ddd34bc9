// SPDX-License-Identifier: GPL-2.0
#include <linux/filter.h>
#include <linux/jump_label.h>
#include <linux/static_call.h>
#include "constructs.h"

DEFINE_STATIC_KEY_FALSE(keys_own);

/* The kernel's: sysctl kernel.bpf_stats_enabled flips it. */
static noinline int keys_vmlinux(void)
{
	if (static_branch_unlikely(&bpf_stats_enabled_key))
		return 1;
	return 0;
}

static noinline int keys_driver(void)
{
	if (static_branch_unlikely(&keys_own))
		return 1;
	return 0;
}

static int keys_plain(int n)
{
	return n + 1;
}

DEFINE_STATIC_CALL(keys_call, keys_plain);

static noinline int keys_calling(int n)
{
	return static_call(keys_call)(n) + 1;
}

int keys_show(struct seq_file *m, void *v)
{
	seq_printf(m, "vmlinux %d driver %d call %d\n", keys_vmlinux(), keys_driver(), keys_calling(1));
	return 0;
}
