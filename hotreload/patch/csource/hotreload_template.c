// SPDX-License-Identifier: GPL-2.0
/*
 * The constant part of a patch module.
 *
 * It is compiled once per kernel, because struct klp_patch and struct module have layouts that only the
 * kernel's own headers know. Each patch is this module with the patch's sections added, the name
 * replaced, and the table below filled in by relocations.
 *
 * Nothing is __init or __exit. This costs 500 bytes, and saves merging two sections and their relocations.
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
#include <linux/stop_machine.h>
#include <linux/string.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

/* kcalloc() is a macro with a per-CPU counter of its own under CONFIG_MEM_ALLOC_PROFILING (v6.10). */
#ifdef kcalloc_noprof
#define hotreload_kcalloc kcalloc_noprof
#else
#define hotreload_kcalloc kcalloc
#endif

/* How long insmod itself waits for the transition, in ms. An idle guest needs 1 or 2 ms. */
#define KICK_AT_LOAD	30
#define KICK_LONGEST	10000

/*
 * One function of the patch. The entries for one object are adjacent. An entry without a name stands for an
 * object of which only data changes.
 */
struct hotreload_func {
	const char *object;		/* a module's name; NULL for vmlinux */
	const char *old_name;
	void *new_func;
	unsigned long old_sympos;
};

/*
 * One value in the data of an object whose initial value changed in the source: the value when the guest
 * booted, the value that it must have now, and the new value.
 */
struct hotreload_write {
	const char *object;
	const char *name;		/* for the log */
	void *place;
	unsigned long size;		/* 1, 2, 4 or 8 bytes */
	unsigned long base;
	unsigned long expected;
	unsigned long value;
	unsigned long lenient;		/* leave it alone if it is not as expected */
	unsigned long group;		/* of adjacent entries: one value, written as a whole or not at all */
	unsigned long check;		/* must be as expected, even if it does not change */
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
 * Filled in when the patch is made and loaded, not by this code, hence volatile. transition_work and
 * transition_patch point at the kernel's klp_transition_work and klp_transition_patch. If they are NULL, a
 * transition takes its normal time.
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
 * Finish a transition now. A task (even the idle task) cannot be switched while it runs on another CPU, and the
 * kernel only retries after a second. This runs that same retry at once, which is enough in most cases. The
 * consistency model remains the kernel's own. With every 15th retry, the kernel also wakes tasks that sleep
 * interruptibly, so that they leave the old code.
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

/* echo MS > /sys/module/NAME/parameters/kick: kick again later, for at most MS milliseconds. */
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

/* vmlinux has the name NULL. */
static bool same_object(const char *name, const char *other)
{
	return name == other || (name && other && !strcmp(name, other));
}

static bool starts_object(unsigned long i)
{
	return !i || !same_object(table.funcs[i].object, table.funcs[i - 1].object);
}

/* Where a value can be written. Constant data is mapped read-only, so its pages get a second mapping. */
struct hotreload_place {
	void *at;
	void *mapping;			/* NULL: the mapping of a previous entry is used */
	bool holds;			/* the value that it must have */
	bool written;			/* by this patch */
};

static struct hotreload_place *places;

/* Whether the patch is enabled already. An object that appears after that is a module being loaded. */
static bool enabled;
/* Whether it was applied. After that, reverting it means restoring the values that the guest booted with. */
static bool arrived;

static struct page *page_of(unsigned long address)
{
	if (is_vmalloc_addr((void *)address) || (address >= MODULES_VADDR && address < MODULES_END))
		return vmalloc_to_page((void *)address);
	return pfn_to_page(__pa(address) >> PAGE_SHIFT);
}

static bool is_of(unsigned long i, const struct klp_object *object)
{
	return same_object(table.writes[i].object, object->name);
}

/* Map two pages if a value crosses a page boundary. */
static bool map_place(unsigned long i, unsigned long *mapped, void **mapping)
{
	unsigned long address = (unsigned long)table.writes[i].place, start = address & PAGE_MASK;
	bool crosses = address + table.writes[i].size > start + PAGE_SIZE;
	struct page *pages[2];

	if (!*mapping || start != *mapped || crosses) {
		pages[0] = page_of(start);
		pages[1] = crosses ? page_of(start + PAGE_SIZE) : NULL;
		*mapping = vmap(pages, crosses ? 2 : 1, VM_MAP, PAGE_KERNEL);
		if (!*mapping)
			return false;
		*mapped = start;
		places[i].mapping = *mapping;
	}
	places[i].at = *mapping + offset_in_page(address);
	return true;
}

static void unmap_places(void)
{
	unsigned long i;

	for (i = 0; i < table.write_count; i++) {
		if (places[i].mapping)
			vunmap(places[i].mapping);
		places[i].mapping = places[i].at = NULL;
	}
}

/* Returns 1 if there are values to write, 0 if there are none, or an error. */
static int map_places(const struct klp_object *object)
{
	unsigned long i, mapped = 0;
	void *mapping = NULL;

	for (i = 0; i < table.write_count; i++) {
		if (is_of(i, object) && !map_place(i, &mapped, &mapping)) {
			unmap_places();
			return -ENOMEM;
		}
	}
	return mapping != NULL;
}

static bool holds(unsigned long i, unsigned long value)
{
	return !memcmp(places[i].at, &value, table.writes[i].size);
}

static void put(unsigned long i, unsigned long value)
{
	memcpy(places[i].at, &value, table.writes[i].size);
}

static unsigned long end_of_group(unsigned long i)
{
	unsigned long group = table.writes[i].group;

	do
		i++;
	while (group && i < table.write_count && table.writes[i].group == group);
	return i;
}

static bool all_hold(unsigned long i)
{
	unsigned long end = end_of_group(i);

	for (; i < end; i++)
		if (!places[i].holds)
			return false;
	return true;
}

static unsigned long old_value(unsigned long i)
{
	return enabled ? table.writes[i].base : table.writes[i].expected;
}

static bool is_idle(unsigned long i)
{
	return old_value(i) == table.writes[i].value && !table.writes[i].check;
}

struct hotreload_exchange {
	const struct klp_object *object;
	const char *refused;		/* the name of a value that is not as expected */
};

/*
 * Runs under stop_machine(), so no other CPU does anything. All values are checked before the first one is
 * written, and nobody sees only some of them written.
 */
static int write_stopped(void *data)
{
	struct hotreload_exchange *exchange = data;
	unsigned long i, end;

	for (i = 0; i < table.write_count; i++)
		if (is_of(i, exchange->object))
			places[i].holds = is_idle(i) || holds(i, old_value(i));
	for (i = 0; i < table.write_count; i = end_of_group(i)) {
		if (!is_of(i, exchange->object) || table.writes[i].lenient || all_hold(i))
			continue;
		exchange->refused = table.writes[i].name;
		return -ESTALE;
	}
	for (i = 0; i < table.write_count; i = end) {
		end = end_of_group(i);
		if (!is_of(i, exchange->object) || !all_hold(i))
			continue;
		for (; i < end; i++) {
			if (old_value(i) != table.writes[i].value) {
				put(i, table.writes[i].value);
				places[i].written = true;
			}
		}
	}
	return 0;
}

/* Restore the old values, except where the running kernel has stored something else in the meantime. */
static int unwrite_stopped(void *data)
{
	struct hotreload_exchange *exchange = data;
	unsigned long i, end;

	for (i = 0; i < table.write_count; i++)
		if (is_of(i, exchange->object))
			places[i].holds = holds(i, table.writes[i].value);
	for (i = 0; i < table.write_count; i = end) {
		end = end_of_group(i);
		if (!is_of(i, exchange->object) || !all_hold(i))
			continue;
		for (; i < end; i++)
			if (arrived || places[i].written)
				put(i, arrived ? table.writes[i].base : table.writes[i].expected);
	}
	return 0;
}

static int exchange_values(const struct klp_object *object, cpu_stop_fn_t stopped)
{
	struct hotreload_exchange exchange = { .object = object };
	unsigned long i;
	int err = map_places(object);

	if (err <= 0)
		return err;
	err = stop_machine(stopped, &exchange, NULL);
	unmap_places();
	if (exchange.refused)
		pr_err("hotreload: value of %s is not the one it was loaded with\n", exchange.refused);
	if (stopped == unwrite_stopped)
		for (i = 0; i < table.write_count; i++)
			if (is_of(i, object))
				places[i].written = false;
	return err;
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

/* Ask each pre_patch callback whether the patch may be applied. If one refuses, undo those that agreed. */
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

/* Called before any task runs new code. Data is written first, so that new code finds the new values. */
static int pre_patch(struct klp_object *object)
{
	int err = exchange_values(object, write_stopped);

	if (err)
		return err;
	err = ask_authors(object);
	if (err)
		exchange_values(object, unwrite_stopped);
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

/* Also called when a patch is reverted during its transition, or when the object is unloaded. */
static void post_unpatch(struct klp_object *object)
{
	exchange_values(object, unwrite_stopped);
	call_authors(object, POST_UNPATCH);
}

static void free_patch(void)
{
	kfree(patch.objs);
	kfree(patch_funcs);
	kfree(places);
}

/* Fill in struct klp_patch: objects, each with its functions. A zero entry ends each array. */
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
	places = hotreload_kcalloc(table.write_count + 1, sizeof(*places), GFP_KERNEL);
	patch.objs = object;
	patch_funcs = func;
	if (!object || !func || !places) {
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
	/* The patch is enabled, so nothing may fail from here on. The result of the kick does not matter. */
	kick(KICK_AT_LOAD);
	return 0;
}

/* The kernel holds a reference to the module while it uses the patch, so nothing uses it here. */
static void hotreload_exit(void)
{
	free_patch();
}

module_init(hotreload_init);
module_exit(hotreload_exit);

MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
MODULE_AUTHOR("hotreload");
MODULE_DESCRIPTION("replaces functions of the running kernel");
