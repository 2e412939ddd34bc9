/* SPDX-License-Identifier: MIT */
/* The name by which patches written for kpatch include these macros. */
#include <hotreload.h>
