// SPDX-License-Identifier: GPL-2.0
#include <trace/events/power.h>
#include "constructs.h"
#define CREATE_TRACE_POINTS
#include "tracing.h"

static noinline void tracing_kernels(long n)
{
	trace_cpu_frequency(n, 0);
}

static noinline void tracing_own(long n)
{
	trace_constructs_came(n);
}

static noinline void tracing_print(long n)
{
	pr_debug("debugged %ld\n", n);
}

int tracing_show(struct seq_file *m, void *v)
{
	tracing_kernels(input);
	tracing_own(input);
	tracing_print(input);
	seq_puts(m, "traced\n");
	return 0;
}
