# SPDX-License-Identifier: MIT
"""What `hotreload status` prints."""

from __future__ import annotations

import dataclasses

from hotreload.deploy.transition import LivePatchState, PatchedFunction, PatchedObject
from hotreload.session.client import status_text

SESSION = {
    "guest": "default",
    "state": "running",
    "pid": 7,
    "background": False,
    "watching": True,
    "folder": "/drv",
}


def test_a_live_patch_of_somebody_elses_is_marked_as_such() -> None:
    functions = (PatchedFunction("version_proc_show", 1),)
    patches = (
        LivePatchState("hotreload_2", True, False, (PatchedObject("drv", False, functions),)),
        LivePatchState("kpatch_7", True, True, (PatchedObject("vmlinux", True, functions),), foreign=True),
    )
    text = status_text(SESSION | {"patches": [dataclasses.asdict(patch) for patch in patches]})
    assert text.splitlines()[3:] == [
        "patch     hotreload_2  live",
        "          drv: version_proc_show  (not loaded)",
        "patch     kpatch_7  in transition, not loaded by hotreload: no reload while it is loaded",
        "          vmlinux: version_proc_show",
    ]


def test_a_kernel_without_a_loaded_module_is_told_by_its_size() -> None:
    kernel = {"kernel": "6.1.170", "accel": "tcg", "ssh_port": 1, "running": None, "modules": []}
    text = status_text(SESSION | kernel | {"contents": "887 units of vmlinux and 15 modules"})
    assert "modules   887 units of vmlinux and 15 modules" in text.splitlines()
