# SPDX-License-Identifier: MIT
"""Run commands with a kernel that has debugging checks on (vmimages/debug.config).

`scripts/debug-kernel COMMAND` builds the kernel once, into the cache. It runs COMMAND with the settings that
make it the kernel of every guest. Programs that clear their environment still find a `hotreload` with these
settings on their PATH.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hotreload.build.kernel_tree import KernelTree
from hotreload.config import PACKAGED_KERNEL
from hotreload.errors import HotReloadError
from hotreload.survey.command import say
from hotreload.survey.kernel_build import PACKAGE, cached_kernel

DEBUG = "debug"


async def debug_kernel(progress: Callable[[str], None]) -> KernelTree:
    """Return the kernel from the cache, or build it in about 20 minutes. Raises what cached_kernel raises."""
    return await cached_kernel(PACKAGE, DEBUG, progress)


def wanted_kernel() -> str:
    """Return the default kernel of a survey: that of the environment, or the packaged one."""
    return os.environ.get("HOTRELOAD_KERNEL", PACKAGED_KERNEL)


def settings_for(kernel: str) -> dict[str, str]:
    """Return an environment that selects the kernel, with memory and time for one several times slower."""
    return {
        "HOTRELOAD_KERNEL": kernel,
        "HOTRELOAD_MEMORY_MB": "768",
        "HOTRELOAD_BOOT_TIMEOUT": "300",
        "HOTRELOAD_TRANSITION_TIMEOUT": "60",
    }


def wrapper(settings: Mapping[str, str]) -> str:
    """Return a `hotreload` script that has the settings in any environment."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items())
    return f'#!/bin/sh\n{exports}exec {shlex.quote(sys.executable)} -m hotreload "$@"\n'


def run_in_it(argv: Sequence[str]) -> int:
    """Run a command with the settings, and return its exit status. Without one, print the kernel's folder."""
    kernel = asyncio.run(debug_kernel(say))
    if not argv:
        print(kernel.output)
        return 0
    settings = settings_for(str(kernel.output))
    with tempfile.TemporaryDirectory(prefix="hr-debug-") as folder:
        program = Path(folder) / "hotreload"
        program.write_text(wrapper(settings))
        program.chmod(0o755)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(argv, env={**os.environ, **settings, "PATH": path}, check=False).returncode


def main() -> int:
    try:
        return run_in_it(sys.argv[1:])
    except HotReloadError as error:
        print(f"{error.code} {error.message}; {error.hint}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
