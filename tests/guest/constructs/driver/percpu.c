// SPDX-License-Identifier: GPL-2.0
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/smp.h>
#include "constructs.h"

static DEFINE_PER_CPU(long, percpu_calls);
static long percpu_limit __read_mostly = 1000;
static long percpu_settled __ro_after_init = 77;

static noinline long percpu_count(void)
{
	return this_cpu_inc_return(percpu_calls);
}

static noinline int percpu_where(void)
{
	/* The kernel's own variables: the current task, and the number of the processor. */
	return current->pid > 0 && get_cpu() == task_cpu(current);
}

int percpu_show(struct seq_file *m, void *v)
{
	int here = percpu_where();

	if (here)
		put_cpu();
	seq_printf(m, "calls %ld here %d limit %ld settled %ld\n", percpu_count(), here, percpu_limit,
		   percpu_settled);
	return 0;
}
