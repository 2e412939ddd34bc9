# SPDX-License-Identifier: MIT
"""What to do with edits of code that runs at load: reload the module, or let them wait for a load. Pure.

Exit code is the counterpart of init code. If any unit of a module has changed init code, which the guest has
not run, then the old exit code is the one that fits what init has done. So it stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path

from hotreload.build.built import VMLINUX
from hotreload.compared import Compared
from hotreload.diff.load_time import written_name
from hotreload.diff.obstacles import NotPatchableError, Obstacle
from hotreload.elf.model import Symbol, SymbolRef, Target
from hotreload.elf.readers import forgets

WAIT = "wait"
EXIT_FIRST = (
    "save the exit code alone, so that it goes live, and then the rest; or run hotreload guest restart;"
    " or use --max-rung restore"
)
HINT = (
    "reload the module, which loses its state: hotreload watch --max-rung module does that;"
    ' or let it wait for the next load: init_changes = "wait"'
)


def init_obstacles(compared: Mapping[Path, Compared], init_changes: str) -> Iterator[Obstacle]:
    """Yield an obstacle for changed init code of modules that may not wait.

    Init code of vmlinux always waits, for a boot.
    """
    for each in compared.values() if init_changes != WAIT else ():
        if each.pair.unit.module != VMLINUX:
            for name in each.diff.init_changed:
                message = f"{name} changed, and runs only when the module is loaded or unloaded"
                yield Obstacle("HR2201", name, message, HINT, str(each.pair.unit.source))


def with_init(compared: Mapping[Path, Compared]) -> Mapping[Path, Compared]:
    """Return the same units without exit code that waits because init code of its module waits."""
    modules = _with_other_init(compared)
    return {
        key: replace(each, diff=replace(each.diff, exit=None)) if _is_held(each, modules) else each
        for key, each in compared.items()
    }


def waiting(compared: Mapping[Path, Compared], init_changes: str) -> Iterator[str]:
    """Yield notes for people on what waits, by module."""
    modules = _with_other_init(compared)
    names: dict[str, list[str]] = defaultdict(list)
    for each in compared.values():
        module = each.pair.unit.module
        if module == VMLINUX or init_changes == WAIT:
            names[module] += each.diff.init_changed
            if each.diff.exit is not None and _is_held(each, modules):
                names[module].append(written_name(each.diff.exit.original))
    for module, waits in names.items():
        if waits:
            what = "a boot of the rebuilt kernel" if module == VMLINUX else f"the next load of {module}"
            yield f"HR2201 waits for {what}: {', '.join(dict.fromkeys(waits))}"


def refuse_unstopped(
    live: Mapping[Path, Compared], pending: Mapping[Path, Compared], names: Set[str]
) -> None:
    """Refuse to unload modules if live code has started something that only ``pending`` exit code stops.

    Live code that came with its own changed exit code is stopped by that. Raises NotPatchableError (HR2201).
    """
    stopping = {
        each.pair.unit.module
        for each in with_init(live).values()
        if each.diff.exit is not None or set(each.diff.exit_changed) & set(each.diff.changed_functions)
    }
    for name in sorted(names - stopping):
        exits = [
            e for each in pending.values() if each.pair.unit.module == name for e in each.diff.exit_changed
        ]
        if exits and any(_starts_something(each) for each in live.values() if each.pair.unit.module == name):
            message = (
                f"{', '.join(exits)} must stop what live code of {name} may have started, but cannot go live"
                " with this edit: the old exit code would run"
            )
            raise NotPatchableError([Obstacle("HR2201", exits[0], message, EXIT_FIRST)])


def unloaded_by_the_old(
    live: Mapping[Path, Compared], pending: Mapping[Path, Compared], names: Set[str]
) -> Iterator[str]:
    """Yield notes on modules that are unloaded by their old exit code.

    This happens if new exit code comes with the same edit that needs the reload.
    """
    running = {key: _exit_code(each) for key, each in with_init(live).items()}
    changed: dict[str, set[str]] = defaultdict(set)
    for key, each in (*live.items(), *pending.items()):
        wanted = _exit_code(pending[key]) if key in pending else frozenset()
        if wanted != running.get(key, frozenset()):
            changed[each.pair.unit.module].update(each.diff.exit_changed)
    for name in sorted(names):
        if exits := changed.get(name):
            what = ", ".join(sorted(exits))
            yield f"HR2201 {name} is unloaded by its exit code from before this edit, which changed {what}"


def _exit_code(edited: Compared) -> frozenset[Hashable]:
    """Return the exit code that an edit brings, as a comparable value.

    For exit code that cannot go live, these are its names.
    """
    diff = edited.diff
    new = [s for s in diff.carried if s in diff.original_of] if diff.exit_changed else []
    code = {
        (function.content, tuple((r.offset, r.addend, _meaning(r.target)) for r in function.relocations))
        for function in new
        if written_name(diff.original_of[function]) in diff.exit_changed
    }
    return frozenset(code or diff.exit_changed)


def _meaning(target: Target) -> Hashable:
    return target.symbol.name if isinstance(target, SymbolRef) else target


def _starts_something(live: Compared) -> bool:
    """Return whether an edit adds calls that may start something that goes on after the call."""
    new = {symbol for symbol in live.diff.carried if symbol.is_function}
    for twins in live.diff.changed:
        new.discard(twins.patched)
        if _calls(twins.patched) - _calls(twins.original):
            return True
    return any(_calls(symbol) for symbol in new if symbol not in live.diff.original_of)


def _calls(function: Symbol) -> set[str]:
    """Return the names of external code that a function refers to, except what only reads its arguments."""
    names = {
        relocation.target.symbol.name
        for relocation in function.relocations
        if isinstance(relocation.target, SymbolRef) and not relocation.target.symbol.is_defined
    }
    return {name for name in names if not forgets(name) and not name.startswith(("__x86_", "__fentry__"))}


def _with_other_init(compared: Mapping[Path, Compared]) -> set[str]:
    return {each.pair.unit.module for each in compared.values() if each.diff.init_changed}


def _is_held(each: Compared, modules: set[str]) -> bool:
    return each.diff.exit is not None and each.pair.unit.module in modules
