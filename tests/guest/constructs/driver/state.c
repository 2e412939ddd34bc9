// SPDX-License-Identifier: GPL-2.0
#include "constructs.h"

/* A callback that the kernel, say, holds; and its address taken by whoever asks. */
int (*state_held)(int n);

static inline int state_inlined(int n)
{
	static int sum = 1000;

	sum += n;
	return sum;
}

static noinline int state_called(int n)
{
	static int sum = 100;

	sum += n;
	return sum;
}

static noinline int state_count(int n)
{
	static int sum;
	static int calls = 10;

	calls++;
	sum += n;
	return sum * 100 + calls;
}

int state_show(struct seq_file *m, void *v)
{
	int n = input;

	if (!state_held)
		state_held = state_called;
	seq_printf(m, "count %d called %d inlined %d same %d\n", state_count(n), state_held(n),
		   state_inlined(n), state_held == state_called);
	return 0;
}
