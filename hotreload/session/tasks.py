# SPDX-License-Identifier: MIT
"""What goes on beside something else."""

from __future__ import annotations

import asyncio
from typing import Any


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Have it end; what it failed with was told already."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
