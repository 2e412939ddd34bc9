# SPDX-License-Identifier: MIT
"""Refuse functions that newly undo what another function newly does to an object. Pure.

``open`` now takes a reference and ``release`` drops it; ``start`` takes another lock and ``stop`` releases
it; ``probe`` creates a workqueue and ``remove`` destroys it. Each function is right by itself, and a fresh
guest would never run one without the other. But a file that is open, a reader between ``start`` and ``stop``,
or a device that is bound went through the old code, and would be undone by the new one.

The names of two kernel functions say whether one undoes the other: ``napi_enable`` and ``napi_disable``,
``get_device`` and ``put_device``, ``alloc_workqueue`` and ``destroy_workqueue``.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final

from hotreload.diff.correlate import parent_name
from hotreload.diff.load_time import EXIT_NAME
from hotreload.diff.obstacles import RELOAD_MODULE, Obstacle
from hotreload.diff.pair import is_exit_code
from hotreload.elf.decoded import RDI, body_of
from hotreload.elf.model import Symbol
from hotreload.elf.object_pointers import is_of_variable, states_of

# The verb of a function that undoes something, and the verbs of those that do it.
_DONE_BY: Final = {
    "unlock": ("lock", "trylock"),
    "up": ("down",),
    "put": ("get",),
    "disable": ("enable",),
    "unregister": ("register",),
    "deregister": ("register",),
    "remove": ("add", "create", "register", "insert", "alloc"),
    "delete": ("add", "create"),
    "del": ("add", "create"),
    "destroy": ("create", "init", "alloc"),
    "free": ("request", "alloc", "create", "init"),
    "release": ("acquire", "request", "hold"),
    "cleanup": ("init",),
    "exit": ("init",),
    "fini": ("init",),
    "stop": ("start", "run", "create"),
    "detach": ("attach",),
    "unmap": ("map",),
    "unprepare": ("prepare",),
    "disconnect": ("connect",),
    "close": ("open",),
    "dec": ("inc",),
    "end": ("begin", "start"),
    "erase": ("store", "insert"),
}
# Words that say how something is done, and not to what.
_MANNERS: Final = frozenset(
    """try sync ns threaded range irqsave irqrestore irq bh nested interruptible killable key noprof node raw
    timeout managed locked unlocked atomic on cpu any full entry single data""".split()
)
# Words in the names of functions that only answer a question: kthread_should_stop().
_QUESTIONS: Final = frozenset("should is has have can could may need needs needed must was".split())


def refuse_new_pairs(
    changed: Iterable[tuple[Symbol, Symbol]],
    new: Collection[Symbol],
    removed: Collection[Symbol] = (),
) -> Iterator[Obstacle]:
    """Yield an obstacle (HR2211) for each function that newly undoes what another one newly does.

    ``changed``           changed functions as (original, patched)
    ``new``, ``removed``  functions without a twin. What a changed function does by way of a new one counts as
                          its own, and calls that only moved between functions are not new
    """
    helpers = {name: function for function in new for name in (function.name, *function.aliases)}
    calls = {
        patched: (_calls([original]), _calls(_with_helpers(patched, helpers)))
        for original, patched in changed
    }
    total: Counter[str] = Counter()
    for was, now in calls.values():
        total.update(now)
        total.subtract(was)
    total.subtract(_calls(removed))
    gained = {
        function: names
        for function, (was, now) in calls.items()
        if (names := [name for name in now - was if total[name] > 0])
    }
    told = set()
    for (one, does), (other, undoes) in itertools.permutations(gained.items(), 2):
        for do, undo in itertools.product(does, undoes):
            if other in told or not is_undone_by(do, undo):
                continue
            if any(is_undone_by(do, name) for name in does) or any(is_undone_by(n, undo) for n in undoes):
                continue  # the function does both, and no task is in between when it is replaced
            ways = _with_helpers(other, helpers)
            if not any(_undoes_object(each, undo, is_exit=_is_exit(other)) for each in ways):
                continue
            told.add(other)
            maker, name = parent_name(one.name), parent_name(other.name)
            message = f"{maker} now calls {do}(), and {name} the matching {undo}()"
            message += f": what went through the old {maker} would be undone as well"
            yield Obstacle("HR2211", name, message, RELOAD_MODULE)


@lru_cache(maxsize=4096)
def is_undone_by(do: str, undo: str) -> bool:
    """Return whether the names of two kernel functions say that the second one undoes the first one."""
    does, undoes = _words(do), _words(undo)
    if _QUESTIONS & (does | undoes):
        return False
    for verb in undoes:
        for done in does.intersection(_DONE_BY.get(verb, ())):
            ours, theirs = does - {done} - _MANNERS, undoes - {verb} - _MANNERS
            ours, theirs = ours or does - {done}, theirs or undoes - {verb}
            if ours and theirs and (ours <= theirs or theirs <= ours):
                return True
    return False


def _words(name: str) -> frozenset[str]:
    return frozenset(word for word in name.split("_") if word)


def _undoes_object(function: Symbol, undo: str, *, is_exit: bool) -> bool:
    """Return whether a function undoes something other than what it finds in a variable.

    A variable holds nothing until the new code has done it: ``if (worker) kthread_stop(worker)``. Exit code
    must do it to something that it finds in an object, because a fresh guest may also run it first.
    """
    body = body_of(function)
    for place, known in states_of(body).items():
        at = body.instructions[place]
        if at.mnemonic in ("call", "jmp") and at.destination is not None and at.destination.name == undo:
            pointer = known.get(RDI)
            if pointer is None or isinstance(pointer.came, Symbol):
                if not is_exit:
                    return True
            elif not is_of_variable(body, pointer):
                return True
    return False


def _is_exit(function: Symbol) -> bool:
    return is_exit_code(function) or EXIT_NAME in (function.name, *function.aliases)


def _with_helpers(function: Symbol, helpers: Mapping[str, Symbol]) -> list[Symbol]:
    """Return a function and the new functions that it calls, directly or through others."""
    found = [function]
    for each in found:
        for callee in _called(each):
            helper = helpers.get(callee.name)
            if helper is not None and helper not in found:
                found.append(helper)
    return found


def _calls(functions: Iterable[Symbol]) -> Counter[str]:
    """Return the names of the functions of other objects that these functions call."""
    return Counter(callee.name for each in functions for callee in _called(each) if not callee.is_defined)


def _called(function: Symbol) -> Iterator[Symbol]:
    for at in body_of(function).instructions.values():
        if at.mnemonic in ("call", "jmp") and at.destination is not None:
            yield at.destination
