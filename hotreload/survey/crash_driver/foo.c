// SPDX-License-Identifier: GPL-2.0
/*
 * A driver that does what drivers do wrong, one thing at a time:
 *	echo STORY >/sys/module/foo/parameters/story
 *	insmod foo.ko at_init=STORY
 */
#include <linux/blkdev.h>
#include <linux/delay.h>
#include <linux/device.h>
#include <linux/dma-mapping.h>
#include <linux/etherdevice.h>
#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/kfence.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/netdevice.h>
#include <linux/pci.h>
#include <linux/proc_fs.h>
#include <linux/refcount.h>
#include <linux/rtnetlink.h>
#include <linux/sched/mm.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

struct foo {
	int id;
	int len;
	void (*done)(struct foo *foo);
	struct list_head list;
	struct mutex lock;
	refcount_t users;
	struct timer_list timer;
	struct work_struct work;
	char name[16];
	char rest[64];
};

/* What the compiler must not know. */
static struct foo *volatile nothing;
static volatile int zero, four = 4, sixteen = 16, forty = 40, sixty_four = 64;

static struct foo foo;
static DEFINE_MUTEX(foo_lock);
static DEFINE_MUTEX(foo_list_lock);
static DEFINE_SPINLOCK(foo_queue_lock);
static DEFINE_SPINLOCK(foo_stats_lock);
static LIST_HEAD(foo_list);
static const int foo_limit = 100;
static int foo_table[4];
static char foo_buffer[8];
static struct hrtimer foo_clock;

/* --- bad addresses, traps --- */

static noinline void foo_release(struct foo *p)
{
	p->len = 0;
}

static noinline void null_dereference(void)
{
	foo_release(nothing);
}

static noinline void page_fault(void)
{
	foo_release((struct foo *)0xffffd00012345678);
}

static noinline void general_protection(void)
{
	foo_release((struct foo *)0xdead000000000100);
}

static noinline void foo_complete(struct foo *p)
{
	p->done(p);
}

static noinline void null_call(void)
{
	foo_complete(&foo);
}

static noinline void foo_jump(void)
{
	char *code = kmalloc(64, GFP_KERNEL);

	memset(code, 0xc3, 64);
	foo.done = (void *)code;
	foo_complete(&foo);
}

static noinline void foo_set_limit(void)
{
	*(volatile int *)&foo_limit = zero;
}

static noinline int foo_rate(void)
{
	return 100 / zero;
}

static noinline void foo_bug(int len)
{
	BUG_ON(len == 3);
}

static noinline void bug_on(void)
{
	foo_bug(zero + 3);
}

static noinline void foo_check(void)
{
	if (!zero)
		__builtin_trap();
}

static noinline int foo_recurse(int depth)
{
	volatile char frame[256];

	frame[depth & 255] = depth;
	return foo_recurse(depth + 1) + frame[depth & 127];
}

static noinline void stack_overflow(void)
{
	foo_recurse(zero);
}

static noinline void foo_parse(void)
{
	char line[16];
	volatile char *p = line;
	int i;

	for (i = 0; i < sixty_four; i++)
		p[i] = 'a';
}

static noinline void foo_fail(void)
{
	panic("foo: out of luck %d", zero + 7);
}

/* --- where it happens --- */

static void foo_timeout(struct timer_list *t)
{
	foo_release(nothing);
}

static noinline void timer_null(void)
{
	timer_setup(&foo.timer, foo_timeout, 0);
	mod_timer(&foo.timer, jiffies + 2);
	msleep(500);
}

static enum hrtimer_restart foo_tick(struct hrtimer *t)
{
	foo_release(nothing);
	return HRTIMER_NORESTART;
}

static noinline void foo_start_clock(enum hrtimer_restart (*tick)(struct hrtimer *))
{
	hrtimer_init(&foo_clock, CLOCK_MONOTONIC, HRTIMER_MODE_REL_HARD);
	foo_clock.function = tick;
	hrtimer_start(&foo_clock, ms_to_ktime(10), HRTIMER_MODE_REL_HARD);
	msleep(500);
}

static noinline void interrupt_null(void)
{
	foo_start_clock(foo_tick);
}

static enum hrtimer_restart foo_tick_and_wait(struct hrtimer *t)
{
	msleep(10);
	return HRTIMER_NORESTART;
}

static noinline void idle_sleep(void)
{
	foo_start_clock(foo_tick_and_wait);
}

static void foo_work(struct work_struct *work)
{
	foo_release(nothing);
}

static noinline void foo_queue(work_func_t function)
{
	INIT_WORK(&foo.work, function);
	schedule_work(&foo.work);
	flush_work(&foo.work);
}

static noinline void workqueue_null(void)
{
	foo_queue(foo_work);
}

static int foo_thread(void *data)
{
	foo_release(nothing);
	return 0;
}

static noinline void kthread_null(void)
{
	kthread_run(foo_thread, NULL, "foo");
	msleep(500);
}

static noinline void unloaded_timer(void)
{
	timer_setup(&foo.timer, foo_timeout, 0);
	mod_timer(&foo.timer, jiffies + HZ);
}

/* --- memory --- */

static noinline void double_free(void)
{
	void *p = kmalloc(64, GFP_KERNEL);

	kfree(p);
	kfree(p);
}

static noinline void foo_set_name(struct foo *p, const char *name, int len)
{
	memcpy(p->name, name, len);
}

static noinline void fortify(void)
{
	foo_set_name(&foo, "a name of more than sixteen letters in all", forty);
}

static noinline char *foo_alloc(void)
{
	return kmalloc(64, GFP_KERNEL);
}

static noinline void foo_read(char *p)
{
	unsigned long size = sixty_four * 2;

	if (copy_to_user((void __user *)current->mm->start_stack - 512, p, size))
		pr_info("foo: not all was read\n");
}

static noinline void usercopy(void)
{
	foo_read(foo_alloc());
}

static noinline void foo_receive(struct sk_buff *skb)
{
	skb_put(skb, 2000);
}

static noinline void packet_too_long(void)
{
	foo_receive(alloc_skb(64, GFP_KERNEL));
}

static noinline void foo_remove(struct foo *p)
{
	list_del(&p->list);
}

static noinline void list_del_twice(void)
{
	list_add(&foo.list, &foo_list);
	foo_remove(&foo);
	foo_remove(&foo);
}

static noinline void foo_add(struct foo *p)
{
	list_add(&p->list, &foo_list);
}

static noinline void list_add_twice(void)
{
	foo_add(&foo);
	foo_add(&foo);
}

static noinline void foo_free(char *p)
{
	kfree(p);
}

static noinline void foo_fill(char *p, int from, int to)
{
	volatile char *byte = p;
	int i;

	for (i = from; i < to; i++)
		byte[i] = 'x';
}

/* For slub_debug=FZPU. */
static noinline void slub_poison(void)
{
	char *p = foo_alloc();
	int i;

	foo_free(p);
	foo_fill(p, 8, 12);
	for (i = 0; i < 200; i++)
		kfree(foo_alloc());
}

static noinline void slub_redzone(void)
{
	char *p = foo_alloc();

	foo_fill(p, 60, 66);
	foo_free(p);
}

static noinline void slub_double_free(void)
{
	char *p = foo_alloc();

	foo_free(p);
	foo_free(p);
}

static noinline void slab_out_of_bounds(void)
{
	char *p = foo_alloc();

	foo_fill(p, 60, 65);
	kfree(p);
}

static noinline void use_after_free(void)
{
	char *p = foo_alloc();

	foo_free(p);
	foo_fill(p, 3, 4);
}

static noinline void foo_format(void)
{
	char line[16];

	memset(line, 0, sizeof(line));
	foo_fill(line, 12, 17);
}

static noinline void foo_print(void)
{
	foo_fill(foo_buffer, 6, 9);
}

static noinline int foo_lookup(int index)
{
	return foo_table[index];
}

static noinline void array_index(void)
{
	foo_lookup(four);
}

static noinline int foo_mask(int bit)
{
	return four << bit;
}

static noinline void shift(void)
{
	foo_mask(forty);
}

#ifdef CONFIG_KFENCE
static noinline char *foo_guarded(void)
{
	char *p;
	int i;

	for (i = 0; i < 200000; i++) {
		p = kmalloc(32, GFP_KERNEL);
		if (is_kfence_address(p))
			return p;
		kfree(p);
		usleep_range(100, 200);
	}
	return NULL;
}

static noinline char foo_last(char *p, int size)
{
	return ((volatile char *)p)[size];
}

static noinline void guarded_out_of_bounds(void)
{
	char *p;

	/* An object lies at either end of its page: the page before it, or the one behind it, is guarded. */
	while ((p = foo_guarded()) && (unsigned long)p % PAGE_SIZE != PAGE_SIZE - 32)
		kfree(p);
	if (p)
		foo_last(p, 32);
}

static noinline void guarded_use_after_free(void)
{
	char *p = foo_guarded();

	kfree(p);
	if (p)
		foo_last(p, 4);
}

static noinline void guarded_invalid_free(void)
{
	char *p = foo_guarded();

	if (p)
		foo_free(p + 8);
}

static noinline void guarded_corruption(void)
{
	char *p;

	while ((p = foo_guarded()) && (unsigned long)p % PAGE_SIZE)
		kfree(p);
	if (p) {
		foo_fill(p, 32, 36);
		foo_free(p);
	}
}
#endif

static noinline void foo_free_pages(struct page *page)
{
	__free_pages(page, 4);
}

static noinline void bad_page(void)
{
	struct page *page = alloc_pages(GFP_KERNEL, 4);

	page->mapping = (void *)&foo;
	foo_free_pages(page);
}

static noinline void foo_unmap(void *p)
{
	vfree(p);
}

static noinline void vfree_twice(void)
{
	void *p = vmalloc(PAGE_SIZE);

	foo_unmap(p);
	foo_unmap(p);
}

static noinline void foo_exit_cache(struct kmem_cache *cache)
{
	kmem_cache_destroy(cache);
}

static void foo_construct(void *object)
{
}

static noinline void cache_busy(void)
{
	struct kmem_cache *cache = kmem_cache_create("foo_cache", 80, 0, 0, foo_construct);

	foo.done = kmem_cache_alloc(cache, GFP_KERNEL);
	foo_exit_cache(cache);
}

static noinline struct page *foo_alloc_ring(void)
{
	return alloc_pages(GFP_KERNEL | __GFP_COMP, 10);
}

static noinline void allocation_failure(void)
{
	static struct page *pages[400];
	int i;

	for (i = 0; i < 400; i++) {
		pages[i] = alloc_pages(GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY, 9);
		if (!pages[i])
			break;
	}
	foo_alloc_ring();
	while (--i >= 0)
		__free_pages(pages[i], 9);
}

/* --- complaints of those that are called --- */

static noinline void foo_warn(int len)
{
	WARN_ON(len == 2);
	WARN(len == 3, "foo: length %d\n", len);
	WARN_ON_ONCE(len == 4);
}

static noinline void warn(void)
{
	foo_warn(zero + 2);
}

static noinline void warn_message(void)
{
	foo_warn(zero + 3);
}

static noinline void warn_once(void)
{
	foo_warn(zero + 4);
	foo_warn(zero + 4);
}

static noinline void foo_get(struct foo *p)
{
	refcount_inc(&p->users);
}

static noinline void refcount_zero(void)
{
	foo_get(&foo);
}

static noinline void foo_put(struct foo *p)
{
	if (refcount_dec_and_test(&p->users))
		pr_info("foo: the last one\n");
}

static noinline void refcount_underflow(void)
{
	foo_put(&foo);
}

static struct kobj_type foo_type;

static noinline void foo_register(struct kobject *object)
{
	kobject_init(object, &foo_type);
}

static noinline void kobject_twice(void)
{
	static struct kobject object;

	foo_register(&object);
	foo_register(&object);
}

static noinline void foo_add_folder(void)
{
	if (!kobject_create_and_add("foo", kernel_kobj))
		pr_info("foo: no folder\n");
}

static noinline void sysfs_duplicate(void)
{
	foo_add_folder();
	foo_add_folder();
}

static noinline void foo_add_proc(void)
{
	proc_mkdir("foo", NULL);
}

static noinline void proc_duplicate(void)
{
	foo_add_proc();
	foo_add_proc();
}

static noinline void foo_remove_proc(void)
{
	remove_proc_entry("foo_gone", NULL);
}

static noinline void foo_unregister(struct device *dev)
{
	put_device(dev);
}

static noinline void device_without_release(void)
{
	static struct device dev = { .init_name = "foo0" };

	device_initialize(&dev);
	foo_unregister(&dev);
}

static irqreturn_t foo_irq_none(int irq, void *data)
{
	return IRQ_NONE;
}

static irqreturn_t foo_irq_enables(int irq, void *data)
{
	local_irq_enable();
	return IRQ_HANDLED;
}

static noinline void foo_interrupt(irq_handler_t handler, int times)
{
	int irq = irq_alloc_desc(NUMA_NO_NODE);

	irq_set_chip_and_handler(irq, &dummy_irq_chip, handle_simple_irq);
	if (request_irq(irq, handler, 0, "foo", &foo))
		return;
	while (times--) {
		local_irq_disable();
		generic_handle_irq(irq);
		local_irq_enable();
	}
}

static noinline void irq_nobody(void)
{
	foo_interrupt(foo_irq_none, 100000);
}

static noinline void irq_enables(void)
{
	foo_interrupt(foo_irq_enables, 1);
}

static noinline void foo_remove_irq(void)
{
	free_irq(9, &foo);
}

static noinline void foo_unmap_dma(struct device *dev)
{
	dma_unmap_single(dev, 0x123000, 64, DMA_TO_DEVICE);
}

static noinline void dma_unmapped(void)
{
	struct pci_dev *pci = pci_get_device(0x1af4, PCI_ANY_ID, NULL);

	if (pci)
		foo_unmap_dma(&pci->dev);
}

static noinline void foo_free_with_timer(struct foo *p)
{
	kfree(p);
}

static noinline void timer_freed(void)
{
	struct foo *p = kzalloc(sizeof(*p), GFP_KERNEL);

	timer_setup(&p->timer, foo_timeout, 0);
	mod_timer(&p->timer, jiffies + 100 * HZ);
	foo_free_with_timer(p);
}

static void foo_sleep_work(struct work_struct *work)
{
	msleep(200);
}

static noinline void foo_setup(void)
{
	INIT_WORK(&foo.work, foo_sleep_work);
}

static noinline void work_reinitialised(void)
{
	foo_setup();
	preempt_disable();
	schedule_work(&foo.work);
	foo_setup();
	preempt_enable();
	msleep(400);
}

/* --- contexts --- */

static noinline void foo_sleep(void)
{
	msleep(zero + 10);
}

static noinline void scheduling_while_atomic(void)
{
	preempt_disable();
	foo_sleep();
	preempt_enable();
}

static noinline void foo_update(void)
{
	mutex_lock(&foo_lock);
	mutex_unlock(&foo_lock);
}

static noinline void sleeping_in_atomic(void)
{
	spin_lock(&foo_queue_lock);
	foo_update();
	spin_unlock(&foo_queue_lock);
}

static noinline void rcu_sleep(void)
{
	rcu_read_lock();
	foo_sleep();
	rcu_read_unlock();
}

static noinline int foo_cpu(void)
{
	return smp_processor_id();
}

static noinline void preemptible_cpu(void)
{
	foo_cpu();
}

static void foo_leaking_work(struct work_struct *work)
{
	preempt_disable();
}

static noinline void workqueue_leak(void)
{
	foo_queue(foo_leaking_work);
	msleep(100);
}

static void foo_leaking_timeout(struct timer_list *t)
{
	preempt_disable();
}

static noinline void timer_leak(void)
{
	timer_setup(&foo.timer, foo_leaking_timeout, 0);
	mod_timer(&foo.timer, jiffies + 2);
	msleep(500);
}

static noinline void preempt_leak(void)
{
	preempt_disable();
}

/* --- locks --- */

static noinline void foo_write(void)
{
	mutex_lock(&foo_lock);
	mutex_lock(&foo_list_lock);
	mutex_unlock(&foo_list_lock);
	mutex_unlock(&foo_lock);
}

static noinline void foo_ioctl(void)
{
	mutex_lock(&foo_list_lock);
	mutex_lock(&foo_lock);
	mutex_unlock(&foo_lock);
	mutex_unlock(&foo_list_lock);
}

static noinline void lockdep_circular(void)
{
	foo_write();
	foo_ioctl();
}

static noinline void foo_move(struct foo *from, struct foo *to)
{
	mutex_lock(&from->lock);
	mutex_lock(&to->lock);
	mutex_unlock(&to->lock);
	mutex_unlock(&from->lock);
}

static noinline void lockdep_recursive(void)
{
	static struct foo two[2];
	int i;

	for (i = 0; i < 2; i++)
		mutex_init(&two[i].lock);
	foo_move(&two[0], &two[1]);
}

static noinline void foo_count(void)
{
	spin_lock(&foo_queue_lock);
	spin_unlock(&foo_queue_lock);
}

static void foo_count_later(struct timer_list *t)
{
	foo_count();
}

static noinline void lockdep_irq(void)
{
	foo_count();
	timer_setup(&foo.timer, foo_count_later, 0);
	mod_timer(&foo.timer, jiffies + 2);
	msleep(500);
}

static enum hrtimer_restart foo_count_tick(struct hrtimer *t)
{
	foo_count();
	return HRTIMER_NORESTART;
}

static noinline void foo_both(void)
{
	unsigned long flags;

	spin_lock_irqsave(&foo_queue_lock, flags);
	spin_lock(&foo_stats_lock);
	spin_unlock(&foo_stats_lock);
	spin_unlock_irqrestore(&foo_queue_lock, flags);
}

static noinline void lockdep_order(void)
{
	spin_lock(&foo_stats_lock);
	spin_unlock(&foo_stats_lock);
	foo_start_clock(foo_count_tick);
	foo_both();
}

static noinline void lock_freed(void)
{
	struct foo *p = kzalloc(sizeof(*p), GFP_KERNEL);

	mutex_init(&p->lock);
	mutex_lock(&p->lock);
	foo_free((char *)p);
}

static noinline void foo_open(void)
{
	mutex_lock(&foo_lock);
}

static noinline void lock_leak(void)
{
	foo_open();
}

static noinline void foo_close(void)
{
	mutex_unlock(&foo_lock);
}

static noinline void bad_unlock(void)
{
	foo_close();
}

static noinline void foo_init_too_late(void)
{
	struct foo *p = kzalloc(sizeof(*p), GFP_KERNEL);
	spinlock_t *lock = (spinlock_t *)p->rest;

	spin_lock(lock);
	spin_unlock(lock);
	kfree(p);
}

static noinline void foo_again(void)
{
	spin_lock(&foo_queue_lock);
}

static noinline void spin_twice(void)
{
	foo_again();
	foo_again();
}

static struct foo __rcu *foo_current;

static noinline void foo_peek(void)
{
	struct foo *p = rcu_dereference(foo_current);

	if (p)
		p->len++;
}

/* --- waiting --- */

static noinline void foo_spin(int seconds)
{
	unsigned long end = jiffies + seconds * HZ;
	int i;

	/* With interrupts off jiffies may stand still. */
	for (i = 0; i < seconds * 1000 && time_before(jiffies, end); i++)
		mdelay(1);
}

static noinline void soft_lockup(void)
{
	preempt_disable();
	foo_spin(sixteen);
	preempt_enable();
}

static void foo_reclaim(struct rcu_head *head)
{
}

static noinline void rcu_stall(void)
{
	static struct rcu_head head;

	preempt_disable();
	call_rcu(&head, foo_reclaim);
	foo_spin(forty);
	preempt_enable();
}

static noinline void hard_lockup(void)
{
	local_irq_disable();
	foo_spin(forty);
	local_irq_enable();
}

static void foo_spin_work(struct work_struct *work)
{
	preempt_disable();
	foo_spin(forty);
	preempt_enable();
}

static DECLARE_WORK(foo_other_work, foo_sleep_work);

static noinline void workqueue_lockup(void)
{
	INIT_WORK(&foo.work, foo_spin_work);
	schedule_work(&foo.work);
	schedule_work(&foo_other_work);
}

static noinline void hung_task(void)
{
	foo_open();
	foo_open();
}

/* --- a network device --- */

static netdev_tx_t foo_xmit(struct sk_buff *skb, struct net_device *dev)
{
	dev_kfree_skb(skb);
	return NETDEV_TX_OK;
}

static void foo_tx_timeout(struct net_device *dev, unsigned int queue)
{
	pr_info("foo: reset\n");
}

static const struct net_device_ops foo_netdev_ops = {
	.ndo_start_xmit = foo_xmit,
	.ndo_tx_timeout = foo_tx_timeout,
};

static noinline struct net_device *foo_netdev(void)
{
	struct net_device *dev = alloc_etherdev(0);

	dev->netdev_ops = &foo_netdev_ops;
	dev->watchdog_timeo = HZ;
	eth_hw_addr_random(dev);
	return register_netdev(dev) ? NULL : dev;
}

static noinline void netdev_leak(void)
{
	struct net_device *dev = foo_netdev();

	dev_hold(dev);
	unregister_netdev(dev);
}

static noinline void netdev_watchdog(void)
{
	struct net_device *dev = foo_netdev();

	rtnl_lock();
	if (!dev_open(dev, NULL))
		netif_stop_queue(dev);
	rtnl_unlock();
	ssleep(8);
}

#define STORY(name) { #name, name }
#define STORY_OF(name, function) { #name, (void (*)(void))function }

static const struct {
	const char *name;
	void (*tell)(void);
} stories[] = {
	STORY(null_dereference), STORY(null_call), STORY(page_fault), STORY(general_protection),
	STORY_OF(execute_data, foo_jump), STORY_OF(write_read_only, foo_set_limit),
	STORY_OF(divide_error, foo_rate), STORY(bug_on), STORY_OF(trap, foo_check), STORY(stack_overflow),
	STORY_OF(stack_smashed, foo_parse), STORY_OF(panic, foo_fail),
	STORY(timer_null), STORY(interrupt_null), STORY(workqueue_null), STORY(kthread_null),
	STORY(unloaded_timer),
	STORY(double_free), STORY(fortify), STORY(usercopy), STORY(packet_too_long),
	STORY(list_del_twice), STORY(list_add_twice),
	STORY(slub_poison), STORY(slub_redzone), STORY(slub_double_free),
	STORY(slab_out_of_bounds), STORY(use_after_free), STORY_OF(stack_out_of_bounds, foo_format),
	STORY_OF(global_out_of_bounds, foo_print), STORY(array_index), STORY(shift),
#ifdef CONFIG_KFENCE
	STORY(guarded_out_of_bounds), STORY(guarded_use_after_free), STORY(guarded_invalid_free),
	STORY(guarded_corruption),
#endif
	STORY(bad_page), STORY(vfree_twice), STORY(cache_busy), STORY(allocation_failure),
	STORY(warn), STORY(warn_message), STORY(warn_once), STORY(refcount_zero), STORY(refcount_underflow),
	STORY(kobject_twice), STORY(sysfs_duplicate), STORY(proc_duplicate),
	STORY_OF(proc_missing, foo_remove_proc), STORY(device_without_release),
	STORY(irq_nobody), STORY(irq_enables), STORY_OF(irq_free, foo_remove_irq),
	STORY(dma_unmapped), STORY(timer_freed), STORY(work_reinitialised),
	STORY(scheduling_while_atomic), STORY(sleeping_in_atomic), STORY(rcu_sleep), STORY(idle_sleep),
	STORY(preemptible_cpu), STORY(workqueue_leak), STORY(timer_leak), STORY(preempt_leak),
	STORY(lockdep_circular), STORY(lockdep_recursive), STORY(lockdep_irq), STORY(lockdep_order),
	STORY(lock_freed), STORY(lock_leak), STORY(bad_unlock), STORY_OF(lock_unset, foo_init_too_late),
	STORY(spin_twice), STORY_OF(rcu_unlocked, foo_peek),
	STORY(soft_lockup), STORY(rcu_stall), STORY(hard_lockup), STORY(workqueue_lockup), STORY(hung_task),
	STORY(netdev_leak), STORY(netdev_watchdog),
};

static int foo_tell(const char *name, const struct kernel_param *param)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(stories); i++)
		if (sysfs_streq(name, stories[i].name)) {
			stories[i].tell();
			return 0;
		}
	return -EINVAL;
}

static const struct kernel_param_ops foo_tells = { .set = foo_tell };
module_param_cb(story, &foo_tells, NULL, 0200);

static char *at_init;
module_param(at_init, charp, 0400);

static int __init foo_init(void)
{
	return at_init ? foo_tell(at_init, NULL) : 0;
}
module_init(foo_init);

static void __exit foo_exit(void)
{
}
module_exit(foo_exit);

MODULE_DESCRIPTION("What drivers do wrong");
MODULE_LICENSE("GPL");
