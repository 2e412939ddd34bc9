// SPDX-License-Identifier: GPL-2.0
#include "constructs.h"

static noinline notrace int untraced_leaf(int n)
{
	return n + 1;
}

static noinline notrace int untraced_middle(int n)
{
	return 2 * untraced_leaf(n);
}

static noinline int untraced_top(int n)
{
	return 1000 + untraced_middle(n);
}

/* Called from another unit: not all of its callers are known here. */
notrace int untraced_elsewhere(int n)
{
	return n;
}

int untraced_show(struct seq_file *m, void *v)
{
	seq_printf(m, "%d\n", untraced_top(input));
	return 0;
}
