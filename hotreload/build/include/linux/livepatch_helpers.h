/* SPDX-License-Identifier: MIT */
/* The name by which patches written for klp-build include these macros; the kernel has it since v6.19. */
#include <hotreload.h>
