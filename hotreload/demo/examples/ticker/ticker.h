/* SPDX-License-Identifier: GPL-2.0 */
#ifndef TICKER_H
#define TICKER_H

#include <linux/atomic.h>
#include <linux/types.h>

#define TICKER_NAME "ticker"

/**
 * struct ticker_totals - what has happened since the module was loaded
 * @ticks: how often the clock work has run
 * @opens: how often the device was opened
 * @lines: how many lines were composed, for all open files together
 */
struct ticker_totals {
	atomic64_t ticks;
	atomic_t opens;
	atomic_t lines;
};

extern struct ticker_totals ticker_totals;

/* The age of the ticker, as shown to user space. */
static inline u64 ticker_age(u64 ticks)
{
	return ticks / 10;
}

int ticker_stats_init(void);
void ticker_stats_exit(void);

#endif /* TICKER_H */
