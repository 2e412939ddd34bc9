// SPDX-License-Identifier: GPL-2.0
/*
 * ticker - a work item that ticks like a clock, and a device that shows it
 *
 * Each open file of /dev/ticker reads one line, then end of file, then the
 * next line. /proc/ticker (stats.c) has the totals. Code may be replaced while
 * the module runs, and no tick or state of an open file may get lost by that.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#include "ticker.h"

static unsigned int interval_ms = 100;
module_param(interval_ms, uint, 0444);
MODULE_PARM_DESC(interval_ms, "Milliseconds from one tick to the next, at least 10");

struct ticker_totals ticker_totals;

static const char *const ticker_moods[] = {
	"calm", "curious", "busy", "tired",
};

/**
 * struct ticker_reader - what one open file remembers
 * @lock: protects all the rest
 * @number: how many lines this file has composed
 * @length: bytes in @line, 0 before a new one is composed
 * @at: how many of them were read
 * @line: what is being read
 */
struct ticker_reader {
	struct mutex lock;	/* held while a line is composed or handed out */
	unsigned int number;
	size_t length;
	size_t at;
	char line[96];
};

static void ticker_tick(struct work_struct *work)
{
	atomic64_inc(&ticker_totals.ticks);
	schedule_delayed_work(to_delayed_work(work),
			      msecs_to_jiffies(max(interval_ms, 10U)));
}

static DECLARE_DELAYED_WORK(ticker_work, ticker_tick);

static const char *ticker_mood(u64 ticks)
{
	return ticker_moods[(ticks >> 6) % ARRAY_SIZE(ticker_moods)];
}

static void ticker_compose(struct ticker_reader *reader)
{
	u64 ticks = atomic64_read(&ticker_totals.ticks);

	reader->number++;
	atomic_inc(&ticker_totals.lines);
	reader->length = scnprintf(reader->line, sizeof(reader->line),
				   "line %u: age %llu, %s\n", reader->number,
				   ticker_age(ticks), ticker_mood(ticks));
	reader->at = 0;
}

static ssize_t ticker_read(struct file *file, char __user *to, size_t count,
			   loff_t *unused)
{
	struct ticker_reader *reader = file->private_data;
	ssize_t done;

	if (mutex_lock_interruptible(&reader->lock))
		return -ERESTARTSYS;

	if (!reader->length)
		ticker_compose(reader);
	count = min(count, reader->length - reader->at);
	if (count && copy_to_user(to, reader->line + reader->at, count)) {
		done = -EFAULT;
	} else {
		reader->at += count;
		done = count;
		if (!count)
			reader->length = 0;
	}

	mutex_unlock(&reader->lock);
	return done;
}

static int ticker_open(struct inode *inode, struct file *file)
{
	struct ticker_reader *reader;

	reader = kzalloc(sizeof(*reader), GFP_KERNEL);
	if (!reader)
		return -ENOMEM;

	mutex_init(&reader->lock);
	file->private_data = reader;
	atomic_inc(&ticker_totals.opens);
	return stream_open(inode, file);
}

static int ticker_release(struct inode *inode, struct file *file)
{
	kfree(file->private_data);
	return 0;
}

static const struct file_operations ticker_fops = {
	.owner = THIS_MODULE,
	.open = ticker_open,
	.read = ticker_read,
	.release = ticker_release,
};

static struct miscdevice ticker_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = TICKER_NAME,
	.fops = &ticker_fops,
	.mode = 0444,
};

static int __init ticker_init(void)
{
	int error;

	error = ticker_stats_init();
	if (error)
		return error;

	error = misc_register(&ticker_device);
	if (error) {
		ticker_stats_exit();
		return error;
	}

	schedule_delayed_work(&ticker_work, 0);
	pr_info("ticks every %u ms\n", interval_ms);
	return 0;
}

static void __exit ticker_exit(void)
{
	misc_deregister(&ticker_device);
	ticker_stats_exit();
	cancel_delayed_work_sync(&ticker_work);
}

module_init(ticker_init);
module_exit(ticker_exit);

MODULE_DESCRIPTION("A clock work that ticks, and a device that tells of it");
MODULE_LICENSE("GPL");
