// SPDX-License-Identifier: GPL-2.0
#include <linux/kprobes.h>
#include <linux/proc_fs.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include "constructs.h"

long input;
module_param(input, long, 0644);

static char symbol[128];
module_param_string(symbol, symbol, sizeof(symbol), 0644);
static unsigned long (*lookup)(const char *name);

/* What is in memory: where "symbol" is ("MODULE:NAME" or "NAME"), and what begins there. */
static int memory_show(struct seq_file *m, void *v)
{
	unsigned long at = lookup ? lookup(strim(symbol)) : 0;
	u8 bytes[32];
	int i;

	seq_printf(m, "%lx\n", at);
	for (i = 0; at && i < 1024; i += sizeof(bytes)) {
		if (copy_from_kernel_nofault(bytes, (void *)at + i, sizeof(bytes)))
			break;
		seq_printf(m, "%*phN\n", (int)sizeof(bytes), bytes);
	}
	return 0;
}

static const struct {
	const char *name;
	int (*show)(struct seq_file *m, void *v);
} files[] = {
	{ "faults", faults_show },
	{ "features", features_show },
	{ "keys", keys_show },
	{ "later", later_show },
	{ "memory", memory_show },
	{ "offers", offers_show },
	{ "percpu", percpu_show },
	{ "sites", sites_show },
	{ "state", state_show },
	{ "texts", texts_show },
	{ "tracing", tracing_show },
	{ "untraced", untraced_show },
	{ "warn", warn_show },
};

/* The kernel does not export it; a probe knows where its function is. */
static void __init find_lookup(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };

	if (!register_kprobe(&probe)) {
		lookup = (void *)probe.addr;
		unregister_kprobe(&probe);
	}
}

static int __init constructs_init(void)
{
	struct proc_dir_entry *folder = proc_mkdir("constructs", NULL);
	int i;

	find_lookup();
	for (i = 0; i < ARRAY_SIZE(files); i++)
		proc_create_single(files[i].name, 0, folder, files[i].show);
	/* A caller for loading only. */
	return untraced_elsewhere(0);
}

/* Never called: the guest goes as a whole. */
static void __exit constructs_exit(void)
{
	remove_proc_subtree("constructs", NULL);
}

module_init(constructs_init);
module_exit(constructs_exit);
MODULE_LICENSE("GPL");
