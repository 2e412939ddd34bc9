// SPDX-License-Identifier: GPL-2.0
#include <linux/bug.h>
#include "constructs.h"

static noinline int warn_check(long n)
{
	WARN_ON(n == 1);
	WARN(n == 2, "two came to %s", __func__);
	if (WARN_ON_ONCE(n == 3))
		return -3;
	BUG_ON(n == 1000);
	return n * 10;
}

int warn_show(struct seq_file *m, void *v)
{
	seq_printf(m, "%d\n", warn_check(input));
	return 0;
}
