# SPDX-License-Identifier: MIT
"""Report which other user of the guest's functions prevents a patch of ours. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hotreload.deploy.transition import nonsense
from hotreload.errors import PatchRejectedError

# In enabled_functions: an address (%pS), the mark of a redirected function, the handler of every kprobe.
SYMBOL = r"[A-Za-z_][\w.]*\+0x\w+/0x\w+(?: \[\w+\])?"
REDIRECTED = re.compile(r"\(\d+\)[ RDOM]* I")
KPROBES = "kprobe_ftrace_handler"


def foreign_patches(what: str, names: Sequence[str]) -> PatchRejectedError:
    """Return the error for a guest with foreign live patches, which ours (atomic replace) would disable."""
    several = len(names) > 1
    return PatchRejectedError(
        f"{what} would disable the guest's other live patch{'es' * several}: {', '.join(names)}",
        hint=f"disable {'them' if several else 'it'} in the guest (hotreload guest ssh), then save again: "
        + "; ".join(f"echo 0 >/sys/kernel/livepatch/{name}/enabled" for name in names),
    )


def blocked_by(what: str, blocked: Mapping[str, Any]) -> PatchRejectedError:
    """Return the error for a function that the kernel could not redirect (-16, EBUSY), with its other user.

    ``blocked``: the agent's field of that name. Raises GuestUnreachableError (HR4103) if it is malformed.
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
        f"{refused} {function} is already used by {owner}{f': {names}' if names else ''}",
        hint=f"{remove}, then save again; /sys/kernel/tracing/enabled_functions and"
        " /sys/kernel/debug/kprobes/list show what uses which function",
    )


def _owner(users: str, handlers: Sequence[str], has_kprobe: bool) -> tuple[str, Sequence[str]]:
    """Return what kind of user it is, and its functions as far as they are known.

    Only one user at a time may redirect a function: live patches together, a kprobe that has a post_handler
    (arm_kprobe_ftrace() in kernel/kprobes.c), or any other ftrace_ops with IPMODIFY. None of them may do so
    if there is a direct call that does not share (prepare_direct_functions_for_ipmodify() in
    kernel/trace/ftrace.c). ``users``: the function's lines in enabled_functions, which name the ftrace_ops if
    it is the only one.
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
