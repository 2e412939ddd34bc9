# SPDX-License-Identifier: MIT
"""Functions of vmlinux that some task never leaves, so that no transition away from them ends.

A task switches to a patch when none of the replaced functions is on its stack. Kernel threads are not sent
signals (kernel/livepatch/transition.c). A sleeping task is in schedule(); an idle kernel thread is also in
its main loop. This is worse than a patch that does not get through: tasks that have switched sleep in the new
function, so it cannot be taken back either, and every later patch waits for it.
"""

from __future__ import annotations

from typing import Final

_SLEEPS: Final = "every sleeping task is in it"
_WAITS: Final = "kernel threads wait in it forever"
_LOOPS: Final = "it is the main loop of kernel threads, which they never leave"
_IDLES: Final = "idle CPUs are in it"

NEVER_LEFT: Final = {
    "schedule": _SLEEPS,
    "__schedule": _SLEEPS,
    "preempt_schedule": _SLEEPS,
    "preempt_schedule_common": _SLEEPS,
    "schedule_timeout": _WAITS,
    "schedule_preempt_disabled": _WAITS,
    "do_idle": _IDLES,
    "cpu_startup_entry": _IDLES,
    "schedule_idle": _IDLES,
    "ret_from_fork": _LOOPS,  # C since v6.6, and traced there
    "kthread": _LOOPS,
    "kthreadd": _LOOPS,
    "kthread_worker_fn": _LOOPS,
    "worker_thread": _LOOPS,
    "rescuer_thread": _LOOPS,
    "smpboot_thread_fn": _LOOPS,
    "rcu_gp_kthread": _LOOPS,
    "rcu_tasks_kthread": _LOOPS,
    "kswapd": _LOOPS,
    "kcompactd": _LOOPS,
    "khugepaged": _LOOPS,
    "oom_reaper": _LOOPS,
    "devtmpfsd": _LOOPS,
    "kauditd_thread": _LOOPS,
}
