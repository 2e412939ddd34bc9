# SPDX-License-Identifier: MIT
"""The kernels whose own trees the guest tests edit: packaged sources, built once into the cache.

``python -m tests.kernels`` builds what is missing, and says how far it is; scripts/test does that first.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from hotreload.errors import HotReloadError
from hotreload.survey.kernel_build import cached_kernel, find_cached_kernel
from tests.conftest import require, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotreload.build.kernel_tree import KernelTree

SERIES = ("6.1", "6.12")
CONFIG = "minimal"
COMMAND = ".venv/bin/python -m tests.kernels"


async def kernel_of(series: str) -> KernelTree:
    """The kernel of a series; a test that may not wait minutes for it is skipped while there is none."""
    if not os.environ.get("HOTRELOAD_REQUIRE"):
        tree = await find_cached_kernel(_package(series), CONFIG)
        require(tree, f"the kernel {series} of these tests", f"{COMMAND} (10 min)")
        assert tree is not None, "or this test was skipped"
        return tree
    return await build(series, say)


async def build(series: str, progress: Callable[[str], None]) -> KernelTree:
    """The newest kernel of a series that is packaged. Raises what cached_kernel raises."""
    if await find_cached_kernel(_package(series), CONFIG) is None:
        progress(f"building linux {series} (first time: about 10 min)")
    return await cached_kernel(
        _package(series), CONFIG, lambda text: progress(f"building linux {series}: {text}")
    )


def _package(series: str) -> str:
    return f"linux-source-{series}"


def main() -> int:
    """Build those that are missing; the exit status."""
    for series in SERIES:
        try:
            asyncio.run(build(series, lambda text: print(text, file=sys.stderr, flush=True)))
        except HotReloadError as error:
            print(f"{error.code} {error.message}; {error.hint}", file=sys.stderr)
            return 7
    return 0


if __name__ == "__main__":
    sys.exit(main())
