# SPDX-License-Identifier: MIT
"""Passes over the code that runs when a module is loaded or unloaded.

Init code has run and is freed, so a changed version waits for the next load. Exit code has yet to run, and
only the exit code of the current sources stops what live code has started. So it goes live: livepatch cannot
redirect it, because ``__exit`` functions are notrace (include/linux/init.h), but the kernel calls it through
a pointer in struct module, which can be written like a variable. Init code and exit code that both change
belong together, because exit undoes what init did. Then both wait.
"""

from __future__ import annotations

from hotreload.diff.correlate import source_name
from hotreload.diff.pair import Pair, defined_targets, is_bystander, is_exit_code, reached_from, referrers_of
from hotreload.elf.model import ObjectFile, Symbol

# The names that module_init() and module_exit() give the author's functions (include/linux/module.h), also in
# one of several units of a module. In built-in code there are no such names.
INIT_NAME = "init_module"
EXIT_NAME = "cleanup_module"


def written_name(function: Symbol) -> str:
    """Return the author's name of a function, without what module_init(), module_exit() or gcc made of it."""
    if function.name in (INIT_NAME, EXIT_NAME) and function.aliases:
        return function.aliases[0]
    return source_name(function.name)


def settle_exit(pair: Pair) -> None:
    """Let changed exit code travel if only the module's exit function leads to it. Otherwise it waits."""
    if not pair.exit_changed:
        return
    roots = pair.original.symbol(EXIT_NAME), pair.patched.symbol(EXIT_NAME)
    before, after = roots
    if (
        pair.init_changed
        or before is None
        or after is None
        or pair.correlation.original_of.get(after) is not before
        or not all(map(is_exit_code, (before, after)))
        or not _leads_to(before, pair.original, set(pair.exit_changed.values()))
        or not _leads_to(after, pair.patched, set(pair.exit_changed))
    ):
        pair.init_changed += [written_name(function) for function in pair.exit_changed.values()]
    else:
        pair.exit = before, after


def exit_code(obj: ObjectFile) -> set[Symbol]:
    """Return the module's exit function, if this unit defines it, and what it calls in this unit."""
    root = obj.symbol(EXIT_NAME)
    return {root, *reached_from([root])} if root is not None and root.is_function else set()


def _leads_to(root: Symbol, obj: ObjectFile, functions: set[Symbol]) -> bool:
    """Return whether these functions are reached from the exit function alone."""
    reached, todo = {root}, [root]
    while todo:
        for target in defined_targets(todo.pop().relocations):
            if is_exit_code(target) and target not in reached:
                reached.add(target)
                todo.append(target)
    referrers = referrers_of(obj)
    # A bystander is a variable of ___ADDRESSABLE(), which only keeps compilers from dropping the function.
    others = {each for f in functions for each in referrers[f] - reached if not is_bystander(each)}
    return functions <= reached and not others


def weigh_init(pair: Pair) -> None:
    """Note changed code that waits for the next load or unload. Refuse the edit if nothing else changed."""
    for name in dict.fromkeys(pair.init_changed):
        if pair.is_patch:
            message = f"{name} runs when the module is loaded or unloaded; its change waits for the next load"
            pair.tell("HR2201", name, message)
        else:
            pair.refuse(
                "HR2201", name, f"{name} changed, and runs only when the module is loaded or unloaded"
            )
