// SPDX-License-Identifier: GPL-2.0
/*
 * /proc/ticker: what has happened since the module was loaded
 */
#include <linux/errno.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#include "ticker.h"

static int ticker_stats_show(struct seq_file *m, void *unused)
{
	u64 ticks = atomic64_read(&ticker_totals.ticks);

	seq_printf(m, "ticks %llu\n", ticks);
	seq_printf(m, "age   %llu\n", ticker_age(ticks));
	seq_printf(m, "opens %d\n", atomic_read(&ticker_totals.opens));
	seq_printf(m, "lines %d\n", atomic_read(&ticker_totals.lines));
	return 0;
}

int __init ticker_stats_init(void)
{
	if (!proc_create_single(TICKER_NAME, 0444, NULL, ticker_stats_show))
		return -ENOMEM;
	return 0;
}

void ticker_stats_exit(void)
{
	remove_proc_entry(TICKER_NAME, NULL);
}
