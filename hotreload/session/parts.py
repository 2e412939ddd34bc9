# SPDX-License-Identifier: MIT
"""Make the parts of a session that depend on its guest: the reloader and the watcher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hotreload.build.built import MAKEFILE_NAME, Build, is_product, is_stamp
from hotreload.config import Config
from hotreload.deploy.module_reload import Commands
from hotreload.session.boot import Booted
from hotreload.watch.watcher import Watcher

if TYPE_CHECKING:
    from hotreload.reload import Reloader

SOURCE_SUFFIXES = frozenset((".c", ".h", ".S", ".inc"))
# Files from which a kernel's build generates sources (system call tables, scripts), and the folders where
# such files serve other purposes.
RECIPE_SUFFIXES = frozenset((".tbl", ".awk", ".pl", ".sh", ".py", ".asn1", ".dts", ".uni", ".map"))
BESIDE_KERNEL = frozenset(("Documentation", "tools", "samples", "LICENSES"))


def reloader_for(
    booted: Booted, config: Config, folder: Path, restored: Callable[[str, float], None], *, dry_run: bool
) -> Reloader:
    """Return the reloader that brings edits to this guest. ``folder`` and ``restored``: see Reloader."""
    from hotreload.module_rung import ModuleRung
    from hotreload.reload import Reloader
    from hotreload.running_check import RunningCheck

    return Reloader(
        base=booted.base,
        glue=booted.glue,
        guest=booted.guest,
        running=RunningCheck(booted.base, booted.guest, booted.read_memory, booted.idt_base),
        stale=booted.stale,
        trouble=lambda: booted.machine.trouble,
        folder=folder,
        transition_timeout=config.transition_timeout,
        dry_run=dry_run,
        max_units=config.max_units,
        init_changes=config.init_changes,
        checkpoints=booted.checkpoints,
        restored=restored,
        module_rung=ModuleRung(config.max_rung, config.load, Commands(config.setup, config.teardown)),
    )


def watcher_for(build: Build, config: Config) -> Watcher:
    """Return the watcher that reports saves of what was built."""
    files = frozenset(file for file in build.watched_files if not is_stamp(file))
    if build.is_kernel:
        files |= frozenset(build.makefiles)

    def wanted(path: Path) -> bool:
        if path in files or MAKEFILE_NAME.fullmatch(path.name):
            return True
        if not build.is_kernel:
            return True  # a rule of make may use it
        # A kernel may be built while we watch. Do not report generated sources that only its boot code uses.
        return (path.suffix in SOURCE_SUFFIXES or _is_recipe(path, build.folder)) and not is_product(path)

    def by_time(path: Path) -> bool:
        return path.suffix not in SOURCE_SUFFIXES and MAKEFILE_NAME.fullmatch(path.name) is None

    quiet = config.debounce_ms / 1000
    return Watcher(
        [build.folder], files=files, wanted=wanted, look=not build.is_kernel, by_time=by_time, quiet=quiet
    )


def _is_recipe(path: Path, folder: Path) -> bool:
    """Return whether a kernel's build may generate sources from this file.

    Such a change is not followed, only reported.
    """
    if path.name.startswith("Kconfig"):
        return True
    part = path.relative_to(folder).parts[0] if path.is_relative_to(folder) else ""
    return path.suffix in RECIPE_SUFFIXES and part not in BESIDE_KERNEL
