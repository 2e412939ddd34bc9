// SPDX-License-Identifier: GPL-2.0
#include <linux/compiler.h>
#include <linux/init.h>
#include <linux/interrupt.h>
#include <linux/sched/debug.h>
#include <linux/spinlock.h>
#include "constructs.h"

static const int texts_table[] = { 5, 7, 11, 13 };

static noinline __cold int texts_cold(int n)
{
	return n + 1;
}

static noinline __sched int texts_sched(int n)
{
	return n + 2;
}

static noinline __softirq_entry int texts_softirq(int n)
{
	return n + 30;
}

static noinline __lockfunc int texts_lock(int n)
{
	return n + 40;
}

static noinline __ref int texts_ref(int n)
{
	return n + 3;
}

static noinline noinstr int texts_noinstr(int n)
{
	return n + 4;
}

static noinline int texts_rare(int n)
{
	return n + 5;
}

static noinline const char *texts_switch(int n)
{
	switch (n) {
	case 0: return "none";
	case 1: return "one";
	case 2: return "two";
	case 3: return "three";
	case 4: return "four";
	case 5: return "five";
	default: return "many";
	}
}

static noinline int texts_goto(unsigned int n)
{
	static const void *const labels[] = { &&add, &&subtract, &&leave };
	int sum = 100;

	goto *labels[n % 3];
add:
	sum += 10;
	goto *labels[2];
subtract:
	sum -= 10;
leave:
	return sum;
}

int texts_show(struct seq_file *m, void *v)
{
	int n = input;

	seq_printf(m, "cold %d sched %d softirq %d lock %d ref %d noinstr %d rare %d ", texts_cold(n),
		   texts_sched(n), texts_softirq(n), texts_lock(n), texts_ref(n), texts_noinstr(n),
		   texts_rare(n));
	seq_printf(m, "switch %s goto %d table %d\n", texts_switch(n), texts_goto(n), texts_table[n & 3]);
	return 0;
}
