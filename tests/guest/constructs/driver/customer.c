// SPDX-License-Identifier: GPL-2.0
/* Another module, which uses what the first one exports. */
#include <linux/proc_fs.h>
#include "constructs.h"

static int customer_show(struct seq_file *m, void *v)
{
	seq_printf(m, "%d\n", 10 * offered(1));
	return 0;
}

static int __init customer_init(void)
{
	return proc_create_single("customer", 0, NULL, customer_show) ? 0 : -ENOMEM;
}

static void __exit customer_exit(void)
{
	remove_proc_entry("customer", NULL);
}

module_init(customer_init);
module_exit(customer_exit);
MODULE_LICENSE("GPL");
