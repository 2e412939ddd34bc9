// SPDX-License-Identifier: GPL-2.0
#include <linux/mm.h>
#include <asm/cpufeature.h>
#include "constructs.h"

/* No processor has it. */
#define UNKNOWN X86_FEATURE_AVX512_4FMAPS

/* The choice was made at load: that the processor's flags change later must not be seen. */
static noinline int features_settled(void)
{
	int before = static_cpu_has(UNKNOWN), after;

	set_bit(UNKNOWN, (unsigned long *)boot_cpu_data.x86_capability);
	after = static_cpu_has(UNKNOWN) ? 2 : 0;
	clear_bit(UNKNOWN, (unsigned long *)boot_cpu_data.x86_capability);
	return before + after;
}

static noinline int features_chosen(void)
{
	int value;

	asm volatile(ALTERNATIVE("movl $1, %0", "movl $2, %0", X86_FEATURE_ALWAYS) : "=r" (value));
	return value;
}

static noinline int features_clear(void)
{
	unsigned long *page = (unsigned long *)__get_free_page(GFP_KERNEL);
	int i, sum = 0;

	if (!page)
		return -ENOMEM;
	memset(page, 0xff, PAGE_SIZE);
	clear_page(page);
	for (i = 0; i < PAGE_SIZE / sizeof(long); i++)
		sum += page[i] != 0;
	free_page((unsigned long)page);
	return sum;
}

int features_show(struct seq_file *m, void *v)
{
	seq_printf(m, "settled %d chosen %d uncleared %d\n", features_settled(), features_chosen(),
		   features_clear());
#define TELL(feature) \
	seq_printf(m, #feature " %d %d\n", !!static_cpu_has(X86_FEATURE_##feature), \
		   !!boot_cpu_has(X86_FEATURE_##feature))
	TELL(HYPERVISOR);
	TELL(REP_GOOD);
	TELL(ERMS);
	TELL(SMAP);
	TELL(AVX512F);
	return 0;
}
