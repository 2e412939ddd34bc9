# SPDX-License-Identifier: MIT
"""The first edits of a soak (scripts/soak does 300): random ones, and the guest is as foretold after each."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from hotreload.build.kernel_tree import KernelTree
from hotreload.survey.soak import Options, as_text, soak
from tests.conftest import require
from tests.guest.conftest import PROGRAMS

SEED, EDITS = 41, 22


def test_after_random_edits_the_guest_does_what_the_sources_say(
    debian_kernel: KernelTree, tmp_path: Path
) -> None:
    assert debian_kernel.image.is_file()
    for program, package in PROGRAMS.items():
        require(shutil.which(program), program, f"apt-get install {package}")
    result = asyncio.run(soak(Options(SEED, EDITS), tmp_path))
    assert not result.failure, as_text(result)
    assert not result.has_grown
    assert result.outcomes.total() >= EDITS / 2
