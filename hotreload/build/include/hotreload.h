/* SPDX-License-Identifier: MIT */
/*
 * For the authors of patches: what a patch can do beside replacing functions.
 *
 * Found with #include <hotreload.h> when hotreload compiles the patched source, and by nobody else: it
 * is for patch files (hotreload build -p) and for trying things, not for a source that is kept.
 *
 * Callbacks run with the object that is patched, a module or vmlinux, as the kernel's livepatch core calls
 * them (Documentation/livepatch/callbacks.rst). Every reload makes a new patch that replaces the one
 * before: the pre- and post-patch callbacks run with each, the unpatch callbacks when the last one is
 * taken back. A pre-patch callback that returns an error (int) refuses the patch; the guest's insmod tries
 * a refused module a second time.
 */
#ifndef HOTRELOAD_H
#define HOTRELOAD_H

#include <linux/compiler.h>
#include <linux/livepatch.h>	/* klp_shadow_get_or_alloc() and its kin: Documentation/livepatch/shadow-vars.rst */
#include <linux/static_call.h>

#define HOTRELOAD_CALLBACK(kind, result, func)						\
	static result (*__hotreload_##kind##_##func)(struct klp_object *) __used		\
		__section(".hotreload.callbacks." #kind) = func

#define HOTRELOAD_PRE_PATCH(func)	HOTRELOAD_CALLBACK(pre_patch, int, func)
#define HOTRELOAD_POST_PATCH(func)	HOTRELOAD_CALLBACK(post_patch, void, func)
#define HOTRELOAD_PRE_UNPATCH(func)	HOTRELOAD_CALLBACK(pre_unpatch, void, func)
#define HOTRELOAD_POST_UNPATCH(func)	HOTRELOAD_CALLBACK(post_unpatch, void, func)

/* The names that patches for klp-build (linux/livepatch_helpers.h) and kpatch (kpatch-macros.h) use. */
#define KLP_PRE_PATCH_CALLBACK(func)	HOTRELOAD_PRE_PATCH(func)
#define KLP_POST_PATCH_CALLBACK(func)	HOTRELOAD_POST_PATCH(func)
#define KLP_PRE_UNPATCH_CALLBACK(func)	HOTRELOAD_PRE_UNPATCH(func)
#define KLP_POST_UNPATCH_CALLBACK(func)	HOTRELOAD_POST_UNPATCH(func)
#define KPATCH_PRE_PATCH_CALLBACK(func)	HOTRELOAD_PRE_PATCH(func)
#define KPATCH_POST_PATCH_CALLBACK(func)	HOTRELOAD_POST_PATCH(func)
#define KPATCH_PRE_UNPATCH_CALLBACK(func)	HOTRELOAD_PRE_UNPATCH(func)
#define KPATCH_POST_UNPATCH_CALLBACK(func)	HOTRELOAD_POST_UNPATCH(func)

/*
 * A static call whose key is in the module that is patched: the call goes through the key. (The site of an
 * ordinary one would be patched before livepatch has found the key.)
 */
#define HOTRELOAD_STATIC_CALL(name)							\
	((typeof(STATIC_CALL_TRAMP(name)) *)READ_ONCE(STATIC_CALL_KEY(name).func))
#define KLP_STATIC_CALL(name)		HOTRELOAD_STATIC_CALL(name)
#define KPATCH_STATIC_CALL(name)	HOTRELOAD_STATIC_CALL(name)

/*
 * Syscalls need no macro of their own here: where their inner functions cannot be traced, hotreload takes
 * the outer ones.
 */
#define KLP_SYSCALL_DEFINE1(...)	SYSCALL_DEFINE1(__VA_ARGS__)
#define KLP_SYSCALL_DEFINE2(...)	SYSCALL_DEFINE2(__VA_ARGS__)
#define KLP_SYSCALL_DEFINE3(...)	SYSCALL_DEFINE3(__VA_ARGS__)
#define KLP_SYSCALL_DEFINE4(...)	SYSCALL_DEFINE4(__VA_ARGS__)
#define KLP_SYSCALL_DEFINE5(...)	SYSCALL_DEFINE5(__VA_ARGS__)
#define KLP_SYSCALL_DEFINE6(...)	SYSCALL_DEFINE6(__VA_ARGS__)
#define KPATCH_SYSCALL_DEFINE1(...)	SYSCALL_DEFINE1(__VA_ARGS__)
#define KPATCH_SYSCALL_DEFINE2(...)	SYSCALL_DEFINE2(__VA_ARGS__)
#define KPATCH_SYSCALL_DEFINE3(...)	SYSCALL_DEFINE3(__VA_ARGS__)
#define KPATCH_SYSCALL_DEFINE4(...)	SYSCALL_DEFINE4(__VA_ARGS__)
#define KPATCH_SYSCALL_DEFINE5(...)	SYSCALL_DEFINE5(__VA_ARGS__)
#define KPATCH_SYSCALL_DEFINE6(...)	SYSCALL_DEFINE6(__VA_ARGS__)

/* printk() is __cold, which can move code that follows it; hotreload follows code wherever it is. */
#define KPATCH_PRINTK(...)	printk(__VA_ARGS__)

#endif
