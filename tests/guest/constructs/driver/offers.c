// SPDX-License-Identifier: GPL-2.0
#include "constructs.h"

int offered(int n)
{
	return n + 1;
}
EXPORT_SYMBOL_GPL(offered);

int offers_show(struct seq_file *m, void *v)
{
	seq_printf(m, "%d\n", offered(input));
	return 0;
}
