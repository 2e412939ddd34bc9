// SPDX-License-Identifier: GPL-2.0
#include <linux/rcupdate.h>
#include <linux/timer.h>
#include <linux/workqueue.h>
#include "constructs.h"

static int later_timers, later_works, later_rcus;
static struct timer_list later_timer;
static struct delayed_work later_work;
static struct rcu_head later_head;

static void later_tick(struct timer_list *timer)
{
	later_timers++;
}

static void later_toil(struct work_struct *work)
{
	later_works++;
}

static void later_grace(struct rcu_head *head)
{
	later_rcus++;
}

static noinline void later_start(unsigned int ms)
{
	timer_setup(&later_timer, later_tick, 0);
	mod_timer(&later_timer, jiffies + msecs_to_jiffies(ms));
	INIT_DELAYED_WORK(&later_work, later_toil);
	schedule_delayed_work(&later_work, msecs_to_jiffies(ms));
	call_rcu(&later_head, later_grace);
}

int later_show(struct seq_file *m, void *v)
{
	if (input)
		later_start(input);
	seq_printf(m, "timers %d works %d rcus %d\n", later_timers, later_works, later_rcus);
	return 0;
}
