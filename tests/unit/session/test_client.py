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
        "patch     kpatch_7  in transition, not one of hotreload's: no reload while it is there",
        "          vmlinux: version_proc_show",
    ]
