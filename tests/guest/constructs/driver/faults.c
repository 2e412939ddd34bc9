// SPDX-License-Identifier: GPL-2.0
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/segment.h>
#include <asm/word-at-a-time.h>
#include "constructs.h"

/* Nothing is ever mapped here: the last page of the lower half, and the first of the kernel's hole. */
#define NO_USER ((int __user *)(TASK_SIZE_MAX - PAGE_SIZE))
#define NO_KERNEL ((long *)(-1UL << 47))

static noinline int faults_kernel(void)
{
	long value = 0;

	return get_kernel_nofault(value, NO_KERNEL);
}

static noinline int faults_user(int value)
{
	if (!user_access_begin(NO_USER, sizeof(int)))
		return -EACCES;
	unsafe_put_user(value, NO_USER, failed);
	user_access_end();
	return 0;
failed:
	user_access_end();
	return -EFAULT;
}

/* A selector that no table has: the processor refuses it, and the handler loads 0 instead. */
static noinline int faults_segment(void)
{
	unsigned short now;

	loadsegment(es, 0xfff8);
	savesegment(es, now);
	return now;
}

/* Four bytes before a page that is not there: the handler puts zeros for what is missing. */
static noinline unsigned long faults_end(void)
{
	char *page = vmalloc(PAGE_SIZE);
	unsigned long word = 0;

	if (page) {
		memset(page, 0x11, PAGE_SIZE);
		word = load_unaligned_zeropad(page + PAGE_SIZE - 4);
	}
	vfree(page);
	return word;
}

int faults_show(struct seq_file *m, void *v)
{
	seq_printf(m, "kernel %d user %d segment %d end %lx\n", faults_kernel(), faults_user(input),
		   faults_segment(), faults_end());
	return 0;
}
