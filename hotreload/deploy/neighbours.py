# SPDX-License-Identifier: MIT
"""Who else works on the guest's functions, and so keeps a patch of ours out. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hotreload.deploy.transition import nonsense
from hotreload.errors import PatchRejectedError

# In enabled_functions: an address (%pS), the mark of a function that is redirected, every kprobe's handler.
SYMBOL = r"[A-Za-z_][\w.]*\+0x\w+/0x\w+(?: \[\w+\])?"
REDIRECTED = re.compile(r"\(\d+\)[ RDOM]* I")
KPROBES = "kprobe_ftrace_handler"


def foreign_patches(what: str, names: Sequence[str]) -> PatchRejectedError:
    """The error for a guest with live patches of others, which ours, being atomic-replace, would disable."""
    several = len(names) > 1
    return PatchRejectedError(
        f"{what} would take the guest's other live patch{'es' * several} back: {', '.join(names)}",
        hint=f"disable {'them' if several else 'it'} in the guest (hotreload guest ssh), then save again: "
        + "; ".join(f"echo 0 >/sys/kernel/livepatch/{name}/enabled" for name in names),
    )


def blocked_by(what: str, blocked: Mapping[str, Any]) -> PatchRejectedError:
    """The error for a function that the kernel could not redirect (-16, EBUSY), with who has it.

    ``blocked``: the agent's field of that name. Raises GuestUnreachableError (HR4103) when it is not one.
    """
    try:
        function, traces = str(blocked["function"]), bool(blocked["ftrace_enabled"])
        handlers = tuple(map(str, blocked["handlers"]))
        owner, symbols = _owner("\n".join(map(str, blocked["users"])), handlers, bool(blocked["kprobes"]))
    except (KeyError, TypeError) as error:
        raise nonsense(repr(blocked)) from error
    refused = f"the guest's kernel refused {what}:"
    if not traces:
        return PatchRejectedError(
            f"{refused} kernel.ftrace_enabled is 0 in the guest",
            hint="turn it on there (sysctl -w kernel.ftrace_enabled=1), then save again",
        )
    names = ", ".join(re.sub(r"\+0x\w+/0x\w+", "", symbol) for symbol in symbols)
    modules = dict.fromkeys(re.findall(r"\[(\w+)\]", names))
    remove = f"remove it in the guest (rmmod {' '.join(modules)})" if modules else "remove it"
    return PatchRejectedError(
        f"{refused} {function} is taken by {owner}{f': {names}' if names else ''}",
        hint=f"{remove}, then save again; /sys/kernel/tracing/enabled_functions and"
        " /sys/kernel/debug/kprobes/list show who has which function",
    )


def _owner(users: str, handlers: Sequence[str], has_kprobe: bool) -> tuple[str, Sequence[str]]:
    """What it is, and its functions as far as they are known.

    One at a time may redirect a function: live patches together, a kprobe that has a post_handler
    (arm_kprobe_ftrace() in kernel/kprobes.c), or any other ftrace_ops with IPMODIFY; and none of them where a
    direct call does not share (prepare_direct_functions_for_ipmodify() in kernel/trace/ftrace.c).
    ``users``: the function's lines of enabled_functions, which name an ftrace_ops that is the only one.
    """
    redirected = REDIRECTED.search(users)
    direct = re.findall(rf"direct-->({SYMBOL})", users)
    if direct and not redirected:
        return "an ftrace direct call", direct
    if handlers:
        return "a kprobe that has a post_handler", handlers
    alone = [name for name in re.findall(rf"\(({SYMBOL})\)", users) if redirected and KPROBES not in name]
    if alone or not has_kprobe:
        return "another user of ftrace", alone
    return "a kprobe that has a post_handler", ()
