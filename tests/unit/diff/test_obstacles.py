# SPDX-License-Identifier: MIT
"""The ways out of a refusal."""

from __future__ import annotations

from hotreload.diff.obstacles import BUILD_KERNEL, BUILD_MODULE, NotPatchableError, Obstacle


def test_a_kernel_is_built_before_a_guest_is_booted_with_it() -> None:
    refused = NotPatchableError(
        [
            Obstacle("HR2105", "p", "'p' is new"),
            Obstacle("HR1004", "Makefile", "Makefile changed", BUILD_MODULE),
            Obstacle("HR2207", "f", "f is in use", "leave it"),
        ]
    )
    assert [each.hint for each in refused.of_kernel().obstacles] == [BUILD_KERNEL, BUILD_KERNEL, "leave it"]
    assert refused.of_kernel().code == "HR2105"
