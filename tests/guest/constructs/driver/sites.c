// SPDX-License-Identifier: GPL-2.0
#include <linux/atomic.h>
#include <linux/irqflags.h>
#include <linux/sched.h>
#include <asm/msr.h>
#include "constructs.h"

static atomic_t sites_calls;

static int sites_twice(int n)
{
	return 2 * n;
}

static int sites_thrice(int n)
{
	return 3 * n;
}

static int (*sites_what[])(int) = { sites_twice, sites_thrice };

static noinline int sites_indirect(int n)
{
	atomic_inc(&sites_calls);
	return sites_what[n & 1](n) + 1;
}

static noinline int sites_quiet(void)
{
	unsigned long flags;
	int were;

	local_irq_save(flags);
	were = irqs_disabled();
	local_irq_restore(flags);
	return were + 2 * irqs_disabled();
}

static noinline int sites_msr(void)
{
	u64 efer;

	rdmsrl(MSR_EFER, efer);
	return efer & EFER_LMA ? 1 : 0;
}

static noinline int sites_polite(int n)
{
	might_sleep();
	return cond_resched() ? n : n + 1;
}

int sites_show(struct seq_file *m, void *v)
{
	int result = sites_indirect(input);

	seq_printf(m, "result %d calls %d quiet %d msr %d polite %d\n", result,
		   atomic_read(&sites_calls), sites_quiet(), sites_msr(), sites_polite(result) >= result);
	return 0;
}
