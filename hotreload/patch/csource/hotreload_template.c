// SPDX-License-Identifier: GPL-2.0
/*
 * The constant part of a patch module.
 *
 * It is compiled once per kernel, because struct klp_patch and struct module have layouts that only the
 * kernel's own headers know. Each patch is this module with the patch's sections added, the name
 * replaced, and the table below filled in by relocations.
 *
 * Nothing is __init or __exit: two sections and their relocations fewer to merge, for 500 bytes.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/workqueue.h>

/* kcalloc() is a macro with a per-CPU counter of its own under CONFIG_MEM_ALLOC_PROFILING (v6.10). */
#ifdef kcalloc_noprof
#define hotreload_kcalloc kcalloc_noprof
#else
#define hotreload_kcalloc kcalloc
#endif

/* How long insmod itself waits for the transition, in ms: an idle guest needs 1 or 2. */
#define KICK_AT_LOAD	30
#define KICK_LONGEST	10000

/* One function of the patch; the entries for one object stand together. */
struct hotreload_func {
	const char *object;		/* a module's name, NULL: vmlinux */
	const char *old_name;
	void *new_func;
	unsigned long old_sympos;
};

/*
 * Written to by relocations only, hence volatile. The last two are the kernel's klp_transition_work and
 * the address of its klp_transition_patch; where they are NULL the transition takes its own time.
 */
static volatile struct {
	const struct hotreload_func *funcs;
	unsigned long count;
	struct delayed_work *transition_work;
	struct klp_patch **transition_patch;
} table __used __section(".hotreload.table");

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.replace = true,
};
static struct klp_func *patch_funcs;

static bool in_transition(void)
{
	return READ_ONCE(*table.transition_patch);
}

/*
 * Finish a transition now. A task that runs on another CPU, be it the idle task, cannot be switched while
 * it does; the kernel looks again after a second. This runs the very same retry at once, which is all
 * that is needed in most cases: the consistency model is the kernel's own. With every 15th retry the
 * kernel also wakes tasks that sleep interruptibly, so that they leave the old code.
 *
 * Called without klp_mutex, which the retry takes.
 */
static int kick(unsigned int ms)
{
	unsigned long end = jiffies + msecs_to_jiffies(ms);

	if (!table.transition_work || !table.transition_patch)
		return -EOPNOTSUPP;
	while (in_transition()) {
		/* Cuts the retry's delay short and waits until it has run. */
		flush_delayed_work(table.transition_work);
		if (!in_transition())
			break;
		if (time_after(jiffies, end) || signal_pending(current))
			return -EBUSY;
		usleep_range(500, 1000);
	}
	return 0;
}

/* echo MS > /sys/module/NAME/parameters/kick: the same, later, for at most that long. */
static int kick_set(const char *value, const struct kernel_param *param)
{
	unsigned int ms;
	int err = kstrtouint(value, 0, &ms);

	return err ?: kick(min_t(unsigned int, ms, KICK_LONGEST));
}

static const struct kernel_param_ops kick_ops = {
	.set = kick_set,
};
module_param_cb(kick, &kick_ops, NULL, 0200);

static bool starts_object(unsigned long i)
{
	const char *name = table.funcs[i].object;
	const char *before;

	if (!i)
		return true;
	before = table.funcs[i - 1].object;
	return name != before && (!name || !before || strcmp(name, before));
}

static void free_patch(void)
{
	kfree(patch.objs);
	kfree(patch_funcs);
}

/* Lay out what livepatch wants: objects, each with its functions, every array with a zero entry behind. */
static int fill_patch(void)
{
	struct klp_object *object;
	struct klp_func *func;
	unsigned long i, objects = 0;

	for (i = 0; i < table.count; i++)
		objects += starts_object(i);
	if (!objects)
		return -ENODATA;

	object = hotreload_kcalloc(objects + 1, sizeof(*object), GFP_KERNEL);
	func = hotreload_kcalloc(table.count + objects, sizeof(*func), GFP_KERNEL);
	patch.objs = object;
	patch_funcs = func;
	if (!object || !func) {
		free_patch();
		return -ENOMEM;
	}

	object--;
	func--;
	for (i = 0; i < table.count; i++) {
		func++;
		if (starts_object(i)) {
			func += i != 0;
			object++;
			object->name = table.funcs[i].object;
			object->funcs = func;
		}
		func->old_name = table.funcs[i].old_name;
		func->new_func = table.funcs[i].new_func;
		func->old_sympos = table.funcs[i].old_sympos;
	}
	return 0;
}

static int hotreload_init(void)
{
	int err = fill_patch();

	if (err)
		return err;
	err = klp_enable_patch(&patch);
	if (err) {
		free_patch();
		return err;
	}
	/* The patch is on its way whatever this says: from here on nothing may fail. */
	kick(KICK_AT_LOAD);
	return 0;
}

/* The kernel holds a reference to the module as long as it uses the patch. */
static void hotreload_exit(void)
{
	free_patch();
}

module_init(hotreload_init);
module_exit(hotreload_exit);

MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
MODULE_AUTHOR("hotreload");
MODULE_DESCRIPTION("functions of the running kernel, replaced");
