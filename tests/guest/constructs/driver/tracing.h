/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM constructs

#if !defined(CONSTRUCTS_TRACING_H) || defined(TRACE_HEADER_MULTI_READ)
#define CONSTRUCTS_TRACING_H

#include <linux/tracepoint.h>

TRACE_EVENT(constructs_came,
	TP_PROTO(long n),
	TP_ARGS(n),
	TP_STRUCT__entry(__field(long, n)),
	TP_fast_assign(__entry->n = n;),
	TP_printk("n=%ld", __entry->n)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE tracing
#include <trace/define_trace.h>
