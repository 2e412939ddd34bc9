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
#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/vmalloc.h>
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

/*
 * One function of the patch; the entries for one object stand together. Without a name it stands for the
 * object alone, of which only data changes.
 */
struct hotreload_func {
	const char *object;		/* a module's name, NULL: vmlinux */
	const char *old_name;
	void *new_func;
	unsigned long old_sympos;
};

/*
 * One value in the data of an object that another initial value was written for in the source: what it
 * was when the guest booted, what it must be now, and what it becomes.
 */
struct hotreload_write {
	const char *object;
	const char *name;		/* for the log */
	void *place;			/* aligned to its size */
	unsigned long size;		/* 1, 2, 4 or 8 bytes */
	unsigned long base;
	unsigned long expected;
	unsigned long value;
	unsigned long lenient;		/* leave it alone when it is something else */
};

enum hotreload_callback_kind {
	PRE_PATCH,
	POST_PATCH,
	PRE_UNPATCH,
	POST_UNPATCH,
};

/* A function that the patch's author wants to be called with the object. */
struct hotreload_callback {
	const char *object;
	unsigned long kind;
	void *func;
};

/*
 * Written to by relocations only, hence volatile. The two of the transition are the kernel's klp_transition_work and
 * the address of its klp_transition_patch; where they are NULL the transition takes its own time.
 */
static volatile struct {
	const struct hotreload_func *funcs;
	unsigned long count;
	struct delayed_work *transition_work;
	struct klp_patch **transition_patch;
	const struct hotreload_write *writes;
	unsigned long write_count;
	const struct hotreload_callback *callbacks;
	unsigned long callback_count;
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

/* Both are NULL for vmlinux. */
static bool same_object(const char *name, const char *other)
{
	return name == other || (name && other && !strcmp(name, other));
}

static bool starts_object(unsigned long i)
{
	return !i || !same_object(table.funcs[i].object, table.funcs[i - 1].object);
}

/*
 * Put a value into a place that holds the old one. Constant data is mapped read-only, so the page gets a
 * second mapping for the moment. True when the old value was there.
 */
static bool exchange(const struct hotreload_write *write, unsigned long old, unsigned long value)
{
	unsigned long address = (unsigned long)write->place;
	struct page *page;
	bool done;
	void *alias, *at;

	if (is_vmalloc_addr(write->place) || (address >= MODULES_VADDR && address < MODULES_END))
		page = vmalloc_to_page(write->place);
	else
		page = pfn_to_page(__pa(address) >> PAGE_SHIFT);
	alias = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (!alias)
		return false;
	at = alias + offset_in_page(address);
	switch (write->size) {
	case 1:
		done = cmpxchg((u8 *)at, (u8)old, (u8)value) == (u8)old;
		break;
	case 2:
		done = cmpxchg((u16 *)at, (u16)old, (u16)value) == (u16)old;
		break;
	case 4:
		done = cmpxchg((u32 *)at, (u32)old, (u32)value) == (u32)old;
		break;
	default:
		done = cmpxchg((u64 *)at, (u64)old, (u64)value) == (u64)old;
	}
	vunmap(alias);
	return done;
}

/* Whether the patch is on its way already: an object that comes now is a module that is being loaded. */
static bool enabled;
/* Whether it arrived: from then on to take it back means to go back to what the guest booted. */
static bool arrived;

/* Which of the values this patch has put into their places itself. */
static bool *written;

static bool write_value(unsigned long i)
{
	const struct hotreload_write *write = &table.writes[i];
	unsigned long old = enabled ? write->base : write->expected;

	if (old == write->value)
		return true;
	written[i] = exchange(write, old, write->value);
	return written[i] || write->lenient;
}

/* What the running kernel has put there meanwhile is its own. */
static void unwrite_value(unsigned long i)
{
	const struct hotreload_write *write = &table.writes[i];

	if (arrived)
		exchange(write, write->value, write->base);
	else if (written[i])
		exchange(write, write->value, write->expected);
	written[i] = false;
}

static void unwrite_values(const struct klp_object *object, unsigned long count)
{
	unsigned long i;

	for (i = 0; i < count; i++)
		if (same_object(table.writes[i].object, object->name))
			unwrite_value(i);
}

static void call_authors(struct klp_object *object, enum hotreload_callback_kind kind)
{
	unsigned long i;

	for (i = 0; i < table.callback_count; i++) {
		const struct hotreload_callback *callback = &table.callbacks[i];

		if (callback->kind == kind && same_object(callback->object, object->name))
			((void (*)(struct klp_object *))callback->func)(object);
	}
}

/* Whether the patch may come: each author says. One who agreed hears when another one did not. */
static int ask_authors(struct klp_object *object)
{
	unsigned long i, agreed = 0;

	for (i = 0; i < table.callback_count; i++) {
		const struct hotreload_callback *callback = &table.callbacks[i];
		int err;

		if (callback->kind != PRE_PATCH || !same_object(callback->object, object->name))
			continue;
		err = ((int (*)(struct klp_object *))callback->func)(object);
		if (err) {
			if (agreed)
				call_authors(object, POST_UNPATCH);
			return err;
		}
		agreed++;
	}
	return 0;
}

/* Before any task runs new code. Data goes first: new code then finds what it was written for. */
static int pre_patch(struct klp_object *object)
{
	unsigned long i;
	int err;

	for (i = 0; i < table.write_count; i++) {
		if (!same_object(table.writes[i].object, object->name) || write_value(i))
			continue;
		pr_err("hotreload: value of %s is not the one it was loaded with\n", table.writes[i].name);
		unwrite_values(object, i);
		return -ESTALE;
	}
	err = ask_authors(object);
	if (err)
		unwrite_values(object, table.write_count);
	return err;
}

static void post_patch(struct klp_object *object)
{
	arrived = true;
	call_authors(object, POST_PATCH);
}

static void pre_unpatch(struct klp_object *object)
{
	call_authors(object, PRE_UNPATCH);
}

/* Also when a patch is taken back on its way, or when the object goes. */
static void post_unpatch(struct klp_object *object)
{
	unwrite_values(object, table.write_count);
	call_authors(object, POST_UNPATCH);
}

static void free_patch(void)
{
	kfree(patch.objs);
	kfree(patch_funcs);
	kfree(written);
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
	written = hotreload_kcalloc(table.write_count + 1, sizeof(*written), GFP_KERNEL);
	patch.objs = object;
	patch_funcs = func;
	if (!object || !func || !written) {
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
			object->callbacks.pre_patch = pre_patch;
			object->callbacks.post_patch = post_patch;
			object->callbacks.pre_unpatch = pre_unpatch;
			object->callbacks.post_unpatch = post_unpatch;
		}
		if (!table.funcs[i].old_name) {
			func--;
			continue;
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
	enabled = true;
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
